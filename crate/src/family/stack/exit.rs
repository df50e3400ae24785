//! What is done to the logits that the head gives: x ← f · x, or x / f, then c · tanh(x / c).

use crate::kernel::diagonal::multiply;
use crate::kernel::softcap::softcap;
use crate::layer::op::with_floats;
use candle_core::{Result, Tensor};

/// What is done to logits; nothing by default.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Exit {
    pub factor: Option<Factor>,
    /// c.
    pub softcap: Option<f32>,
}

/// A constant factor f.
#[derive(Clone, Copy, Debug)]
pub(super) enum Factor {
    Times(f32),
    Over(f32),
}

impl Factor {
    fn apply(self, x: &mut [f32]) {
        match self {
            Self::Times(f) => multiply(f, x),
            Self::Over(f) => x.iter_mut().for_each(|x| *x /= f),
        }
    }
}

impl Exit {
    /// In place.
    pub fn apply(self, logits: &mut [f32]) {
        if let Some(factor) = self.factor {
            factor.apply(logits);
        }
        if let Some(c) = self.softcap {
            softcap(c, logits);
        }
    }

    /// The same of a tensor; in tensor operations where gradients are tracked or the device is no CPU.
    pub fn forward(self, logits: Tensor) -> Result<Tensor> {
        let Self { factor, softcap } = self;
        if factor.is_none() && softcap.is_none() {
            return Ok(logits);
        }
        if !logits.track_op() && logits.device().is_cpu() {
            let mut values = with_floats([&logits.contiguous()?], |[values]| values.to_vec())?;
            self.apply(&mut values);
            return Tensor::from_vec(values, logits.shape(), logits.device());
        }
        let logits = match factor {
            Some(Factor::Times(f)) => (logits * f64::from(f))?,
            Some(Factor::Over(f)) => (logits / f64::from(f))?,
            None => logits,
        };
        match softcap {
            Some(c) => (logits / f64::from(c))?.tanh()? * f64::from(c),
            None => Ok(logits),
        }
    }

    /// The gradient by what [`apply`](Self::apply) gave → that by what it was given, in place.
    pub fn back(self, logits: &[f32], dlogits: &mut [f32]) {
        if let Some(c) = self.softcap {
            // d/dx of c · tanh(x / c), by what it gave.
            dlogits.iter_mut().zip(logits).for_each(|(d, y)| *d *= 1.0 - (y / c).powi(2));
        }
        if let Some(factor) = self.factor {
            factor.apply(dlogits);
        }
    }
}
