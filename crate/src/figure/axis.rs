//! Axes: what range they span, where their ticks stand, how numbers are written.

/// How values are laid along an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences, equal distances.
    #[default]
    Linear,
    /// Equal ratios, ticks at powers of two: lengths.
    Log2,
    /// Equal ratios, ticks at powers of ten.
    Log10,
}

/// How values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// As numbers.
    #[default]
    Plain,
    /// 0.25 as 25 %.
    Percent,
    /// Bytes as kB, MB or GB (powers of 1,000).
    Bytes,
    /// 0.25 as 250, in thousandths.
    Milli,
}

/// One axis of a figure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// Name and unit; the unit of [`Unit::Bytes`] is added when drawn.
    pub label: String,
    /// How values are laid along it.
    pub scale: Scale,
    /// How values are written.
    pub unit: Unit,
    /// Begin at zero (linear scale only).
    pub from_zero: bool,
    /// Span exactly this range, instead of one that fits the data.
    pub range: Option<(f64, f64)>,
}

impl Axis {
    /// The axis of a column: its name in words, its unit from its ending.
    pub(super) fn named(column: &str) -> Self {
        let (words, unit) = match column {
            _ if column.ends_with("_bytes") => (column.trim_end_matches("_bytes").to_string(), Unit::Bytes),
            _ if column.ends_with("_per_s") => (column.replace("_per_s", " / s"), Unit::Plain),
            _ if column.ends_with("_s") => (format!("{} (s)", column.trim_end_matches("_s")), Unit::Plain),
            _ => (column.to_string(), Unit::Plain),
        };
        Self { label: words.replace('_', " "), unit, ..Self::default() }
    }
}

/// A place on an axis that carries a number.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) text: String,
}

/// An axis fitted to data.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    scale: Scale,
    low: f64,
    high: f64,
    pub(super) ticks: Vec<Tick>,
    /// The axis' name with the unit that the ticks are in.
    pub(super) label: String,
    /// What the ticks of a linear axis are divided by, and what is written after each.
    pub(super) shared: Option<(f64, &'static str)>,
}

impl Fitted {
    /// Fits `axis` to finite `values`; `tight` leaves no room to the next tick (the horizontal axis of lines).
    pub(super) fn new(axis: &Axis, values: impl Iterator<Item = f64> + Clone, tight: bool) -> Self {
        // Ends of intervals at 0 or less have no place on a logarithmic axis.
        let placed = |v: &f64| v.is_finite() && (axis.scale == Scale::Linear || *v > 0.0);
        let values = values.filter(placed);
        let (mut min, mut max) = axis.range.unwrap_or_else(|| {
            (values.clone().fold(f64::INFINITY, f64::min), values.clone().fold(f64::NEG_INFINITY, f64::max))
        });
        if min > max {
            // No value is known.
            (min, max) = if axis.scale == Scale::Linear { (0.0, 1.0) } else { (1.0, 2.0) };
        }
        let warp = |v: f64| warp(axis.scale, v);
        let fitted = |low: f64, high: f64, ticks: Vec<Tick>, label: String| Self {
            scale: axis.scale,
            low,
            high,
            ticks,
            label,
            shared: None,
        };
        match axis.scale {
            Scale::Linear => {
                // Zero belongs to the axis when it is near, for lengths of bars and lines to compare.
                let near_zero = min > 0.0 && min < 0.4 * max && !tight;
                if axis.range.is_none() && (axis.from_zero || near_zero) {
                    (min, max) = (min.min(0.0), max.max(0.0));
                }
                if min == max {
                    let room = 0.1 * min.abs();
                    (min, max) = if min == 0.0 { (0.0, 1.0) } else { (min - room, max + room) };
                }
                let step = nice_step((max - min) / 5.0);
                if !tight && axis.range.is_none() {
                    (min, max) = ((min / step + 1e-9).floor() * step, (max / step - 1e-9).ceil() * step);
                }
                let marks = (min / step - 1e-9).ceil() as i64..=(max / step + 1e-9).floor() as i64;
                let (ticks, shared, unit) = write(axis.unit, marks.map(|i| i as f64 * step).collect(), step);
                let label =
                    if unit.is_empty() { axis.label.clone() } else { format!("{} ({unit})", axis.label) };
                Self { shared: Some(shared), ..fitted(min, max, ticks, label) }
            }
            Scale::Log2 => {
                let (mut low, mut high) = (warp(min), warp(max));
                if high.floor() - low.ceil() < 1.0 {
                    (low, high) = ((low - 0.5).floor(), (high + 0.5).ceil());
                }
                let every = ((high - low) / 10.0).ceil().max(1.0) as usize;
                let marks = (low.ceil() as i32..=high.floor() as i32).step_by(every);
                let ticks =
                    marks.map(|k| Tick { value: 2_f64.powi(k), text: binary(2_f64.powi(k)) }).collect();
                let room = 0.03 * (high - low);
                fitted(low - room, high + room, ticks, axis.label.clone())
            }
            Scale::Log10 => {
                let (mut low, mut high) = (warp(min), warp(max));
                if high - low < 0.05 {
                    (low, high) = (low - 0.1, high + 0.1);
                }
                let room = 0.04 * (high - low);
                (low, high) = (low - room, high + room);
                let marks = log_marks(low, high);
                let ticks = marks.into_iter().map(|v| Tick { value: v, text: alone(axis.unit, v) }).collect();
                fitted(low, high, ticks, axis.label.clone())
            }
        }
    }

