//! The learning rate over a run: linear warm-up, then a cosine, or a plateau and a line, down to a fraction of the peak.

use serde::{Deserialize, Serialize};

/// A schedule with warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// The last learning rate as a fraction of the peak.
    pub floor: f64,
    /// Steps at the end in which it falls in a line, from the peak that it stays at until then; none: a cosine all the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmdown: Option<u64>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { peak: 3e-3, warmup: 150, floor: 0.02, warmdown: None }
    }
}

impl Schedule {
    /// The rate of step `step` (from 0) of `steps`.
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        if let Some(warmdown) = self.warmdown {
            let left = steps.saturating_sub(step) as f64 / warmdown.max(1) as f64;
            return self.peak * (self.floor + (1.0 - self.floor) * left.min(1.0));
        }
        let done = (step - self.warmup) as f64 / steps.saturating_sub(self.warmup).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
        self.peak * (self.floor + (1.0 - self.floor) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_falls_to_the_floor() {
        let schedule = Schedule { peak: 1.0, warmup: 10, floor: 0.1, warmdown: None };
        assert!((schedule.rate(0, 110) - 0.1).abs() < 1e-12);
        assert!((schedule.rate(10, 110) - 1.0).abs() < 1e-12);
        assert!((schedule.rate(60, 110) - 0.55).abs() < 1e-12);
        assert!((schedule.rate(110, 110) - 0.1).abs() < 1e-12);
        assert!((0..109).all(|s| s < 10 || schedule.rate(s + 1, 110) < schedule.rate(s, 110)));
        let line = Schedule { warmdown: Some(40), ..schedule };
        assert_eq!([5, 10, 69, 70].map(|step| line.rate(step, 110)), [0.6, 1.0, 1.0, 1.0]);
        assert!((line.rate(90, 110) - 0.55).abs() < 1e-12 && line.rate(109, 110) > 0.1);
    }
}
