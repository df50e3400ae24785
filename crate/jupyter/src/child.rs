//! The process that runs the cells.
//!
//! evcxr talks with it through standard output, where it prints what the cells print. Here pipes are put over standard
//! output and standard error before evcxr's loop begins; one thread reads both and hands evcxr its own lines, while
//! everything else becomes an [`Event`] at once, past evcxr, which listens only while a cell runs: unfinished lines,
//! several displays in one cell, errors, what threads print between cells.

use crate::event::Event;
use crate::input;
use crate::last_words;
use crate::output::Output;
use crate::wire;
use crate::words::{COMPLETE, FAILED, Parser, Step};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Text on standard error waits this long for an error that may claim it as its sentence.
const HOLD: Duration = Duration::from_millis(15);
/// Set while evcxr starts: it waits for its first cell's output to be taken before anyone can take it.
pub const STARTING: &str = "LOWBIT_STARTING";
/// How long the cells' library may take to flush.
const PATIENCE: Duration = Duration::from_millis(500);
/// A cell that prints so long after it was asked to stop cannot print any more.
const TIRED: Duration = Duration::from_millis(150);
/// It prints on if it prints again so long after that; a `?` prints once, and the cell ends.
const AGAIN: Duration = Duration::from_millis(50);
/// So long it cannot.
const MUTE: Duration = Duration::from_millis(500);

/// What the cells' library says of itself: it has flushed, it was interrupted, a panic of the cell or of another thread
/// goes on once standard output is whole.
const FLUSHED: u8 = b'f';
const INTERRUPTED: u8 = b'i';
const PANICKED: u8 = b'p';
const THREAD_PANICKED: u8 = b't';

/// Becomes the process that runs the cells, if this is to be one; else returns.
pub fn run_if_asked() {
    if std::env::var_os("EVCXR_IS_RUNTIME").is_none() {
        crate::types::wrap();
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

/// Lays pipes in the places of standard output and error; the ends to read from.
fn lay_outputs() -> std::io::Result<[RawFd; 2]> {
    let mut ends = [0; 2];
    for (place, end) in [1, 2].into_iter().zip(&mut ends) {
        let (read, write) = pipe()?;
        // SAFETY: valid descriptors of this process.
        unsafe {
            libc::dup2(write, place);
            libc::close(write);
        }
        *end = read;
    }
    Ok(ends)
}

/// Lays the pipes over standard output and error, and those to the cells' library.
fn lay_pipes() -> std::io::Result<Reader> {
    // SAFETY: a new descriptor for where evcxr listens.
    let evcxr = unsafe { libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 3) };
    let [wire, kernel] = wire::ends().ok_or_else(|| std::io::Error::other("the kernel is not heard"))?;
    let outputs = lay_outputs()?;
    let (requests_end, requests) = pipe()?;
    let (replies, replies_end) = pipe()?;
    let (moves_end, moves) = pipe()?;
    last_words::wait_for_them(replies_end);
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("LOWBIT_CELLS", format!("{requests_end},{replies_end},{moves_end}")) };
    Ok(Reader {
        outputs,
        requests,
        replies,
        moves,
        wire,
        evcxr,
        kernel,
        text: vec![],
        output: Output::default(),
        held: vec![],
        held_since: None,
        interrupted: None,
        tired: None,
        mute: None,
        state: Parser::default(),
    })
}

/// Reads what the cells print, and tells the kernel.
struct Reader {
    /// Standard output and standard error.
    outputs: [RawFd; 2],
    requests: RawFd,
    replies: RawFd,
    /// Where the cells' library hears of controls.
    moves: RawFd,
    /// Where the kernel is heard, and told.
    wire: RawFd,
    /// Where evcxr reads its own words.
    evcxr: RawFd,
    kernel: RawFd,
    /// Standard output that is not looked at yet.
    text: Vec<u8>,
    /// What of it is text.
    output: Output,
    /// Standard error that is not told yet, and since when.
    held: Vec<u8>,
    held_since: Option<Instant>,
    /// When the running cell was asked to stop.
    interrupted: Option<Instant>,
    /// When it printed although it was asked long ago.
    tired: Option<Instant>,
    /// Since when nothing can be printed.
    mute: Option<Instant>,
    state: Parser,
}

impl Reader {
    fn run(mut self) {
        loop {
            let held = self.held_since.map(|since| HOLD.saturating_sub(since.elapsed()));
            let mute = self.mute.map(|since| MUTE.saturating_sub(since.elapsed()));
            let wait = [held, mute, self.output.wait()].into_iter().flatten().min();
            let wait = wait.map_or(-1, |wait| wait.as_millis() as i32 + 1);
            let ready = wait_for(&[self.outputs[0], self.outputs[1], self.replies, self.wire], wait);
            if ready[3] {
                self.obey();
            }
            if ready[2] {
                self.hear();
            }
            if ready[1] && read_into(self.outputs[1], &mut self.held) {
                self.held_since.get_or_insert_with(Instant::now);
                self.silence();
            }
            if ready[0] {
                if !read_into(self.outputs[0], &mut self.text) {
                    return; // the process ends
                }
                let before = self.output.printed();
                self.take_lines();
                if self.output.printed() > before {
                    self.silence(); // text, and no events such as a bar's
                }
            }
            if self.held_since.is_some_and(|since| since.elapsed() >= HOLD) {
                self.release_errors();
            }
            self.release_text(false);
            if self.mute.is_some_and(|since| since.elapsed() >= MUTE) {
                self.give_voice();
            }
        }
    }

