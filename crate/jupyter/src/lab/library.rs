//! What cells link to: lowbit and all that it stands on as one shared library.
//!
//! It is built by the project's own release profile, in its own target folder, so that the crates that the program was
//! built from serve here too. What cells need of them is then put beside the library: a later build of the project
//! changes nothing for the notebooks that run.

use super::steps::{Step, full_disk, no_space};
use crate::home::Home;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package that is the library.
const PACKAGE: &str = "lowbit-cells";

/// Compiles what changed since the last time, and puts it where cells find it.
pub fn place(home: &Home) -> Result<(), String> {
    let new = !home.shared_object().exists();
    let _step = new.then(|| {
        Step::begin("step 2 of 2: compiling what cells link to; minutes after `cargo build --release`, else 10 to 20, once")
    });
    let artifacts = build(home)?;
    let folder = home.library();
    let told = |path: &Path, error: std::io::Error| match full_disk(&folder) {
        true => no_space(home),
        false => format!("{}: {error}", path.display()),
    };
    fs::create_dir_all(&folder).map_err(|error| told(&folder, error))?;
    let mut names = BTreeSet::new();
    for artifact in &artifacts {
        names.insert(bring(artifact, &folder).map_err(|error| told(&artifact.path, error))?);
    }
    // What an earlier build left has the names of crates that are there anew.
    for entry in fs::read_dir(&folder).map_err(|error| told(&folder, error))?.flatten() {
        if !names.contains(&entry.file_name()) {
            let _ = if entry.path().is_dir() {
                fs::remove_dir_all(entry.path())
            } else {
                fs::remove_file(entry.path())
            };
        }
    }
    match home.shared_object().exists() {
        true => Ok(()),
        false => Err("the library that cells link to was compiled and is not there".into()),
    }
}

/// What changes when the library does.
pub fn fingerprint(home: &Home) -> Result<String, String> {
    let library = home.shared_object();
    let about = fs::metadata(&library).map_err(|error| format!("{}: {error}", library.display()))?;
    let time = about.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(format!("{} {time:?}\n{}", about.len(), include_str!("steps.rs")))
}

/// A file of the build that cells need: the metadata of a crate, a procedural macro, or the library.
struct Artifact {
    path: PathBuf,
    /// Of a package whose sources never change: it may be shared with the target folder.
    from_registry: bool,
}

/// Compiles with cargo's own progress.
fn build(home: &Home) -> Result<Vec<Artifact>, String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The standard library must be one in the process, so this crate alone takes it from its shared library. As an argument of
    // this crate, and not among the flags of all, it leaves the others as the program has them.
    cargo
        .args(["rustc", "--release", "--lib", "--package", PACKAGE])
        .args(["--message-format", "json-render-diagnostics", "--", "-Cprefer-dynamic"])
        .current_dir(home.root())
        .stdout(Stdio::piped());
    // What `cargo lab` itself was started with is not for this crate.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text == "CARGO_MANIFEST_DIR" || text == "CARGO_MANIFEST_PATH" {
            cargo.env_remove(&name);
        }
    }
    let mut child = cargo.spawn().map_err(|error| format!("cargo: {error}"))?;
    let mut artifacts = vec![];
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
        let line = line.map_err(|error| format!("cargo: {error}"))?;
        artifacts.extend(serde_json::from_str(&line).ok().into_iter().flat_map(|message| told_of(&message)));
    }
    let status = child.wait().map_err(|error| format!("cargo: {error}"))?;
    match status.success() {
        true => Ok(artifacts),
        false if full_disk(home.root()) => Err(no_space(home)),
        false => {
            Err("the library that cells link to does not compile: cargo says above why; mend that, and run \
                 `cargo lab` again"
                .into())
        }
    }
}

/// The files that one of cargo's messages names, as far as cells need them.
fn told_of(message: &serde_json::Value) -> Vec<Artifact> {
    let is_one = message["reason"] == "compiler-artifact" && message["target"]["kind"][0] != "custom-build";
    let package = message["package_id"].as_str().unwrap_or_default();
    let from_registry = package.starts_with("registry+");
    let files = message["filenames"].as_array().filter(|_| is_one);
    let paths = files.into_iter().flatten().filter_map(|file| Some(PathBuf::from(file.as_str()?)));
    // Cells get the code from the shared library; of the crates in it they need the metadata. A crate that makes a library for other
    // languages too has its metadata in its archive, and none in that library.
    let kinds = message["target"]["kind"].as_array();
    let foreign = kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "cdylib"));
    let wanted = |path: &PathBuf| {
        let ending = path.extension().unwrap_or_default();
        match foreign {
            true => ending == "rlib",
            false => ending == "rmeta" || ending == &std::env::consts::DLL_SUFFIX[1..],
        }
    };
    paths.filter(wanted).map(|path| Artifact { path, from_registry }).collect()
}

/// Puts a file into the folder, unless it is there already; returns its name.
fn bring(artifact: &Artifact, folder: &Path) -> std::io::Result<OsString> {
    let from = &artifact.path;
    let name = from.file_name().unwrap_or_default().to_os_string();
    let to = folder.join(&name);
    let about = |path: &Path| fs::metadata(path).and_then(|about| Ok((about.len(), about.modified()?)));
    if about(&to).is_ok_and(|there| about(from).is_ok_and(|new| there.0 == new.0 && there.1 >= new.1)) {
        return Ok(name);
    }
    let draft = folder.join("draft");
    let _ = fs::remove_file(&draft);
    if !artifact.from_registry || fs::hard_link(from, &draft).is_err() {
        fs::copy(from, &draft)?;
    }
    fs::rename(&draft, &to)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the files that cells need of a package of these kinds.
    fn named(kinds: &[&str], files: &[&str]) -> Vec<String> {
        let message = serde_json::json!({
            "reason": "compiler-artifact",
            "package_id": "registry+index#one@1.0.0",
            "target": {"kind": kinds},
            "filenames": files,
        });
        let found = told_of(&message).into_iter();
        found.map(|artifact| artifact.path.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn metadata_is_beside_the_library_but_for_crates_that_other_languages_link() {
        let shared = format!("/deps/libone{}", std::env::consts::DLL_SUFFIX);
        let all = ["/deps/libone.rlib", "/deps/libone.rmeta", shared.as_str()];
        assert_eq!(named(&["lib"], &all), ["/deps/libone.rmeta", shared.as_str()]);
        assert_eq!(named(&["cdylib", "rlib"], &all), ["/deps/libone.rlib"]);
        assert_eq!(named(&["proc-macro"], &[&shared]), [shared.as_str()]);
        assert!(named(&["custom-build"], &["/build/build-script-build"]).is_empty());
    }

    #[test]
    fn messages_that_name_no_files_bring_none() {
        for message in ["{\"reason\": \"build-finished\", \"success\": true}", "{}", "[1]"] {
            assert!(told_of(&serde_json::from_str(message).unwrap()).is_empty(), "{message}");
        }
    }
}
