//! What the program is built from: a hash of the sources, and their commit. The build script includes this file too, so
//! that what is asked of the sources at run time is what was asked of them when the program was built.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the program is built from, as paths from the repository's root.
pub const SOURCES: [&str; 5] =
    ["Cargo.lock", "Cargo.toml", "crate/Cargo.toml", "crate/build.rs", "crate/src"];

/// SHA-256 over the names and contents of the [`SOURCES`] in the folder `root`, as hex digits. None where one is missing.
pub fn hash(root: &Path) -> Option<String> {
    let mut digest = Sha256::new();
    for source in SOURCES {
        for file in files(root.join(source))? {
            let name = file.strip_prefix(root).ok()?.to_string_lossy().replace('\\', "/");
            let bytes = std::fs::read(&file).ok()?;
            digest.update(format!("{name}\n{}\n", bytes.len()));
            digest.update(bytes);
        }
    }
    Some(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The files under a path in the order of their names, without those that editors hide.
fn files(path: PathBuf) -> Option<Vec<PathBuf>> {
    if path.is_file() {
        return Some(vec![path]);
    }
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(path).ok()?.map(|entry| Some(entry.ok()?.path())).collect::<Option<_>>()?;
    entries.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !name.starts_with('.') && !name.ends_with('~')
    });
    entries.sort();
    let each = entries.into_iter().map(files).collect::<Option<Vec<_>>>()?;
    Some(each.concat())
}

/// The commit of the repository in the folder `root`, and whether its [`SOURCES`] differ from it. None where `root` is not
/// the root of a repository: what lies within somebody else's has no commit of its own.
pub fn commit(root: &Path) -> Option<(String, bool)> {
    let git = |args: &[&str]| {
        let out =
            Command::new("git").args(["--no-optional-locks", "-C"]).arg(root).args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    let hidden = [":(exclude,glob)crate/src/**/.*", ":(exclude,glob)crate/src/**/*~"];
    let changes = git(&[&["status", "--porcelain", "--"], &SOURCES[..], &hidden].concat())?;
    Some((git(&["rev-parse", "HEAD"])?, !changes.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn sources_have_a_hash_and_a_commit_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |name: &str, text: &str| {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
        };
        for name in ["Cargo.lock", "Cargo.toml", "crate/Cargo.toml", "crate/build.rs", "crate/src/lib.rs"] {
            write(name, name);
        }
        write("README.md", "");
        let before = hash(root).unwrap();
        assert_eq!(commit(root), None, "no repository");
        let git = |args: &[&str]| {
            let who = ["-c", "user.name=t", "-c", "user.email=t@t"];
            let out = Command::new("git").arg("-C").arg(root).args(who).args(args).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        };
        git(&["init", "--quiet"]);
        git(&["add", "."]);
        git(&["commit", "--quiet", "-m", "one"]);
        let (first, dirty) = commit(root).unwrap();
        assert_eq!((first.len(), dirty), (40, false));

        // What is not built changes neither, and may be committed without building anew.
        write("README.md", "more");
        assert_eq!((hash(root).unwrap(), commit(root).unwrap()), (before.clone(), (first.clone(), false)));
        git(&["commit", "--quiet", "-a", "-m", "two"]);
        let (second, dirty) = commit(root).unwrap();
        assert!(second != first && !dirty && hash(root).unwrap() == before);

        // What is built does, a new file too; what editors leave beside it does not.
        write("crate/src/new.rs", "");
        assert!(hash(root).unwrap() != before && commit(root).unwrap() == (second.clone(), true));
        fs::remove_file(root.join("crate/src/new.rs")).unwrap();
        write("crate/src/lib.rs", "other");
        assert!(hash(root).unwrap() != before && commit(root).unwrap() == (second, true));
        write("crate/src/lib.rs", "crate/src/lib.rs");
        write("crate/src/.lib.rs.swp", "");
        assert!(hash(root).unwrap() == before && !commit(root).unwrap().1);

        // A folder within somebody's repository has no commit, and a part of the sources no hash.
        assert_eq!(commit(&root.join("crate")), None);
        assert_eq!(hash(&root.join("crate")), None);
    }
}
