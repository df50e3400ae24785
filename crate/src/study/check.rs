//! Measuring a recorded run again, to see whether it still says the same.

use super::Study;
use super::ablation::Ablation;
use crate::error::{Error, Result};
use crate::record::{Comparison, Count, Kind, Run, read_lines, run_folder};
use crate::settings;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A file in a run's folder that says which commit can check it, where later programs cannot: the commit, a blank, and a
/// sentence that says why.
pub const CHECKED_BY: &str = "checked-by";

/// What a second measurement of a run found.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// Id of the run.
    pub run: String,
    /// The two recordings side by side.
    pub comparison: Comparison,
}

/// The configuration of a run of a single measurement.
#[derive(Deserialize)]
struct Single {
    model: String,
    dtype: Option<String>,
    scheme: Option<String>,
    tokenizer: Option<String>,
    quantizing: Option<crate::quantize::Quantizing>,
    measure: Value,
}

impl Study {
    /// The study that a run was made by, whole or of a single measurement. The run is a folder, an id, or a name of which
    /// the newest run counts.
    ///
    /// # Errors
    /// If there is no such run, or it was made by hand and holds no configuration.
    pub fn of_run(run: impl AsRef<Path>) -> Result<Self> {
        let folder = run_folder(run.as_ref())?;
        let (path, config) = config(&folder)?;
        if config.get("measure").is_none() {
            return settings::read(&path);
        }
        let single: Single =
            serde_json::from_value(config).map_err(|e| Error::input(e).at(path.display()))?;
        let rows = read_lines(folder.join("metrics.jsonl"))?.rows;
        let kind = rows.first().and_then(|row| row.get("measure")?.as_str()).unwrap_or_default().to_string();
        let measure = serde_json::from_value(json!({ kind.as_str(): single.measure }));
        // What was loaded in few bits is measured as it is.
        let quantized =
            rows.first().is_some_and(|row| row.get("quant_backend").is_some_and(Value::is_string));
        let dtype = single.dtype.filter(|_| !quantized);
        Ok(Self {
            name: kind,
            models: vec![single.model],
            tokenizer: single.tokenizer,
            schemes: single.scheme.or(dtype).into_iter().collect(),
            quantizing: single.quantizing.unwrap_or_default(),
            measures: vec![measure.map_err(|e| Error::input(e).at(path.display()))?],
        })
    }

    /// Measures a run's study again, or trains an [`Ablation`] again, and compares the readings with the recorded ones, see
    /// [`Comparison`]. The new readings and models are not kept.
    ///
    /// # Errors
    /// Those of [`of_run`](Self::of_run), [`run`](Self::run) and [`Ablation::record`]; if the run is marked as one that only an
    /// earlier commit can check.
    pub fn check_run(run: impl AsRef<Path>) -> Result<Check> {
        let folder = run_folder(run.as_ref())?;
        only_by_another(&folder)?;
        let id = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let scratch = std::env::temp_dir().join(format!("lowbit-check-{id}-{}", std::process::id()));
        let again = match Ablation::of_run(&folder)? {
            None => {
                let study = Self::of_run(&folder)?;
                study.run_into(|| Run::create_in(&scratch, &study.name))?
            }
            Some(ablation) => {
                let run = Run::create_in(&scratch, &ablation.name)?;
                ablation.record(&run, &scratch.join("trained"))?;
                run
            }
        };
        let [recorded, found] =
            [folder.as_path(), again.path()].map(|run| read_lines(run.join("metrics.jsonl")));
        let comparison = Comparison::of(&recorded?.rows, &found?.rows);
        drop(again);
        fs::remove_dir_all(&scratch).map_err(|e| Error::io(&scratch, &e))?;
        Ok(Check { run: id, comparison })
    }
}

impl Ablation {
    /// The ablation that a run was made by, as [`Study::of_run`] finds a study; none if it is of a study.
    ///
    /// # Errors
    /// As [`Study::of_run`].
    pub fn of_run(run: impl AsRef<Path>) -> Result<Option<Self>> {
        let (path, config) = config(&run_folder(run.as_ref())?)?;
        config.get("variants").map(|_| settings::read(&path)).transpose()
    }
}

