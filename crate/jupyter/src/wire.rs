//! The two pipes between the kernel and the process that runs the cells, beside what evcxr tells the one and the other.
//!
//! evcxr listens only while a cell runs. What happens between cells goes past it: what a thread prints, what a control
//! of a notebook does. Every process that runs cells inherits the same two ends, so a new one goes on where the last
//! one ended.

use crate::event::{Event, MARK};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::time::Duration;

/// Names the ends that the process of the cells has: where it reads, and where it tells.
const ENDS: &str = "LOWBIT_WIRE";

/// A new cell was asked for: no interrupt has come for it.
pub const CELL: &str = "cell";

/// The kernel's side.
pub struct Wire {
    sends: File,
    /// Kept for the processes that inherit them.
    theirs: [RawFd; 2],
    events: RawFd,
}

impl Wire {
    /// Lays the pipes; processes started from now on have the other ends.
    ///
    /// # Errors
    /// If there are no more descriptors.
    pub fn lay() -> std::io::Result<Self> {
        let (their_end, sends) = std::io::pipe()?;
        let (events, tells) = std::io::pipe()?;
        let theirs = [their_end.into_raw_fd(), tells.into_raw_fd()];
        for end in theirs {
            // SAFETY: a descriptor of this process; it stays open when another program takes a copy of the process over.
            unsafe { libc::fcntl(end, libc::F_SETFD, 0) };
        }
        // SAFETY: set before the session's threads start; the kernel's own threads do not read the environment.
        unsafe { std::env::set_var(ENDS, format!("{},{}", theirs[0], theirs[1])) };
        // SAFETY: a descriptor that is owned here alone.
        let sends = unsafe { File::from_raw_fd(sends.into_raw_fd()) };
        Ok(Self { sends, theirs, events: events.into_raw_fd() })
    }

    /// Calls `tell` with every event, on a thread of its own.
    pub fn listen(&self, mut tell: impl FnMut(Event) -> bool + Send + 'static) {
        // SAFETY: another descriptor of the same end, owned by the thread.
        let lines = BufReader::new(unsafe { File::from_raw_fd(libc::dup(self.events)) });
        std::thread::spawn(move || {
            for line in lines.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                // A process that was ended in the middle of a line leaves its beginning before the next one's first.
                let event = line.rfind(MARK).and_then(|at| Event::parse(&line[at..]));
                if event.is_some_and(|event| !tell(event)) {
                    return;
                }
            }
        });
    }

    /// Sends the process of the cells a line.
    pub fn send(&mut self, line: &str) {
        // Nobody may be there to read it: a pipe that is full is left as it is.
        let mut poll = libc::pollfd { fd: self.sends.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } == 1 {
            let _ = self.sends.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Waits until everything that was told has been read, at most `patience`.
    pub fn drain(&self, patience: Duration) {
        let mut left = patience.as_millis();
        let mut bytes: libc::c_int = 1;
        // SAFETY: a place for the number that is asked for.
        while left > 0
            && unsafe { libc::ioctl(self.events, libc::FIONREAD, &raw mut bytes) } == 0
            && bytes > 0
        {
            std::thread::sleep(Duration::from_millis(1));
            left -= 1;
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for end in self.theirs.into_iter().chain([self.events]) {
            // SAFETY: a descriptor that is owned here.
            unsafe { libc::close(end) };
        }
    }
}

/// The ends of the process that runs the cells: where it reads, and where it tells.
pub fn ends() -> Option<[RawFd; 2]> {
    let text = std::env::var(ENDS).ok()?;
    let (reads, tells) = text.split_once(',')?;
    Some([reads.parse().ok()?, tells.parse().ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn events_come_through_also_after_half_of_one() {
        let wire = Wire::lay().unwrap();
        let [_, tells] = ends().unwrap();
        let (sender, events) = mpsc::channel();
        wire.listen(move |event| sender.send(event).is_ok());
        let text = format!("{}half of one{}", MARK, Event::Done.line());
        // SAFETY: writes from a text that lives.
        unsafe { libc::write(tells, text.as_ptr().cast(), text.len()) };
        assert_eq!(events.recv().unwrap(), Event::Done);
        wire.drain(Duration::from_secs(1));
    }
}
