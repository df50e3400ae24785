//! lowbit as the cells of the research kernel see it: everything of the crate, and [`attach`], which the kernel calls
//! before the first cell.

pub use lowbit::*;
pub use {candle_core, plotters, polars}; // whose types values of lowbit may have

use lowbit::display::Drawing;
use lowbit::progress::{Update, check_interrupt, interrupt};
use lowbit::widget::{Bound, Part};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Statements whose variables the kernel does not keep for later cells.
#[macro_export]
macro_rules! unkept {
    ($($statements:tt)*) => { $($statements)* };
}

/// What the lines for the kernel begin with. No text that a person prints begins so.
const MARK: &str = "\u{1}lowbit ";
/// Milliseconds after which an unfinished line is shown.
const FLUSH_EVERY: i32 = 40;
/// Milliseconds that a panic waits until it can be told.
const PATIENCE: i32 = 1000;

/// Where the kernel is told what does not go through standard output; none before [`attach`].
static REPLIES: AtomicI32 = AtomicI32::new(-1);
/// Whether the running cell was asked to stop.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Ties this process to the kernel: interrupts reach lowbit's long loops, panics and progress are told as events, controls
/// call their closures, and what was printed without a line's end is shown all the same. Does nothing outside the kernel.
pub fn attach() {
    let Some([requests, replies, moves]) = pipes() else { return };
    REPLIES.store(replies, Ordering::SeqCst);
    // SAFETY: the handlers only store to atomics, and write to a pipe.
    unsafe {
        libc::signal(libc::SIGINT, on_interrupt as *const () as libc::sighandler_t);
        libc::signal(libc::SIGUSR2, on_stop as *const () as libc::sighandler_t);
    }
    std::panic::set_hook(Box::new(|panic| {
        if lowbit::widget::is_answering() {
            return; // shown in place of the closure's result
        }
        let text = what_happened(panic);
        // Standard output is taken from a cell that prints on and on after it was asked to stop.
        if STOPPING.load(Ordering::SeqCst) && text.starts_with("failed printing to") {
            // Other threads may go on printing, where it is not the cell's own that panics.
            say(if std::thread::current().name() == Some("main") { b'p' } else { b't' });
            until_whole();
            return tell(&json!({"failed": "interrupted"}));
        }
        tell(&json!({"panic": text}));
    }));
    lowbit::progress::set_sink(Box::new(|update| tell(&describe(update))));
    lowbit::widget::set_sink(Box::new(show_controls));
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    if let Err(error) = thread("lowbit-cells").spawn(move || serve_requests(requests)) {
        eprintln!("unfinished lines will be shown late: {error}");
    }
    if let Err(error) = thread("lowbit-controls").spawn(move || serve_moves(moves)) {
        eprintln!("controls will not move anything: {error}");
    }
}

/// The pipes that were laid for this process: requests, the replies to them, and moves of controls.
fn pipes() -> Option<[RawFd; 3]> {
    let text = std::env::var("LOWBIT_CELLS").ok()?;
    let all: Vec<RawFd> = text.split(',').map_while(|number| number.parse().ok()).collect();
    all.try_into().ok()
}

extern "C" fn on_interrupt(_signal: libc::c_int) {
    interrupt();
    STOPPING.store(true, Ordering::SeqCst);
    say(b'i');
}

/// The closure of a control is to stop; no cell is.
extern "C" fn on_stop(_signal: libc::c_int) {
    interrupt();
}

/// Tells the kernel one byte; safe in the handler of a signal.
fn say(byte: u8) {
    // SAFETY: writes one byte from a place of one byte.
    unsafe { libc::write(REPLIES.load(Ordering::SeqCst), (&raw const byte).cast(), 1) };
}

