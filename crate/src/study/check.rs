//! Measuring a recorded run again, to see whether it still says the same.

use super::Study;
use crate::error::{Error, Result};
use crate::record::{Difference, Run, differences, read_lines, run_folder};
use crate::settings;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::path::Path;

/// What a second measurement of a run found.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// Id of the run.
    pub run: String,
    /// Values that were compared.
    pub compared: usize,
    /// Those that are not what was recorded, beyond their tolerances.
    pub differences: Vec<Difference>,
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
        let path = folder.join("config_resolved.yaml");
        if !path.is_file() {
            return Err(Error::input("this run was made by hand: no study can measure it again")
                .at(folder.display())
                .hint("name a run of a command or of a study"));
        }
        let config: Value = settings::read(&path)?;
        if config.get("measure").is_none() {
            return settings::read(&path);
        }
        let single: Single =
            serde_json::from_value(config).map_err(|e| Error::input(e).at(path.display()))?;
        let rows = read_lines(folder.join("metrics.jsonl"))?.rows;
        let kind = rows.first().and_then(|row| row.get("measure")?.as_str()).unwrap_or_default().to_string();
        let measure = serde_json::from_value(json!({ kind.as_str(): single.measure }));
        Ok(Self {
            name: kind,
            models: vec![single.model],
            tokenizer: single.tokenizer,
            schemes: single.scheme.or(single.dtype).into_iter().collect(),
            quantizing: single.quantizing.unwrap_or_default(),
            measures: vec![measure.map_err(|e| Error::input(e).at(path.display()))?],
        })
    }

    /// Measures a run's study again and compares the readings with the recorded ones, within
    /// [`TOLERANCES`](crate::record::TOLERANCES). The new readings are not kept.
    ///
    /// # Errors
    /// Those of [`of_run`](Self::of_run) and [`run`](Self::run).
    pub fn check_run(run: impl AsRef<Path>) -> Result<Check> {
        let folder = run_folder(run.as_ref())?;
        let study = Self::of_run(&folder)?;
        let id = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let scratch = std::env::temp_dir().join(format!("lowbit-check-{id}-{}", std::process::id()));
        let again = study.run_into(|| Run::create_in(&scratch, &study.name))?;
        let [recorded, found] =
            [folder.as_path(), again.path()].map(|run| read_lines(run.join("metrics.jsonl")));
        let (differences, compared) = differences(&recorded?.rows, &found?.rows);
        drop(again);
        fs::remove_dir_all(&scratch).map_err(|e| Error::io(&scratch, &e))?;
        Ok(Check { run: id, compared, differences })
    }
}

impl Check {
    /// Nothing, or the error of a run that does not say the same.
    ///
    /// # Errors
    /// If a value differs.
    pub fn passed(&self) -> Result<()> {
        match self.differences.len() {
            0 => Ok(()),
            count => Err(Error::differs(format!(
                "{count} of {} values are not what was recorded",
                self.compared.max(count)
            ))
            .at(&self.run)
            .hint("see what changed in the code, or record the run anew")),
        }
    }
}

/// The table of what differs, and a line on the whole.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.differences.is_empty() {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
            table.set_header(["measure", "unit", "column", "recorded", "found"]);
            table.add_rows(
                self.differences.iter().map(|d| [&d.measure, &d.unit, &d.column, &d.recorded, &d.found]),
            );
            writeln!(f, "{table}")?;
        }
        let (count, compared) = (self.differences.len(), self.compared);
        write!(f, "{}: {compared} values compared, {count} differ beyond their tolerances", self.run)
    }
}
