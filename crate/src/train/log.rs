//! The log of a run.

use crate::error::{Error, Result};
use crate::whole::write_bytes;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The JSONL log: one flushed line an event. Lines after the checkpoint that a run resumes from are dropped.
pub(super) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    pub(super) fn open(path: &Path, steps: u64) -> Result<Self> {
        let failed = |error: std::io::Error| Error::io(path, &error);
        if path.exists() {
            let text = fs::read_to_string(path).map_err(failed)?;
            let step =
                |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64();
            let kept: String = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n') && step(line).is_some_and(|step| step <= steps))
                .collect();
            write_bytes(path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    pub(super) fn write(&mut self, event: &serde_json::Value) -> Result<()> {
        let written = self.file.write_all(format!("{event}\n").as_bytes()).and_then(|()| self.file.flush());
        written.map_err(|error| Error::io(&self.path, &error))
    }
}
