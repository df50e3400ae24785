//! Python's side: a virtual environment in `.lab/venv` with the pinned packages.

use super::steps::{Step, full_disk, last_line, no_space, stamp, stamp_is, write};
use crate::home::Home;
use std::fs;
use std::process::{Command, Stdio};

/// Prints Python's version; fails where the module that makes environments is missing (Debian has it apart) or hollow.
const ASK: &str = "import sys; print('%d.%d' % sys.version_info[:2]); import ensurepip, venv";
/// The oldest Python that all packages of `requirements.txt` run on.
const OLDEST: (u32, u32) = (3, 10);

/// The version of `python3`, if it is one to make the environment with; else why not and what to do.
pub fn look() -> Result<String, String> {
    let (major, minor) = OLDEST;
    let output = Command::new("python3").args(["-c", ASK]).output().map_err(|_| {
        format!(
            "python3 is not on the PATH: install Python {major}.{minor} or later, and run `cargo lab` again"
        )
    })?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_string();
    let numbers = version.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match numbers {
        Some(numbers) if numbers < OLDEST => Err(format!(
            "python3 is Python {version}, and JupyterLab needs {major}.{minor} or later: put a newer one first on the \
             PATH, and run `cargo lab` again"
        )),
        Some(_) if output.status.success() => Ok(version),
        Some(_) => {
            Err("python3 cannot make virtual environments: install its venv module (python3-venv on Debian \
                        and Ubuntu), and run `cargo lab` again"
                .into())
        }
        None => Err(format!(
            "python3 does not run: {}; mend it or put another one first on the PATH",
            last_line(&output.stderr)
        )),
    }
}

/// JupyterLab would first ask whether it may bring news, and look for newer versions of itself.
const QUIET: &str =
    r#"{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}"#;

/// Installs what `requirements.txt` names.
pub fn packages(home: &Home) -> Result<(), String> {
    let list = home.root().join("crate/jupyter/requirements.txt");
    let wanted = fs::read_to_string(&list).map_err(|error| format!("{}: {error}", list.display()))?;
    if stamp_is(home, "python", &wanted) && home.venv().join("bin/jupyter").exists() {
        return Ok(());
    }
    look()?;
    let _step = Step::begin("step 1 of 2: Python packages (JupyterLab, nbconvert), a minute or two");
    let mut make = Command::new("python3");
    // What is there may be half of anything: an interrupted set-up, or other versions.
    make.args(["-m", "venv", "--clear"]).arg(home.venv());
    run(home, make, "the Python environment cannot be made", "free its folder from other programs")?;
    let mut install = Command::new(home.venv().join("bin/python"));
    install.args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--retries", "2", "-r"]);
    install.arg(&list);
    run(home, install, "the Python packages cannot be installed", "check the network and pip's settings")?;
    write(&home.venv().join("share/jupyter/lab/settings/overrides.json"), QUIET)?;
    write(&stamp(home, "python"), &wanted)
}

/// Runs a command; if it fails, says what cannot be, in its own last words why, and what to do.
fn run(home: &Home, mut command: Command, what: &str, remedy: &str) -> Result<(), String> {
    let ended = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let why = match ended {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => last_line(&[output.stdout, output.stderr].concat()),
        Err(error) => error.to_string(),
    };
    if full_disk(&home.lab()) {
        return Err(no_space(home));
    }
    let why = why.trim_start_matches("ERROR: ").trim_end_matches('.');
    Err(format!("{what}: {why}; {remedy}, and run `cargo lab` again"))
}