    /// Where a value lies: 0 at the low end, 1 at the high end.
    pub(super) fn at(&self, value: f64) -> f64 {
        (warp(self.scale, value) - self.low) / (self.high - self.low)
    }

    /// The value that lies at a share of the way from the low end: the inverse of [`at`](Self::at).
    pub(super) fn value(&self, share: f64) -> f64 {
        let place = self.low + share * (self.high - self.low);
        match self.scale {
            Scale::Linear => place,
            Scale::Log2 => place.exp2(),
            Scale::Log10 => 10_f64.powf(place),
        }
    }

    /// Whether a value lies on the axis.
    pub(super) fn holds(&self, value: f64) -> bool {
        (-1e-9..=1.0 + 1e-9).contains(&self.at(value))
    }
}

/// On a logarithmic axis 0 and what is less lie infinitely far below.
fn warp(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Log2 => value.max(0.0).log2(),
        Scale::Log10 => value.max(0.0).log10(),
    }
}

/// The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `rough`.
pub(super) fn nice_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    factors.iter().map(|f| f * power).find(|step| *step >= rough * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

/// Powers of ten; with their doubles and fives when few; a linear division when fewer still.
fn log_marks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.floor() as i32..=high.ceil() as i32;
    let within = |v: &f64| (low..=high).contains(&v.log10());
    for factors in [&[1.0][..], &[1.0, 3.0], &[1.0, 2.0, 5.0]] {
        let marks = decades.clone().flat_map(|k| factors.iter().map(move |f| f * 10_f64.powi(k)));
        let marks: Vec<f64> = marks.filter(within).collect();
        if marks.len() >= 4 {
            return marks;
        }
    }
    let (min, max) = (10_f64.powf(low), 10_f64.powf(high));
    let step = nice_step((max - min) / 4.0);
    ((min / step).ceil() as i64..=(max / step).floor() as i64)
        .map(|i| i as f64 * step)
        .filter(|v| *v > 0.0)
        .collect()
}

