//! What a scheme cannot do to a model: told before time is spent.

use super::{Job, Observer, Quantizing, Scheme};
use crate::error::{Error, Result};
use crate::family::Site;
use crate::family::site::Residual;
use crate::format::{Coding, Format};
use crate::model::{Model, parse_dtype};
use candle_core::DType;

impl Scheme {
    /// Refuses a model that is quantized already.
    pub(super) fn admits_once(&self, model: &Model) -> Result<()> {
        match model.quantization.is_some() {
            true => Err(Error::input(format!("{} is quantized already", model.name))
                .at(format!("scheme {self}"))
                .hint("load the model that it was made of")),
            false => Ok(()),
        }
    }

    /// Refuses what no scheme can do to this model, stored in `dtype`, and what contradicts itself.
    pub(super) fn admits(&self, model: &Model, dtype: DType) -> Result<()> {
        let refused =
            |what: &str, hint: &str| Err(Error::input(what).at(format!("scheme {self}")).hint(hint));
        if !model.device().is_cpu() {
            return refused("quantized models run on the CPU", "load the model with --device cpu");
        }
        if self.rotation.is_some() && self.smooth.is_some() {
            return refused(
                "rotation and smoothing both move outliers: one undoes the other",
                "choose rot or smooth",
            );
        }
        if self.rows.is_some() && (self.moves_inputs() || self.gptq.is_some() || self.budget.is_some()) {
            return refused(
                "widths of rows are chosen for the nearest codes of weights as they are",
                "leave rot, smooth, perchannel, gptq and mix out of a scheme with rows",
            );
        }
        if self.rows.is_some() && !matches!(self.weights, Some(Coding { format: Format::Int(_), .. })) {
            return refused("widths of rows are those of integers", "begin with w2 … w8");
        }
        let passes = |site: &Site| site.residual == Residual::Reads;
        if self.rotation.is_some() && !model.config.sites().iter().any(passes) {
            return refused(
                "a rotation does not pass the residual stream of this family: its channels are weighed one by one",
                "leave rot out of the scheme",
            );
        }
        if self.rotation.is_some() && self.observer == Some(Observer::Channel) {
            return refused(
                "inputs that are rotated at run time cannot be scaled by channel in what gives them",
                "choose rot or perchannel",
            );
        }
        model.keeps(self.recurrence, self.cache).map_err(|error| error.at(format!("scheme {self}")))?;
        if self.lossless && dtype == DType::F16 {
            return refused(
                "the exponents of f16 have too few bits to be coded",
                "ask for bf16-lossless or f32-lossless",
            );
        }
        Ok(())
    }

    /// Ends with the error that quantizing this model would end with, before time is spent.
    ///
    /// # Errors
    /// If the model is quantized already, the scheme contradicts itself or does not fit the model's matrices, or it needs a
    /// text that cannot be read.
    pub fn check(&self, model: &Model, how: &Quantizing) -> Result<()> {
        self.admits_once(model)?;
        let dtype = self.dtype.as_deref().map_or(Ok(model.dtype), parse_dtype)?;
        if self.is_plain() {
            return Ok(());
        }
        self.admits(model, dtype)?;
        Job::new(model, self, how)?.check_rescale()?;
        if self.needs_calibration() {
            how.calibration.sample(model)?;
        }
        Ok(())
    }
}
