//! A job of many bars: how long it will take, said before it begins and whenever a bar tells of itself.

use super::announce;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The job under way, if there is one: bars are made far below the place that knows of it.
static CURRENT: Mutex<Option<State>> = Mutex::new(None);

/// The most of a part that passes for done before it has ended.
const MOST: f64 = 0.95;
/// The share of its expected time in which no part can be done.
const FOUND: f64 = 0.02;

#[derive(Debug)]
struct State {
    name: String,
    /// What is being done now.
    part: String,
    /// Work in all, of what has ended, and of what is being done; any unit.
    total: f64,
    done: f64,
    doing: f64,
    /// Work a second, as expected before any of it was done.
    expected: f64,
    began: Instant,
    part_began: Instant,
}

/// A job from its beginning to its end, which is when this is dropped. There is one at a time.
#[derive(Debug)]
pub struct Job(());

impl Job {
    /// Begins a job of `work` units that is expected to take so long, and says so on standard error: `about` tells what
    /// there is to do.
    pub fn begin(name: &str, about: &str, work: f64, expected: Duration) -> Self {
        announce(&format!("{name}: {about}; {} on this machine", roughly(expected)));
        let now = Instant::now();
        *current() = Some(State {
            name: name.to_string(),
            part: String::new(),
            total: work,
            done: 0.0,
            doing: 0.0,
            expected: work / expected.as_secs_f64().max(1e-3),
            began: now,
            part_began: now,
        });
        Self(())
    }

    /// Begins a part of `work` units; the part before it has ended.
    pub fn part(&self, what: &str, work: f64) {
        if let Some(state) = current().as_mut() {
            state.end_part(Instant::now());
            (state.part, state.doing) = (what.to_string(), work);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        *current() = None;
    }
}

fn current() -> MutexGuard<'static, Option<State>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far the job under way is: "w4a8, phase1 12 % done, about 19 min left".
pub(super) fn status() -> Option<String> {
    current().as_ref().map(|state| state.at(Instant::now()))
}

impl State {
    /// A part that took next to no time was found done, as it is where an interrupted job goes on: it says nothing of the
    /// speed of others.
    fn end_part(&mut self, now: Instant) {
        let took = now.duration_since(self.part_began);
        if took.as_secs_f64() * self.expected < FOUND * self.doing {
            self.total -= self.doing;
            self.began += took;
        } else {
            self.done += self.doing;
        }
        (self.doing, self.part_began) = (0.0, now);
    }

    fn at(&self, now: Instant) -> String {
        let spent = self.part_began.duration_since(self.began).as_secs_f64();
        let rate = if self.done > 0.0 && spent > 0.0 { self.done / spent } else { self.expected };
        let doing = now.duration_since(self.part_began).as_secs_f64() * rate;
        let done = (self.done + doing.min(MOST * self.doing)).min(self.total);
        let left = Duration::from_secs_f64(((self.total - done) / rate.max(f64::MIN_POSITIVE)).min(1e9));
        let share = 100.0 * done / self.total.max(f64::MIN_POSITIVE);
        format!("{}, {} {share:.0} % done, {} left", self.part, self.name, roughly(left))
    }
}

/// A duration in words, no more exact than an estimate is.
pub fn roughly(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..10.0 => "a few seconds".to_string(),
        ..90.0 => format!("about {:.0} s", (seconds / 10.0).round() * 10.0),
        ..5400.0 => format!("about {:.0} min", seconds / 60.0),
        _ => format!("about {:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(done: f64, doing: f64) -> State {
        let now = Instant::now();
        let (name, part) = ("phase1".to_string(), "w4a8".to_string());
        State { name, part, total: 1000.0, done, doing, expected: 1.0, began: now, part_began: now }
    }

    #[test]
    fn time_left_is_expected_first_and_measured_then() {
        let first = state(0.0, 500.0);
        let at = first.began + Duration::from_secs(100);
        assert_eq!(first.at(at), "w4a8, phase1 10 % done, about 15 min left");
        // Twice as fast as expected: 500 units took 250 s.
        let mut second = state(500.0, 500.0);
        second.part_began = second.began + Duration::from_secs(250);
        assert_eq!(second.at(second.part_began), "w4a8, phase1 50 % done, about 4 min left");
        // What was found done is not counted.
        let mut found = state(0.0, 500.0);
        found.end_part(found.began + Duration::from_secs(1));
        assert_eq!(found.at(found.part_began), "w4a8, phase1 0 % done, about 8 min left");
        let long_after = second.part_began + Duration::from_secs(3600);
        assert_eq!(second.at(long_after), "w4a8, phase1 98 % done, about 10 s left");
    }

    #[test]
    fn an_estimate_is_told_as_one() {
        let told = [3.0, 42.0, 240.0, 5400.0].map(|seconds| roughly(Duration::from_secs_f64(seconds)));
        assert_eq!(told, ["a few seconds", "about 40 s", "about 4 min", "about 1.5 h"]);
    }
}
