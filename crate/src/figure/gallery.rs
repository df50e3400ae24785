//! All ready-made figures at once.

use super::{
    Figure, ablation, context, context_loss, copying, decode, divergence, drift, drift_prediction, memory,
    outliers, passkey, perplexity, prefill, ranking, rate, sensitivity, size, smoothing, smoothing_bias,
    spectrum, stability, training_loss,
};
use crate::error::{Error, Kind, Result};
use crate::frame::Frame;
use std::path::{Path, PathBuf};

/// A ready-made figure: file name, measurement and column it needs, constructor.
type Entry = (&'static str, Option<&'static str>, &'static str, fn(&Frame) -> Result<Figure>);

const GALLERY: [Entry; 22] = [
    ("perplexity", Some("perplexity"), "ppl", perplexity),
    ("size", Some("perplexity"), "bits_per_byte", size),
    ("rate", Some("artifact"), "artifact_bytes", rate),
    ("ablation", Some("ablation"), "difference", ablation),
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
    ("copying", Some("copying"), "accuracy", copying),
    ("smoothing", Some("smoothing"), "error_scores", smoothing),
    ("smoothing_bias", Some("smoothing"), "bias", smoothing_bias),
    ("spectrum", Some("spectrum"), "condition_queries_max", spectrum),
    ("prefill", Some("cost"), "tokens_per_s", prefill),
    ("decode", Some("cost"), "tokens_per_s", decode),
    ("memory", Some("cost"), "peak_bytes", memory),
    ("training_loss", None, "loss", training_loss),
];

/// What became of the figures that the records allow.
#[derive(Clone, Debug, Default)]
pub struct Gallery {
    /// The files, `.svg` and `.png` of each figure, the most telling figure first.
    pub drawn: Vec<PathBuf>,
    /// The figures that could not be drawn, each with what is wrong.
    pub failed: Vec<(&'static str, Error)>,
}

/// The ready-made figures that the records allow, the most telling first, each with its name or with what is wrong.
pub fn ready_made(frame: &Frame) -> Vec<(&'static str, Result<Figure>)> {
    let made = GALLERY.into_iter().filter_map(|(name, measure, column, figure)| {
        match allows(frame, name, measure, column) {
            Ok(true) => Some((name, figure(frame))),
            Ok(false) => None,
            Err(error) => Some((name, Err(error))),
        }
    });
    made.collect()
}

/// Draws every ready-made figure that the records allow into `plots_dir`, each as `.svg` and `.png`. One that cannot be
/// drawn does not take the others with it.
///
/// # Errors
/// If the folder or a file in it cannot be written.
pub fn draw_all(frame: &Frame, plots_dir: impl AsRef<Path>) -> Result<Gallery> {
    let plots_dir = plots_dir.as_ref();
    std::fs::create_dir_all(plots_dir).map_err(|e| Error::io(plots_dir, &e))?;
    let mut gallery = Gallery::default();
    for (name, figure) in ready_made(frame) {
        match figure.and_then(|figure| draw(&figure, name, plots_dir)) {
            Ok(files) => gallery.drawn.extend(files),
            // A full disk is full for all of them.
            Err(error) if error.kind() == Kind::Io => return Err(error),
            Err(error) => gallery.failed.push((name, error)),
        }
    }
    Ok(gallery)
}

/// The files of one figure.
fn draw(figure: &Figure, name: &str, plots_dir: &Path) -> Result<[PathBuf; 2]> {
    let files = ["svg", "png"].map(|ending| plots_dir.join(format!("{name}.{ending}")));
    files.iter().try_for_each(|path| figure.save(path))?;
    Ok(files)
}

/// Whether there is a number to draw.
fn known(rows: &Frame, column: &str) -> bool {
    rows.numbers(column).is_ok_and(|values| values.into_iter().flatten().any(f64::is_finite))
}

fn allows(frame: &Frame, name: &str, measure: Option<&str>, column: &str) -> Result<bool> {
    let Some(measure) = measure else { return Ok(known(frame, column) && frame.has("tokens")) };
    if !frame.has("measure") || !frame.has("row") {
        return Ok(false);
    }
    let rows = match name {
        // Of rows that are no summaries.
        "ablation" => frame.filter("measure", measure)?.filter("row", "variant")?,
        "smoothing_bias" => frame.filter("measure", measure)?.filter("row", "synthetic")?,
        // Beside what a byte costs, what it buys.
        "rate" if !known(&super::compare::summaries(frame, "perplexity")?, "bits_per_byte") => {
            return Ok(false);
        }
        _ => super::compare::summaries(frame, measure)?,
    };
    let phased = ["prefill", "decode"].contains(&name);
    let rows = if phased && rows.has("phase") { rows.filter("phase", name)? } else { rows };
    Ok(known(&rows, column) && (!phased || rows.has("phase")))
}
