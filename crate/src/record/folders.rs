//! Where the folders of runs are, and what their names say: `20260131-142501-passkey-3fa2c1`.
//!
//! The second run of a name within one second says when in it it was made: `20260131-142501.734512-passkey-3fa2c1`. So the
//! names of runs sort by their age as they are.

use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// What to try where a folder of runs cannot be written.
pub(super) const ELSEWHERE: &str = "choose another folder with --runs or LOWBIT_RUNS";

/// Where runs go: the folder named by the environment variable `LOWBIT_RUNS`, else `runs`.
pub fn runs_folder() -> PathBuf {
    std::env::var_os("LOWBIT_RUNS").filter(|v| !v.is_empty()).map_or_else(|| "runs".into(), PathBuf::from)
}

/// The folder of a run: the folder itself, a run's id, or a name, of which the newest run in [`runs_folder`] counts.
///
/// # Errors
/// If there is none.
pub fn run_folder(what: &Path) -> Result<PathBuf> {
    run_folder_in(&runs_folder(), what)
}

/// As [`run_folder`], of the runs in the folder `root`.
///
/// # Errors
/// If there is none.
pub fn run_folder_in(root: &Path, what: &Path) -> Result<PathBuf> {
    let holds_records = |folder: &PathBuf| folder.join("metrics.jsonl").is_file();
    let direct = [what.to_path_buf(), root.join(what)].into_iter().find(holds_records);
    let found = match direct {
        Some(folder) => Some(folder),
        None => runs_named(root, &what.to_string_lossy())?.into_iter().rev().find(holds_records),
    };
    found.ok_or_else(|| {
        let place = format!("{}: no such run, nor one of that name in {}", what.display(), root.display());
        Error::input(place)
            .hint("give a run's folder, its id or its name; LOWBIT_RUNS names another folder of runs")
    })
}

/// Folders of the runs of this name in `root`, oldest first.
pub(crate) fn runs_named(root: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(root, &e).hint(ELSEWHERE)),
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|path| name_of(path) == Some(name.into())).collect();
    found.sort();
    Ok(found)
}

/// The date and time at the start of a run's folder name.
pub(super) fn moment_of(path: &Path) -> Option<String> {
    parts_of(path).map(|(moment, _)| moment.to_string())
}

/// The name within a run's folder name: `passkey` of `20260131-142501-passkey-3fa2c1`.
fn name_of(path: &Path) -> Option<String> {
    parts_of(path).map(|(_, name)| name.to_string())
}

/// Moment and name within a run's folder name.
fn parts_of(path: &Path) -> Option<(&str, &str)> {
    let (rest, hash) = path.file_name()?.to_str()?.rsplit_once('-')?;
    let second = rest.get(..15)?;
    let dated = second.char_indices().all(|(i, c)| if i == 8 { c == '-' } else { c.is_ascii_digit() });
    let (within, name) = rest[15..].split_once('-')?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let timed = within.is_empty() || within.strip_prefix('.').is_some_and(digits);
    (dated && timed && hash.len() == 6).then(|| (&rest[..15 + within.len()], name))
}

/// Holds a name to characters that are plain in a path.
pub(super) fn check_name(name: &str) -> Result<()> {
    if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Ok(());
    }
    Err(Error::input(format!("`{name}` cannot name a run")).hint("use letters, digits, `-`, `_` and `.`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_says_when_it_was_made_and_what_for() {
        let parts = |id: &str| parts_of(Path::new(id)).map(|(moment, name)| format!("{moment} {name}"));
        for (id, expected) in [
            ("20260131-142501-passkey-3fa2c1", Some("20260131-142501 passkey")),
            ("20260131-142501.734512-passkey-3fa2c1", Some("20260131-142501.734512 passkey")),
            ("20260131-142501-a-.b-3fa2c1", Some("20260131-142501 a-.b")),
            ("20260131-142501", None),
            ("20260131-14250x-a-3fa2c1", None),
            ("20260131-142501.x-a-3fa2c1", None),
            ("20260131-142501.-a-3fa2c1", None),
            ("20260131-142501-a-3fa", None),
            ("notes-of-a-run", None),
        ] {
            assert_eq!(parts(id).as_deref(), expected, "{id}");
        }
    }
}
