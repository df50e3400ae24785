//! Whether the outputs of notebooks are of their cells, of this code and of this machine.

use super::{made, notebook, source};
use crate::home::Home;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What makes cells do what they do, beside the library.
const KERNEL: [&str; 3] = ["crate/jupyter/src", "crate/jupyter/cells", "crate/assets/fonts"];
/// What cells read.
const READ: [&str; 3] = ["data", "runs", ":(exclude)runs/LOG.md"];
/// Files that are named before the rest is counted.
const NAMED: usize = 3;

/// Tells of each notebook who made its outputs and what has changed since.
///
/// # Errors
/// If outputs are not of their cells, or a notebook cannot be read.
pub fn run(home: &Home, notebooks: &[PathBuf]) -> Result<(), String> {
    let all = match notebooks.is_empty() {
        true => of_project(home)?,
        false => notebooks.to_vec(),
    };
    let now = Now::of(home.root());
    if let Some((commit, dirty)) = source::commit(home.root()) {
        let changes = if dirty { " with uncommitted changes" } else { "" };
        println!("this code is that of commit {}{changes}", &commit[..10.min(commit.len())]);
    }
    let mut faulty = 0;
    for path in &all {
        let notebook = notebook::read(path)?;
        let faults = made::faults(&notebook);
        faulty += usize::from(!faults.is_empty());
        println!("{}", path.display());
        for sentence in faults.into_iter().chain(now.about(&notebook)) {
            println!("  {sentence}");
        }
    }
    match faulty {
        0 => Ok(()),
        _ => Err(format!(
            "of {} notebooks, {faulty} have outputs that are not those of their cells; `cargo lab run` makes them anew",
            all.len()
        )),
    }
}

/// The project's notebooks, from the current folder where it lies above them.
fn of_project(home: &Home) -> Result<Vec<PathBuf>, String> {
    let folder = home.root().join("notebooks");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let here = std::env::current_dir().unwrap_or_default();
    let paths = entries.flatten().map(|entry| entry.path());
    let paths = paths.filter(|path| path.extension().is_some_and(|end| end == "ipynb"));
    let mut all: Vec<PathBuf> =
        paths.map(|path| path.strip_prefix(&here).map_or(path.clone(), Path::to_path_buf)).collect();
    all.sort();
    Ok(all)
}

/// The code and the machine that there are now.
struct Now<'a> {
    root: &'a Path,
    sources: Option<String>,
    processors: String,
}

impl<'a> Now<'a> {
    fn of(root: &'a Path) -> Self {
        let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self { root, sources: source::hash(root), processors }
    }

    /// Who made a notebook's outputs, and what is another now.
    fn about(&self, notebook: &Value) -> Vec<String> {
        let Some(note) = made::note(notebook) else {
            return vec![
                "no provenance: `cargo lab run` notes who made the outputs; JupyterLab, nbconvert and papermill do not"
                    .into(),
            ];
        };
        let mut told = vec![made::by(note), self.code(note)];
        let commit = note["git_commit"].as_str().unwrap_or_default();
        for (what, paths) in [("the kernel has", KERNEL), ("what cells read has", READ)] {
            let changed = self.changed(commit, &paths).unwrap_or_default();
            if !changed.is_empty() {
                told.push(format!("{what} changed since that commit: {}", listed(&changed)));
            }
        }
        let processor = note["cpu_model"].as_str().unwrap_or_default();
        if !processor.is_empty() && !self.processors.is_empty() && !self.processors.contains(processor) {
            told.push("on another machine than this".into());
        }
        if note["small"] == true {
            told.push("on the small setting: a check that it works, and no result".into());
        }
        told
    }

