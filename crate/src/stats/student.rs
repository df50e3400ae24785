//! Student's t, for errors that come from few parts.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// The distribution of so many degrees of freedom; `None` where there is none.
fn of(freedom: f64) -> Option<StudentsT> {
    StudentsT::new(0.0, 1.0, freedom).ok()
}

/// Its quantile at `fraction`; NaN without a degree of freedom.
pub(super) fn quantile_of_t(freedom: f64, fraction: f64) -> f64 {
    of(freedom).map_or(f64::NAN, |t| t.inverse_cdf(fraction))
}

/// The probability of a value farther from 0 than this one; NaN without a degree of freedom.
pub(super) fn two_sided_t(value: f64, freedom: f64) -> f64 {
    of(freedom).map_or(f64::NAN, |t| 2.0 * t.cdf(-value.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_r() {
        // qt(.975, c(3, 7, 15, 2.5)), 2 * pt(-c(3, 20), 3)
        for (freedom, expected) in [(3.0, 3.182_446), (7.0, 2.364_624), (15.0, 2.131_450), (1.0, 12.706_205)]
        {
            assert!((quantile_of_t(freedom, 0.975) - expected).abs() < 1e-5, "{freedom}");
        }
        assert!((two_sided_t(-3.0, 3.0) - 0.057_669).abs() < 1e-6);
        assert!((two_sided_t(20.0, 3.0) - 2.737e-4).abs() < 1e-6, "{}", two_sided_t(20.0, 3.0));
        assert!(quantile_of_t(0.0, 0.975).is_nan() && two_sided_t(1.0, f64::NAN).is_nan());
    }
}
