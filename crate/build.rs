//! Hands the crate what only the build knows: library versions, compiler, profile and commit.

#[path = "src/record/source.rs"]
mod source;

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Version of `package` in the text of a `Cargo.lock`.
fn locked_version(lock: &str, package: &str) -> Option<String> {
    let entry = lock.split("[[package]]").find(|e| e.contains(&format!("name = \"{package}\"")))?;
    let version = entry.lines().find_map(|line| line.strip_prefix("version = "))?;
    Some(version.trim_matches('"').to_string())
}

/// Tells the crate which sources it is built from. A commit of these sources later on is no reason to build anew: the
/// program finds it by their hash (see `record::provenance`).
fn sources() {
    let root = Path::new("..");
    for path in source::SOURCES.iter().map(|path| root.join(path)).filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-env-changed=LOWBIT_GIT_COMMIT");
    if let Some(hash) = source::hash(root) {
        println!("cargo::rustc-env=LOWBIT_SOURCES={hash}");
    }
    let known = source::commit(root);
    if let Some((_, dirty)) = &known {
        println!("cargo::rustc-env=LOWBIT_BUILT_DIRTY={dirty}");
    }
    let commit = known.map(|(commit, _)| commit).or(env::var("LOWBIT_GIT_COMMIT").ok());
    println!("cargo::rustc-env=LOWBIT_BUILT_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

fn main() {
    let lock_path = "../Cargo.lock";
    println!("cargo::rerun-if-changed=build.rs");
    sources();

    // A build from a registry has no lock file beside it; then the record says "unknown".
    let lock = fs::read_to_string(lock_path).unwrap_or_default();
    let candle = locked_version(&lock, "candle-core").unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=LOWBIT_CANDLE_VERSION={candle}");

    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.and_then(|out| String::from_utf8(out.stdout).ok()).unwrap_or_default();
    let version = version.split_whitespace().nth(1).unwrap_or("unknown");
    println!("cargo::rustc-env=LOWBIT_RUSTC={version}");

    // A program at a fixed address needs no relocations, which would be read and written at every start: 9 MB of memory
    // (`lowbit info` takes 19 MB at its peak, and 28 with them) that say nothing of the model.
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if (target("OS").as_str(), target("ENV").as_str(), target("ARCH").as_str()) == ("linux", "gnu", "x86_64")
    {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }

    let profile = env::var("PROFILE").unwrap_or_else(|_| "unknown".into());
    println!("cargo::rustc-env=LOWBIT_PROFILE={profile}");
}
