//! A session: a folder to compile cells in, and evcxr with lowbit loaded.
//!
//! Cells are compiled against a library that is built beforehand (see `lab::steps`), so a session's folder holds little
//! more than its cells. It goes with the session.

use crate::child;
use crate::event::Event;
use crate::front::lock;
use crate::home::Home;
use crate::input;
use crate::trouble::{ENDED, FOREIGN, OTHER, Trouble, ended, mistakes, other};
use crate::wire::{self, Wire};
use crate::{advice, cell, output, types};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use evcxr::{CommandContext, EvalCallbacks, EvalContextOutputs, EvalOutputs};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// The cell that ties a process to the kernel.
const ATTACH: &str = "lowbit::attach();";
/// Panics of evcxr's own code, of which each cell after it dies too.
const EVCXR: [&str; 3] = ["evcxr_", "Variable changed type", "has gone missing"];
/// evcxr finds out that cells use `?` by a cell that does not compile, and shows that one's value in its plainest form.
const TRY: &str = "Ok::<(), std::fmt::Error>(())?;";
/// What is said of a cell that was stopped.
const INTERRUPTED: &str = "interrupted";
/// How long after evcxr's word that a cell has ended its last output may still be on the way.
const PATIENCE: Duration = Duration::from_secs(2);

/// Compiles and runs cells.
pub struct Session {
    context: CommandContext,
    trouble: Arc<Mutex<Option<Trouble>>>,
    done: Receiver<()>,
    events: mpsc::Sender<Event>,
    front: Box<dyn Front>,
    wire: Arc<Mutex<Wire>>,
    /// The cell that loads the crate.
    first: String,
    /// Variables that a cell could not keep, and what they are.
    unkept: Vec<(String, String)>,
    /// Crates of the session's own, brought by `:dep`.
    own: Vec<String>,
    folder: Folder,
}

/// Who the cells are run for.
pub trait Front: Send {
    /// Shows what they do, as they do it.
    fn show(&self, event: Event);
    /// Asks a person for a line; or says in one sentence why there will be none.
    fn ask(&self) -> Result<String, String>;
    /// Whether the cell that is worked on is to stop.
    fn stopped(&self) -> bool;
}

/// What a cell showed by a command of evcxr's, content by MIME type.
pub type Shown = BTreeMap<String, String>;

