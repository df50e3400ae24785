//! Mending files.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Copies what lies past `good_bytes` to the end of `<path>.torn`, before it is cut off.
pub(super) fn keep_torn(path: &Path, good_bytes: u64) -> Result<()> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, &e))?;
    let torn = &bytes[usize::try_from(good_bytes).unwrap_or(usize::MAX).min(bytes.len())..];
    if torn.is_empty() {
        return Ok(());
    }
    let kept = path.with_extension("jsonl.torn");
    let file = File::options().create(true).append(true).open(&kept);
    file.and_then(|mut file| file.write_all(torn)).map_err(|e| Error::io(&kept, &e))
}

pub(super) fn lacks_newline(path: &Path) -> Result<bool> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, &e))?;
    Ok(bytes.last().is_some_and(|byte| *byte != b'\n'))
}
