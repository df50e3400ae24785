//! All ready-made figures at once.

use super::{
    Figure, context, context_loss, decode, divergence, drift, drift_prediction, memory, outliers, passkey,
    perplexity, prefill, ranking, sensitivity, size, stability, training_loss,
};
use crate::error::{Error, Result};
use crate::frame::Frame;
use std::path::{Path, PathBuf};

/// A ready-made figure: file name, measurement and column it needs, constructor.
type Entry = (&'static str, Option<&'static str>, &'static str, fn(&Frame) -> Result<Figure>);

const GALLERY: [Entry; 16] = [
    ("perplexity", Some("perplexity"), "ppl", perplexity),
    ("size", Some("perplexity"), "bits_per_byte", size),
    ("divergence", Some("divergence"), "kl", divergence),
    // Where nothing drifts there is no ranking, and nothing to see.
    ("drift", Some("drift"), "tau_measured", drift),
    ("drift_prediction", Some("drift"), "tau_measured", drift_prediction),
    ("outliers", Some("outliers"), "kurtosis_max", outliers),
    ("stability", Some("stability"), "together_median", stability),
    ("sensitivity", Some("sensitivity"), "kl", sensitivity),
    ("ranking", Some("ranking"), "tau", ranking),
    ("context", Some("context"), "n_tokens", context),
    ("context_loss", Some("context"), "n_tokens", context_loss),
    ("passkey", Some("passkey"), "accuracy", passkey),
    ("prefill", Some("cost"), "tokens_per_s", prefill),
    ("decode", Some("cost"), "tokens_per_s", decode),
    ("memory", Some("cost"), "peak_bytes", memory),
    ("training_loss", None, "loss", training_loss),
];

/// Draws every ready-made figure that the records allow into `plots_dir`, each as `.svg` and `.png`.
///
/// # Errors
/// If a figure cannot be drawn or written.
pub fn draw_all(frame: &Frame, plots_dir: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let plots_dir = plots_dir.as_ref();
    std::fs::create_dir_all(plots_dir).map_err(|e| Error::io(plots_dir, &e))?;
    let mut drawn = Vec::new();
    for (name, measure, column, figure) in GALLERY {
        if !allows(frame, name, measure, column)? {
            continue;
        }
        let figure = figure(frame)?;
        for ending in ["svg", "png"] {
            let path = plots_dir.join(format!("{name}.{ending}"));
            figure.save(&path)?;
            drawn.push(path);
        }
    }
    Ok(drawn)
}

fn allows(frame: &Frame, name: &str, measure: Option<&str>, column: &str) -> Result<bool> {
    let Some(measure) = measure else { return Ok(frame.has(column) && frame.has("tokens")) };
    if !frame.has("measure") || !frame.has("row") {
        return Ok(false);
    }
    let rows = super::compare::summaries(frame, measure)?;
    let phased = ["prefill", "decode"].contains(&name);
    let rows = if phased && rows.has("phase") { rows.filter("phase", name)? } else { rows };
    Ok(rows.has(column) && (!phased || rows.has("phase")))
}
