//! Reports: a run or a notebook as one HTML file that opens anywhere, without a server and without a network.
//!
//! ```no_run
//! # fn main() -> lowbit::Result<()> {
//! use lowbit::Report;
//! Report::of("staged")?.save("staged.html")?; // a run: its folder, id or name
//! Report::of("notebooks/01-first-look.ipynb")?.save("first-look.html")?; // a notebook with its outputs
//! # Ok(())
//! # }
//! ```
//!
//! A report of a run holds what it asked, what its tests allow to say, its figures and tables, settings, provenance and
//! warnings; that of a notebook its text, code and outputs, and at its head who made the outputs. The same input gives the
//! same bytes. The page may load nothing from elsewhere, and a policy in its head makes browsers hold it to that.
//!
//! | file | holds |
//! |---|---|
//! | `findings` | what records say: tables and sentences, for the terminal too |
//! | `run`, `provenance` | a run's report; where its records come from |
//! | `notebook`, `output` | a notebook's report; the outputs of its cells |
//! | `markdown`, `highlight`, `ansi` | text, code and terminal colours as HTML |
//! | `made` | who made a notebook's outputs, and whether they are still those |
//! | `page`, `style.css`, `page.js` | the page around it |

mod ansi;
mod findings;
mod highlight;
mod made;
mod markdown;
mod notebook;
mod output;
mod page;
mod provenance;
mod run;

pub use findings::{Findings, comparison};

use crate::error::{Error, Result};
use crate::record::Run;
use crate::whole::write_bytes;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A run or a notebook as a page.
#[derive(Clone, Debug)]
pub struct Report {
    html: String,
    warnings: Vec<String>,
    beside: PathBuf,
}

impl Report {
    /// The report of a run (its folder, its `metrics.jsonl`, its id, or a name of which the newest run counts) or of a
    /// notebook (its file).
    ///
    /// # Errors
    /// If there is no such run or file, or it cannot be read.
    pub fn of(what: impl AsRef<Path>) -> Result<Self> {
        let what = what.as_ref();
        let notebook = what.extension().is_some_and(|end| end.eq_ignore_ascii_case("ipynb"));
        let records = what.file_name().is_some_and(|name| name == "metrics.jsonl");
        match () {
            () if notebook || what.is_file() && !records => notebook::report(what),
            () if what.is_file() => run::report(what.parent().unwrap_or(what)),
            () if what.join("log.jsonl").is_file() => {
                Err(Error::input("a training has no report").at(what.display()).hint(format!(
                    "`lowbit plots {}` draws its figure, and a measurement of its model has one",
                    what.display()
                )))
            }
            () => run::report(what),
        }
    }

    /// The page.
    pub fn html(&self) -> &str {
        &self.html
    }

    /// What the page warns of, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where it belongs: in the run's folder or beside the notebook, and named after it.
    pub fn beside(&self) -> &Path {
        &self.beside
    }

    /// Writes the page; an older report is replaced as a whole.
    ///
    /// # Errors
    /// If the file is there and no report, or cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if path.is_file() && !is_report(path)? {
            return Err(Error::input("this file is no report, and would be lost")
                .at(path.display())
                .hint("name another one, or move it away"));
        }
        write_bytes(path, self.html.as_bytes())
    }
}

impl Run {
    /// Writes the report of what is recorded, see [`Report`].
    ///
    /// # Errors
    /// Those of [`Report::of`] and [`Report::save`].
    pub fn report(&self, path: impl AsRef<Path>) -> Result<()> {
        Report::of(self.path())?.save(path)
    }
}

/// Whether a file begins like a report.
fn is_report(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(1024).read_to_end(&mut head));
    read.map_err(|error| Error::io(path, &error))?;
    Ok(String::from_utf8_lossy(&head).contains(page::GENERATOR))
}

#[cfg(test)]
mod tests;
