//! What the program says, to readers that may stop reading at any time.
//!
//! A pipe whose reader has what it wanted (`head -1`, `q` in a pager) is no fault: what is left of the work is done, nothing
//! more is said, and the exit code is that of the work.

use lowbit::error::{Error, Result};
use std::fmt::{Arguments, Display};
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::path::Path;

/// Writes a line to standard output.
///
/// # Errors
/// If it cannot be written for another reason than that nobody reads it, such as a full disk.
pub fn line(text: Arguments<'_>) -> Result<()> {
    piece(format_args!("{text}\n"))
}

/// Writes a part of a line to standard output, to be seen at once.
///
/// # Errors
/// As [`line`].
pub fn piece(text: Arguments<'_>) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output", &error)),
        _ => Ok(()),
    }
}

/// Writes a line as `println!` does, and gives the error of [`line`] instead of a panic.
macro_rules! say {
    ($($text:tt)*) => { $crate::out::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Writes a complaint to standard error, where there may be nobody to read it.
pub fn complain(sentence: impl Display) {
    let _ = writeln!(stderr(), "lowbit: {sentence}");
}

/// A path from the current folder, where it lies in it.
pub fn shown(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let here = std::env::current_dir().and_then(std::fs::canonicalize).unwrap_or_default();
    absolute.strip_prefix(&here).unwrap_or(&absolute).display().to_string()
}

/// The same for standard output: on a terminal a link that opens the file.
pub fn linked(path: &Path) -> String {
    match std::path::absolute(path) {
        Ok(absolute) if stdout().is_terminal() => link(&absolute, &shown(path)),
        _ => shown(path),
    }
}

/// A hyperlink as terminals know it (OSC 8); those that do not show the text alone.
fn link(to: &Path, text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let address: String = to
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|&byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    format!("\x1b]8;;file://{address}\x1b\\{text}\x1b]8;;\x1b\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_the_file_whatever_its_name() {
        let link = link(Path::new("/a b/ü.png"), "ü.png");
        assert_eq!(link, "\x1b]8;;file:///a%20b/%C3%BC.png\x1b\\ü.png\x1b]8;;\x1b\\");
    }

    #[test]
    fn a_file_is_told_from_the_current_folder() {
        let here = std::fs::canonicalize(".").unwrap();
        assert_eq!(shown(&here.join("runs/x/plots/a.png")), "runs/x/plots/a.png");
        assert_eq!(shown(Path::new("runs")), "runs");
        assert_eq!(shown(Path::new("/elsewhere")), "/elsewhere");
    }
}
