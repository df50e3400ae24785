//! A run: the folder into which readings go, one JSON line each.
//!
//! ```text
//! runs/20260131-142501-passkey-3fa2c1/
//!     metrics.jsonl          one record a line
//!     config_resolved.yaml   the configuration, every default filled in
//!     plots/                 figures drawn from the records
//!     finished               present once the run came to its end
//! ```

use super::journal::Journal;
use super::lines::closed_unit;
use super::{COLUMNS, Provenance, Reading, SCHEMA_VERSION, SUMMARY, config_hash, read_lines};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One line of `metrics.jsonl`: a reading with the run it belongs to and its provenance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the meaning of the columns.
    #[serde(default)]
    pub schema_version: u32,
    /// Id of the run, also the name of its folder.
    #[serde(default)]
    pub run_id: String,
    /// When the reading was recorded, UTC.
    #[serde(default)]
    pub timestamp: String,
    /// Commit, machine, library versions. Declared before the reading, so that its values do not take them.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// Subject, conditions and values.
    #[serde(flatten)]
    pub reading: Reading,
}

/// A folder of records, open for writing; the folder is locked against other processes until this is dropped.
#[derive(Debug)]
pub struct Run {
    id: String,
    path: PathBuf,
    warnings: Vec<String>,
    state: Mutex<State>,
    _lock: File,
}

#[derive(Debug)]
struct State {
    journal: Journal,
    recorded: HashSet<String>,
}

/// Where runs go: the folder named by the environment variable `LOWBIT_RUNS`, else `runs`.
pub fn runs_folder() -> PathBuf {
    std::env::var_os("LOWBIT_RUNS").filter(|v| !v.is_empty()).map_or_else(|| "runs".into(), PathBuf::from)
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
        let hash = config_hash(config)?;
        let unfinished = |path: &PathBuf| !path.join("finished").exists();
        match runs_named(root, name)?
            .into_iter()
            .rev()
            .filter(|path| path.to_string_lossy().ends_with(&hash))
            .find(unfinished)
        {
            Some(path) => Self::open_folder(&path),
            None => Self::create_hashed(root, name, &hash),
        }
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
        if !path.is_dir() {
            return Err(Error::input("no such run")
                .at(given.display())
                .hint("give a run's folder or its id"));
        }
        Self::open_folder(path)
    }

    fn create_hashed(root: &Path, name: &str, hash: &str) -> Result<Self> {
        check_name(name)?;
        fs::create_dir_all(root)
            .map_err(|e| Error::io(root, &e).hint("choose another folder with LOWBIT_RUNS"))?;
        let mut moment = jiff::Timestamp::now();
        loop {
            let path = root.join(format!("{}-{name}-{hash}", moment.strftime("%Y%m%d-%H%M%S")));
            match fs::create_dir(&path) {
                Ok(()) => return Self::open_folder(&path),
                // Two runs of one name within a second: the later one is named after the next second.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    moment = moment + jiff::SignedDuration::from_secs(1);
                }
                Err(e) => return Err(Error::io(&path, &e).hint("choose another folder with LOWBIT_RUNS")),
            }
        }
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let path = fs::canonicalize(path).map_err(|e| Error::io(path, &e))?;
        let id = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let lock = lock(&path)?;
        let metrics = path.join("metrics.jsonl");
        let (mut recorded, mut warnings, mut good_bytes) = (HashSet::new(), Vec::new(), 0);
        if metrics.exists() {
            let lines = read_lines(&metrics)?;
            recorded = lines.rows.iter().filter_map(closed_unit).map(str::to_string).collect();
            (warnings, good_bytes) = (lines.warnings, lines.good_bytes);
            keep_torn(&metrics, good_bytes)?;
            for warning in &warnings {
                eprintln!("warning: {warning} (kept in metrics.jsonl.torn)");
            }
        }
        let mut journal = Journal::open(&metrics, good_bytes)?;
        if lacks_newline(&metrics)? {
            journal.append(b"\n")?;
        }
        let state = Mutex::new(State { journal, recorded });
        Ok(Self { id, path, warnings, state, _lock: lock })
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
        write_atomic(&path, yaml.as_bytes())
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
        order.sort_by_cached_key(|r| (first_of(&r.fingerprint), r.row == SUMMARY));
        let timestamp = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        let mut bytes = Vec::new();
        for reading in &order {
            if let Some(name) = reading.values.keys().find(|name| COLUMNS.contains(&name.as_str())) {
                let what = format!("the value `{name}` of `{}` has the name of a column", reading.measure);
                return Err(Error::input(what).hint("set it in the subject or the conditions, or rename it"));
            }
            let record = Record {
                schema_version: SCHEMA_VERSION,
                run_id: self.id.clone(),
                timestamp: timestamp.clone(),
                provenance: Provenance::gather(),
                reading: (*reading).clone(),
            };
            bytes.extend(record.to_line()?.into_bytes());
        }
        let mut state = self.state();
        state.journal.append(&bytes)?;
        let closed = order.iter().filter(|r| r.row == SUMMARY && !r.fingerprint.is_empty());
        state.recorded.extend(closed.map(|r| r.fingerprint.clone()));
        Ok(())
    }

    /// Whether the unit of work with this fingerprint is recorded, summary included.
    pub fn has(&self, fingerprint: &str) -> bool {
        self.state().recorded.contains(fingerprint)
    }

    /// Marks the run as finished: [`resume_or_create`](Self::resume_or_create) will not continue it.
    ///
    /// # Errors
    /// If the mark cannot be written.
    pub fn finish(&self) -> Result<()> {
        write_atomic(&self.path.join("finished"), format!("{}\n", jiff::Timestamp::now()).as_bytes())
    }

    /// Whether [`finish`](Self::finish) was called, now or by an earlier process.
    pub fn is_finished(&self) -> bool {
        self.path.join("finished").exists()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the journal whole: its state changes only after the write.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// The record as one line of JSON, newline included.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn to_line(&self) -> Result<String> {
        let fields = serde_json::to_value(self).map_err(Error::internal)?;
        let serde_json::Value::Object(fields) = fields else {
            return Err(Error::internal("a record is no object"));
        };
        // The schema's columns first and in its order, then the values by name.
        let values = fields.keys().map(String::as_str).filter(|name| !COLUMNS.contains(name));
        let mut values: Vec<&str> = values.collect();
        values.sort_unstable();
        let mut line = String::from("{");
        for name in COLUMNS.iter().copied().chain(values) {
            if let Some(value) = fields.get(name) {
                let comma = if line.len() > 1 { "," } else { "" };
                line.push_str(&format!("{comma}{}:{value}", serde_json::Value::from(name)));
            }
        }
        line.push_str("}\n");
        Ok(line)
    }
}

