//! The controls, and the values that a closure gets of them.

use std::fmt;
use std::ops::RangeInclusive;

/// One control, as a notebook shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    /// `slider`, `choice`, `toggle` or `button`.
    pub kind: &'static str,
    /// What stands beside it.
    pub label: String,
    /// A slider's number, the index of a choice, 1 for a toggle that is on, how often a button was pressed.
    pub value: f64,
    /// The lowest value.
    pub min: f64,
    /// The highest value.
    pub max: f64,
    /// The distance of a slider's values.
    pub step: f64,
    /// Whether values are whole numbers.
    pub whole: bool,
    /// What can be chosen.
    pub options: Vec<String>,
}

impl Part {
    /// Takes a new value, brought into its range.
    pub(super) fn set(&mut self, value: f64) {
        if !value.is_nan() {
            let value = if self.whole { value.round() } else { value };
            self.value = value.clamp(self.min, self.max);
        }
    }
}

/// The control and its value as a line of text.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, value, min, max, options, .. } = self;
        match self.kind {
            "slider" => write!(f, "{label}: {value} (slider, {min} to {max})"),
            "choice" => {
                let chosen = options.get(*value as usize).map_or("", String::as_str);
                write!(f, "{label}: {chosen} (choice of {})", options.join(", "))
            }
            "toggle" => write!(f, "{label}: {} (toggle)", if *value > 0.0 { "on" } else { "off" }),
            kind => write!(f, "{label} ({kind})"),
        }
    }
}

/// A `T` of the numbers of controls.
type Value<T> = Box<dyn Fn(&[f64]) -> T + Send>;

/// Controls whose values together are a `T`.
pub struct Control<T> {
    pub(super) parts: Vec<Part>,
    pub(super) value: Value<T>,
}

/// A number that a slider can have.
pub trait Number: Copy + Send + 'static {
    /// Whether it is whole.
    const WHOLE: bool;
    /// As a slider holds it.
    fn to(self) -> f64;
    /// Of what a slider holds.
    fn of(value: f64) -> Self;
}

macro_rules! numbers {
    ($whole:literal: $($type:ty),*) => {
        $(impl Number for $type {
            const WHOLE: bool = $whole;
            fn to(self) -> f64 {
                self as f64
            }
            fn of(value: f64) -> Self {
                value as Self
            }
        })*
    };
}

numbers!(true: i32, u8, i8, u16, i16, u32, i64, u64, isize, usize);
numbers!(false: f32, f64);

/// A slider over numbers: whole ones one by one, others in a hundred steps; it begins at the lowest.
///
/// ```
/// # use lowbit::widget::slider;
/// slider("share", 0.0..=1.0).step(0.05).start(0.5).bind(|share| share * 2.0);
/// ```
pub fn slider<N: Number>(label: &str, range: RangeInclusive<N>) -> Control<N> {
    let (min, max) = (range.start().to(), range.end().to());
    let (min, max) = (min.min(max), min.max(max));
    let step = if N::WHOLE { 1.0 } else { (max - min) / 100.0 };
    let part = Part { kind: "slider", min, max, step, whole: N::WHOLE, ..Part::default() };
    one(label, min, part, N::of)
}

/// One of several items, told by their texts; it begins with the first.
///
/// # Panics
/// If there are no items.
pub fn choice<T: fmt::Display + Clone + Send + 'static>(
    label: &str,
    items: impl IntoIterator<Item = T>,
) -> Control<T> {
    let items: Vec<T> = items.into_iter().collect();
    assert!(!items.is_empty(), "{label}: a choice needs items");
    let options = items.iter().map(ToString::to_string).collect();
    let max = items.len() as f64 - 1.0;
    let part = Part { kind: "choice", max, whole: true, options, ..Part::default() };
    one(label, 0.0, part, move |index| items[index as usize].clone())
}

/// Something that is on or off.
pub fn toggle(label: &str, on: bool) -> Control<bool> {
    let part = Part { kind: "toggle", max: 1.0, whole: true, ..Part::default() };
    one(label, f64::from(u8::from(on)), part, |value| value > 0.0)
}

/// A button; the closure gets how often it was pressed.
pub fn button(label: &str) -> Control<usize> {
    let part = Part { kind: "button", max: f64::MAX, whole: true, ..Part::default() };
    one(label, 0.0, part, |value| value as usize)
}

fn one<T>(label: &str, value: f64, part: Part, of: impl Fn(f64) -> T + Send + 'static) -> Control<T> {
    let parts = vec![Part { label: label.to_string(), value, ..part }];
    Control { parts, value: Box::new(move |numbers| of(numbers[0])) }
}

impl<N: Number> Control<N> {
    /// Where the slider begins.
    #[must_use]
    pub fn start(mut self, value: N) -> Self {
        self.parts[0].set(value.to());
        self
    }

    /// The distance of its values.
    #[must_use]
    pub fn step(mut self, step: N) -> Self {
        self.parts[0].step = step.to().abs();
        self
    }
}

impl<T: 'static> Control<T> {
    /// Both controls, for a closure of a pair.
    #[must_use]
    pub fn and<U: 'static>(mut self, other: Control<U>) -> Control<(T, U)> {
        let (own, its) = (self.value, other.value);
        let count = self.parts.len();
        self.parts.extend(other.parts);
        let value = move |numbers: &[f64]| (own(&numbers[..count]), its(&numbers[count..]));
        Control { parts: self.parts, value: Box::new(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_told_as_text() {
        let text = |parts: &[Part]| parts.iter().map(|part| format!("{part}\n")).collect::<String>();
        let all = slider("bits", 2..=8).start(4).and(choice("scheme", ["w8a8", "w4a8"]));
        let all = all.and(toggle("log", true)).and(button("again"));
        assert_eq!(
            text(&all.parts),
            "bits: 4 (slider, 2 to 8)\nscheme: w8a8 (choice of w8a8, w4a8)\nlog: on (toggle)\nagain (button)\n"
        );
        assert_eq!((all.value)(&[4.0, 1.0, 0.0, 2.0]), (((4, "w4a8"), false), 2));
        let share = slider("share", 0.0..=1.0);
        assert_eq!((share.parts[0].step, share.parts[0].whole), (0.01, false));
    }
}
