//! What the threads of a kernel share: the request that is worked on, what is shown of it, and what stops it.

use crate::answer::media;
use crate::event::{Event, Progress};
use crate::session::Front;
use crate::widgets::Widgets;
use crate::wire::Wire;
use jupyter_protocol::messaging::*;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc::UnboundedSender;

/// A second interrupt within this time ends the process that runs the cells.
const SECOND_INTERRUPT: Duration = Duration::from_secs(10);

/// A cell that an interrupt overtook comes within this time of its sending.
const OVERTAKEN: Duration = Duration::from_millis(200);
/// A cell that goes on for so long has not heard an interrupt.
const HEARING: Duration = Duration::from_millis(800);

/// A cell that is compiled for so long says what it waits for.
const COMPILING: Duration = Duration::from_millis(2500);

/// What it says.
const WAITS: &str = "compiling; the first variable of a session waits for rust-analyzer, which reads the types of \
                     lowbit and polars once";

/// How soon an interrupt is seen while a cell waits for a person.
const GLANCE: Duration = Duration::from_millis(50);

/// What the threads of a kernel share.
pub struct Shared {
    iopub: UnboundedSender<JupyterMessage>,
    shell: UnboundedSender<JupyterMessage>,
    stdin: UnboundedSender<JupyterMessage>,
    /// Lines that a person typed.
    typed: Mutex<mpsc::Receiver<String>>,
    /// The request that is being worked on: what its outputs answer to.
    parent: Mutex<Option<JupyterMessage>>,
    /// Bars that have a display.
    bars: Mutex<HashSet<u64>>,
    /// The process that runs the cells.
    process: Mutex<Option<Arc<Mutex<std::process::Child>>>>,
    /// Controls, and bars that can be stopped.
    pub widgets: Mutex<Widgets>,
    /// Whether a cell is worked on.
    busy: AtomicBool,
    /// Whether its code runs, as against being compiled.
    running: AtomicBool,
    /// Cells that were asked for and have not begun.
    pub queued: AtomicUsize,
    /// Whether those are not to run.
    pub given_up: AtomicBool,
    /// Whether the cell says what it waits for.
    noted: Mutex<bool>,
    /// What it was told before its code runs: taken away with the note, and so shown again.
    hints: Mutex<Vec<String>>,
    interrupted: Mutex<Option<Instant>>,
    /// When an interrupt was sent last that found nothing to stop.
    idle_stop: Mutex<Option<SystemTime>>,
    /// No bars: the notebook is run without anyone looking.
    headless: bool,
}

impl Shared {
    /// What is sent goes through these, what is typed comes from `typed`.
    pub fn new(
        [iopub, shell, stdin]: [UnboundedSender<JupyterMessage>; 3],
        typed: mpsc::Receiver<String>,
        wire: Arc<Mutex<Wire>>,
    ) -> Self {
        Self {
            iopub,
            shell,
            stdin,
            typed: Mutex::new(typed),
            parent: Mutex::new(None),
            bars: Mutex::default(),
            process: Mutex::default(),
            widgets: Mutex::new(Widgets::new(wire)),
            busy: AtomicBool::new(false),
            running: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            noted: Mutex::default(),
            hints: Mutex::default(),
            queued: AtomicUsize::new(0),
            interrupted: Mutex::default(),
            idle_stop: Mutex::default(),
            headless: std::env::var_os("LOWBIT_HEADLESS").is_some(),
        }
    }

