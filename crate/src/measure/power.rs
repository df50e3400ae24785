//! Noise against the signal that it was added to.

/// Power of a signal, and of what was added to it: sums of squares.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Power {
    pub signal: f64,
    pub noise: f64,
}

impl Power {
    /// Adds values as they should be, and as they were found.
    pub fn add(&mut self, exact: &[f32], found: &[f32]) {
        for (exact, found) in exact.iter().zip(found) {
            let (exact, found) = (f64::from(*exact), f64::from(*found));
            self.signal += exact * exact;
            self.noise += (found - exact) * (found - exact);
        }
    }

    /// Adds what another has seen.
    pub fn join(&mut self, other: Self) {
        self.signal += other.signal;
        self.noise += other.noise;
    }

    /// ‖found − exact‖ / ‖exact‖; 0 where nothing was added.
    pub fn relative(self) -> f64 {
        if self.noise == 0.0 { 0.0 } else { (self.noise / self.signal).sqrt() }
    }

    /// The ratio of signal to noise, infinite where nothing was added.
    pub fn decibel(self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() }
    }
}
