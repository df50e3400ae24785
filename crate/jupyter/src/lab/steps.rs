//! What must be there before a notebook opens. Each step looks first and does only what is missing.

use super::{library, python};
use crate::cell;
use crate::home::Home;
use serde_json::json;
use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The kernelspec's name; it is shown as "Rust (lowbit)".
pub const KERNEL: &str = "lowbit";

/// Free space that a set-up from nothing needs, in bytes.
const SPACE: u64 = 4 << 30;

/// Takes every step that is missing.
pub fn all(home: &Home) -> Result<(), String> {
    enough_space(home)?;
    let _alone = alone(home)?;
    python::packages(home)?;
    settings(home)?;
    library::place(home)?;
    face(home)?;
    first_cell(home)?;
    install_kernelspec(home, &home.venv().join("share/jupyter"))?;
    home.remove_stale_sessions();
    Ok(())
}

/// Waits until no other process sets this project up: two would write the same files. Held until it is dropped.
fn alone(home: &Home) -> Result<fs::File, String> {
    let path = home.lab().join("setup.lock");
    let told = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = fs::create_dir_all(home.lab()).and_then(|()| fs::File::create(&path)).map_err(told)?;
    // A file system without locks is no reason to do without a lab.
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        eprintln!("lab: another `cargo lab` sets this project up; waiting for it");
        file.lock().map_err(told)?;
    }
    Ok(file)
}

fn enough_space(home: &Home) -> Result<(), String> {
    if home.shared_object().exists() && home.venv().exists() {
        return Ok(());
    }
    let lab = home.lab();
    let place = if lab.exists() { lab.as_path() } else { home.root() };
    match free_space(place) {
        Some(free) if free < SPACE => Err(format!(
            "{}: {:.1} GB are free, and the set-up needs {:.0} GB; free some space and run `cargo lab` again",
            place.display(),
            free as f64 / 1e9,
            SPACE as f64 / 1e9
        )),
        _ => Ok(()),
    }
}

/// Bytes that may be written beside `path`.
pub fn free_space(path: &Path) -> Option<u64> {
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: a C string that lives, and a place for the answer, which is plain data.
    unsafe {
        let mut about: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(name.as_ptr(), &raw mut about) == 0).then(|| about.f_bavail * about.f_frsize)
    }
}

/// Whether there is so little space that whatever failed has failed for this.
pub fn full_disk(path: &Path) -> bool {
    free_space(path).is_some_and(|free| free < 64 << 20)
}

/// What is said then.
pub fn no_space(home: &Home) -> String {
    format!("{}: the disk is full; free some space and run `cargo lab` again", home.lab().display())
}

/// The file that says what a step was finished for.
pub fn stamp(home: &Home, step: &str) -> PathBuf {
    home.lab().join(format!("{step}.stamp"))
}

/// Whether a step was finished for this input.
pub fn stamp_is(home: &Home, step: &str, input: &str) -> bool {
    !input.is_empty() && fs::read_to_string(stamp(home, step)).is_ok_and(|found| found == input)
}

/// Writes a file in one go; leaves one alone that says the same.
pub fn write(path: &Path, text: &str) -> Result<(), String> {
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(path);
    let draft = path.with_extension("draft");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&draft, text))
        .and_then(|()| fs::rename(&draft, path))
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Says what begins, and on drop how long it took.
pub struct Step(Instant);

impl Step {
    /// Says what begins.
    pub fn begin(what: &str) -> Self {
        eprintln!("lab: {what}");
        Self(Instant::now())
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        eprintln!("lab: … {:.0} s", self.0.elapsed().as_secs_f64());
    }
}

/// The last line of what a command said, where its reason mostly is.
pub fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim().to_string()
}

/// evcxr's settings, and how the crates that cells link to are compiled.
fn settings(home: &Home) -> Result<(), String> {
    write(&home.config().join("evcxr.toml"), "[evcxr]\noffline_mode = true\nopt_level = \"0\"\n")?;
    // A crate that a notebook adds with :dep is compiled for speed; the cells themselves are not.
    let profile =
        "[profile.dev.package.\"*\"]\nopt-level = 3\n\n[profile.dev.build-override]\nopt-level = 0\n";
    write(&home.lab().join(".cargo/config.toml"), profile)
}

/// The crates whose types a cell's variables may have beside those of lowbit.
const SOURCES: [&str; 3] = ["candle-core", "polars", "polars-core"];