    /// The request that outputs answer to.
    pub fn parent(&self) -> MutexGuard<'_, Option<JupyterMessage>> {
        lock(&self.parent)
    }

    /// From now on an interrupt reaches this process.
    pub fn attach(&self, process: Arc<Mutex<std::process::Child>>) {
        *lock(&self.process) = Some(process);
    }

    /// A cell begins or ends: no interrupt has come for it.
    pub fn work(&self, busy: bool) {
        *lock(&self.interrupted) = None;
        self.running.store(false, Ordering::SeqCst);
        self.busy.store(busy, Ordering::SeqCst);
        self.forget_note(); // last: a note that is on its way is either seen here, or sees that the cell has ended
        lock(&self.hints).clear();
    }

    /// Says what the cell of `request` waits for, if it is compiled for long; nothing else of it is shown until it runs.
    pub fn note(&self, request: Option<String>) {
        std::thread::sleep(COMPILING);
        let mut noted = lock(&self.noted);
        let same = self.parent().as_ref().map(|parent| &parent.header.msg_id) == request.as_ref();
        if same && self.is_busy() && !self.running.load(Ordering::SeqCst) && !self.headless {
            let html = format!("<div style=\"font-size:12px;opacity:.65\">{WAITS}</div>");
            let parts = [("text/plain".to_string(), WAITS.to_string()), ("text/html".to_string(), html)];
            self.publish(DisplayData::new(media(&parts.into())));
            *noted = true;
        }
    }

    fn forget_note(&self) {
        if std::mem::take(&mut *lock(&self.noted)) {
            self.publish(ClearOutput { wait: false });
            lock(&self.hints).iter().for_each(|text| self.publish(StreamContent::stderr(text)));
        }
    }

    /// Whether a cell is worked on.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst)
    }

    /// Publishes as output of the request that is being worked on.
    pub fn publish(&self, content: impl Into<JupyterMessageContent>) {
        let message = JupyterMessage::new(content, self.parent().as_ref());
        self.send(message);
    }

    /// Publishes a message as it is.
    pub fn send(&self, message: JupyterMessage) {
        let _ = self.iopub.send(message.with_zmq_identities(vec![]));
    }

    /// Says whether a request is worked on.
    pub fn status(&self, state: ExecutionState, request: &JupyterMessage) {
        self.send(JupyterMessage::new(Status { execution_state: state }, Some(request)));
    }

    /// Answers a request.
    pub fn reply(&self, content: impl Into<JupyterMessageContent>, request: &JupyterMessage) {
        let _ = self.shell.send(JupyterMessage::new(content, Some(request)));
    }

    fn show_bar(&self, bar: &Progress) {
        if self.headless {
            return;
        }
        let id = format!("lowbit-{}-{}", std::process::id(), bar.id);
        let first = lock(&self.bars).insert(bar.id);
        if bar.finished {
            lock(&self.bars).remove(&bar.id);
        }
        let mut data = vec![("text/plain".to_string(), bar.text()), ("text/html".to_string(), bar.html())];
        match lock(&self.widgets).bar(self, bar) {
            Some(None) => return, // its widget has changed
            Some(Some(view)) => data.push(view),
            None => {}
        }
        let data = media(&data.into_iter().collect());
        if first {
            let transient = Some(Transient { display_id: Some(id) });
            self.publish(DisplayData { transient, ..DisplayData::new(data) });
        } else {
            self.publish(UpdateDisplayData::new(data, &id));
        }
    }

    /// Asks the running cell, or the closure of a control, to stop; asked twice, ends the process. Cells that wait for the
    /// session to open are given up. `sent` is when it was asked: its way here takes its time, as that of a cell does.
    pub fn interrupt(self: &Arc<Self>, sent: SystemTime) {
        let busy = self.busy.load(Ordering::SeqCst);
        if !busy && self.queued.load(Ordering::SeqCst) > 0 {
            self.given_up.store(true, Ordering::SeqCst);
            return;
        }
        if !busy && !lock(&self.widgets).waits() {
            *lock(&self.idle_stop) = Some(sent);
            return;
        }
        let Some(process) = lock(&self.process).clone() else { return };
        let before = lock(&self.interrupted).replace(Instant::now());
        if busy && !self.running.load(Ordering::SeqCst) {
            let cells = lock(&process).id();
            end_compilers(cells);
        }
        let mut process = lock(&process);
        if before.is_some_and(|before| before.elapsed() < SECOND_INTERRUPT) {
            let _ = process.kill();
            lock(&self.widgets).end(self);
            return;
        }
        let signal = if busy { libc::SIGINT } else { libc::SIGUSR2 };
        // SAFETY: a signal to a child that is held and not yet waited for.
        unsafe { libc::kill(process.id() as libc::pid_t, signal) };
        let (shared, asked) = (self.clone(), *lock(&self.interrupted));
        std::thread::spawn(move || shared.wait_for_the_end(asked));
    }

    /// Whether an interrupt that found nothing to stop was meant for the cell that comes now, which was sent at this time: it
    /// overtook it, since the two come on channels of their own.
    pub fn was_overtaken(&self, sent: SystemTime) -> bool {
        let stop = lock(&self.idle_stop).take();
        stop.is_some_and(|stop| sent <= stop && stop.elapsed().is_ok_and(|since| since < OVERTAKEN))
    }

    /// Says that a cell has not heard that it is to stop.
    fn wait_for_the_end(&self, asked: Option<Instant>) {
        std::thread::sleep(HEARING);
        if self.busy.load(Ordering::SeqCst) && *lock(&self.interrupted) == asked {
            self.publish(StreamContent::stderr(match self.running.load(Ordering::SeqCst) {
                true => {
                    "The cell does not stop: it neither calls lowbit nor prints. It may come to its end; interrupted \
                     again within ten seconds, its process is ended, and all variables are lost.\n"
                }
                false => "The cell is being compiled; it will not run. Its variables will not be there.\n",
            }));
        }
    }

    /// Ends the process that runs the cells, with the kernel.
    pub fn end_process(&self) {
        *lock(&self.interrupted) = Some(Instant::now()); // it may wait for a line
        if let Some(process) = lock(&self.process).take() {
            let _ = lock(&process).kill();
        }
    }
}

