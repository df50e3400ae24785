//! Where everything of the lab is: `.lab/` at the project's root, and nothing outside it but the kernelspec.
//!
//! ```text
//! .lab/
//!     venv/        Python with JupyterLab and nbconvert, pinned
//!     library/     the library that cells link to
//!     face/        the crate that cells name as their dependency
//!     sessions/    one folder a running kernel
//!     outputs/     what cells printed beyond what a notebook shows
//!     config/      evcxr's settings
//!     .cargo/      how the crates below are compiled
//!     *.stamp      what each step was made of
//! ```

use std::fs;
use std::path::{Path, PathBuf};

/// The project's folders.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The project that `LOWBIT_HOME` names, else the one in which cargo was told to run this program, else the one that it was
    /// built from. These are two where clones share a target directory.
    pub fn find() -> Self {
        let var = std::env::var_os;
        let by_cargo = || {
            var("CARGO_MANIFEST_DIR").filter(|_| var("CARGO_PKG_NAME") == Some(env!("CARGO_PKG_NAME").into()))
        };
        let package = || by_cargo().unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = var("LOWBIT_HOME").map_or_else(|| Path::new(&package()).join("../.."), PathBuf::from);
        Self { root: fs::canonicalize(&root).unwrap_or(root) }
    }

    /// The project's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of all that the lab installs.
    pub fn lab(&self) -> PathBuf {
        self.root.join(".lab")
    }

    /// The Python environment.
    pub fn venv(&self) -> PathBuf {
        self.lab().join("venv")
    }

    /// The folder of the library that cells link to, with the metadata of the crates in it.
    pub fn library(&self) -> PathBuf {
        self.lab().join("library")
    }

    /// The library itself: all of lowbit and of what it stands on.
    pub fn shared_object(&self) -> PathBuf {
        self.library().join(format!(
            "{}lowbit_cells{}",
            std::env::consts::DLL_PREFIX,
            std::env::consts::DLL_SUFFIX
        ))
    }

    /// Crates without dependencies, in which rust-analyzer finds the sources.
    pub fn face(&self) -> PathBuf {
        self.lab().join("face")
    }

    /// The folders of running kernels, named by process number.
    pub fn sessions(&self) -> PathBuf {
        self.lab().join("sessions")
    }

    /// What cells printed beyond what a notebook shows.
    pub fn outputs(&self) -> PathBuf {
        self.lab().join("outputs")
    }

    /// evcxr's settings.
    pub fn config(&self) -> PathBuf {
        self.lab().join("config")
    }

    /// Removes the folders of kernels that no longer run.
    pub fn remove_stale_sessions(&self) {
        for entry in fs::read_dir(self.sessions()).into_iter().flatten().flatten() {
            let number = entry.file_name().to_string_lossy().parse::<i32>();
            // SAFETY: signal 0 only asks whether the process is there.
            let runs = number.is_ok_and(|number| unsafe { libc::kill(number, 0) } == 0);
            if !runs {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}
