//! What is there and what is not.

use super::{python, steps};
use crate::home::Home;
use std::process::Command;

/// Prints a line a thing that the lab needs; fails if one is missing.
pub fn run(home: &Home) -> Result<(), String> {
    let version = |program: &str| {
        let output =
            Command::new(program).arg("--version").output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let venv = home.venv().join("bin/jupyter");
    let spec = home.venv().join("share/jupyter/kernels").join(steps::KERNEL).join("kernel.json");
    let library = home.shared_object();
    let sessions = std::fs::read_dir(home.sessions()).map_or(0, Iterator::count);
    let space = steps::free_space(home.root()).map(|free| format!("{:.0} GB free", free as f64 / 1e9));
    let there = |path: &std::path::Path| path.exists().then(|| path.display().to_string());
    let again = "run `cargo lab setup`";
    let python = python::look();
    let no_python = python.clone().err().unwrap_or_default();
    let checks = [
        ("rustc", version("rustc"), "install Rust with rustup"),
        ("cargo", version("cargo"), "install Rust with rustup"),
        ("python", python.ok(), no_python.as_str()),
        ("JupyterLab", there(&venv), again),
        ("kernelspec", there(&spec), again),
        ("library", there(&library), again),
        ("disk", space, "the file system does not tell"),
    ];
    for (name, found, mend) in &checks {
        match found {
            Some(found) => println!("  ok       {name:<11} {found}"),
            None => println!("  missing  {name:<11} {mend}"),
        }
    }
    println!("  running  {sessions} kernels");
    let missing = checks.iter().filter(|(_, found, _)| found.is_none()).count();
    if missing > 0 { Err(format!("{missing} of {} things are missing", checks.len())) } else { Ok(()) }
}