/// Ticks that share a divisor and a suffix, and their unit for the axis' label.
fn write(unit: Unit, marks: Vec<f64>, step: f64) -> (Vec<Tick>, (f64, &'static str), &'static str) {
    let largest = marks.iter().fold(0.0_f64, |a, v| a.max(v.abs()));
    let (divisor, suffix, name) = match unit {
        Unit::Percent => (0.01, " %", ""),
        Unit::Milli => (1e-3, "", "10⁻³"),
        Unit::Bytes if largest >= 1e9 => (1e9, "", "GB"),
        Unit::Bytes if largest >= 1e6 => (1e6, "", "MB"),
        Unit::Bytes if largest >= 1e3 => (1e3, "", "kB"),
        Unit::Bytes => (1.0, "", "bytes"),
        Unit::Plain if largest >= 1e9 => (1e9, "G", ""),
        Unit::Plain if largest >= 1e6 => (1e6, "M", ""),
        Unit::Plain if largest >= 1e4 => (1e3, "k", ""),
        Unit::Plain => (1.0, "", ""),
    };
    let decimals = (0..6).find(|d| is_whole(step / divisor * 10_f64.powi(*d))).unwrap_or(6) as usize;
    let text = |v: f64| {
        if v == 0.0 {
            format!("0{}", suffix.trim_matches(['k', 'M', 'G']))
        } else {
            minus(format!("{:.decimals$}{suffix}", v / divisor))
        }
    };
    (marks.into_iter().map(|value| Tick { value, text: text(value) }).collect(), (divisor, suffix), name)
}

fn is_whole(v: f64) -> bool {
    (v - v.round()).abs() < 1e-6 * v.abs().max(1.0)
}

/// One value with its unit, as it stands at a bar or at a tick of a logarithmic axis.
pub(super) fn alone(unit: Unit, value: f64) -> String {
    match (unit, value.abs()) {
        (Unit::Percent, _) => format!("{} %", digits(value * 100.0)),
        (Unit::Milli, _) => digits(value * 1e3),
        (Unit::Bytes, size) if size >= 1e9 => format!("{} GB", digits(value / 1e9)),
        (Unit::Bytes, size) if size >= 1e6 => format!("{} MB", digits(value / 1e6)),
        (Unit::Bytes, size) if size >= 1e3 => format!("{} kB", digits(value / 1e3)),
        (Unit::Bytes, _) => format!("{} B", digits(value)),
        (Unit::Plain, size) if size >= 1e9 => format!("{}G", digits(value / 1e9)),
        (Unit::Plain, size) if size >= 1e6 => format!("{}M", digits(value / 1e6)),
        (Unit::Plain, size) if size >= 1e4 => format!("{}k", digits(value / 1e3)),
        (Unit::Plain, _) => digits(value),
    }
}

/// At most four significant digits, no zeros at the end of a fraction.
fn digits(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    if value.abs() < 1e-4 {
        return minus(format!("{value:.1e}").replace(".0e", "e"));
    }
    let decimals = (3 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{value:.decimals$}");
    minus(if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        text
    })
}

/// With a minus sign in place of the hyphen.
fn minus(text: String) -> String {
    text.replace('-', "−")
}

/// A length: 256, 1k for 1,024, 1M for 2²⁰.
pub(super) fn binary(value: f64) -> String {
    let (kilo, mega) = (value / 1024.0, value / f64::from(1 << 20));
    match value {
        _ if mega >= 1.0 && is_whole(mega) => format!("{mega}M"),
        _ if kilo >= 1.0 && is_whole(kilo) => format!("{kilo}k"),
        _ => digits(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis, values: &[f64], tight: bool) -> Vec<String> {
        Fitted::new(axis, values.iter().copied(), tight).ticks.into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn lengths_are_powers_of_two() {
        let axis = Axis { scale: Scale::Log2, ..Axis::default() };
        assert_eq!(texts(&axis, &[256.0, 2048.0], true), ["256", "512", "1k", "2k"]);
        assert_eq!(texts(&axis, &[1024.0], true), ["512", "1k", "2k"]);
        assert_eq!(texts(&axis, &[1.0, 1048576.0], true).last().unwrap(), "1M");
        let fitted = Fitted::new(&axis, [256.0, 4096.0].into_iter(), true);
        assert!((fitted.at(1024.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn numbers_are_short() {
        let percent = Axis { unit: Unit::Percent, range: Some((0.0, 1.0)), ..Axis::default() };
        assert_eq!(texts(&percent, &[0.3], false), ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]);
        let plain = Axis::default();
        assert_eq!(texts(&plain, &[100.0, 41_000.0], false), ["0", "10k", "20k", "30k", "40k", "50k"]);
        assert_eq!(texts(&plain, &[1.9, 2.1], false), ["1.90", "1.95", "2.00", "2.05", "2.10"]);
        assert_eq!(texts(&plain, &[0.0, 0.0], false), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(texts(&plain, &[-2.0, 1.0], false), ["−2", "−1", "0", "1"]);
        let bytes = Axis { label: "peak".into(), unit: Unit::Bytes, ..Axis::default() };
        assert_eq!(Fitted::new(&bytes, [2e8, 1.2e9].into_iter(), false).label, "peak (GB)");
        assert_eq!([4.12345, 25_080.0, -1e-9].map(|v| alone(Unit::Plain, v)), ["4.123", "25.08k", "−1e−9"]);
    }

    #[test]
    fn log_axes_never_stay_without_ticks() {
        let axis = Axis { scale: Scale::Log10, ..Axis::default() };
        assert!(!texts(&axis, &[f64::NAN], false).is_empty(), "even without a value");
        assert_eq!(texts(&axis, &[-1.0, 0.0, 1.0, 100.0], false), texts(&axis, &[1.0, 100.0], false));
        for (a, b) in [(1.0, 1.0), (3.0, 3.3), (20.0, 90.0), (1e-4, 1e6), (7.0, 5e3)] {
            let ticks = texts(&axis, &[a, b], false);
            assert!((2..=12).contains(&ticks.len()), "{a} {b}: {ticks:?}");
        }
    }
}
