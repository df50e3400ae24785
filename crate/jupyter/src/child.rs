//! The process that runs the cells.
//!
//! evcxr talks with it through standard output, where it prints what the cells print. Here pipes are put over standard
//! output and standard error before evcxr's loop begins; one thread reads both and hands evcxr its own lines, while
//! everything else becomes an [`Event`] at once: unfinished lines, several displays in one cell, errors.

use crate::event::{Event, MARK};
use crate::input;
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// evcxr's words, as its version pinned in Cargo.toml spells them.
const WORDS: &str = "EVCXR_";
/// A cell came to its end.
pub const COMPLETE: &str = "EVCXR_EXECUTION_COMPLETE";
const BEGIN: &str = "EVCXR_BEGIN_CONTENT ";
const END: &str = "EVCXR_END_CONTENT";
const FAILED: &str = "EVCXR_ERROR_OCCURRED";
/// Text on standard error waits this long for an error that may claim it as its sentence.
const HOLD: Duration = Duration::from_millis(15);
/// Set while evcxr starts: it waits for its first cell's output to be taken before anyone can take it.
pub const STARTING: &str = "LOWBIT_STARTING";
/// How long the cells' library may take to flush.
const PATIENCE: Duration = Duration::from_millis(500);

/// Becomes the process that runs the cells, if this is to be one; else returns.
pub fn run_if_asked() {
    if std::env::var_os("EVCXR_IS_RUNTIME").is_none() {
        evcxr::runtime_hook(); // it may be a wrapper around rustc
        return;
    }
    // SAFETY: no other thread runs yet.
    unsafe {
        std::env::set_var("RUST_BACKTRACE", "0"); // candle's errors would bring theirs
        std::env::set_var("CANDLE_NUM_THREADS", "1"); // a second, spinning pool only costs time
        // Until lowbit listens, an interrupt must not end the process.
        libc::signal(libc::SIGINT, libc::SIG_IGN);
    }
    if std::env::var_os(STARTING).is_some() {
        evcxr::runtime_hook(); // this process is replaced before the first cell of anyone's
    }
    match lay_pipes() {
        Ok(reader) => {
            std::thread::spawn(move || reader.run());
        }
        Err(error) => eprintln!("output cannot be read live: {error}"),
    }
    let Err(error) = input::serve();
    eprintln!("cells cannot be run: {error}");
    std::process::exit(99);
}

fn pipe() -> std::io::Result<(RawFd, RawFd)> {
    let mut ends = [0; 2];
    // SAFETY: a place for two descriptors.
    match unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } {
        0 => Ok((ends[0], ends[1])),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Puts pipes over standard output and error, and lays those to the cells' library.
fn lay_pipes() -> std::io::Result<Reader> {
    let (out, out_end) = pipe()?;
    let (err, err_end) = pipe()?;
    let (requests_end, requests) = pipe()?;
    let (replies, replies_end) = pipe()?;
    // SAFETY: valid descriptors of this process; no other thread uses them yet.
    let kernel = unsafe {
        let kernel = libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 3);
        libc::dup2(out_end, 1);
        libc::dup2(err_end, 2);
        libc::close(out_end);
        libc::close(err_end);
        std::env::set_var("LOWBIT_CELLS", format!("{requests_end},{replies_end}"));
        kernel
    };
    Ok(Reader {
        out,
        err,
        requests,
        replies,
        kernel,
        text: vec![],
        held: vec![],
        held_since: None,
        state: Parser::default(),
    })
}

/// Reads what the cells print, and tells the kernel.
struct Reader {
    out: RawFd,
    err: RawFd,
    requests: RawFd,
    replies: RawFd,
    kernel: RawFd,
    /// Standard output that is not told yet.
    text: Vec<u8>,
    /// Standard error that is not told yet, and since when.
    held: Vec<u8>,
    held_since: Option<Instant>,
    state: Parser,
}

impl Reader {
    fn run(mut self) {
        loop {
            let wait =
                self.held_since.map_or(-1, |since| HOLD.saturating_sub(since.elapsed()).as_millis() as i32);
            let ready = wait_for(&[self.out, self.err], wait);
            if ready[1] && read_into(self.err, &mut self.held) {
                self.held_since = Some(Instant::now());
            }
            if ready[0] {
                if !read_into(self.out, &mut self.text) {
                    return; // the process ends
                }
                self.take_lines();
            }
            if self.held_since.is_some_and(|since| since.elapsed() >= HOLD) {
                self.release_errors();
            }
        }
    }

