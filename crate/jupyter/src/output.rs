//! What the cells print, on its way to the notebook: gathered to few messages, and cut after [`SHOWN`] bytes of a cell.
//!
//! What is cut is not lost: the whole of it is in a file, up to [`KEPT`] bytes, and the notebook is told where.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Names the folder of the files.
pub const FOLDER: &str = "LOWBIT_OUTPUTS";
/// Bytes of a cell's output that a notebook shows.
const SHOWN: u64 = 1 << 20;
/// Bytes of a cell's output that its file holds at most.
const KEPT: u64 = 1 << 28;
/// Text waits so long for more before it is told.
const GATHER: Duration = Duration::from_millis(30);
/// Text of so many bytes is told at once.
const FULL: usize = 1 << 16;

/// The text of one cell.
#[derive(Default)]
pub struct Output {
    /// What is not told yet, and since when.
    waiting: String,
    since: Option<Instant>,
    /// What was told, as long as there is no file.
    told: Vec<u8>,
    printed: u64,
    file: Option<(PathBuf, Option<File>)>,
}

impl Output {
    /// Takes text that was printed; what the notebook shows of it waits to be told.
    pub fn print(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let shown = (SHOWN.saturating_sub(self.printed) as usize).min(text.len());
        let shown = (0..=shown).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.printed += text.len() as u64;
        if shown > 0 {
            self.waiting += &text[..shown];
            self.since.get_or_insert_with(Instant::now);
        }
        if shown == text.len() && self.file.is_none() {
            self.told.extend_from_slice(text.as_bytes());
            return;
        }
        if self.file.is_none() {
            let opened = open();
            let path = opened.as_ref().map(|(path, _)| path.clone()).unwrap_or_default();
            self.file = Some((path, opened.map(|(_, file)| file)));
            let told = std::mem::take(&mut self.told);
            self.keep(&told);
        }
        self.keep(text.as_bytes());
    }

    /// Bytes that the cell has printed.
    pub fn printed(&self) -> u64 {
        self.printed
    }

    /// Writes to the file as much as it may hold; a file that cannot be written ends there.
    fn keep(&mut self, text: &[u8]) {
        let Some((_, place)) = &mut self.file else { return };
        let full = self.printed > KEPT;
        if place.as_mut().is_some_and(|file| full || file.write_all(text).is_err()) {
            *place = None;
        }
    }

    /// The text that is due, if any: it has waited, there is much, or something else is told now.
    pub fn due(&mut self, now: bool) -> Option<String> {
        let due = now || self.waiting.len() >= FULL || self.wait() == Some(Duration::ZERO);
        if !due || self.waiting.is_empty() {
            return None;
        }
        self.since = None;
        Some(std::mem::take(&mut self.waiting))
    }

    /// How long until text is due; None if none waits.
    pub fn wait(&self) -> Option<Duration> {
        self.since.map(|since| GATHER.saturating_sub(since.elapsed()))
    }

    /// Ends the cell; what is to be said of it if it was cut.
    pub fn end(&mut self) -> Option<String> {
        let ended = std::mem::take(self);
        let (path, file) = ended.file?;
        let (shown, printed) = (SHOWN >> 20, ended.printed as f64 / f64::from(1 << 20));
        Some(match file {
            Some(_) => format!(
                "\nThe first {shown} MiB of {printed:.1} MiB of output are shown; all of it is in {}\n",
                path.display()
            ),
            None if path.as_os_str().is_empty() => {
                format!(
                    "\nThe first {shown} MiB of {printed:.1} MiB of output are shown; no file could be written for the rest.\n"
                )
            }
            None => format!(
                "\nThe first {shown} MiB of {printed:.1} MiB of output are shown; the first {} MiB at most are in {}\n",
                KEPT >> 20,
                path.display()
            ),
        })
    }
}

/// A new file for a cell's output.
fn open() -> Option<(PathBuf, File)> {
    let folder = PathBuf::from(std::env::var_os(FOLDER)?);
    fs::create_dir_all(&folder).ok()?;
    let name = |number: u32| folder.join(format!("output-{}-{number}.txt", std::process::id()));
    let path = (1..10_000).map(name).find(|path| !path.exists())?;
    let file = File::create(&path).ok()?;
    Some((path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_gathered_and_cut_at_a_character() {
        let mut output = Output::default();
        output.print("a\n");
        assert_eq!((output.due(false), output.wait().is_some()), (None, true));
        output.print("b\n");
        assert_eq!(output.due(true).as_deref(), Some("a\nb\n"));
        assert_eq!(output.end(), None);
        let mut output = Output::default();
        output.print(&"é".repeat(1 << 20));
        let shown = output.due(false).unwrap();
        assert_eq!(shown.len(), 1 << 20);
        output.print("more");
        assert_eq!(output.due(true), None);
        let said = output.end().unwrap();
        assert!(said.contains("1 MiB of 2.0 MiB") && said.contains("no file"), "{said}");
        assert_eq!(output.end(), None);
    }
}
