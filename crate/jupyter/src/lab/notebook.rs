//! Running notebooks without a front end.

use crate::home::Home;
use std::path::PathBuf;
use std::process::Command;

/// What nbclient does with one notebook: cell by cell, results written back also where a cell fails.
const RUN: &str = include_str!("run.py");

/// Whether the notebooks are there: asked before anything that takes long.
pub fn look(notebooks: &[PathBuf]) -> Result<(), String> {
    match notebooks.iter().find(|notebook| !notebook.is_file()) {
        Some(missing) => Err(format!(
            "{}: no such notebook; those of the project are notebooks/*.ipynb",
            missing.display()
        )),
        None => Ok(()),
    }
}

/// Runs each notebook in its own folder.
pub fn run(home: &Home, notebooks: &[PathBuf], check: bool) -> Result<(), String> {
    for notebook in notebooks {
        let mut python = Command::new(home.venv().join("bin/python"));
        python.args(["-c", RUN]).arg(notebook).env("LOWBIT_HEADLESS", "1");
        if check {
            // Runs of a check are not results.
            let runs = home.lab().join("check-runs");
            let _ = std::fs::remove_dir_all(&runs);
            python.arg("--check").env("LOWBIT_SMALL", "1").env("LOWBIT_RUNS", runs);
        }
        let status = python.status().map_err(|error| format!("Python cannot be started: {error}"))?;
        if !status.success() {
            std::process::exit(status.code().unwrap_or(1)); // it has said where and why
        }
    }
    Ok(())
}