    /// Whether cells would be linked to the same library again.
    fn code(&self, note: &Value) -> String {
        let sources = note["sources"].as_str();
        if sources.is_some() && sources == self.sources.as_deref() {
            return "of this code".into();
        }
        let commit = note["git_commit"].as_str().unwrap_or_default();
        let dirty = if note["git_dirty"] == true { ", and what was changed then beside it" } else { "" };
        match self.changed(commit, &source::SOURCES) {
            Some(changed) if !changed.is_empty() => {
                format!("of other code: since that commit there changed {}{dirty}", listed(&changed))
            }
            Some(_) => "of other code: that of this commit, with changes that are not there now".into(),
            None => "of other code, of a commit that is not in this repository".into(),
        }
    }

    /// The files among `paths` that are other than in `commit`, new ones included; None where there is no such commit.
    fn changed(&self, commit: &str, paths: &[&str]) -> Option<Vec<String>> {
        let git = |args: &[&str]| {
            let mut git = Command::new("git");
            git.args(["--no-optional-locks", "-C"]).arg(self.root).args(args).arg("--").args(paths);
            let out = git.output().ok().filter(|out| out.status.success())?;
            Some(String::from_utf8_lossy(&out.stdout).lines().map(str::to_string).collect::<Vec<_>>())
        };
        let hexadecimal = commit.len() >= 7 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut changed = git(&["diff", "--name-only", commit]).filter(|_| hexadecimal)?;
        changed.extend(git(&["ls-files", "--others", "--exclude-standard"])?);
        Some(changed)
    }
}

fn listed(files: &[String]) -> String {
    let named = files.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match files.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn code_is_told_from_other_code() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |name: &str, text: &str| {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
        };
        for name in ["Cargo.lock", "Cargo.toml", "crate/Cargo.toml", "crate/build.rs", "crate/src/lib.rs"] {
            write(name, name);
        }
        let git = |args: &[&str]| {
            let who = ["-c", "user.name=t", "-c", "user.email=t@t"];
            let out = Command::new("git").arg("-C").arg(root).args(who).args(args).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap().trim().to_string()
        };
        git(&["init", "--quiet"]);
        git(&["add", "."]);
        git(&["commit", "--quiet", "-m", "one"]);
        let mut notebook = json!({"cells": [], "metadata": {"lowbit": {
            "git_commit": git(&["rev-parse", "HEAD"]), "git_dirty": false, "sources": source::hash(root)}}});
        let told = |notebook: &Value| Now::of(root).about(notebook)[1..].join("; ");
        assert_eq!(told(&notebook), "of this code");
        // Text and data are no code; what cells read is told apart.
        write("README.md", "");
        write("runs/LOG.md", "");
        assert_eq!(told(&notebook), "of this code");
        write("runs/a/metrics.jsonl", "{}");
        assert_eq!(
            told(&notebook),
            "of this code; what cells read has changed since that commit: runs/a/metrics.jsonl"
        );
        fs::remove_dir_all(root.join("runs")).unwrap();
        // A commit of the same sources changes nothing.
        git(&["add", "."]);
        git(&["commit", "--quiet", "-m", "two"]);
        assert_eq!(told(&notebook), "of this code");
        for name in ["a", "b", "c", "d"] {
            write(&format!("crate/src/{name}.rs"), "");
        }
        write("crate/jupyter/src/main.rs", "");
        assert_eq!(
            told(&notebook),
            "of other code: since that commit there changed crate/src/a.rs, crate/src/b.rs, crate/src/c.rs and 1 more; \
             the kernel has changed since that commit: crate/jupyter/src/main.rs"
        );
        notebook["metadata"]["lowbit"]["git_commit"] = json!("0123456789");
        notebook["metadata"]["lowbit"]["cpu_model"] = json!("Z80");
        let found = told(&notebook);
        assert!(found.starts_with("of other code, of a commit that is not in this repository"), "{found}");
        assert!(!cfg!(target_os = "linux") || found.ends_with("on another machine than this"), "{found}");
        notebook["metadata"] = json!({});
        assert!(Now::of(root).about(&notebook)[0].starts_with("no provenance"));
    }
}