/// Waits until standard output can be written again.
fn until_whole() {
    for _ in 0..PATIENCE {
        let mut poll = libc::pollfd { fd: 1, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 && poll.revents & libc::POLLERR == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// One line for the kernel, in order with all other output.
fn tell(event: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{MARK}{event}"); // the kernel gone, the process ends soon
}

fn what_happened(panic: &PanicHookInfo) -> String {
    let text = panic.payload_as_str().unwrap_or("the cell panicked").to_string();
    match panic.location() {
        // Cells are compiled as src/lib.rs of a crate of their own: the line means nothing to their reader.
        Some(place) if !place.file().ends_with("src/lib.rs") || place.file().contains("lowbit") => {
            format!("{text} ({}:{})", place.file(), place.line())
        }
        _ => text,
    }
}

fn describe(update: &Update) -> serde_json::Value {
    json!({"progress": {
        "id": update.id, "label": update.label, "done": update.done, "total": update.total, "unit": update.unit,
        "elapsed_s": update.elapsed.as_secs_f64(), "message": update.message, "finished": update.finished,
    }})
}

/// Flushes standard output every few milliseconds, and at once when the kernel asks: each byte `f` is answered by one
/// after the flush. It asks when a cell has ended; an interrupt that came too late for that cell is forgotten then.
fn serve_requests(requests: RawFd) {
    loop {
        let mut poll = libc::pollfd { fd: requests, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, FLUSH_EVERY) };
        let mut byte = 0u8;
        // SAFETY: reads one byte into a place of one byte, when one is there.
        let asked = ready > 0 && unsafe { libc::read(requests, (&raw mut byte).cast(), 1) } == 1;
        if ready > 0 && !asked {
            return; // the kernel closed its end
        }
        let _ = std::io::stdout().flush();
        if asked {
            let _ = check_interrupt();
            STOPPING.store(false, Ordering::SeqCst);
            say(byte);
        }
    }
}

fn show_controls(bound: &Bound) {
    let part = |part: &Part| {
        json!({
            "kind": part.kind, "label": part.label, "value": part.value, "min": part.min, "max": part.max,
            "step": part.step, "whole": part.whole, "options": part.options, "text": part.to_string(),
        })
    };
    let parts: Vec<Value> = bound.parts.iter().map(part).collect();
    tell(&json!({"controls": {"id": bound.id, "parts": parts, "shown": contents(bound.drawing)}}));
}

/// A drawing by MIME type.
fn contents(drawing: &Drawing) -> Map<String, Value> {
    drawing.parts().map(|(mime, content)| (mime.to_string(), json!(content))).collect()
}

/// Calls the closures of controls that were moved. A line is `move ID PART SERIAL VALUE` or `close ID`; of moves that
/// came while a closure ran only the last of each part counts, and one answer is to all of them.
fn serve_moves(fd: RawFd) {
    // SAFETY: the descriptor is this thread's alone.
    let mut lines = BufReader::new(unsafe { File::from_raw_fd(fd) });
    loop {
        let mut moved: BTreeMap<u64, (u64, BTreeMap<usize, f64>)> = BTreeMap::new();
        let mut waits = true;
        while waits || more(&lines) {
            waits = false;
            let mut line = String::new();
            if !lines.read_line(&mut line).is_ok_and(|length| length > 0) {
                return;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["move", id, part, serial, value] => {
                    if let (Ok(id), Ok(part), Ok(serial), Ok(value)) =
                        (id.parse(), part.parse(), serial.parse(), value.parse())
                    {
                        let group = moved.entry(id).or_default();
                        group.0 = serial;
                        group.1.insert(part, value);
                    }
                }
                ["close", id] => {
                    if let Ok(id) = id.parse() {
                        lowbit::widget::close(id);
                    }
                }
                _ => {}
            }
        }
        for (id, (serial, values)) in moved {
            let values: Vec<_> = values.into_iter().collect();
            let shown = lowbit::widget::answer(id, &values);
            tell(&json!({"answer": {"id": id, "serial": serial, "shown": shown.as_ref().map(contents)}}));
        }
    }
}

/// Whether another line can be read at once.
fn more(lines: &BufReader<File>) -> bool {
    let mut poll = libc::pollfd { fd: lines.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    lines.buffer().contains(&b'\n') || unsafe { libc::poll(&raw mut poll, 1, 0) } == 1
}
