//! Readings that no longer hold: a resumed run keeps those of one subject only.

use super::journal::Journal;
use super::reader::closed_unit;
use super::unit::{named, text};
use super::{Row, Run};
use crate::error::{Error, Result};
use crate::warning::warn;
use crate::whole::write_bytes;
use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::Write;

impl Run {
    /// Moves to `metrics.jsonl.stale` the readings of units that were neither recorded nor [asked for](Run::has) since
    /// the run was opened, where others of the same name were: the same measurement of a model of the same name in the
    /// same scheme, of which the weights, the config, the tokenizer, the text or the reference has changed since.
    ///
    /// Told on stderr; returns how many rows were moved.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn set_stale_aside(&self) -> Result<usize> {
        let metrics = self.path().join("metrics.jsonl");
        let bytes = fs::read(&metrics).map_err(|e| Error::io(&metrics, &e))?;
        let lines: Vec<(&[u8], Row)> = bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| (line, serde_json::from_slice(line).unwrap_or_default()))
            .collect();
        let mut state = self.state();
        let summaries = || lines.iter().filter(|(_, row)| closed_unit(row).is_some());
        let is_met = |row: &Row| state.met.contains(text(row, "fingerprint"));
        let met: Vec<_> = summaries().filter(|(_, row)| is_met(row)).map(|(_, row)| named(row)).collect();
        let stale: HashSet<&str> = summaries()
            .filter(|(_, row)| !is_met(row) && met.contains(&named(row)))
            .map(|(_, row)| text(row, "fingerprint"))
            .collect();
        if stale.is_empty() {
            return Ok(0);
        }
        let (aside, kept): (Vec<_>, Vec<_>) =
            lines.iter().partition(|(_, row)| stale.contains(text(row, "fingerprint")));
        let together = |lines: &[&(&[u8], Row)]| lines.iter().flat_map(|(line, _)| line.to_vec()).collect();
        let (moved, kept): (Vec<u8>, Vec<u8>) = (together(&aside), together(&kept));

        let path = self.path().join("metrics.jsonl.stale");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(&moved).and_then(|()| file.sync_all()))
            .map_err(|e| Error::io(&path, &e))?;
        write_bytes(&metrics, &kept)?;
        state.journal = Journal::open(&metrics, kept.len() as u64)?;
        state.recorded.retain(|unit| !stale.contains(unit.as_str()));
        let (id, count) = (self.id(), aside.len());
        warn(format!(
            "{id}: a model, its config, its tokenizer or a text has changed since {count} rows were recorded; they were \
             measured anew, and those of before are kept in metrics.jsonl.stale"
        ));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Conditions, Reading, Subject, read_lines};
    use super::*;

    fn reading(model: &str, scheme: &str, unit: &str) -> [Reading; 2] {
        let subject = Subject { model: model.into(), scheme: scheme.into(), ..Subject::default() };
        let row = || Reading::new("m", 1, &subject, &Conditions::default()).fingerprint(unit);
        [row().row("trial").value("correct", 1), row().value("accuracy", 0.5)]
    }

    #[test]
    fn readings_of_another_subject_leave_a_resumed_run() {
        let root = tempfile::tempdir().unwrap();
        let run = Run::create_in(root.path(), "t").unwrap();
        let path = run.path().to_path_buf();
        for (model, scheme, unit) in [
            ("bard", "f32", "old"),
            ("bard", "w4a8", "same"),
            ("bard", "nf4", "else"),
            ("other", "f32", "other"),
        ] {
            run.record(&reading(model, scheme, unit)).unwrap();
        }
        assert_eq!(run.set_stale_aside().unwrap(), 0, "everything was just recorded");
        drop(run);

        let run = Run::open(&path).unwrap();
        assert!(run.has("same") && !run.has("new"));
        run.record(&reading("bard", "f32", "new")).unwrap();
        assert_eq!(run.set_stale_aside().unwrap(), 2);
        assert!(!run.has("old") && run.has("new"));
        run.record(&reading("bard", "w8a8", "last")).unwrap();
        assert_eq!(run.set_stale_aside().unwrap(), 0);
        let units = |name: &str| -> Vec<String> {
            let rows = read_lines(path.join(name)).unwrap().rows;
            rows.iter().map(|row| text(row, "fingerprint").to_string()).step_by(2).collect()
        };
        assert_eq!(units("metrics.jsonl"), ["same", "else", "other", "new", "last"]);
        assert_eq!(units("metrics.jsonl.stale"), ["old"]);
    }
}