    /// Handles the whole lines at hand, and of an unfinished one what cannot become a word of evcxr's.
    fn take_lines(&mut self) {
        let text = std::mem::take(&mut self.text);
        let mut rest = &text[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&rest[..end]);
            rest = &rest[end + 1..];
            for step in self.state.line(&line) {
                match step {
                    Step::Tell(Event::Stdout(text)) => self.output.print(&text),
                    Step::Tell(event) => self.tell(&event),
                    Step::Pass(line) => self.word(&line),
                    Step::Event(line) => self.pass_on(&line),
                    Step::Failed => self.failed(),
                    Step::Complete => {
                        self.text = rest.to_vec();
                        return self.complete();
                    }
                }
            }
            self.release_text(false);
        }
        let safe = self.state.safe_part(rest);
        self.output.print(&String::from_utf8_lossy(&rest[..safe]));
        self.text = rest[safe..].to_vec();
    }

    /// Does what the kernel says: a new cell was asked for, or something is for the cells' library.
    fn obey(&mut self) {
        let mut lines = vec![];
        read_into(self.wire, &mut lines);
        for line in String::from_utf8_lossy(&lines).lines() {
            match line {
                wire::CELL => input::give_up(false),
                line => write(self.moves, &format!("{line}\n")),
            }
        }
    }

    /// A `?` ended the cell: its sentence is what came on standard error just now.
    fn failed(&mut self) {
        while wait_for(&self.outputs[1..], 0)[0] && read_into(self.outputs[1], &mut self.held) {}
        let sentence = String::from_utf8_lossy(&self.held).trim_end().to_string();
        self.held.clear();
        self.held_since = None;
        self.tell(&Event::Failed(sentence));
        self.word(FAILED);
    }

    /// The cell came to its end: whatever is left in buffers comes first, then evcxr is told.
    fn complete(&mut self) {
        // SAFETY: writes one byte from a place of one byte.
        unsafe { libc::write(self.requests, [FLUSHED].as_ptr().cast(), 1) };
        let asked = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(asked.elapsed()).as_millis() as i32;
            let ready = wait_for(&[self.outputs[0], self.replies], left);
            if ready[0] {
                read_into(self.outputs[0], &mut self.text);
            } else if (ready[1] && self.hear()) || left == 0 {
                break; // or the library is not loaded, or something holds standard output
            }
        }
        self.tell_rest();
        if let Some(display) = self.state.end_display() {
            self.tell(&display);
        }
        if let Some(cut) = self.output.end() {
            self.tell(&Event::Stderr(cut));
        }
        (self.interrupted, self.tired) = (None, None);
        self.tell(&Event::Done);
        self.word(COMPLETE);
    }

    /// Tells what was printed and not told yet, the cell's last words without a line's end among it.
    fn tell_rest(&mut self) {
        while wait_for(&self.outputs[..1], 0)[0] && read_into(self.outputs[0], &mut self.text) {}
        self.take_lines();
        let rest = std::mem::take(&mut self.text);
        self.output.print(&String::from_utf8_lossy(&rest));
        while wait_for(&self.outputs[1..], 0)[0] && read_into(self.outputs[1], &mut self.held) {}
        self.release_text(true);
        self.release_errors();
    }

    /// Reads what the library says; whether it has flushed.
    fn hear(&mut self) -> bool {
        let mut bytes = vec![];
        read_into(self.replies, &mut bytes);
        for byte in &bytes {
            match *byte {
                INTERRUPTED if input::is_running() => self.interrupted = Some(Instant::now()),
                INTERRUPTED => input::give_up(true), // the cell is still being compiled
                PANICKED => self.give_voice(),
                THREAD_PANICKED => {
                    self.give_voice();
                    self.interrupted = Some(Instant::now());
                }
                last_words::ENDING => {
                    self.tell_rest();
                    last_words::told();
                }
                _ => {}
            }
        }
        bytes.contains(&FLUSHED)
    }

    /// A cell that goes on printing after it was asked to stop finds that it cannot: its print panics, and it unwinds.
    fn silence(&mut self) {
        if self.mute.is_some() || self.interrupted.is_none_or(|since| since.elapsed() < TIRED) {
            return;
        }
        if self.tired.get_or_insert_with(Instant::now).elapsed() < AGAIN {
            return;
        }
        (self.interrupted, self.tired) = (None, None);
        self.mute = Some(Instant::now());
        for end in &mut self.outputs {
            // SAFETY: a descriptor that is not used again. Nothing is read in its place: poll ignores negative numbers.
            unsafe { libc::close(*end) };
            *end = -1;
        }
        self.text.clear();
    }

    /// Lays new pipes, if nothing could be printed.
    fn give_voice(&mut self) {
        if self.mute.take().is_some()
            && let Ok(outputs) = lay_outputs()
        {
            self.outputs = outputs;
        }
    }

    fn release_errors(&mut self) {
        self.held_since = None;
        if !self.held.is_empty() {
            let text = String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned();
            self.tell(&Event::Stderr(text));
        }
    }

    fn release_text(&mut self, now: bool) {
        if let Some(text) = self.output.due(now) {
            write(self.kernel, &Event::Stdout(text).line());
        }
    }

    /// Tells the kernel, after the text that stood before.
    fn tell(&mut self, event: &Event) {
        self.pass_on(&event.line());
    }

    /// Tells the kernel an event that is a line already.
    fn pass_on(&mut self, line: &str) {
        self.release_text(true);
        write(self.kernel, line);
    }

    /// Hands evcxr one of its words.
    fn word(&mut self, word: &str) {
        self.release_text(true);
        write(self.evcxr, &format!("{word}\n"));
    }
}

fn write(fd: RawFd, text: &str) {
    let mut bytes = text.as_bytes();
    while !bytes.is_empty() {
        // SAFETY: writes from a slice that lives.
        let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        if written <= 0 {
            return; // the kernel is gone
        }
        bytes = &bytes[written as usize..];
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