/// Folders of the runs of this name in `root`, oldest first.
pub(crate) fn runs_named(root: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(root, &e)),
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|path| name_of(path) == Some(name.into())).collect();
    found.sort();
    Ok(found)
}

/// The name within a run's folder name: `passkey` of `20260131-142501-passkey-3fa2c1`.
fn name_of(path: &Path) -> Option<String> {
    let id = path.file_name()?.to_str()?;
    let (rest, hash) = id.rsplit_once('-')?;
    let (moment, name) = (rest.get(..15)?, rest.get(15..)?.strip_prefix('-')?);
    let dated = moment.char_indices().all(|(i, c)| if i == 8 { c == '-' } else { c.is_ascii_digit() });
    (dated && hash.len() == 6).then(|| name.to_string())
}

fn check_name(name: &str) -> Result<()> {
    if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Ok(());
    }
    Err(Error::input(format!("`{name}` cannot name a run")).hint("use letters, digits, `-`, `_` and `.`"))
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io(&path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::input("another process is recording into this run")
            .at(folder.display())
            .hint("wait for it, or create a new run")),
        Err(TryLockError::Error(e)) => Err(Error::io(&path, &e)),
    }
}

/// Copies what lies past `good_bytes` to the end of `<path>.torn`, before it is cut off.
fn keep_torn(path: &Path, good_bytes: u64) -> Result<()> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, &e))?;
    let torn = &bytes[usize::try_from(good_bytes).unwrap_or(usize::MAX).min(bytes.len())..];
    if torn.is_empty() {
        return Ok(());
    }
    let kept = path.with_extension("jsonl.torn");
    let file = File::options().create(true).append(true).open(&kept);
    file.and_then(|mut file| file.write_all(torn)).map_err(|e| Error::io(&kept, &e))
}

fn lacks_newline(path: &Path) -> Result<bool> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, &e))?;
    Ok(bytes.last().is_some_and(|byte| *byte != b'\n'))
}