/// The crate that cells name as their dependency.
///
/// The compiler finds the library behind it. rust-analyzer, which tells evcxr the types of variables, is shown the
/// sources: as crates without dependencies, since it would otherwise read the two hundred crates below them at every
/// start, for seconds; and as crates that are empty to the compiler.
fn face(home: &Home) -> Result<(), String> {
    let made_of = library::fingerprint(home)?;
    if stamp_is(home, "face", &made_of) {
        return Ok(());
    }
    let _ = fs::remove_dir_all(home.face());
    let output =
        Command::new("cargo").args(["metadata", "--format-version", "1"]).current_dir(home.root()).output();
    let output = output.map_err(|error| format!("cargo: {error}"))?;
    let about: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("cargo metadata: {}", last_line(&output.stderr)))?;
    let packages = about["packages"].as_array().cloned().unwrap_or_default();
    let mut manifests = vec![];
    for name in ["lowbit"].iter().chain(&SOURCES) {
        let package = packages.iter().find(|package| package["name"] == *name);
        let package = package.ok_or_else(|| format!("{name} is not among lowbit's crates"))?;
        let source = Path::new(package["manifest_path"].as_str().unwrap_or_default()).with_file_name("src");
        let crate_folder = home.face().join(format!("{name}-source"));
        copy_sources(&source, &crate_folder.join("src"))
            .map_err(|error| format!("{}: {error}", crate_folder.display()))?;
        let root = crate_folder.join("src/lib.rs");
        let text = fs::read_to_string(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        write(&root, &format!("#![cfg(rust_analyzer)]\n{text}"))?;
        let below: &[&str] = match *name {
            "lowbit" => &SOURCES,
            "polars" => &["polars-core"],
            _ => &[],
        };
        manifests.push((
            crate_folder,
            format!("{name}-source"),
            package["edition"].as_str().unwrap_or("2021"),
            below.to_vec(),
        ));
    }
    manifests.push((
        home.face().join("lowbit"),
        "lowbit-face".into(),
        "2024",
        [&["lowbit"], &SOURCES[..]].concat(),
    ));
    for (folder, name, edition, below) in manifests {
        let mut text = format!(
            "[package]\nname = {name:?}\nversion = \"1.0.0\"\nedition = {edition:?}\n\n[dependencies]\n"
        );
        for name in below {
            let key = name.replace('-', "_");
            text += &format!("{key} = {{ path = \"../{name}-source\", package = \"{name}-source\" }}\n");
        }
        write(&folder.join("Cargo.toml"), &text)?;
    }
    let text = "//! What cells call lowbit.\n#![allow(unexpected_cfgs)]\n\n\
        #[cfg(not(rust_analyzer))]\nextern crate lowbit_cells;\n\
        #[cfg(not(rust_analyzer))]\npub use lowbit_cells::*;\n\n\
        #[cfg(rust_analyzer)]\npub use lowbit::*;\n\
        #[cfg(rust_analyzer)]\npub use {candle_core, polars};\n\
        #[cfg(rust_analyzer)]\n/// Ties the process to the kernel.\npub fn attach() {}\n";
    write(&home.face().join("lowbit/src/lib.rs"), text)?;
    write(&stamp(home, "face"), &made_of)
}

fn copy_sources(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_sources(&entry.path(), &target)?;
        } else if target.extension().is_some_and(|end| end == "rs") {
            fs::write(target, cell::public(&fs::read_to_string(entry.path())?))?;
        }
    }
    Ok(())
}

/// Opens a session once after every change, so that the first notebook finds that it works.
fn first_cell(home: &Home) -> Result<(), String> {
    let made_of = library::fingerprint(home)?;
    if stamp_is(home, "session", &made_of) {
        return Ok(());
    }
    let _step = Step::begin("trying a first cell");
    let itself = std::env::current_exe().map_err(|error| error.to_string())?;
    let tried = Command::new(itself).arg("try").output().map_err(|error| error.to_string())?;
    if !tried.status.success() {
        return Err(format!("the first cell fails: {}", String::from_utf8_lossy(&tried.stderr).trim()));
    }
    write(&stamp(home, "session"), &made_of)
}

/// Where the user's own Jupyter looks for kernels.
pub fn user_data() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("JUPYTER_DATA_DIR") {
        return Ok(folder.into());
    }
    let home = std::env::var_os("HOME").ok_or("HOME is not set, so there is no folder for kernels")?;
    let home = PathBuf::from(home);
    Ok(if cfg!(target_os = "macos") {
        home.join("Library/Jupyter")
    } else {
        home.join(".local/share/jupyter")
    })
}

/// Writes the kernelspec into a folder of Jupyter's data.
pub fn install_kernelspec(home: &Home, data: &Path) -> Result<PathBuf, String> {
    let folder = data.join("kernels").join(KERNEL);
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    // A later build replaces the program; the notebooks that run go on with the one they have.
    let copy = home.lab().join("bin/lowbit-jupyter");
    install_program(&program, &copy)?;
    let spec = json!({
        "argv": [copy, "kernel", "{connection_file}"],
        "display_name": "Rust (lowbit)",
        "language": "rust",
        "interrupt_mode": "message",
        "env": {"LOWBIT_HOME": home.root()},
    });
    write(&folder.join("kernel.json"), &format!("{spec:#}\n"))?;
    Ok(folder)
}

/// Whether a folder holds the kernelspec of this project.
pub fn is_kernelspec_of(home: &Home, folder: &Path) -> bool {
    let text = fs::read_to_string(folder.join("kernel.json")).unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    spec["env"]["LOWBIT_HOME"].as_str().is_some_and(|root| Path::new(root) == home.root())
}

fn install_program(program: &Path, copy: &Path) -> Result<(), String> {
    let about = |path: &Path| fs::metadata(path).and_then(|about| Ok((about.len(), about.modified()?))).ok();
    let same = about(program).zip(about(copy)).is_some_and(|(new, old)| new.0 == old.0 && new.1 <= old.1);
    if same || program == copy {
        return Ok(());
    }
    let draft = copy.with_extension("draft");
    let folder = copy.parent().unwrap_or(copy);
    fs::create_dir_all(folder)
        .and_then(|()| fs::copy(program, &draft))
        .and_then(|_| fs::rename(&draft, copy))
        .map_err(|error| format!("{}: {error}", copy.display()))
}
