//! Means of the weights over the steps of a run: what is evaluated and kept in their place in the end.

use super::restored;
use crate::error::{Error, Result};
use crate::family::Tensors;
use crate::layer::op::{in_place, with_floats};
use serde::{Deserialize, Serialize};

/// Which mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Average {
    /// An exponential one (EMA): mean ← decay · mean + (1 − decay) · weights after each step, from the start on.
    Ema {
        /// Share of the mean that is kept.
        decay: f64,
    },
    /// A plain one (SWA, Izmailov et al. 2018) of every so many steps' weights.
    Swa {
        /// The share of the run after which it begins.
        from: f64,
        /// Steps between weights that count.
        every: u64,
    },
}

impl Average {
    /// Refuses constants that make no mean.
    ///
    /// # Errors
    /// Naming the constant.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Ema { decay } if !(0.0..1.0).contains(&decay) => {
                Err(Error::input(format!("average.ema.decay must be from 0 to below 1, found {decay}")))
            }
            Self::Swa { from, .. } if !(0.0..1.0).contains(&from) => {
                let what = format!("average.swa.from is a share of the run from 0 to below 1, found {from}");
                Err(Error::input(what))
            }
            Self::Swa { every: 0, .. } => Err(Error::input("average.swa.every must be at least 1, found 0")),
            _ => Ok(()),
        }
    }
}

/// A mean under way.
pub struct Mean {
    kind: Average,
    tensors: Tensors,
}

impl Mean {
    /// Of weights before the first step.
    ///
    /// # Errors
    /// If memory is short.
    pub fn new(kind: Average, weights: &Tensors) -> Result<Self> {
        let copied = weights.iter().map(|(name, tensor)| Ok((name.clone(), tensor.copy()?)));
        Ok(Self { kind, tensors: copied.collect::<Result<_>>()? })
    }

    /// Takes in the weights after update number `step` (from 1) of `steps`.
    ///
    /// # Errors
    /// If a tensor is of another shape.
    pub fn add(&mut self, weights: &Tensors, step: u64, steps: u64) -> Result<()> {
        let share = match self.kind {
            Average::Ema { decay } => 1.0 - decay,
            Average::Swa { from, every } => {
                let first = (from * steps as f64).floor() as u64;
                match step.checked_sub(first) {
                    Some(since) if since.is_multiple_of(every) => 1.0 / (since / every + 1) as f64,
                    _ => return Ok(()),
                }
            }
        };
        let share = share as f32;
        for (name, mean) in &self.tensors {
            with_floats([&weights[name]], |[weights]| {
                in_place(mean, |mean| {
                    mean.iter_mut().zip(weights).for_each(|(mean, w)| *mean += share * (w - *mean));
                })
            })??;
        }
        Ok(())
    }

    /// The mean so far.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Takes up a mean from a checkpoint, whose names begin with `average/`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn restore(&mut self, tensors: &Tensors) -> Result<()> {
        for (name, mean) in &mut self.tensors {
            *mean = restored(tensors, &format!("average/{name}"), mean)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn means_are_those_of_their_definitions() {
        let weights = |w: f32| Tensors::from([("w".to_string(), Tensor::new(&[w], &Device::Cpu).unwrap())]);
        let run = |kind: Average| {
            let mut mean = Mean::new(kind, &weights(8.0)).unwrap();
            (1..=10).for_each(|step| mean.add(&weights(step as f32), step, 10).unwrap());
            mean.tensors()["w"].to_vec1::<f32>().unwrap()[0]
        };
        // From the sixth part on: steps 6, 8 and 10.
        assert_eq!(run(Average::Swa { from: 0.6, every: 2 }), 8.0);
        let ema = (1..=10).fold(8.0, |mean, step| 0.5 * mean + 0.5 * f64::from(step));
        assert!((f64::from(run(Average::Ema { decay: 0.5 })) - ema).abs() < 1e-5);
        let error = Average::Swa { from: 0.5, every: 0 }.check().unwrap_err().to_string();
        assert!(error.contains("average.swa.every"), "{error}");
        assert!(Average::Ema { decay: 1.0 }.check().is_err());
    }
}
