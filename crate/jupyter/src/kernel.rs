//! The Jupyter kernel: sockets, requests, replies.
//!
//! One thread owns the session and runs cells, completions and inspections in the order in which they came. The sockets
//! live in an asynchronous runtime beside it, so that an interrupt or a heartbeat is answered while a cell runs.

use crate::answer::{about, complete, inspect, is_complete, media};
use crate::front::{Shared, lock};
use crate::home::Home;
use crate::session::Session;
use crate::trouble::{ENDED, Trouble};
use crate::widgets::Heard;
use crate::wire::Wire;
use jupyter_protocol::ConnectionInfo;
use jupyter_protocol::messaging::*;
use jupyter_zmq_client as zmq;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A kernel that nobody asks anything for so long after its start uses the time.
const REST: Duration = Duration::from_millis(100);

/// Serves a front end until it says shut down.
///
/// # Errors
/// If the connection file cannot be read or its ports cannot be bound.
pub fn serve(connection_file: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(connection_file)
        .map_err(|error| format!("{}: {error}", connection_file.display()))?;
    let connection: ConnectionInfo = serde_json::from_str(&text).map_err(|error| {
        format!("{}: not a connection file of Jupyter's: {error}", connection_file.display())
    })?;
    // Inside the project, paths are those of the README: data/…, runs/….
    let home = Home::find();
    if std::env::current_dir().is_ok_and(|folder| folder.starts_with(home.root())) {
        let _ = std::env::set_current_dir(home.root());
    }
    end_with_parent(home);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let wire = Wire::lay().map_err(|error| format!("no pipes to the cells: {error}"))?;
    runtime.block_on(run(&connection, wire)).map_err(|error| error.to_string())?;
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(())
}

/// A kernel whose Jupyter is gone has no one to tell it to end.
fn end_with_parent(home: Home) {
    let parent = std::env::var("JPY_PARENT_PID").ok().and_then(|text| text.parse::<libc::pid_t>().ok());
    let Some(parent) = parent else { return };
    std::thread::spawn(move || {
        // SAFETY: signal 0 only asks whether the process is there.
        while unsafe { libc::kill(parent, 0) } == 0 {
            std::thread::sleep(Duration::from_secs(2));
        }
        let _ = std::fs::remove_dir_all(home.sessions().join(std::process::id().to_string()));
        std::process::exit(0);
    });
}

async fn run(connection: &ConnectionInfo, wire: Wire) -> zmq::Result<()> {
    let id = uuid::Uuid::new_v4().to_string();
    let mut heartbeat = zmq::create_kernel_heartbeat_connection(connection).await?;
    let iopub = zmq::create_kernel_iopub_connection(connection, &id).await?;
    let (shell_send, shell) = zmq::create_kernel_shell_connection(connection, &id).await?.split();
    let (control_send, mut control) = zmq::create_kernel_control_connection(connection, &id).await?.split();
    let (stdin_send, stdin) = zmq::create_kernel_stdin_connection(connection, &id).await?.split();

    let (iopub_sender, iopub_messages) = unbounded_channel();
    let (shell_sender, shell_messages) = unbounded_channel();
    let (control_sender, control_messages) = unbounded_channel();
    let (stdin_sender, questions) = unbounded_channel();
    let (typing, typed) = mpsc::channel();
    let wire = Arc::new(Mutex::new(wire));
    let published = tokio::spawn(send_all(iopub, iopub_messages));
    let replied = tokio::spawn(send_all(shell_send, shell_messages));
    let answered = tokio::spawn(send_all(control_send, control_messages));
    tokio::spawn(send_all(stdin_send, questions));
    tokio::spawn(read_stdin(stdin, typing));
    tokio::spawn(async move { while heartbeat.single_heartbeat().await.is_ok() {} });

    let shared = Arc::new(Shared::new([iopub_sender, shell_sender, stdin_sender], typed, wire.clone()));
    let (jobs, queue) = mpsc::channel();
    let worker = std::thread::spawn({
        let shared = shared.clone();
        move || work(&shared, wire, &queue)
    });
    let reading = tokio::spawn(read_shell(shell, shared.clone(), jobs.clone()));

    let interrupted = shared.clone();
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            interrupted.interrupt(SystemTime::now());
        }
    });

    // Control: interrupts and the end.
    while let Ok(request) = control.read().await {
        match &request.content {
            JupyterMessageContent::InterruptRequest(_) => {
                shared.interrupt(request.header.date.into());
                let _ = control_sender.send(JupyterMessage::new(InterruptReply::new(), Some(&request)));
            }
            JupyterMessageContent::ShutdownRequest(shutdown) => {
                let reply = ShutdownReply { restart: shutdown.restart, ..ShutdownReply::default() };
                let _ = control_sender.send(JupyterMessage::new(reply, Some(&request)));
                break;
            }
            JupyterMessageContent::KernelInfoRequest(_) => {
                let _ = control_sender.send(JupyterMessage::new(about(), Some(&request)));
            }
            _ => {}
        }
    }
    // A cell that still runs must not keep the folder of its session.
    reading.abort();
    let _ = jobs.send(Job::End);
    drop(jobs);
    if shared.is_busy() {
        shared.end_process();
    }
    let _ = tokio::task::spawn_blocking(move || worker.join()).await;
    drop((shared, control_sender));
    let sent = async { tokio::join!(published, replied, answered) };
    let _ = tokio::time::timeout(Duration::from_secs(1), sent).await;
    Ok(())
}

