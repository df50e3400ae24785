//! The model that another is compared with: at full precision, and of the same tokens.

use super::limit::fits;
use super::window::Sliding;
use super::{Measure, subject};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::model::{Loading, Model};
use crate::record::{Reading, Run, fingerprint};
use candle_core::DType;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A measurement of a model beside a reference on a text: all that such measurements have in common is done once, in the
/// [`Measure`] below.
pub(super) trait Beside: Serialize + Clone {
    /// Name and version of the measurement.
    const IS: (&'static str, u32);

    /// The reference by name, if it is not what the model was loaded from.
    fn reference(&self) -> Option<&str>;

    /// The text, and how it is read.
    fn sliding(&self) -> Sliding<'_>;

    /// The settings that decide the readings.
    fn settings(&self) -> Value;

    /// What else decides them, beside the models and the text.
    fn extra(&self) -> Map<String, Value> {
        Map::new()
    }

    /// As [`Measure::units`].
    fn parts(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    /// As [`Measure::applies`].
    fn needs(&self, _model: &Model) -> Result<(), String> {
        Ok(())
    }

    /// Refuses sequences that are longer than a model can read, be it the reference or the other.
    fn fits(&self, model: &Model) -> Result<()> {
        fits(model, "seq_len", [self.sliding().seq_len])
    }

    /// Refuses settings that mean nothing.
    fn sensible(&self, _model: &Model) -> Result<()> {
        Ok(())
    }

    /// Refuses a model that this cannot be measured of, or not with these settings.
    fn able(&self, model: &Model) -> Result<()> {
        self.needs(model).map_err(|why| Error::input(why).at(&model.name))?;
        self.sensible(model)?;
        self.fits(model)
    }

    /// Refuses a text that is too short for the settings.
    fn readable(&self, model: &Model) -> Result<()> {
        self.sliding().cut(model).map(drop)
    }

    /// Refuses two models that cannot be compared.
    fn alike(&self, reference: &Model, model: &Model) -> Result<()> {
        comparable(reference, model)
    }

    /// Measures.
    fn against(&self, reference: &Model, model: &Model) -> Result<Vec<Reading>>;

    /// As [`Measure::fingerprint`].
    fn identity(&self, reference: &Model, model: &Model, corpus: &Corpus) -> Result<String> {
        let mut extra = self.extra();
        extra.insert("corpus".into(), json!(corpus.sha256));
        extra.insert("reference".into(), subject(reference).identity());
        fingerprint(Self::IS.0, Self::IS.1, &self.settings(), &subject(model), &Value::Object(extra))
    }
}

impl<T: Beside> Measure for T {
    const NAME: &'static str = T::IS.0;
    const VERSION: u32 = T::IS.1;

    fn units(&self) -> Vec<Self> {
        self.parts()
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        self.identity(&load(self.reference(), model)?, model, &self.sliding().text()?)
    }

    fn applies(&self, model: &Model) -> Result<(), String> {
        self.needs(model)
    }

    fn check(&self, model: &Model) -> Result<()> {
        self.able(model)?;
        self.readable(model)?;
        let reference = load(self.reference(), model)?;
        self.fits(&reference)?;
        self.alike(&reference, model)
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.able(model)?;
        self.against(&load(self.reference(), model)?, model)
    }

    // The reference is loaded once for all that has to be known of it.
    fn record(&self, model: &Model, run: &Run) -> Result<()> {
        self.able(model)?;
        self.sliding().check(model)?;
        let (reference, corpus) = (load(self.reference(), model)?, self.sliding().text()?);
        for unit in self.parts() {
            if !run.has(&unit.identity(&reference, model, &corpus)?) {
                run.record(&unit.against(&reference, model)?)?;
            }
        }
        Ok(())
    }
}

/// Loads the reference in f32 from `source`; without one, from what `model` itself was loaded from.
fn load(source: Option<&str>, model: &Model) -> Result<Model> {
    let named = source.is_some();
    let revision = model.revision.clone().filter(|_| !named);
    let source = source.unwrap_or(&model.source);
    if source.is_empty() {
        return Err(Error::input("there is no reference to compare the model with")
            .at(&model.name)
            .hint("name one: a folder, a file, a hub id or random:SHAPE"));
    }
    let mut how = Loading { revision, dtype: Some(DType::F32), ..Loading::default() };
    if !named {
        how.tokenizer = Some(model.tokenizer.clone());
    }
    let mut reference = Model::load_with(source, &how)?;
    // Only tokens are given to it: where it has no tokenizer of its own, the model's is as good.
    if reference.tokenizer.present().is_err() {
        reference.tokenizer = model.tokenizer.clone();
    }
    if !named && reference.quantization.is_some() {
        return Err(Error::input("the model was loaded quantized: it cannot be its own reference")
            .at(source)
            .hint("name the model that it was made of as the reference"));
    }
    comparable(&reference, model)?;
    Ok(reference)
}

/// Refuses two models that do not speak of the same tokens.
pub(super) fn comparable(reference: &Model, model: &Model) -> Result<()> {
    let (expected, found) = (reference.config.vocab_size(), model.config.vocab_size());
    let what = if expected != found {
        format!("the reference knows {expected} tokens, the model {found}")
    } else if reference.tokenizer.hash() != model.tokenizer.hash() {
        "reference and model have different tokenizers".to_string()
    } else {
        return Ok(());
    };
    Err(Error::input(what)
        .at(format!("{} against {}", model.name, reference.name))
        .hint("compare a model with what it was made of"))
}

/// A reading with what it was compared with.
pub(super) fn describe(reference: &Model, reading: Reading) -> Reading {
    reading
        .value("reference", reference.name.as_str())
        .value("reference_hash", reference.hash.as_str())
        .value("reference_dtype", reference.dtype.as_str())
}
