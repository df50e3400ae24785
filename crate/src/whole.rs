//! Files that are written whole or not at all, and folders that one process writes to.

use crate::error::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes a file beside `path` by `fill`, and renames it: readers see the old content or the new one, never a part.
///
/// # Errors
/// Those of `fill`, or if the file cannot be written (no folder, no permission, full disk).
pub(crate) fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<std::io::Result<()>>,
) -> Result<()> {
    let io = |error: std::io::Error| Error::io(path, &error);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let written = File::create(&beside).map_err(io).and_then(|file| {
        let mut file = BufWriter::new(file);
        fill(&mut file)?.map_err(io)?;
        let file = file.into_inner().map_err(|error| Error::io(path, error.error()))?;
        file.sync_all().and_then(|()| fs::rename(&beside, path)).map_err(io)
    });
    if written.is_err() {
        // The error in hand says more than a failed removal would.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// The same of bytes at hand.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, |file| Ok(file.write_all(bytes)))
}

/// Locks a folder for this process, until the returned file is dropped. None if another process has it.
///
/// # Errors
/// If the lock's file cannot be made.
pub(crate) fn lock(folder: &Path) -> Result<Option<File>> {
    let path = folder.join(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| Error::io(&path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io(&path, &e)),
    }
}

#[test]
fn a_failure_leaves_what_was_there_and_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kept.txt");
    write_bytes(&path, b"first").unwrap();
    let failed = write(&path, |file| {
        file.write_all(b"half").unwrap();
        Err(Error::input("no more"))
    });
    assert!(failed.unwrap_err().to_string().contains("no more"));
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = write_bytes(&folder.path().join("nowhere/kept.txt"), b"").unwrap_err().to_string();
    assert!(error.contains("nowhere/kept.txt"), "{error}");
}