impl Session {
    /// Opens a session with the crate loaded.
    pub fn open(
        home: &Home,
        front: impl Front + Clone + 'static,
        wire: Arc<Mutex<Wire>>,
    ) -> Result<Self, Trouble> {
        let folder = Folder::create(home)
            .map_err(|error| Trouble::new("SetUp", format!("no folder to compile cells in: {error}")))?;
        if !home.shared_object().exists() {
            return Err(Trouble::new(
                "SetUp",
                "the library that cells link to is not there; run `cargo lab setup` in the project",
            ));
        }
        let library = home.library();
        // Cells see one crate that is compiled already; evcxr itself would compile it in every session.
        let at = library.display();
        let flags = ["-Cprefer-dynamic".to_string(), format!("-Lcrate={at}"), format!("-Ldependency={at}")];
        // SAFETY: set before the session's threads start; the kernel's own threads do not read the environment.
        unsafe {
            std::env::set_var("EVCXR_TMPDIR", &folder.path);
            std::env::set_var("EVCXR_CONFIG_DIR", home.config());
            std::env::set_var("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
            std::env::set_var("LD_LIBRARY_PATH", paths(&library));
            std::env::set_var(types::SESSION, &folder.path);
            std::env::set_var(output::FOLDER, home.outputs());
            if let Ok(itself) = std::env::current_exe() {
                std::env::set_var("RUSTC_WORKSPACE_WRAPPER", itself);
            }
            std::env::set_var(child::STARTING, "1");
        }
        let started = CommandContext::new();
        // SAFETY: as above.
        unsafe { std::env::remove_var(child::STARTING) };
        let no_tools = |error| {
            let remedy = "cargo and rustc must be on the PATH of the Jupyter that starts it";
            Trouble::new(
                "SetUp",
                format!("the compiler of cells does not start: {}; {remedy}", other(error).sentence),
            )
        };
        let (mut context, outputs) = started.map_err(no_tools)?;
        context.execute(":restart").map_err(no_tools)?;
        let (done_sender, done) = crossbeam_channel::unbounded();
        let trouble_seen = Arc::new(Mutex::new(None));
        let events = listen(outputs, &lock(&wire), trouble_seen.clone(), done_sender, front.clone());
        let face = home.face().join("lowbit").display().to_string();
        let first = format!(
            ":dep lowbit = {{ path = {face:?}, package = \"lowbit-face\" }}\nuse lowbit::prelude::*;\n{ATTACH}\n{TRY}"
        );
        let (trouble, unkept, own) = (trouble_seen, vec![], vec![]);
        let front = Box::new(front);
        let mut session = Self { context, trouble, done, events, front, wire, first, unkept, own, folder };
        session.load()?;
        Ok(session)
    }

    fn load(&mut self) -> Result<(), Trouble> {
        let first = self.first.clone();
        self.once(&first).map(|_| ())
    }

    /// Runs a cell; what its commands show is returned, everything else was told on the way. A session that is of no use any
    /// more begins anew.
    pub fn execute(&mut self, code: &str) -> Result<Shown, Trouble> {
        let code = code.trim_start_matches('\u{feff}'); // the mark that some editors put before a text
        let result = self.once(code);
        let Err(trouble) = &result else { return result };
        let lost = [FOREIGN, OTHER].contains(&trouble.name.as_str())
            || (trouble.name == "Panic" && EVCXR.iter().any(|text| trouble.sentence.contains(text)));
        if !lost || (trouble.name != "Panic" && self.once("();").is_ok()) {
            return result;
        }
        let why = &trouble.sentence;
        let sentence = format!(
            "after this cell none would compile or run ({why}); a new session was begun, and all variables are gone"
        );
        self.unkept.clear();
        self.own.clear();
        self.context.execute(":clear").map_err(|error| Trouble::new(ENDED, error.to_string()))?;
        self.load()?;
        Err(Trouble::new(ENDED, sentence))
    }

    fn once(&mut self, code: &str) -> Result<Shown, Trouble> {
        lock(&self.wire).send(wire::CELL);
        let wanted: Vec<&str> =
            code.lines().filter_map(|line| line.trim_start().strip_prefix(":dep ")).collect();
        let wanted: Vec<String> = wanted.into_iter().filter_map(advice::brought).collect();
        let mut hints: Vec<String> = wanted.iter().filter_map(|name| advice::brought_already(name)).collect();
        hints.extend(cell::statics(code).iter().map(|name| advice::begins_anew(name)));
        if !hints.is_empty() {
            while self.done.try_recv().is_ok() {}
            let end = [Event::Done]; // told after the hints: the cell itself may fail before it tells anything
            for event in hints.into_iter().map(Event::Stderr).chain(end) {
                let _ = self.events.send(event);
            }
            let _ = self.done.recv_timeout(PATIENCE);
        }
        let online = !wanted.is_empty();
        if online {
            let _ = self.context.execute(":offline 0"); // a crate that is not here yet must be fetched
        }
        *lock(&self.trouble) = None;
        while self.done.try_recv().is_ok() {}
        let unanswered = RefCell::new(None);
        let crates = |name: &&str| !self.own.iter().chain(&wanted).any(|own| own == name);
        let crates: Vec<&str> = cell::BROUGHT.into_iter().filter(crates).collect();
        let (commands, rest) = code.split_at(cell::code_begins(code));
        let result = self.run(&(commands.to_string() + &cell::through_lowbit(rest, &crates)), &unanswered);
        if result.is_ok() {
            self.own.extend(wanted);
        }
        if online {
            let _ = self.context.execute(":offline 1");
        }
        let shown = match result {
            Ok(outputs) => outputs.content_by_mime_type.into_iter().collect(),
            Err(evcxr::Error::CompilationErrors(_) | evcxr::Error::Message(_)) if self.front.stopped() => {
                return Err(Trouble::new("Error", INTERRUPTED));
            }
            Err(evcxr::Error::CompilationErrors(errors)) => {
                return Err(mistakes(code, &errors, &self.unkept));
            }
            Err(evcxr::Error::SubprocessTerminated(why)) => {
                let trouble = ended(&why);
                lock(&self.wire).drain(PATIENCE); // its last words come before the sentence
                let _ = self.events.send(Event::Done);
                let _ = self.done.recv_timeout(PATIENCE);
                let _ = self.context.execute(ATTACH); // the new process knows nothing of the kernel
                return Err(trouble);
            }
            Err(error) => return Err(other(error)),
        };
        if cell::runs(code) {
            match self.done.recv_timeout(PATIENCE) {
                Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
        let trouble = lock(&self.trouble).take();
        match unanswered.take().or(trouble) {
            Some(trouble) => Err(trouble),
            None => Ok(shown),
        }
    }

    /// Has evcxr run a cell whose variables have the types that the compiler finds; if these do not help, as it is.
    fn run(
        &mut self,
        code: &str,
        unanswered: &RefCell<Option<Trouble>>,
    ) -> Result<EvalOutputs, evcxr::Error> {
        let (commands, rest) = code.split_at(cell::code_begins(code));
        let fails = |result: &Result<_, _>| matches!(result, Err(evcxr::Error::CompilationErrors(_)));
        if cell::lets(rest).is_empty() {
            let shown = cell::showing(rest).filter(|_| commands.trim().is_empty());
            let shown = shown
                .map(|shown| commands.to_string() + &shown)
                .map(|shown| self.evaluate(&shown, unanswered));
            let shown = shown.filter(|shown| !fails(shown));
            return shown.unwrap_or_else(|| self.evaluate(code, unanswered));
        }
        // What commands bring has types too, so they are first; the lines stay where they are.
        let before = match commands.trim() {
            "" => EvalOutputs::default(),
            _ => self.evaluate(commands, unanswered)?,
        };
        let code = commands.chars().filter(|c| *c == '\n').collect::<String>() + rest;
        let lets = cell::lets(&code);
        let mut types = self.types(&cell::asking(&code, &lets)).unwrap_or_default();
        let typed = cell::typed(&code, &lets, &types);
        let mut result = self.evaluate(&cell::showing(&typed).unwrap_or(typed), unanswered);
        if fails(&result) && cell::borrowed(&mut types) {
            result = self.evaluate(&cell::typed(&code, &lets, &types), unanswered);
        }
        if fails(&result) && !types.is_empty() {
            result = self.evaluate(&code, unanswered); // mistakes are shown in what was typed
            types.clear();
        }
        let result = result?;
        self.tell_unkept(&code, cell::unkept(&lets, &types));
        Ok(together(before, result))
    }

    /// Says which variables later cells cannot have; of those that the cell itself uses, a later cell that asks is told.
    fn tell_unkept(&mut self, code: &str, unkept: Vec<(String, String)>) {
        let of_use = |name: &str| cell::uses(code, name) == 1;
        if unkept.iter().any(|(name, _)| of_use(name)) {
            let _ = self.done.recv_timeout(PATIENCE); // the cell's own end
            for (name, what) in unkept.iter().filter(|(name, _)| of_use(name)) {
                let line = format!("{name} is for this cell alone, since it is {what}\n");
                let _ = self.events.send(Event::Stderr(line));
            }
            let _ = self.events.send(Event::Done);
        }
        self.unkept.extend(unkept);
    }

    /// Has evcxr compile and run code.
    fn evaluate(
        &mut self,
        code: &str,
        unanswered: &RefCell<Option<Trouble>>,
    ) -> Result<EvalOutputs, evcxr::Error> {
        if self.front.stopped() {
            return Err(evcxr::Error::Message(INTERRUPTED.into()));
        }
        let read = |_| {
            let typed =
                self.front.ask().map_err(|why| unanswered.replace(Some(Trouble::new("Input", why)))).ok();
            input::answer(typed.as_deref())
        };
        self.context.execute_with_callbacks(code, &mut EvalCallbacks { input_reader: &read })
    }

    /// The types that the compiler finds for what `code` asks; None if it does not compile.
    fn types(&mut self, code: &str) -> Option<BTreeMap<String, cell::Type>> {
        // Asked about the end of the code, evcxr writes it out with all that earlier cells have defined.
        let _ = self.context.hover_at(code, code.len());
        types::ask(&self.folder.path, cell::QUESTION)
    }

    /// The handle of the process that runs the cells, the same for the session's life.
    pub fn process(&self) -> Arc<Mutex<std::process::Child>> {
        self.context.process_handle()
    }

    /// What may stand at byte `position` of `code`: the range that is replaced, and the candidates with their kinds.
    pub fn completions(&mut self, code: &str, position: usize) -> (usize, usize, Vec<(String, String)>) {
        match self.context.completions(code, position) {
            Ok(found) => {
                // A name alone: what is called goes on with its bracket, which Shift-Tab explains.
                let name = |code: &str| code.split('(').next().unwrap_or_default().trim_end().to_string();
                let each = found.completions.into_iter().map(|one| (name(&one.code), one.kind.to_string()));
                (found.start_offset, found.end_offset, each.collect())
            }
            Err(_) => (position, position, vec![]),
        }
    }

    /// Has rust-analyzer read lowbit's types, which the first variable would else wait for.
    pub fn learn_types(&mut self) {
        let code = "let model = Model::load(\"\")?;\nmodel.";
        let _ = self.completions(code, code.len());
    }

    /// What is known of the expression before byte `position`, as text and as HTML.
    pub fn inspect(&mut self, code: &str, position: usize) -> Option<(String, String)> {
        let end = code[position..]
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .map_or(code.len(), |at| position + at);
        let (text, html) = self.context.hover_at(code, end).ok()?;
        (!text.starts_with("No documentation")).then_some((text, html))
    }
}

/// What two pieces of a cell showed.
fn together(mut first: EvalOutputs, second: EvalOutputs) -> EvalOutputs {
    first.content_by_mime_type.extend(second.content_by_mime_type);
    EvalOutputs { content_by_mime_type: first.content_by_mime_type, ..second }
}

/// Where the process that runs the cells finds the library, before the places where it would look anyway.
fn paths(library: &Path) -> OsString {
    let before = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let all = std::iter::once(library.to_path_buf())
        .chain(std::env::split_paths(&before).filter(|path| path != library));
    std::env::join_paths(all).unwrap_or(before)
}

/// Hands on what the cells tell, and what is sent to the sender that is returned.
fn listen(
    outputs: EvalContextOutputs,
    wire: &Wire,
    trouble: Arc<Mutex<Option<Trouble>>>,
    done: crossbeam_channel::Sender<()>,
    front: impl Front + 'static,
) -> mpsc::Sender<Event> {
    let (sender, events) = mpsc::channel();
    let (from_errors, from_cells) = (sender.clone(), sender.clone());
    std::thread::spawn(move || {
        // Text here does not come from the cells, whose standard error is an event, but from before or after the pipes.
        while let Ok(line) = outputs.stderr.recv() {
            if from_errors.send(Event::Stderr(line + "\n")).is_err() {
                return;
            }
        }
    });
    wire.listen(move |event| from_cells.send(event).is_ok());
    std::thread::spawn(move || {
        while let Ok(event) = events.recv() {
            let seen = match &event {
                Event::Failed(sentence) => Some(Trouble::new("Error", sentence.as_str())),
                Event::Panic(sentence) => Some(Trouble::new("Panic", sentence.as_str())),
                Event::Done => {
                    let _ = done.send(());
                    continue;
                }
                _ => None,
            };
            match seen {
                // The first counts: a thread that was interrupted makes the cell that waits for it panic.
                Some(seen) => {
                    let _ = lock(&trouble).get_or_insert(seen);
                }
                None => front.show(event),
            }
        }
    });
    sender
}

/// A folder that goes when its session goes.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn create(home: &Home) -> std::io::Result<Self> {
        home.remove_stale_sessions();
        let path = home.sessions().join(std::process::id().to_string());
        let _ = fs::remove_dir_all(&path); // of an earlier process with this number
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
