//! Running notebooks without a front end.

use super::parameters;
use crate::home::Home;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What nbclient does with one notebook: cell by cell, results written also where a cell fails.
const RUN: &str = include_str!("run.py");

/// How notebooks are run.
#[derive(clap::Args)]
pub struct Flags {
    /// The notebooks.
    #[arg(required = true)]
    notebooks: Vec<PathBuf>,
    /// Run on the small setting and write nothing back: do the notebooks still work?
    #[arg(long)]
    check: bool,
    /// Give a parameter another value: a literal of Rust, text without quotes. Parameters are the `let` statements of the cell
    /// with the tag `parameters`; a cell with the tag `injected-parameters` after it holds what is set, as papermill has it.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Write the results here and leave the notebook as it is.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    out: Option<PathBuf>,
}

impl Flags {
    /// The notebooks as they are to be run. Asked before anything that takes long.
    ///
    /// # Errors
    /// If one is not there or no notebook, or a parameter cannot be set.
    pub fn read(&self) -> Result<Vec<Value>, String> {
        if (self.out.is_some() || !self.set.is_empty()) && self.notebooks.len() > 1 {
            return Err("--set and --out are for one notebook: name one".into());
        }
        if !self.set.is_empty() && self.out.is_none() && !self.check {
            return Err(
                "--set wants --out FILE: what is run with other parameters is another notebook".into()
            );
        }
        let set = self.set.iter().map(|given| {
            let (name, value) =
                given.split_once('=').ok_or_else(|| format!("--set {given}: write NAME=VALUE"))?;
            Ok((name.trim().to_string(), value.to_string()))
        });
        let set = set.collect::<Result<Vec<_>, String>>()?;
        let each = self.notebooks.iter().map(|path| {
            let mut notebook = read(path)?;
            if !set.is_empty() {
                parameters::inject(&mut notebook, &set)
                    .map_err(|why| format!("{}: {why}", path.display()))?;
            }
            Ok(notebook)
        });
        each.collect()
    }

    /// Runs each notebook in its own folder.
    pub fn run(&self, home: &Home, notebooks: &[Value]) -> Result<(), String> {
        let itself = std::env::current_exe().map_err(|error| error.to_string())?;
        for (path, notebook) in self.notebooks.iter().zip(notebooks) {
            let mut python = Command::new(home.venv().join("bin/python"));
            python.args(["-c", RUN]).arg(path).arg(self.out.as_ref().unwrap_or(path)).arg(&itself);
            python.env("LOWBIT_HEADLESS", "1").stdin(Stdio::piped());
            if self.check {
                // Runs of a check are not results.
                let runs = home.lab().join("check-runs");
                let _ = fs::remove_dir_all(&runs);
                python.arg("--check").env("LOWBIT_SMALL", "1").env("LOWBIT_RUNS", runs);
            }
            let mut python = python.spawn().map_err(|error| format!("Python cannot be started: {error}"))?;
            if let Some(mut input) = python.stdin.take() {
                let _ = input.write_all(notebook.to_string().as_bytes()); // if it does not read, it says why
            }
            let status = python.wait().map_err(|error| error.to_string())?;
            if !status.success() {
                std::process::exit(status.code().unwrap_or(1)); // it has said where and why
            }
        }
        Ok(())
    }
}

/// The notebook in a file.
///
/// # Errors
/// If it is not there, or no notebook.
pub fn read(path: &Path) -> Result<Value, String> {
    let at = path.display();
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("{at}: no such notebook; those of the project are notebooks/*.ipynb")
        }
        _ => format!("{at}: {error}"),
    })?;
    let notebook: Value = serde_json::from_str(&text).unwrap_or_default();
    match notebook["cells"].is_array() {
        true => Ok(notebook),
        false => Err(format!("{at} is not a notebook that can be read; give the path of an .ipynb file")),
    }
}
