//! Readers fed with damaged files: every container of weights, configs, tokenizers, settings, records.
//!
//! `cargo bench --bench fuzz -- 100000` makes so many inputs, each from a whole file by a seeded mutation, and reads
//! them one after the other in a child process. An input that makes a reader panic, end the process, answer with an
//! internal error, take more than [`SECONDS`] or more memory than [`room`] is told with its number;
//! the rest goes on in a fresh child. `-- 1 72` makes input 72 alone, `-- 1000 0
//! pickle` inputs of one kind. Without a number nothing is done, so that `cargo bench` times and does not fuzz.

mod mutate;
mod seeds;

#[allow(dead_code)] // what tests alone use
#[path = "../../tests/suite/pickled.rs"]
mod pickled;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use seeds::Seeds;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long one input may take.
const SECONDS: u64 = 10;

/// Bytes that reading `len` bytes may take: a few times the file beside what a small model and its tools take anyway.
fn room(len: usize) -> usize {
    (24 << 20) + 40 * len
}

/// Counts what is allocated, and ends the process at the bound.
struct Meter;

static NOW: AtomicUsize = AtomicUsize::new(0);
static BOUND: AtomicUsize = AtomicUsize::new(usize::MAX);

fn grown(by: usize) {
    if NOW.fetch_add(by, Ordering::Relaxed).saturating_add(by) > BOUND.load(Ordering::Relaxed) {
        BOUND.store(usize::MAX, Ordering::Relaxed);
        eprintln!("memory: {by} bytes more were asked for than the bound allows");
        std::process::abort();
    }
}

// SAFETY: every call is the system allocator's.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size.saturating_sub(layout.size()));
        NOW.fetch_sub(layout.size().saturating_sub(size), Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static METER: Meter = Meter;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let number = |at: usize| args.get(at).and_then(|arg| arg.parse::<u64>().ok());
    let only = args.get(2).map_or("", String::as_str);
    match (number(0), number(1).unwrap_or(0)) {
        (Some(count), first) if std::env::var_os("FUZZ_CHILD").is_some() => {
            child(first..first + count, only);
            ExitCode::SUCCESS
        }
        (Some(count), first) => parent(first..first + count, only),
        (None, _) => {
            println!("fuzz: how many inputs? cargo bench --bench fuzz -- 100000");
            ExitCode::SUCCESS
        }
    }
}

/// Makes and reads inputs, and says each one's number before and its outcome after.
fn child(inputs: std::ops::Range<u64>, only: &str) {
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") }
    let _ = lowbit::set_threads(1);
    let seeds = Seeds::new(only);
    seeds.warm_up();
    let out = std::io::stdout();
    for number in inputs {
        let mut rng = ChaCha8Rng::seed_from_u64(number);
        let input = seeds.input(&mut rng);
        let mut out = out.lock();
        let _ = writeln!(out, "{number} {}", input.kind);
        let _ = out.flush();
        let before = NOW.load(Ordering::Relaxed);
        BOUND.store(before + room(input.bytes()), Ordering::Relaxed);
        let outcome = seeds.read(&input);
        BOUND.store(usize::MAX, Ordering::Relaxed);
        let _ = writeln!(out, "{}", outcome.lines().next().unwrap_or_default());
    }
}

/// Runs children until all inputs are read.
fn parent(inputs: std::ops::Range<u64>, only: &str) -> ExitCode {
    let (start, end) = (Instant::now(), inputs.end);
    let (mut next, mut outcomes, mut failures) = (inputs.start, BTreeMap::<String, u64>::new(), vec![]);
    while next < end {
        let mut child = Command::new(std::env::current_exe().expect("the path of this program"));
        child.args([(end - next).to_string(), next.to_string(), only.to_string()]).env("FUZZ_CHILD", "1");
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a child process");
        let (lines, errors) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(lines).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        let last = std::thread::spawn(move || {
            let lines: Vec<String> = BufReader::new(errors).lines().map_while(Result::ok).collect();
            lines.into_iter().next_back().unwrap_or_default()
        });
        let mut now = String::new();
        let why = loop {
            // A first line takes longer: seeds are made.
            match receive.recv_timeout(Duration::from_secs(if now.is_empty() { 60 } else { SECONDS })) {
                Ok(line) if line.starts_with(|c: char| c.is_ascii_digit()) => {
                    now = line;
                    next = now.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(next) + 1;
                    if next.is_multiple_of(5000) {
                        eprintln!(
                            "{next} inputs, {} failures, {} s",
                            failures.len(),
                            start.elapsed().as_secs()
                        );
                    }
                }
                Ok(outcome) => {
                    let kind = now.split(' ').nth(1).unwrap_or_default();
                    if outcome.starts_with("panicked") || outcome.starts_with("internal") {
                        failures.push(format!("{now}: {outcome}"));
                        println!("{now}: {outcome}");
                    }
                    let word = outcome.split([' ', ':']).next().unwrap_or_default();
                    *outcomes.entry(format!("{kind} {word}")).or_default() += 1;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => break "hangs".to_string(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break "ended".to_string(),
            }
        };
        let _ = child.kill();
        let status = child.wait().expect("a child's end");
        let told = last.join().unwrap_or_default();
        if !status.success() {
            let failure = format!("{now}: {why} ({status}) {told}");
            println!("{failure}");
            failures.push(failure);
        }
        if now.is_empty() {
            println!("no input could be made");
            return ExitCode::FAILURE;
        }
    }
    for (outcome, count) in &outcomes {
        println!("{count:>8}  {outcome}");
    }
    let (count, seconds) = (end - inputs.start, start.elapsed().as_secs());
    println!("{count} inputs in {seconds} s, {} failures", failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
