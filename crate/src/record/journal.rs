//! A file that only grows by whole appends: an append that fails leaves what was there before it.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An append-only file, open for writing at its end.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    /// Length up to which the file holds whole appends.
    good_bytes: u64,
    /// A failed append could not be cut off yet.
    ragged: bool,
}

impl Journal {
    /// Opens or creates `path`; what lies past `good_bytes` is cut off.
    pub(super) fn open(path: &Path, good_bytes: u64) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(|e| Error::io(path, &e))?;
        let mut journal = Self { file, path: path.into(), good_bytes, ragged: false };
        journal.cut().map_err(|e| Error::io(path, &e))?;
        Ok(journal)
    }

    /// Appends all of `bytes` and waits until they are on disk; on failure the file is as before.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let result = self.try_append(bytes);
        match &result {
            Ok(()) => self.good_bytes += bytes.len() as u64,
            // Should the cut fail too, the next append begins with it, and a reader drops the torn line.
            Err(_) => self.ragged = self.cut().is_err(),
        }
        result.map_err(|e| Error::io(&self.path, &e).hint("what was recorded before is safe"))
    }

    fn try_append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.ragged {
            self.cut()?;
            self.ragged = false;
        }
        self.file.write_all(bytes)?;
        self.file.sync_data()
    }

    fn cut(&mut self) -> std::io::Result<()> {
        if self.file.metadata()?.len() > self.good_bytes {
            self.file.set_len(self.good_bytes)?;
        }
        self.file.seek(SeekFrom::Start(self.good_bytes)).map(|_| ())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::process::Command;

    #[test]
    fn a_full_disk_is_one_sentence() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut journal = Journal { file, path: "runs/x/metrics.jsonl".into(), good_bytes: 0, ragged: false };
        let error = journal.append(b"{}\n").unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        let sentence = "runs/x/metrics.jsonl: the disk is full; what was recorded before is safe";
        assert_eq!(error.to_string(), sentence);
    }

    // The kernel really refuses in the middle of a write: this test runs itself again under a limit on the size
    // of files (with the signal that would kill it ignored), and then looks at what is on the disk.
    #[test]
    fn an_append_that_runs_out_of_room_leaves_whole_lines() {
        const FOLDER: &str = "LOWBIT_TEST_NO_ROOM_IN";
        const LINE: &[u8] = &[b'x'; 1000];
        if let Some(folder) = std::env::var_os(FOLDER) {
            let path = PathBuf::from(folder).join("metrics.jsonl");
            let mut journal = Journal::open(&path, 0).unwrap();
            let mut line = LINE.to_vec();
            line.push(b'\n');
            let refused = (0..100).find(|_| journal.append(&line).is_err());
            let length = std::fs::metadata(&path).unwrap().len();
            // 8 KiB hold 8 lines of 1,001 bytes; the ninth was written in part and cut off again.
            assert_eq!((refused, length), (Some(8), 8 * 1001));
            journal.append(b"short enough\n").unwrap();
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"";
        let name = "record::journal::tests::an_append_that_runs_out_of_room_leaves_whole_lines";
        // In sh the unit of `ulimit -f` is 512 bytes, in bash without POSIX mode 1,024.
        let out = Command::new("sh")
            .args(["-c", script])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(FOLDER, folder.path())
            .env("POSIXLY_CORRECT", "1")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = std::fs::read(folder.path().join("metrics.jsonl")).unwrap();
        assert_eq!(text.len(), 8 * 1001 + 13);
        assert!(text.ends_with(b"x\nshort enough\n"));
    }
}