impl Front for Arc<Shared> {
    /// What a cell does becomes what a notebook shows.
    fn show(&self, event: Event) {
        match event {
            Event::Stdout(text) => self.publish(StreamContent::stdout(&text)),
            Event::Stderr(text) => {
                self.publish(StreamContent::stderr(&text));
                if !self.running.load(Ordering::SeqCst) {
                    lock(&self.hints).push(text);
                }
            }
            Event::Display(parts) => self.publish(DisplayData::new(media(&parts))),
            Event::Progress(bar) => self.show_bar(&bar),
            Event::Controls(controls) => lock(&self.widgets).open(self, &controls),
            Event::Answer(answer) => lock(&self.widgets).answered(self, &answer),
            Event::Began => {
                self.running.store(true, Ordering::SeqCst);
                self.forget_note();
            }
            Event::Panic(_) | Event::Failed(_) | Event::Done => {}
        }
    }

    /// Asks the person at the notebook for a line.
    fn ask(&self) -> Result<String, String> {
        let request = self.parent().clone();
        let asked_for = request.as_ref().map(|request| &request.content);
        if !matches!(asked_for, Some(JupyterMessageContent::ExecuteRequest(cell)) if cell.allow_stdin) {
            return Err(
                "the cell reads from standard input, where nobody types when a notebook runs by itself: put \
                        the text into the cell"
                    .into(),
            );
        }
        let typed = lock(&self.typed);
        while typed.try_recv().is_ok() {} // the answer to a question that was given up
        let question = InputRequest { prompt: String::new(), password: false };
        let _ = self.stdin.send(JupyterMessage::new(question, request.as_ref()));
        loop {
            match typed.recv_timeout(GLANCE) {
                Ok(line) => return Ok(line),
                Err(mpsc::RecvTimeoutError::Timeout) if !self.stopped() => {}
                Err(_) => return Err("interrupted".into()),
            }
        }
    }

    fn stopped(&self) -> bool {
        lock(&self.interrupted).is_some()
    }
}

/// The value behind a mutex, also where a thread that held it has panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the compilers that work for this process: whatever it has started but `cells`, which runs the cells.
fn end_compilers(cells: u32) {
    let parent = |process: u32| -> Option<u32> {
        let about = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        about.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<u32> = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let own = std::process::id();
    for process in all {
        let mut above = process;
        while let Some(next) = parent(above).filter(|_| above != cells) {
            if next == own {
                // SAFETY: asks a process to end that was started from here a moment ago.
                unsafe { libc::kill(process as libc::pid_t, libc::SIGTERM) };
                break;
            }
            if next <= 1 {
                break;
            }
            above = next;
        }
    }
}
