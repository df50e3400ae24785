//! lowbit as the cells of the research kernel see it: everything of the crate, and [`attach`], which the kernel calls
//! before the first cell.

pub use lowbit::*;
pub use {candle_core, polars}; // whose types values of lowbit may have

use lowbit::progress::{Update, check_interrupt, interrupt, set_sink};
use serde_json::json;
use std::io::Write;
use std::os::fd::RawFd;
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

/// Ties this process to the kernel: interrupts reach lowbit's long loops, panics and progress are told as events, and
/// what was printed without a line's end is shown all the same. Does nothing outside the kernel.
pub fn attach() {
    let Some((requests, replies)) = pipes() else { return };
    REPLIES.store(replies, Ordering::SeqCst);
    // SAFETY: the handler only stores to an atomic.
    unsafe {
        libc::signal(libc::SIGINT, on_interrupt as *const () as libc::sighandler_t);
    }
    std::panic::set_hook(Box::new(|panic| {
        let text = what_happened(panic);
        // Standard output is taken from a cell that prints on and on after it was asked to stop.
        if STOPPING.load(Ordering::SeqCst) && text.starts_with("failed printing to") {
            say(b'p');
            until_whole();
            return tell(&json!({"failed": "interrupted"}));
        }
        tell(&json!({"panic": text}));
    }));
    set_sink(Box::new(|update| tell(&describe(update))));
    let serve = std::thread::Builder::new().name("lowbit-cells".into());
    if let Err(error) = serve.spawn(move || serve_requests(requests)) {
        eprintln!("unfinished lines will be shown late: {error}");
    }
}

/// The pipes that the kernel laid for this process: its requests, and the replies to them.
fn pipes() -> Option<(RawFd, RawFd)> {
    let text = std::env::var("LOWBIT_CELLS").ok()?;
    let (requests, replies) = text.split_once(',')?;
    Some((requests.parse().ok()?, replies.parse().ok()?))
}

extern "C" fn on_interrupt(_signal: libc::c_int) {
    interrupt();
    STOPPING.store(true, Ordering::SeqCst);
    say(b'i');
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
