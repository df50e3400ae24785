//! Summaries of repeated measurements.

use serde::{Deserialize, Serialize};

/// Smallest, middle and largest of repeated measurements, in their unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Smallest value.
    pub min: f64,
    /// Median: the mean of the two middle values when their number is even.
    pub median: f64,
    /// Largest value.
    pub max: f64,
}

impl Summary {
    /// Summary of the values; `None` if there are none, or if one is NaN.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.iter().any(|v| v.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) };
        Some(Self { min: sorted[0], median, max: sorted[sorted.len() - 1] })
    }
}

/// A mean with its standard error, √(s² / n), which takes the values for independent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error; NaN for a single value, which says nothing of the spread.
    pub error: f64,
}

impl Mean {
    /// Mean of the values; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (!values.is_empty()).then(|| Self { mean, error: (squares / (n - 1.0) / n).sqrt() })
    }
}

/// The quantile of values in the order of `f64::total_cmp` at `fraction` (0 … 1), linear between neighbours (Hyndman & Fan
/// 1996, type 7); `None` if there are no values, NaN if one of them is.
pub fn quantile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let at = fraction.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    // That order has NaN at its ends.
    if [sorted[0], sorted[sorted.len() - 1]].iter().any(|end| end.is_nan()) {
        return Some(f64::NAN);
    }
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    // Between equal infinities there is no distance.
    Some(if low == high { low } else { low + (high - low) * at.fract() })
}

/// The largest of some values; NaN if one of them is.
pub fn largest(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    values.into_iter().reduce(|a, b| if a.is_nan() || a >= b { a } else { b })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_few_values() {
        assert_eq!(Summary::of(&[3.0, 1.0, 2.0]), Some(Summary { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Summary::of(&[4.0, 1.0]), Some(Summary { min: 1.0, median: 2.5, max: 4.0 }));
        assert_eq!((Summary::of(&[]), Summary::of(&[1.0, f64::NAN])), (None, None));
    }

    #[test]
    fn means_and_quantiles_of_few_values() {
        let Mean { mean, error } = Mean::of(&[1.0, 2.0, 4.0, 5.0]).unwrap();
        assert!(mean == 3.0 && (error - (10.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        assert!(Mean::of(&[7.0]).unwrap().error.is_nan() && Mean::of(&[]).is_none());
        let sorted = [1.0, 2.0, 4.0, 8.0];
        let found = [0.0, 0.5, 0.9, 1.0].map(|fraction| quantile(&sorted, fraction).unwrap());
        assert!((found[2] - 6.8).abs() < 1e-12 && found[..2] == [1.0, 3.0] && found[3] == 8.0, "{found:?}");
        assert_eq!((quantile(&[], 0.5), quantile(&[3.0], 0.7)), (None, Some(3.0)));
        assert_eq!(quantile(&[1.0, f64::INFINITY, f64::INFINITY], 0.9), Some(f64::INFINITY));
    }

    #[test]
    fn what_is_no_number_is_not_passed_over() {
        for nan in [f64::NAN, -f64::NAN] {
            let mut values = [2.0, nan, 1.0];
            assert!(largest(values).unwrap().is_nan());
            values.sort_by(f64::total_cmp);
            assert!(quantile(&values, 0.5).unwrap().is_nan());
        }
        assert_eq!((largest([1.0, 3.0, 2.0]), largest([])), (Some(3.0), None));
    }
}