/// Writes a file beside `path` and renames it: readers see the old content or the new one, never a part.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let written =
        File::create(&beside).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.and_then(|()| fs::rename(&beside, path)).map_err(|e| {
        // The error in hand says more than a failed removal would.
        let _ = fs::remove_file(&beside);
        Error::io(path, &e)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Conditions, Row, Subject, without_timing};
    use super::*;
    use serde_json::json;

    fn unit(fingerprint: &str) -> Vec<Reading> {
        let reading = |row: &str| {
            Reading::new("passkey", 1, &Subject::default(), &Conditions::default())
                .row(row)
                .fingerprint(fingerprint)
        };
        vec![
            reading(SUMMARY).value("accuracy", 0.5).value("runtime_s", 2.0),
            reading("trial").value("correct", 1),
        ]
    }

    fn rows(run: &Path) -> Vec<Row> {
        read_lines(run.join("metrics.jsonl")).unwrap().rows
    }

    #[test]
    fn every_column_is_written_in_the_order_of_the_schema() {
        let line = Record::default().to_line().unwrap();
        let places: Vec<_> = COLUMNS.iter().map(|column| line.find(&format!("\"{column}\":"))).collect();
        assert!(places.iter().all(Option::is_some), "{line}");
        assert!(places.is_sorted(), "{line}");
        let fields: Row = serde_json::from_str(&line).unwrap();
        assert_eq!(fields.len(), COLUMNS.len(), "a field of the record is missing in COLUMNS");
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), Record::default());
    }

    #[test]
    fn a_record_comes_back_whole() {
        let reading = unit("f").remove(0).value("window_nll", vec![1.5, 2.5]);
        let record = Record { provenance: Provenance::gather(), reading, ..Record::default() };
        let back: Record = serde_json::from_str(&record.to_line().unwrap()).unwrap();
        assert_eq!(back, record);
    }

    #[test]
    fn a_rerun_continues_by_fingerprint() {
        let root = tempfile::tempdir().unwrap();
        let config = json!({"lengths": [256, 512]});
        let run = Run::resume_or_create(root.path(), "pass-key", &config).unwrap();
        assert!(run.id().contains("-pass-key-") && run.id().len() == 15 + 10 + 6, "{}", run.id());
        run.write_config(&config).unwrap();
        run.record(&unit("a")).unwrap();
        assert!(run.has("a") && !run.has("b"));
        let id = run.id().to_string();
        drop(run);

        let run = Run::resume_or_create(root.path(), "pass-key", &config).unwrap();
        assert!(run.id() == id && run.has("a") && run.warnings().is_empty());
        run.record(&unit("b")).unwrap();
        run.finish().unwrap();
        assert!(run.is_finished());
        let path = run.path().to_path_buf();
        drop(run);
        assert_eq!(rows(&path).len(), 4);
        assert_eq!(rows(&path)[1]["row"], SUMMARY, "the summary closes its unit");
        let yaml = fs::read_to_string(path.join("config_resolved.yaml")).unwrap();
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&yaml).unwrap(), config);

        let fresh = Run::resume_or_create(root.path(), "pass-key", &config).unwrap();
        assert_ne!(fresh.id(), id, "a finished run is not continued");
        let other = Run::resume_or_create(root.path(), "pass-key", &json!({"lengths": [256]})).unwrap();
        assert_ne!(other.id()[15..], id[15..], "another configuration is another run");
        assert_eq!(runs_named(root.path(), "pass-key").unwrap().len(), 3);
        assert!(runs_named(root.path(), "key").unwrap().is_empty());
    }

    #[test]
    fn a_torn_run_is_mended_and_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let run = Run::create_in(root.path(), "t").unwrap();
        run.record(&unit("a")).unwrap();
        run.record(&unit("b")).unwrap();
        let path = run.path().to_path_buf();
        drop(run);
        let metrics = path.join("metrics.jsonl");
        let whole = fs::read_to_string(&metrics).unwrap();
        fs::write(&metrics, &whole[..whole.len() - 30]).unwrap();

        let run = Run::open(&path).unwrap();
        assert_eq!(run.warnings().len(), 2, "{:?}", run.warnings());
        assert!(run.has("a") && !run.has("b"));
        let kept = fs::read_to_string(path.join("metrics.jsonl.torn")).unwrap();
        assert_eq!(fs::read_to_string(&metrics).unwrap() + &kept, whole[..whole.len() - 30]);
        run.record(&unit("b")).unwrap();
        let twice = without_timing(&rows(&path)[1]);
        assert_eq!(rows(&path).len(), 4);
        assert_eq!(twice["accuracy"], 0.5);
        assert!(!twice.contains_key("runtime_s") && !twice.contains_key("timestamp"));
        drop(run);

        fs::write(&metrics, whole.trim_end()).unwrap();
        let run = Run::open(&path).unwrap();
        run.record(&unit("c")).unwrap();
        assert_eq!(rows(&path).len(), 6, "a lost final newline loses no row");
    }

    #[test]
    fn equal_readings_are_equal_lines_but_for_timings() {
        let root = tempfile::tempdir().unwrap();
        let line = |name: &str| {
            let run = Run::create_in(root.path(), name).unwrap();
            run.record(&unit("a")).unwrap();
            let rows = rows(run.path());
            serde_json::to_string(&rows.iter().map(without_timing).collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(line("one"), line("two"));
    }

    #[test]
    fn bad_use_is_one_sentence() {
        let root = tempfile::tempdir().unwrap();
        let run = Run::create_in(root.path(), "x").unwrap();
        let taken = unit("a").remove(0).value("seed", 3);
        assert!(
            run.record(&[taken])
                .unwrap_err()
                .to_string()
                .contains("`seed` of `passkey` has the name of a column")
        );
        assert_eq!(rows(run.path()).len(), 0);
        let locked = Run::open(run.path()).unwrap_err().to_string();
        assert!(locked.contains("another process is recording into this run"), "{locked}");
        assert!(Run::create_in(root.path(), "a/b").unwrap_err().to_string().contains("cannot name a run"));
        let missing = Run::open(root.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("no such run"), "{missing}");
        // A file where the runs folder should be: as unwritable for root as for anybody.
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Run::create_in(&file, "x").unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Io);
        assert!(error.to_string().ends_with("choose another folder with LOWBIT_RUNS"), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }
}