/// Sends everything that comes, in order; ends when nothing more can come.
async fn send_all<S: zeromq::SocketSend>(
    mut connection: zmq::Connection<S>,
    mut messages: UnboundedReceiver<JupyterMessage>,
) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = connection.send(message).await {
            eprintln!("a message was lost: {error}");
        }
    }
}

enum Job {
    Request(Box<JupyterMessage>),
    End,
}

async fn read_shell(mut shell: zmq::RouterRecvConnection, shared: Arc<Shared>, jobs: mpsc::Sender<Job>) {
    loop {
        let request = match shell.read().await {
            Ok(request) => request,
            Err(error) => {
                eprintln!("a request could not be read: {error}");
                continue;
            }
        };
        use JupyterMessageContent::{CommClose, CommMsg, CommOpen};
        if matches!(&request.content, CommOpen(_) | CommMsg(_) | CommClose(_)) {
            hear(&shared, &request);
            continue;
        }
        if let JupyterMessageContent::ExecuteRequest(_) = &request.content {
            if shared.was_overtaken(request.header.date.into()) {
                shared.given_up.store(true, Ordering::SeqCst);
            }
            shared.queued.fetch_add(1, Ordering::SeqCst);
        }
        // These need no session and are answered while a cell runs.
        let answer: Option<JupyterMessageContent> = match &request.content {
            JupyterMessageContent::KernelInfoRequest(_) => Some(about().into()),
            JupyterMessageContent::CommInfoRequest(asked) => Some(lock(&shared.widgets).list(asked).into()),
            JupyterMessageContent::HistoryRequest(_) => Some(HistoryReply::default().into()),
            JupyterMessageContent::IsCompleteRequest(asked) => Some(is_complete(&asked.code).into()),
            JupyterMessageContent::ShutdownRequest(_) => continue, // control answers it
            _ => None,
        };
        match answer {
            Some(answer) => {
                shared.status(ExecutionState::Busy, &request);
                shared.reply(answer, &request);
                shared.status(ExecutionState::Idle, &request);
            }
            None if jobs.send(Job::Request(Box::new(request))).is_err() => return,
            None => {}
        }
    }
}

/// Does what a message of a widget asks, also while a cell runs.
fn hear(shared: &Arc<Shared>, request: &JupyterMessage) {
    shared.status(ExecutionState::Busy, request);
    let heard = lock(&shared.widgets).hear(shared, request);
    match heard {
        Heard::Done => {}
        Heard::Waits => return,
        Heard::Stop => shared.interrupt(SystemTime::now()),
    }
    shared.status(ExecutionState::Idle, request);
}

async fn read_stdin(mut stdin: zmq::RouterRecvConnection, typed: mpsc::Sender<String>) {
    while let Ok(message) = stdin.read().await {
        if let JupyterMessageContent::InputReply(reply) = message.content
            && typed.send(reply.value).is_err()
        {
            return;
        }
    }
}

