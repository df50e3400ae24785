//! Finding and loading the records of one or many runs.

use super::Frame;
use crate::error::{Error, Result};
use crate::record::{Lines, SCHEMA_VERSION, read_lines, runs_folder};
use crate::warning::warn;
use std::path::{Path, PathBuf};

impl Frame {
    /// Loads records: a file of JSON lines, a run's folder, a run's id, or the name of a run or study, of which
    /// the newest run in [`runs_folder`] counts.
    ///
    /// Records of older and newer schema versions load together; columns that a record lacks are null.
    ///
    /// # Errors
    /// If nothing of that name exists, it holds no records, or a line in its middle is not JSON.
    pub fn load(what: impl AsRef<Path>) -> Result<Self> {
        Self::load_all(&[what])
    }

    /// Loads the records of several runs into one frame, in the order given.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_all<P: AsRef<Path>>(what: &[P]) -> Result<Self> {
        let mut all = Lines::default();
        for what in what {
            let path = find(what.as_ref(), &runs_folder())?;
            let lines = read_lines(&path)?;
            if lines.rows.is_empty() {
                return Err(Error::input("there are no records in it yet").at(path.display()));
            }
            let newer = |row: &&crate::record::Row| {
                row.get("schema_version")
                    .and_then(|v| v.as_u64())
                    .is_some_and(|v| v > u64::from(SCHEMA_VERSION))
            };
            let newer = lines.rows.iter().filter(newer).count();
            if newer > 0 {
                all.warnings.push(format!(
                    "{}: {newer} records were written by a newer lowbit; columns may have changed their meaning",
                    path.display()
                ));
            }
            all.rows.extend(lines.rows);
            all.warnings.extend(lines.warnings);
        }
        let mut frame = Self::from_rows(&all.rows)?;
        frame.warnings.extend(all.warnings);
        for warning in &frame.warnings {
            warn(warning);
        }
        Ok(frame)
    }
}

fn find(what: &Path, root: &Path) -> Result<PathBuf> {
    if what.is_file() {
        return Ok(what.into());
    }
    for folder in [what.to_path_buf(), root.join(what)] {
        let metrics = folder.join("metrics.jsonl");
        if metrics.is_file() {
            return Ok(metrics);
        }
        if folder.is_dir() && folder.join("config_resolved.yaml").is_file() {
            return Err(Error::input("this run has no records yet").at(folder.display()));
        }
    }
    let newest = crate::record::runs_named(root, &what.to_string_lossy())?.pop();
    newest.map(|folder| folder.join("metrics.jsonl")).filter(|metrics| metrics.is_file()).ok_or_else(|| {
        let place = format!(
            "{}: no such run, folder or file, nor a run of that name in {}",
            what.display(),
            root.display()
        );
        Error::input(place).hint("LOWBIT_RUNS names another folder of runs")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Conditions, Reading, Run, Subject};

    #[test]
    fn a_run_is_found_by_name_id_folder_and_file() {
        let root = tempfile::tempdir().unwrap();
        let mut last = PathBuf::new();
        for value in [1, 2] {
            let run = Run::create_in(root.path(), "study").unwrap();
            let reading = Reading::new("m", 1, &Subject::default(), &Conditions::default()).value("x", value);
            run.record(&[reading]).unwrap();
            last = run.path().to_path_buf();
        }
        let id = last.file_name().unwrap();
        for what in [Path::new("study"), Path::new(id), &last, &last.join("metrics.jsonl")] {
            let found = find(what, root.path()).unwrap();
            assert_eq!(
                Frame::load(&found).unwrap().numbers("x").unwrap(),
                [Some(2.0)],
                "the newest of its name"
            );
        }
        let error = find(Path::new("studi"), root.path()).unwrap_err().to_string();
        assert!(error.contains("studi: no such run"), "{error}");
        let empty = Run::create_in(root.path(), "empty").unwrap();
        let error = Frame::load(empty.path()).unwrap_err().to_string();
        assert!(error.ends_with("metrics.jsonl: there are no records in it yet"), "{error}");
    }
}
