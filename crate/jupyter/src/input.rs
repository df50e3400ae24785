//! What comes into the process that runs the cells: which cell to run, and what a person types.
//!
//! evcxr sends both down standard input. Its own loop there would leave a cell that reads waiting for ever, with nobody
//! told; so the commands move to a descriptor of their own, and a pipe takes their place. A thread sees when a cell
//! waits at that pipe, and asks.

use crate::event::Event;
use std::ffi::{CStr, CString, c_void};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// evcxr's command to run a cell, before the library's path and the function's name.
const RUN: &str = "LOAD_AND_RUN ";
/// evcxr's word for: what does the person type?
const ASK: &str = "EVCXR_INPUT_REQUEST:\n";
/// Begins a line that was typed; any other line says that there will be none.
const TYPED: &str = "typed ";
/// How long a cell waits before that is seen.
const GLANCE: Duration = Duration::from_millis(100);

/// How often, a millisecond apart, a line is tried to be written.
const PATIENCE: u32 = 2000;

/// Whether a cell runs.
static RUNNING: AtomicBool = AtomicBool::new(false);
/// Whether the next cell is not to run: it was interrupted while it was being compiled.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Whether a cell runs.
pub fn is_running() -> bool {
    RUNNING.load(Ordering::SeqCst)
}

/// Whether the cell that comes next is given up: it does not run.
pub fn give_up(given_up: bool) {
    GIVEN_UP.store(given_up, Ordering::SeqCst);
}

/// What is sent as answer: the line that was typed, or that nobody will type one.
pub fn answer(typed: Option<&str>) -> String {
    typed.map_or_else(|| "nobody".into(), |line| TYPED.to_string() + &line.replace(['\r', '\n'], " "))
}

/// Runs cells until the kernel is gone.
///
/// # Errors
/// If the pipe cannot be laid; nothing was run then.
pub fn serve() -> std::io::Result<std::convert::Infallible> {
    // SAFETY: a new descriptor, owned here alone; no other thread uses standard input yet.
    let commands = unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3) };
    if commands < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: as above.
    let commands = BufReader::new(unsafe { File::from_raw_fd(commands) });
    let typing = lay_pipe()?;
    let (jobs, queue) = mpsc::channel();
    std::thread::Builder::new().name("input".into()).spawn(move || read(commands, typing, &jobs))?;
    let mut variables = std::ptr::null_mut();
    while let Ok(job) = queue.recv() {
        if GIVEN_UP.swap(false, Ordering::SeqCst) {
            eprintln!("interrupted");
            say(crate::words::FAILED); // as after a `?`: no new variables, the old ones stay
        } else {
            say(Event::Began.line().trim_end());
            match run_cell(&job, variables) {
                Ok(after) => variables = after,
                Err(why) => {
                    eprintln!("the compiled cell cannot be loaded: {why}");
                    std::process::exit(99);
                }
            }
        }
        RUNNING.store(false, Ordering::SeqCst);
        say(crate::words::COMPLETE);
    }
    std::process::exit(0)
}

/// Writes a line to standard output, also where that is taken from the cells for a moment, since one of them prints on
/// after it was asked to stop.
fn say(line: &str) {
    let line = format!("{line}\n");
    let mut left = line.as_bytes();
    for _ in 0..PATIENCE {
        // SAFETY: writes from a slice that lives; past Rust's buffer, whose lock a thread may hold.
        match unsafe { libc::write(1, left.as_ptr().cast(), left.len()) } {
            written if written >= 0 => left = &left[written as usize..],
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
        if left.is_empty() {
            return;
        }
    }
    std::process::exit(101); // the kernel begins a new process; it would wait for that line for ever
}

/// Runs a compiled cell; the variables go in and come out. Its code stays loaded, since they may point into it.
fn run_cell(job: &str, variables: *mut c_void) -> Result<*mut c_void, String> {
    let (path, name) = job.rsplit_once(' ').ok_or("evcxr names no function")?;
    let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
    let (path, name) = (text(path)?, text(name)?);
    // SAFETY: evcxr has compiled the library from the cell, and the function to be of this type.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL);
        let function = if library.is_null() { library } else { libc::dlsym(library, name.as_ptr()) };
        if function.is_null() {
            return Err(CStr::from_ptr(libc::dlerror()).to_string_lossy().into_owned());
        }
        let function: extern "C" fn(*mut c_void) -> *mut c_void = std::mem::transmute(function);
        Ok(function(variables))
    }
}

/// Puts a pipe in the place of standard input; what is written to its end, the cells read.
fn lay_pipe() -> std::io::Result<File> {
    let (reader, writer) = std::io::pipe()?;
    // SAFETY: valid descriptors.
    match unsafe { libc::dup2(reader.as_raw_fd(), 0) } {
        0 => Ok(OwnedFd::from(writer).into()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Hands cells to the main thread and typed lines to the cells, and asks for a line where a cell waits for one.
fn read(mut commands: BufReader<File>, mut typing: File, jobs: &mpsc::Sender<String>) {
    let mut asked = false;
    loop {
        let watching = RUNNING.load(Ordering::SeqCst) && !asked;
        let wait = if watching { GLANCE.as_millis() as i32 } else { -1 };
        if !crate::child::wait_for(&[commands.get_ref().as_raw_fd()], wait)[0] {
            if watching && nothing_typed() && someone_reads() {
                asked = true;
                // SAFETY: writes from a text that lives; past Rust's buffer, whose lock a cell may hold.
                unsafe { libc::write(1, ASK.as_ptr().cast(), ASK.len()) };
            }
            continue;
        }
        let mut line = String::new();
        if !commands.read_line(&mut line).is_ok_and(|length| length > 0) {
            if RUNNING.load(Ordering::SeqCst) {
                // SAFETY: ends the process; the kernel is gone, and nobody waits for the cell.
                unsafe { libc::_exit(0) };
            }
            return;
        }
        asked = false;
        let line = line.trim_end_matches('\n');
        if let Some(job) = line.strip_prefix(RUN) {
            RUNNING.store(true, Ordering::SeqCst);
            let _ = jobs.send(job.to_string()); // the main thread lives as long as the process
        } else if let Some(typed) = line.strip_prefix(TYPED) {
            let _ = writeln!(typing, "{typed}"); // nobody reads any more
        } else if let Ok(new) = lay_pipe() {
            typing = new; // the old one closes: whoever reads from it comes to the end
        }
    }
}

/// Whether all that was typed has been read.
fn nothing_typed() -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: a place for the number that is asked for.
    unsafe { libc::ioctl(0, libc::FIONREAD, &raw mut bytes) == 0 && bytes == 0 }
}

/// Whether a thread of this process waits at standard input. Linux tells what each thread waits in; where that is
/// closed, the answer is no, and such a cell waits until it is interrupted.
fn someone_reads() -> bool {
    let reads = format!("{} 0x0 ", libc::SYS_read);
    let waits = |about: std::io::Result<String>| about.is_ok_and(|about| about.starts_with(&reads));
    let mut threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    threads.any(|thread| waits(std::fs::read_to_string(thread.path().join("syscall"))))
}