/// The session's thread.
fn work(shared: &Arc<Shared>, wire: Arc<Mutex<Wire>>, queue: &mpsc::Receiver<Job>) {
    let home = Home::find();
    let mut session = Session::open(&home, shared.clone(), wire);
    if let Ok(session) = &session {
        shared.attach(session.process());
    }
    let mut next = queue.recv_timeout(REST);
    if let (Err(mpsc::RecvTimeoutError::Timeout), Ok(session)) = (&next, &mut session) {
        session.learn_types();
    }
    let mut count = 0;
    loop {
        let Ok(Job::Request(request)) = next.or_else(|_| queue.recv()) else { return };
        next = Err(mpsc::RecvTimeoutError::Timeout);
        let request = *request;
        *shared.parent() = Some(request.clone());
        shared.status(ExecutionState::Busy, &request);
        match &request.content {
            JupyterMessageContent::ExecuteRequest(cell) => {
                count += usize::from(cell.store_history && !cell.silent);
                let reply = execute(shared, session.as_mut(), cell, count);
                // What was queued behind a cell that failed is not run; what comes after its reply is.
                if reply.status != ReplyStatus::Ok && cell.stop_on_error && !abort_queued(shared, queue) {
                    shared.reply(reply, &request);
                    shared.status(ExecutionState::Idle, &request);
                    return;
                }
                shared.reply(reply, &request);
            }
            JupyterMessageContent::CompleteRequest(asked) => {
                let reply = session
                    .as_mut()
                    .map_or_else(|_| CompleteReply::default(), |session| complete(session, asked));
                shared.reply(reply, &request);
            }
            JupyterMessageContent::InspectRequest(asked) => {
                let reply = session
                    .as_mut()
                    .map_or_else(|_| InspectReply::default(), |session| inspect(session, asked));
                shared.reply(reply, &request);
            }
            _ => {}
        }
        shared.status(ExecutionState::Idle, &request);
    }
}

/// Answers every cell in the queue as aborted; false if the kernel is to end.
fn abort_queued(shared: &Shared, queue: &mpsc::Receiver<Job>) -> bool {
    while let Ok(job) = queue.try_recv() {
        let Job::Request(request) = job else { return false };
        if let JupyterMessageContent::ExecuteRequest(_) = &request.content {
            shared.queued.fetch_sub(1, Ordering::SeqCst);
        }
        shared.status(ExecutionState::Busy, &request);
        if matches!(request.content, JupyterMessageContent::ExecuteRequest(_)) {
            shared.reply(ExecuteReply { status: ReplyStatus::Aborted, ..ExecuteReply::default() }, &request);
        }
        shared.status(ExecutionState::Idle, &request);
    }
    true
}

fn execute(
    shared: &Arc<Shared>,
    session: Result<&mut Session, &mut Trouble>,
    cell: &ExecuteRequest,
    count: usize,
) -> ExecuteReply {
    let execution_count = ExecutionCount::new(count);
    if !cell.silent {
        shared.publish(ExecuteInput { code: cell.code.clone(), execution_count });
    }
    shared.work(true);
    let request = shared.parent().as_ref().map(|request| request.header.msg_id.clone());
    std::thread::spawn({
        let shared = shared.clone();
        move || shared.note(request)
    });
    shared.queued.fetch_sub(1, Ordering::SeqCst);
    let result = match session {
        _ if shared.given_up.swap(false, Ordering::SeqCst) => {
            Err(Trouble::new("Error", "interrupted before it began"))
        }
        Ok(session) => session.execute(&cell.code),
        Err(trouble) => Err(trouble.clone()),
    };
    shared.work(false);
    if result.as_ref().is_err_and(|trouble| trouble.name == ENDED) {
        lock(&shared.widgets).end(shared);
    }
    match result {
        Ok(shown) => {
            if !shown.is_empty() && !cell.silent {
                shared.publish(DisplayData::new(media(&shown)));
            }
            ExecuteReply {
                execution_count,
                user_expressions: Some(HashMap::new()),
                ..ExecuteReply::default()
            }
        }
        Err(trouble) => {
            let traceback = trouble.lines.clone();
            let (ename, evalue) = (trouble.name.clone(), trouble.sentence.clone());
            shared.publish(ErrorOutput {
                ename: ename.clone(),
                evalue: evalue.clone(),
                traceback: traceback.clone(),
            });
            let error = Some(Box::new(ReplyError { ename, evalue, traceback }));
            ExecuteReply { status: ReplyStatus::Error, execution_count, error, ..ExecuteReply::default() }
        }
    }
}