    /// Handles the whole lines at hand, and of an unfinished one what cannot become a word of evcxr's.
    fn take_lines(&mut self) {
        while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.text.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..line.len() - 1]).into_owned();
            for step in self.state.line(&line) {
                match step {
                    Step::Tell(event) => self.tell(&event),
                    Step::Pass(line) => self.pass(&(line + "\n")),
                    Step::Failed => self.failed(),
                    Step::Complete => self.complete(),
                }
            }
        }
        let safe = self.state.safe_part(&self.text);
        if safe > 0 {
            let part: Vec<u8> = self.text.drain(..safe).collect();
            self.tell(&Event::Stdout(String::from_utf8_lossy(&part).into_owned()));
        }
    }

    /// A `?` ended the cell: its sentence is what came on standard error just now.
    fn failed(&mut self) {
        while wait_for(&[self.err], 0)[0] && read_into(self.err, &mut self.held) {}
        let sentence = String::from_utf8_lossy(&self.held).trim_end().to_string();
        self.held.clear();
        self.held_since = None;
        self.tell(&Event::Failed(sentence));
        self.pass(&format!("{FAILED}\n"));
    }

    /// The cell came to its end: whatever is left in buffers comes first, then evcxr is told.
    fn complete(&mut self) {
        // SAFETY: writes one byte from a place of one byte.
        unsafe { libc::write(self.requests, b"f".as_ptr().cast(), 1) };
        let asked = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(asked.elapsed()).as_millis() as i32;
            let ready = wait_for(&[self.out, self.replies], left);
            if ready[0] {
                read_into(self.out, &mut self.text);
            } else if ready[1] {
                read_into(self.replies, &mut vec![]);
                break;
            } else if left == 0 {
                break; // the library is not loaded, or something holds standard output
            }
        }
        while wait_for(&[self.out], 0)[0] && read_into(self.out, &mut self.text) {}
        // What is left are the cell's last words, without a line's end.
        self.take_lines();
        let rest: Vec<u8> = self.text.drain(..).collect();
        if !rest.is_empty() {
            self.tell(&Event::Stdout(String::from_utf8_lossy(&rest).into_owned()));
        }
        while wait_for(&[self.err], 0)[0] && read_into(self.err, &mut self.held) {}
        self.release_errors();
        if let Some(display) = self.state.end_display() {
            self.tell(&display);
        }
        self.tell(&Event::Done);
        self.pass(&format!("{COMPLETE}\n"));
    }

    fn release_errors(&mut self) {
        self.held_since = None;
        if !self.held.is_empty() {
            let text = String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned();
            self.tell(&Event::Stderr(text));
        }
    }

    fn tell(&self, event: &Event) {
        self.pass(&event.line());
    }

    fn pass(&self, text: &str) {
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            // SAFETY: writes from a slice that lives.
            let written = unsafe { libc::write(self.kernel, bytes.as_ptr().cast(), bytes.len()) };
            if written <= 0 {
                return; // the kernel is gone
            }
            bytes = &bytes[written as usize..];
        }
    }
}

/// Which of the descriptors can be read within `milliseconds` (−1: however long it takes).
pub fn wait_for(fds: &[RawFd], milliseconds: i32) -> Vec<bool> {
    let poll = |fd: &RawFd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    let mut polls: Vec<_> = fds.iter().map(poll).collect();
    // SAFETY: a valid array of that length.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, milliseconds) };
    polls.iter().map(|poll| poll.revents != 0).collect()
}

/// Appends what can be read at once; false at the end of the stream.
fn read_into(fd: RawFd, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = [0u8; 1 << 16];
    // SAFETY: reads into a buffer of that length.
    let read = unsafe { libc::read(fd, chunk.as_mut_ptr().cast(), chunk.len()) };
    buffer.extend_from_slice(&chunk[..read.max(0) as usize]);
    read > 0
}

/// What is to be done about a line.
#[derive(Debug, PartialEq)]
enum Step {
    Tell(Event),
    Pass(String),
    Failed,
    Complete,
}

/// Tells evcxr's lines from the cells'.
#[derive(Default)]
struct Parser {
    /// MIME type and lines of the content that is being read.
    content: Option<(String, Vec<String>)>,
    /// Contents of one display that are complete.
    display: BTreeMap<String, String>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Vec<Step> {
        if let Some((mime, lines)) = &mut self.content {
            let Some(last) = line.strip_suffix(END) else {
                lines.push(line.to_string());
                return vec![];
            };
            if !last.is_empty() {
                lines.push(last.to_string());
            }
            let (mime, content) = (std::mem::take(mime), lines.join("\n"));
            self.content = None;
            self.display.insert(mime.clone(), content);
            // Plain text closes a display of lowbit's; the next line or the cell's end closes any other.
            let closed = if mime == "text/plain" { self.end_display() } else { None };
            return closed.map(Step::Tell).into_iter().collect();
        }
        // A print without a line's end stands before the word.
        let at = line.find(MARK).or_else(|| line.find(WORDS).filter(|at| is_word(&line[*at..])));
        let (before, word) = line.split_at(at.unwrap_or(line.len()));
        let begins = word.strip_prefix(BEGIN);
        let mut steps = vec![];
        if begins.is_none_or(|mime| self.display.contains_key(mime)) || !before.is_empty() {
            steps.extend(self.end_display().map(Step::Tell));
        }
        match (at, before) {
            (None, _) => steps.push(Step::Tell(Event::Stdout(format!("{line}\n")))),
            (Some(_), "") => {}
            (Some(_), text) => steps.push(Step::Tell(Event::Stdout(text.to_string()))),
        }
        match word {
            "" => {}
            COMPLETE => steps.push(Step::Complete),
            FAILED => steps.push(Step::Failed),
            _ => match begins {
                Some(mime) => self.content = Some((mime.to_string(), vec![])),
                None => steps.push(Step::Pass(word.to_string())),
            },
        }
        steps
    }

