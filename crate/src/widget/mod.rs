//! Controls of a notebook: a slider, a choice, a toggle or a button, bound to a closure of the cell.
//!
//! A control that is moved calls the closure again, in the process in which the cell ran; nothing is compiled.
//!
//! ```
//! use lowbit::widget::{slider, toggle};
//! slider("bits", 2..=8).start(4).and(toggle("signed", true)).bind(|(bits, signed)| match signed {
//!     true => format!("−{} to {}", 1 << (bits - 1), (1 << (bits - 1)) - 1),
//!     false => format!("0 to {}", (1 << bits) - 1),
//! });
//! ```
//!
//! Where nobody can move a control (a terminal, a notebook that is run by itself) its first value is told and what the
//! closure makes of it is shown.
//!
//! | file | holds |
//! |---|---|
//! | `control` | the controls and the values that a closure gets |

mod control;

use crate::display::{Draw, Drawing, drawing};
use crate::error::Error;
pub use control::{Control, Number, Part, button, choice, slider, toggle};
use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Controls that were bound, as a [`Sink`] shows them.
#[derive(Clone, Debug)]
pub struct Bound<'a> {
    /// Tells bindings of this process apart.
    pub id: u64,
    /// The controls, in order.
    pub parts: &'a [Part],
    /// What the closure made of their first values.
    pub drawing: &'a Drawing,
}

/// Where controls are shown.
pub type Sink = Box<dyn Fn(&Bound) + Send + Sync>;

/// Draws what a closure makes of the values of its controls.
type Call = Box<dyn FnMut(&[f64]) -> Drawing + Send>;

/// What is called when a control is moved.
struct Binding {
    parts: Vec<Part>,
    call: Call,
}

/// Every binding of this process, by its number.
type Bindings = BTreeMap<u64, Arc<Mutex<Binding>>>;

static SINK: OnceLock<Sink> = OnceLock::new();
static BINDINGS: Mutex<Bindings> = Mutex::new(BTreeMap::new());

thread_local! {
    static ANSWERING: Cell<bool> = const { Cell::new(false) };
}

/// Shows controls by `sink`, such as a notebook's display, from now on. Only the first call counts.
pub fn set_sink(sink: Sink) {
    let _ = SINK.set(sink);
}

/// Whether this thread is calling a closure since a control was moved; its panic is shown in place of the result.
pub fn is_answering() -> bool {
    ANSWERING.get()
}

impl<T: 'static> Control<T> {
    /// Shows the control, and below it what `closure` makes of its value; then again whenever the control is moved.
    ///
    /// The closure outlives the cell, so it owns what it uses: clone a variable that later cells need too, before the
    /// closure moves it.
    pub fn bind<R: Any + Debug>(self, mut closure: impl FnMut(T) -> R + Send + 'static) {
        let Self { parts, value } = self;
        let mut call = move |numbers: &[f64]| drawing(&closure(value(numbers)));
        let first = call(&numbers(&parts));
        let Some(sink) = SINK.get() else {
            let mut out = std::io::stdout().lock();
            for part in &parts {
                let _ = writeln!(out, "{part}"); // a reader that is gone is no reason to fail
            }
            drop(out);
            return first.send();
        };
        let mut bindings = lock(&BINDINGS);
        let id = bindings.last_key_value().map_or(0, |(last, _)| last + 1);
        sink(&Bound { id, parts: &parts, drawing: &first });
        bindings.insert(id, Arc::new(Mutex::new(Binding { parts, call: Box::new(call) })));
    }
}

/// What the closure of binding `id` makes of the `moves`: parts by index, and their new values. None if there is no such
/// binding.
pub fn answer(id: u64, moves: &[(usize, f64)]) -> Option<Drawing> {
    let binding = lock(&BINDINGS).get(&id).cloned()?;
    let mut binding = lock(&binding);
    let Binding { parts, call } = &mut *binding;
    for (part, value) in moves {
        if let Some(part) = parts.get_mut(*part) {
            part.set(*value);
        }
    }
    ANSWERING.set(true);
    let drawn = catch_unwind(AssertUnwindSafe(|| call(&numbers(parts))));
    ANSWERING.set(false);
    Some(drawn.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Error::input(text.unwrap_or("the closure panicked")).draw()
    }))
}

/// Forgets a binding, and what its closure owns.
pub fn close(id: u64) {
    let closed = lock(&BINDINGS).remove(&id);
    drop(closed); // outside of the lock: what it owns may be large
}

fn numbers(parts: &[Part]) -> Vec<f64> {
    parts.iter().map(|part| part.value).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    static LAST: AtomicU64 = AtomicU64::new(u64::MAX);

    #[test]
    fn a_moved_control_calls_its_closure_again() {
        set_sink(Box::new(|bound| {
            assert_eq!(bound.drawing.text, "2 a false");
            LAST.store(bound.id, Ordering::SeqCst);
        }));
        let controls = slider("bits", 2..=8).and(choice("scheme", ["a", "b"])).and(toggle("on", false));
        controls.bind(|((bits, scheme), on)| {
            assert!(bits != 7, "seven bits");
            format!("{bits} {scheme} {on}")
        });
        let id = LAST.load(Ordering::SeqCst);
        let moved = |moves: &[(usize, f64)]| answer(id, moves).unwrap().text;
        assert_eq!(moved(&[(0, 5.0), (2, 1.0)]), "5 a true");
        assert_eq!(moved(&[(1, 1.0)]), "5 b true", "the others stay");
        assert_eq!(moved(&[(0, 99.0), (9, 1.0)]), "8 b true", "a value outside of the range is its end");
        assert!(moved(&[(0, 7.0)]).contains("seven bits"), "a panic is shown");
        assert_eq!(moved(&[(0, f64::NAN)]), moved(&[]), "and the closure goes on");
        close(id);
        assert!(answer(id, &[]).is_none());
    }
}
