//! Differences of a few pairs: their mean with the interval of Student's t, and its p-value (Student 1908).

use super::student::{quantile_of_t, two_sided_t};

/// The mean of some differences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// The mean.
    pub mean: f64,
    /// The lower end of its 95 % interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// The probability of a mean as far from 0 as this one, were there no difference.
    pub p: f64,
}

/// Of at least two differences; none of fewer.
pub fn paired(differences: &[f64]) -> Option<Paired> {
    let count = differences.len() as f64;
    if count < 2.0 {
        return None;
    }
    let mean = differences.iter().sum::<f64>() / count;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let error = (variance / count).sqrt();
    let reach = quantile_of_t(count - 1.0, 0.975) * error;
    let p = match error > 0.0 {
        true => two_sided_t(mean / error, count - 1.0),
        false if mean == 0.0 => 1.0,
        false => 0.0,
    };
    Some(Paired { mean, low: mean - reach, high: mean + reach, p })
}

#[test]
fn values_are_those_of_r() {
    // t.test(c(.1, .3, .2))
    let found = paired(&[0.1, 0.3, 0.2]).unwrap();
    assert!((found.mean - 0.2).abs() < 1e-12 && (found.p - 0.074_18).abs() < 1e-5, "{found:?}");
    assert!((found.low + 0.048_413_8).abs() < 1e-6 && (found.high - 0.448_413_8).abs() < 1e-6, "{found:?}");
    assert_eq!(paired(&[1.0]), None);
    assert_eq!(paired(&[0.0, 0.0]).unwrap().p, 1.0);
}
