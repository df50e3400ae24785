//! The one error type: what went wrong, where, and what to try.

use std::fmt;
use std::io::Write;
use std::path::Path;

/// Tells on standard error what is no error, but should be known: what was assumed, dropped or replaced. Nothing happens
/// where nobody reads it.
pub fn warn(sentence: impl fmt::Display) {
    let _ = writeln!(std::io::stderr(), "lowbit: warning: {sentence}");
}

/// What a caller may want to do about an error; the command line turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An argument, a configuration or a file that cannot be used as it is (exit code 2).
    Input,
    /// The operating system refused: missing file, full disk, no permission, no network (exit code 3).
    Io,
    /// The user asked to stop (exit code 130).
    Interrupted,
    /// A check found something else than what was recorded (exit code 1).
    Differs,
    /// A bug in lowbit or in a library below it (exit code 1).
    Internal,
}

/// An error whose `Display` is one sentence: where, what, and what to try.
#[derive(Clone)]
pub struct Error(Box<Parts>);

#[derive(Clone)]
struct Parts {
    kind: Kind,
    what: String,
    place: Option<String>,
    hint: Option<String>,
}

/// `Result` with lowbit's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn new(kind: Kind, what: impl fmt::Display) -> Self {
        Self(Box::new(Parts { kind, what: what.to_string(), place: None, hint: None }))
    }

    /// Something the user gave cannot be used.
    pub fn input(what: impl fmt::Display) -> Self {
        Self::new(Kind::Input, what)
    }

    /// A file operation on `path` failed.
    pub fn io(path: impl AsRef<Path>, source: &std::io::Error) -> Self {
        let what = match source.kind() {
            std::io::ErrorKind::NotFound => "no such file or folder".to_string(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_string(),
            std::io::ErrorKind::StorageFull => "the disk is full".to_string(),
            std::io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_string(),
            std::io::ErrorKind::FileTooLarge => {
                "the file would grow beyond the limit set for files".to_string()
            }
            std::io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_string(),
            std::io::ErrorKind::AlreadyExists => "there is a file of this name already".to_string(),
            std::io::ErrorKind::NotADirectory => "a part of this path is a file and not a folder".to_string(),
            std::io::ErrorKind::IsADirectory => "this is a folder and not a file".to_string(),
            _ => source.to_string(),
        };
        Self::new(Kind::Io, what).at(path.as_ref().display())
    }

    /// The outside world failed in a way that is not tied to one file (network, terminal).
    pub fn unavailable(what: impl fmt::Display) -> Self {
        Self::new(Kind::Io, what)
    }

    /// The user asked to stop.
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// A check found something else than what was recorded.
    pub fn differs(what: impl fmt::Display) -> Self {
        Self::new(Kind::Differs, what)
    }

    /// A bug: something that no input should be able to cause.
    pub fn internal(what: impl fmt::Display) -> Self {
        Self::new(Kind::Internal, what)
    }

    /// Says where: a path, a tensor, a field. A later call puts its place in front.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(match self.0.place.take() {
            Some(inner) => format!("{place}: {inner}"),
            None => place.to_string(),
        });
        self
    }

    /// Says what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.0.hint = Some(hint.to_string());
        self
    }

    /// What kind of error this is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.0.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.what)?;
        if let Some(hint) = &self.0.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

// A cell or a test that unwraps prints `Debug`: the sentence serves there too.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // candle appends a backtrace after the first line when RUST_BACKTRACE is set.
        Self::internal(error.to_string().lines().next().unwrap_or("tensor operation failed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_says_where_what_and_what_to_try() {
        let error = Error::input("expected shape [2, 3], found [3, 2]")
            .at("layers.0.weight")
            .at("model.safetensors")
            .hint("check the config");
        assert_eq!(
            error.to_string(),
            "model.safetensors: layers.0.weight: expected shape [2, 3], found [3, 2]; check the config"
        );
        assert_eq!(error.kind(), Kind::Input);
    }
}
