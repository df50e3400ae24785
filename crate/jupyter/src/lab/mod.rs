//! `cargo lab`: from a clone to a notebook, in steps that can be repeated.
//!
//! | file | holds |
//! |---|---|
//! | `steps` | what must be there: evcxr's settings, sources for rust-analyzer, the kernelspec |
//! | `library` | what cells link to |
//! | `python` | Python's side of it: JupyterLab and its packages |
//! | `notebook`, `parameters`, `default` | running notebooks without a front end, with parameters |
//! | `check` | whether outputs are of their cells and of this code |
//! | `made`, `source` | what a notebook notes of its outputs, and the hash of the sources: files of the library |
//! | `doctor` | what is there and what is not |

mod check;
mod default;
mod doctor;
mod library;
#[path = "../../../src/report/made.rs"]
mod made;
mod notebook;
mod parameters;
mod python;
#[path = "../../../src/record/source.rs"]
mod source;
mod steps;

use crate::event::Event;
use crate::home::Home;
use crate::session::{Front, Session};
use crate::wire::Wire;
use clap::{Parser, Subcommand};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

/// JupyterLab with a Rust kernel that has lowbit loaded.
#[derive(Parser)]
#[command(name = "cargo lab", version)]
struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Print the address instead of opening a browser.
    #[arg(long)]
    no_browser: bool,
    /// Passed on to JupyterLab, such as `-- --port 9999`.
    #[arg(last = true)]
    jupyter: Vec<String>,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing and stop.
    Setup,
    /// Run notebooks without a front end and write the results back; fails at the first cell that fails.
    Run(notebook::Flags),
    /// Tell who made the outputs of notebooks, and what has changed since; fails where they are not of the cells.
    Check {
        /// The notebooks [default: those of the project].
        notebooks: Vec<PathBuf>,
    },
    /// Tell what is there, what is missing, and how to mend it.
    Doctor,
    /// Make the kernel known to your own Jupyter too.
    Kernelspec,
    /// Remove everything that the lab has installed.
    Uninstall,
    /// The kernel itself, as Jupyter starts it.
    #[command(hide = true)]
    Kernel {
        /// Jupyter's connection file.
        connection: PathBuf,
    },
    /// Prints of a notebook's cells, for who runs it.
    #[command(hide = true)]
    Prints {
        /// The notebook.
        notebook: PathBuf,
    },
    /// Open a session and run a cell, in a process of its own.
    #[command(hide = true)]
    Try,
}

/// Carries out the command line.
pub fn run() -> Result<(), String> {
    let args = Args::parse();
    let home = Home::find();
    match args.verb {
        None => open(&home, args.no_browser, &args.jupyter),
        Some(Verb::Setup) => steps::all(&home),
        Some(Verb::Run(flags)) => {
            let notebooks = flags.read()?;
            steps::all(&home)?;
            flags.run(&home, &notebooks)
        }
        Some(Verb::Check { notebooks }) => check::run(&home, &notebooks),
        Some(Verb::Prints { notebook }) => {
            println!("{}", serde_json::json!(made::prints(&notebook::read(&notebook)?)));
            Ok(())
        }
        Some(Verb::Doctor) => doctor::run(&home),
        Some(Verb::Kernelspec) => {
            steps::all(&home)?;
            let folder = steps::install_kernelspec(&home, &steps::user_data()?)?;
            println!("\"Rust (lowbit)\" is in {}", folder.display());
            Ok(())
        }
        Some(Verb::Uninstall) => uninstall(&home),
        Some(Verb::Kernel { connection }) => crate::kernel::serve(&connection),
        Some(Verb::Try) => {
            let wire = Wire::lay().map_err(|error| error.to_string())?;
            let tried = Session::open(&home, Nobody, Arc::new(Mutex::new(wire))).and_then(|mut session| {
                session.execute("let config = Passkey::default();\nconfig.trials").map(|_| ())
            });
            tried.map_err(|trouble| trouble.lines.join("\n"))
        }
    }
}

/// Nobody looks.
#[derive(Clone, Copy)]
struct Nobody;

impl Front for Nobody {
    fn show(&self, _event: Event) {}

    fn ask(&self) -> Result<String, String> {
        Err("nobody is there to type".into())
    }

    fn stopped(&self) -> bool {
        false
    }
}

fn open(home: &Home, no_browser: bool, more: &[String]) -> Result<(), String> {
    steps::all(home)?;
    let mut lab = Command::new(home.venv().join("bin/jupyter"));
    lab.arg("lab").current_dir(home.root().join("notebooks"));
    if no_browser {
        lab.arg("--no-browser");
    }
    // SAFETY: only asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        lab.arg("--allow-root"); // in a container nobody else is there, and JupyterLab would refuse
    }
    let error = lab.args(more).exec(); // JupyterLab takes this process over
    Err(format!("JupyterLab cannot be started: {error}. Run `cargo lab doctor`"))
}

fn uninstall(home: &Home) -> Result<(), String> {
    // A kernelspec of the user's Jupyter may be that of another clone of the project.
    let spec = steps::user_data().ok().map(|data| data.join("kernels").join(steps::KERNEL));
    let spec = spec.filter(|folder| steps::is_kernelspec_of(home, folder));
    let there: Vec<PathBuf> =
        std::iter::once(home.lab()).chain(spec).filter(|folder| folder.exists()).collect();
    for folder in &there {
        std::fs::remove_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        println!("removed {}", folder.display());
    }
    if there.is_empty() {
        println!("nothing of the lab is installed");
    }
    Ok(())
}