    fn end_display(&mut self) -> Option<Event> {
        (!self.display.is_empty()).then(|| Event::Display(std::mem::take(&mut self.display)))
    }

    /// How many bytes of an unfinished line can be told now: those before anything that may become a word, and no
    /// half of a character.
    fn safe_part(&self, text: &[u8]) -> usize {
        if self.content.is_some() || !self.display.is_empty() {
            return 0;
        }
        let starts = |word: &[u8], at: usize| word.starts_with(&text[at..text.len().min(at + word.len())]);
        let word = |at: &usize| starts(WORDS.as_bytes(), *at) || starts(MARK.as_bytes(), *at);
        let safe = (0..text.len()).find(word).unwrap_or(text.len());
        match std::str::from_utf8(&text[..safe]) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => safe,
        }
    }
}

fn is_word(text: &str) -> bool {
    let known = [COMPLETE, FAILED, "EVCXR_PANIC_NOTIFICATION"];
    let prefixes = [BEGIN, "EVCXR_VARIABLE_CHANGED_TYPE:", "EVCXR_INPUT_REQUEST"];
    known.contains(&text) || prefixes.iter().any(|prefix| text.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(lines: &[&str]) -> Vec<Step> {
        let mut parser = Parser::default();
        lines.iter().flat_map(|line| parser.line(line)).collect()
    }

    fn out(text: &str) -> Step {
        Step::Tell(Event::Stdout(text.to_string()))
    }

    fn display(parts: &[(&str, &str)]) -> Step {
        let parts = parts.iter().map(|(mime, content)| ((*mime).to_string(), (*content).to_string()));
        Step::Tell(Event::Display(parts.collect()))
    }

    #[test]
    fn text_is_told_and_words_are_passed_even_behind_an_unfinished_line() {
        assert_eq!(
            steps(&["hello", "12EVCXR_EXECUTION_COMPLETE"]),
            [out("hello\n"), out("12"), Step::Complete]
        );
        assert_eq!(steps(&["EVCXR_ERROR_OCCURRED"]), [Step::Failed]);
        let panic = Step::Pass("EVCXR_PANIC_NOTIFICATION".into());
        assert_eq!(steps(&["xEVCXR_PANIC_NOTIFICATION"]), [out("x"), panic]);
        assert_eq!(steps(&["EVCXR_ is a prefix"]), [out("EVCXR_ is a prefix\n")]);
        let line = format!("half{}", Event::Panic("no".into()).line().trim_end());
        assert_eq!(steps(&[&line])[1], Step::Pass(Event::Panic("no".into()).line().trim_end().to_string()));
    }

    #[test]
    fn contents_of_one_value_are_one_display() {
        let block = |mime: &str| [format!("EVCXR_BEGIN_CONTENT {mime}"), "a".into(), "b".into(), END.into()];
        let value = [block("text/html"), block("text/plain")].concat();
        let twice = [value.clone(), value].concat();
        let lines: Vec<&str> = twice.iter().map(String::as_str).collect();
        let one = || display(&[("text/html", "a\nb"), ("text/plain", "a\nb")]);
        assert_eq!(steps(&lines), [one(), one()]);
        // Values of other crates may bring HTML alone: the next thing closes them.
        let html = block("text/html");
        let lines: Vec<&str> = html.iter().map(String::as_str).chain(["text"]).collect();
        assert_eq!(steps(&lines), [display(&[("text/html", "a\nb")]), out("text\n")]);
    }

    #[test]
    fn of_an_unfinished_line_only_what_may_be_a_word_waits() {
        let parser = Parser::default();
        assert_eq!(parser.safe_part(b"12 of 30"), 8);
        assert_eq!(parser.safe_part(b"12EVCXR_EXEC"), 2);
        assert_eq!(parser.safe_part(b"12EV"), 2);
        assert_eq!(parser.safe_part(b"12 \x01low"), 3);
        assert_eq!(parser.safe_part("é".as_bytes()), 2);
        assert_eq!(parser.safe_part(&"é".as_bytes()[..1]), 0);
    }
}
