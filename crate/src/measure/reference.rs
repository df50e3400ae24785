//! The model that another is compared with: at full precision, and of the same tokens.

use super::subject;
use crate::error::{Error, Result};
use crate::model::{Loading, Model};
use crate::record::Reading;
use candle_core::DType;
use serde_json::{Value, json};

/// Loads the reference in f32 from `source`; without one, from what `model` itself was loaded from.
pub(super) fn load(source: Option<&str>, model: &Model) -> Result<Model> {
    let named = source.is_some();
    let revision = model.revision.clone().filter(|_| !named);
    let source = source.unwrap_or(&model.source);
    if source.is_empty() {
        return Err(Error::input("there is no reference to compare the model with")
            .at(&model.name)
            .hint("name one: a folder, a file, a hub id or random:SHAPE"));
    }
    let reference =
        Model::load_with(source, &Loading { revision, dtype: Some(DType::F32), ..Loading::default() })?;
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

/// What of a reference decides a comparison, for fingerprints.
pub(super) fn identity(reference: &Model) -> Value {
    let subject = subject(reference);
    json!([subject.model_hash, subject.dtype, subject.scheme])
}

/// A reading with what it was compared with.
pub(super) fn describe(reference: &Model, reading: Reading) -> Reading {
    reading
        .value("reference", reference.name.as_str())
        .value("reference_hash", reference.hash.as_str())
        .value("reference_dtype", reference.dtype.as_str())
}