/// The configuration of a run, and its file.
fn config(folder: &Path) -> Result<(PathBuf, Value)> {
    let path = folder.join("config_resolved.yaml");
    if !path.is_file() {
        return Err(Error::input("this run was made by hand: no study can measure it again")
            .at(folder.display())
            .hint("name a run of a command or of a study"));
    }
    let config = settings::read(&path)?;
    Ok((path, config))
}

/// Refuses a run that is marked as one that only an earlier commit can check.
fn only_by_another(folder: &Path) -> Result<()> {
    let path = folder.join(CHECKED_BY);
    if !path.is_file() {
        return Ok(());
    }
    let mark = fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
    let (commit, why) = mark.trim().split_once(char::is_whitespace).unwrap_or((mark.trim(), ""));
    Err(Error::input(format!(
        "this run is checked by an earlier program: {}",
        why.trim().trim_end_matches('.')
    ))
    .at(folder.display())
    .hint(format!("git checkout {commit}, build, and check it with that")))
}

impl Check {
    /// Nothing, or the error of a run that does not say the same.
    ///
    /// # Errors
    /// If a value differs.
    pub fn passed(&self) -> Result<()> {
        if self.comparison.differences.is_empty() {
            return Ok(());
        }
        Err(Error::differs(self.told())
            .at(&self.run)
            .hint("see what changed in the code, or record the run anew"))
    }

    /// What differs, in numbers.
    fn told(&self) -> String {
        let Comparison { differences, rows, .. } = &self.comparison;
        let measured = self.comparison.count(Kind::is_measured);
        let others = self.comparison.count(|kind| !kind.is_measured());
        let mut all = vec![];
        if measured.differ > 0 || differences.is_empty() {
            all.push(format!("{} are not what was recorded", of(measured, "measured values")));
        }
        if others.differ > 0 {
            all.push(format!("{} are not", of(others, "settings, times and sizes of memory")));
        }
        if *rows > 0 {
            all.push(format!("{rows} rows are missing, new, or of another version of their measurement"));
        }
        all.join(", ")
    }
}

/// `92 of 764 measured values (12 %)`.
fn of(count: Count, what: &str) -> String {
    let Count { compared, differ } = count;
    let share = 100.0 * differ as f64 / compared.max(1) as f64;
    match differ {
        0 => format!("0 of {compared} {what}"),
        // Two digits, however small the share is.
        _ if share < 0.1 => format!("{differ} of {compared} {what} ({share:.2} %)"),
        _ if share < 10.0 => format!("{differ} of {compared} {what} ({share:.1} %)"),
        _ => format!("{differ} of {compared} {what} ({share:.0} %)"),
    }
}

/// The table of what differs, and lines on the whole.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { differences, rows, provenance, recorded_on, found_on, same_machine, .. } =
            &self.comparison;
        if !differences.is_empty() {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
            table.set_header(["measure", "unit", "column", "recorded", "found"]);
            table.add_rows(
                differences.iter().map(|d| [&d.measure, &d.unit, &d.column, &d.recorded, &d.found]),
            );
            writeln!(f, "{table}")?;
        }
        let count = |kinds: fn(Kind) -> bool, what: &str| of(self.comparison.count(kinds), what);
        let list =
            |names: &std::collections::BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
        let how = match same_machine {
            true => "bit for bit",
            false => "within the tolerances of another processor",
        };
        writeln!(f, "{}", self.run)?;
        writeln!(f, "  recorded on      {}", list(recorded_on))?;
        writeln!(f, "  measured on      {}", list(found_on))?;
        writeln!(f, "  compared         {how}")?;
        writeln!(f, "  differ           {}", count(Kind::is_measured, "measured values"))?;
        writeln!(f, "                   {}", count(|kind| kind == Kind::Exact, "settings and names"))?;
        writeln!(
            f,
            "                   {}",
            count(|kind| kind == Kind::Timing, "times, as ratios within the run")
        )?;
        write!(f, "                   {}", count(|kind| kind == Kind::Memory, "sizes of memory in use"))?;
        if *rows > 0 {
            write!(
                f,
                "\n                   {rows} rows: missing, new, or of another version of their measurement"
            )?;
        }
        // That it was at another time needs no telling.
        let mut others = provenance.clone();
        others.retain(|column| !["run_id", "timestamp"].contains(&column.as_str()));
        if !others.is_empty() {
            write!(f, "\n  not compared     {}: other than recorded", list(&others))?;
        }
        Ok(())
    }
}
