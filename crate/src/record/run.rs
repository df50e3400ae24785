//! A run: the folder into which readings go, one JSON line each.
//!
//! ```text
//! runs/20260131-142501-passkey-3fa2c1/
//!     metrics.jsonl          one record a line
//!     config_resolved.yaml   the configuration, every default filled in
//!     plots/                 figures drawn from the records
//!     finished               present once the run came to its end
//! ```
//!
//! Beside `metrics.jsonl` may lie `metrics.jsonl.torn`, what a crash left half-written, and `metrics.jsonl.stale`,
//! readings that no longer held when the run went on.

use super::files::{keep_torn, lacks_newline};
use super::folders::{ELSEWHERE, check_name, moment_of, runs_folder, runs_named};
use super::journal::Journal;
use super::reader::{closed_unit, closes};
use super::{COLUMNS, Provenance, Reading, Record, SCHEMA_VERSION, config_hash, read_lines};
use crate::error::{Error, Result};
use crate::warning::warn;
use crate::whole::{lock, write_bytes};
use serde::Serialize;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A folder of records, open for writing; the folder is locked against other processes until this is dropped.
#[derive(Debug)]
pub struct Run {
    id: String,
    path: PathBuf,
    warnings: Vec<String>,
    notes: Option<String>,
    state: Mutex<State>,
    _lock: File,
}

#[derive(Debug)]
pub(super) struct State {
    pub journal: Journal,
    pub recorded: HashSet<String>,
    /// Units that were recorded or asked for since the run was opened.
    pub met: HashSet<String>,
}

impl Run {
    /// Creates a run in [`runs_folder`], with an id such as `20260131-142501-passkey-3fa2c1`.
    ///
    /// # Errors
    /// If the name holds other characters than letters, digits, `-`, `_` and `.`, or the folder cannot be made.
    pub fn create(name: &str) -> Result<Self> {
        Self::create_in(runs_folder(), name)
    }

