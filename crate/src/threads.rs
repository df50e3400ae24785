//! The pool of threads that the kernels run on.
//!
//! Every call into a model enters this pool, so that its many short parallel loops start inside it instead of
//! crossing into it one by one. The count can change at any time; work under way keeps the pool it began with.

use crate::error::{Error, Result};
use crate::warning::warn;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Arc, PoisonError, RwLock};

/// The most threads: more than any machine has processors, and fewer than the system refuses.
const MOST: usize = 1024;

static POOL: RwLock<Option<Arc<ThreadPool>>> = RwLock::new(None);
/// Pools of one thread each, started when they are first needed.
static LANES: RwLock<Vec<Arc<ThreadPool>>> = RwLock::new(Vec::new());

/// Sets how many threads the kernels use from now on; without it, all processors (or `RAYON_NUM_THREADS`).
///
/// # Errors
/// If `count` is 0 or beyond all reason, or the system refuses the threads.
pub fn set_threads(count: usize) -> Result<()> {
    let pool = pool_of(count)?;
    *POOL.write().unwrap_or_else(PoisonError::into_inner) = Some(pool);
    Ok(())
}

/// How many threads the kernels use when called from here.
pub fn threads() -> usize {
    let inside = rayon::current_thread_index().map(|_| rayon::current_num_threads());
    inside.or_else(|| pool().map(|pool| pool.current_num_threads())).unwrap_or(1)
}

/// Runs `work` with `count` threads, whatever [`set_threads`] says.
pub(crate) fn with_threads<R: Send>(count: usize, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    pool_of(count)?.install(work)
}

/// Runs `work` inside the pool; where the caller is in a pool already, in that one.
pub(crate) fn install<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    match pool().filter(|_| rayon::current_thread_index().is_none()) {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// Runs `work` with each of `places`, side by side on a thread of its own: kernels called there stay on it. Some places
/// may be left out where the system refuses threads, never the first.
pub(crate) fn side_by_side<T: Send>(places: &mut [T], work: impl Fn(&mut T) + Sync) {
    fn start<T: Send>(lanes: &[Arc<ThreadPool>], places: &mut [T], work: &(impl Fn(&mut T) + Sync)) {
        if let ([lane, lanes @ ..], [place, places @ ..]) = (lanes, places) {
            lane.in_place_scope(|scope| {
                scope.spawn(|_| work(place));
                start(lanes, places, work);
            });
        }
    }
    match lanes(places.len()) {
        lanes if lanes.len() > 1 => start(&lanes, places, &work),
        _ => places.iter_mut().take(1).for_each(work),
    }
}

/// `count` of the lanes, or as many as can be had.
fn lanes(count: usize) -> Vec<Arc<ThreadPool>> {
    let started = LANES.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(lanes) = started.get(..count) {
        return lanes.to_vec();
    }
    drop(started);
    let mut started = LANES.write().unwrap_or_else(PoisonError::into_inner);
    while started.len() < count {
        let Ok(lane) = build(1) else { break };
        started.push(lane);
    }
    started.iter().take(count).cloned().collect()
}

/// Refuses a count that no pool has.
///
/// # Errors
/// If it is 0 or beyond all reason.
pub(crate) fn check_threads(count: usize) -> Result<()> {
    match count {
        0 => Err(Error::input("0 threads cannot work").hint("give a count of at least 1")),
        1..=MOST => Ok(()),
        _ => Err(Error::input(format!("{count} threads are more than {MOST}, the most that are started"))
            .hint(format!("this machine has {} processors", processors()))),
    }
}

fn pool_of(count: usize) -> Result<Arc<ThreadPool>> {
    check_threads(count)?;
    build(count)
}

/// How many threads there are by default: 0 leaves it to rayon, which asks the environment and the machine.
fn by_default() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse::<usize>().ok());
    match asked.filter(|count| *count > MOST) {
        None => 0,
        Some(count) => {
            let here = processors();
            warn(format!(
                "RAYON_NUM_THREADS asks for {count} threads: the {here} of this machine are started"
            ));
            here
        }
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The pool in force. None where the system refuses its threads: rayon's own pool then serves.
fn pool() -> Option<Arc<ThreadPool>> {
    if let Some(pool) = &*POOL.read().unwrap_or_else(PoisonError::into_inner) {
        return Some(pool.clone());
    }
    let mut place = POOL.write().unwrap_or_else(PoisonError::into_inner);
    if place.is_none() {
        *place = build(by_default()).ok();
    }
    place.clone()
}

fn build(count: usize) -> Result<Arc<ThreadPool>> {
    // Candle walks the graph of a definition by recursion: the stack of a main thread, not the 2 MiB of others.
    let pool = ThreadPoolBuilder::new().num_threads(count).stack_size(16 << 20);
    let built = pool.thread_name(|i| format!("lowbit-{i}")).build();
    built.map(Arc::new).map_err(|error| Error::unavailable(format!("cannot start {count} threads: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Counts are set by `with_threads` alone here: `set_threads` would reach into tests that run beside this one.
    #[test]
    fn work_runs_in_the_pool_that_was_asked_for() {
        for count in [1, 3] {
            let seen = with_threads(count, || Ok((threads(), install(rayon::current_num_threads)))).unwrap();
            assert_eq!(seen, (count, count));
        }
        assert!(install(|| rayon::current_thread_index().is_some()));
        assert_eq!(install(rayon::current_num_threads), threads());
        assert!(set_threads(0).unwrap_err().to_string().contains("at least 1"));
        let sentence = set_threads(100_000).unwrap_err().to_string();
        assert!(
            sentence.contains("100000 threads are more than 1024") && sentence.contains("this machine has")
        );
    }
}