    /// Creates a run in the folder `root`.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_in(root: impl AsRef<Path>, name: &str) -> Result<Self> {
        // Without a configuration, the moment stands in for it.
        let moment = (jiff::Timestamp::now().as_nanosecond().to_string(), std::process::id());
        Self::create_hashed(root.as_ref(), name, &config_hash(&moment)?)
    }

    /// Continues the newest unfinished run of this name and configuration in `root`, or creates one.
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`open`](Self::open).
    pub fn resume_or_create(root: impl AsRef<Path>, name: &str, config: &impl Serialize) -> Result<Self> {
        let root = root.as_ref();
        check_name(name)?;
        match Self::unfinished(root, name, config)? {
            Some(path) => Self::open_folder(&path),
            None => Self::create_hashed(root, name, &config_hash(config)?),
        }
    }

    /// As [`resume_or_create`](Self::resume_or_create), but what another process records into is left to it.
    ///
    /// # Errors
    /// As [`resume_or_create`](Self::resume_or_create).
    pub fn resume_free_or_create(
        root: impl AsRef<Path>,
        name: &str,
        config: &impl Serialize,
    ) -> Result<Self> {
        let root = root.as_ref();
        check_name(name)?;
        for path in Self::of(root, name, config, false)? {
            if let Some(run) = Self::open_free(&path)? {
                return Ok(run);
            }
        }
        Self::create_hashed(root, name, &config_hash(config)?)
    }

    /// The folder of the newest unfinished run of this name and configuration in `root`, if there is one.
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON, or `root` cannot be read.
    pub fn unfinished(
        root: impl AsRef<Path>,
        name: &str,
        config: &impl Serialize,
    ) -> Result<Option<PathBuf>> {
        Ok(Self::of(root.as_ref(), name, config, false)?.into_iter().next())
    }

    /// The folder of the newest finished run of this name and configuration in `root`, if there is one.
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON, or `root` cannot be read.
    pub fn finished(root: impl AsRef<Path>, name: &str, config: &impl Serialize) -> Result<Option<PathBuf>> {
        Ok(Self::of(root.as_ref(), name, config, true)?.into_iter().next())
    }

    /// The runs of this name and configuration, the newest first.
    fn of(root: &Path, name: &str, config: &impl Serialize, finished: bool) -> Result<Vec<PathBuf>> {
        let hash = config_hash(config)?;
        let is_one = |path: &PathBuf| {
            path.to_string_lossy().ends_with(&hash) && path.join("finished").exists() == finished
        };
        Ok(runs_named(root, name)?.into_iter().rev().filter(is_one).collect())
    }

    /// Opens an existing run for appending: a folder, or the id of a run in [`runs_folder`].
    ///
    /// A torn last line, and rows of a unit that lacks its summary, are moved to `metrics.jsonl.torn`; see
    /// [`warnings`](Self::warnings).
    ///
    /// # Errors
    /// If there is no such run, another process has it open, or a line in its middle is not JSON.
    pub fn open(path_or_id: impl AsRef<Path>) -> Result<Self> {
        let given = path_or_id.as_ref();
        let in_root = runs_folder().join(given);
        let path = if given.is_dir() { given } else { in_root.as_path() };
        if !path.join("metrics.jsonl").is_file() {
            return Err(Error::input("no such run")
                .at(given.display())
                .hint("give a run's folder or its id"));
        }
        Self::open_folder(path)
    }

    fn create_hashed(root: &Path, name: &str, hash: &str) -> Result<Self> {
        check_name(name)?;
        fs::create_dir_all(root).map_err(|e| Error::io(root, &e).hint(ELSEWHERE))?;
        // Names sort by age: within one second, the first run has a plain name, each later one says when in it it was made.
        let newest = || -> Result<String> {
            Ok(runs_named(root, name)?.pop().and_then(|path| moment_of(&path)).unwrap_or_default())
        };
        let mut last = newest()?;
        loop {
            let now = jiff::Timestamp::now();
            let [second, exact] =
                ["%Y%m%d-%H%M%S", "%Y%m%d-%H%M%S%.6f"].map(|format| now.strftime(format).to_string());
            // Only a clock that was set back leaves a run behind that is dated later: this one still says when it was made.
            let ahead = last.get(..15).is_some_and(|last| *last > *second);
            let moment = if !ahead && second > last { second } else { exact };
            if !ahead && moment <= last {
                continue; // it is still the same microsecond
            }
            let path = root.join(format!("{moment}-{name}-{hash}"));
            match fs::create_dir(&path) {
                Ok(()) => {
                    if ahead {
                        let at = path.display();
                        warn(format!(
                            "{at}: there is a run named `{name}` of {last}, later than now: it counts as newer"
                        ));
                    }
                    // Another process may have taken it for one to be continued.
                    if let Some(run) = Self::open_free(&path)? {
                        return Ok(run);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(&path, &e).hint(ELSEWHERE)),
            }
            last = newest()?;
        }
    }

    fn open_folder(path: &Path) -> Result<Self> {
        // A process that this one starts holds whatever is open here, locks too, until its own program is loaded.
        for _ in 0..10 {
            if let Some(run) = Self::open_free(path)? {
                return Ok(run);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Err(Error::input("another process is recording into this run")
            .at(path.display())
            .hint("wait for it, or create a new run"))
    }

    /// None if another process has it open.
    fn open_free(path: &Path) -> Result<Option<Self>> {
        let path = fs::canonicalize(path).map_err(|e| Error::io(path, &e))?;
        let id = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(lock) = lock(&path)? else { return Ok(None) };
        let metrics = path.join("metrics.jsonl");
        let (mut recorded, mut warnings, mut good_bytes) = (HashSet::new(), Vec::new(), 0);
        if metrics.exists() {
            let lines = read_lines(&metrics)?;
            recorded = lines.rows.iter().filter_map(closed_unit).map(str::to_string).collect();
            (warnings, good_bytes) = (lines.warnings, lines.good_bytes);
            keep_torn(&metrics, good_bytes)?;
            for warning in &warnings {
                warn(format!("{warning} (kept in metrics.jsonl.torn)"));
            }
        }
        let mut journal = Journal::open(&metrics, good_bytes)?;
        if lacks_newline(&metrics)? {
            journal.append(b"\n")?;
        }
        let state = Mutex::new(State { journal, recorded, met: HashSet::new() });
        Ok(Some(Self { id, path, warnings, notes: None, state, _lock: lock }))
    }

    /// This run with free text that goes, as `notes`, into every reading that has none of its own.
    #[must_use]
    pub fn notes(mut self, notes: impl Into<String>) -> Self {
        self.notes = Some(notes.into()).filter(|notes| !notes.is_empty());
        self
    }

    /// Id of the run: `<UTC date-time>-<name>-<configuration hash>`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Folder of the run.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folder of the run's figures, made if need be.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn plots_dir(&self) -> Result<PathBuf> {
        let path = self.path.join("plots");
        fs::create_dir_all(&path).map_err(|e| Error::io(&path, &e))?;
        Ok(path)
    }

    /// What was found torn when the run was opened, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Writes `config_resolved.yaml`; an old one is replaced as a whole.
    ///
    /// # Errors
    /// If the configuration has no YAML form, or the file cannot be written.
    pub fn write_config(&self, config: &impl Serialize) -> Result<()> {
        let path = self.path.join("config_resolved.yaml");
        let yaml = serde_saphyr::to_string(config).map_err(|e| Error::internal(e).at(path.display()))?;
        write_bytes(&path, yaml.as_bytes())
    }

    /// Appends the readings as JSON lines by one write, and waits until they are on disk.
    ///
    /// Rows of one unit are put together, its summary last: a crash in the middle of the write cannot make a
    /// unit look complete.
    ///
    /// # Errors
    /// If a value's name is one of [`COLUMNS`], or the disk refuses: then nothing of the call is kept.
    pub fn record(&self, readings: &[Reading]) -> Result<()> {
        let mut order: Vec<&Reading> = readings.iter().collect();
        let first_of = |unit: &str| readings.iter().position(|r| r.fingerprint == unit);
        order.sort_by_cached_key(|r| (first_of(&r.fingerprint), closes(&r.row)));
        let timestamp = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        let mut bytes = Vec::new();
        for reading in &order {
            if let Some(name) = reading.values.keys().find(|name| COLUMNS.contains(&name.as_str())) {
                let what = format!("the value `{name}` of `{}` has the name of a column", reading.measure);
                return Err(Error::input(what).hint("set it in the subject or the conditions, or rename it"));
            }
            let mut reading = (*reading).clone();
            reading.conditions.notes = reading.conditions.notes.or_else(|| self.notes.clone());
            let record = Record {
                schema_version: SCHEMA_VERSION,
                run_id: self.id.clone(),
                timestamp: timestamp.clone(),
                provenance: Provenance::gather(),
                reading,
            };
            bytes.extend(record.to_line()?.into_bytes());
        }
        let mut state = self.state();
        state.journal.append(&bytes)?;
        let closed = order.iter().filter(|r| closes(&r.row) && !r.fingerprint.is_empty());
        for unit in closed.map(|r| &r.fingerprint) {
            state.recorded.insert(unit.clone());
            state.met.insert(unit.clone());
        }
        Ok(())
    }

    /// Units of work that are recorded.
    pub fn units(&self) -> usize {
        self.state().recorded.len()
    }

    /// Whether the unit of work with this fingerprint is recorded, summary included.
    pub fn has(&self, fingerprint: &str) -> bool {
        let mut state = self.state();
        let found = state.recorded.contains(fingerprint);
        if found {
            state.met.insert(fingerprint.to_string());
        }
        found
    }

    /// Marks the run as finished: [`resume_or_create`](Self::resume_or_create) will not continue it.
    ///
    /// # Errors
    /// If the mark cannot be written.
    pub fn finish(&self) -> Result<()> {
        write_bytes(&self.path.join("finished"), format!("{}\n", jiff::Timestamp::now()).as_bytes())
    }

    /// Whether [`finish`](Self::finish) was called, now or by an earlier process.
    pub fn is_finished(&self) -> bool {
        self.path.join("finished").exists()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the journal whole: its state changes only after the write.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
