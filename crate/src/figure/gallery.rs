//! All ready-made figures at once.

use super::compare::summaries;
use super::{
    Figure, ablation, ablation_quantized, chunk_speed, context, context_loss, copying, decode, divergence,
    drift, drift_prediction, experts, exponents, learning, memory, outliers, passkey, perplexity, prefill,
    ranking, rate, sensitivity, size, smoothing, smoothing_bias, spectrum, stability, training_loss,
};
use crate::error::{Error, Kind, Result};
use crate::frame::Frame;
use std::path::{Path, PathBuf};

/// A ready-made figure.
struct Entry {
    /// Its name, and that of its files.
    name: &'static str,
    /// The rows that it draws.
    rows: Rows,
    /// The column that these must have a number in.
    column: &'static str,
    figure: fn(&Frame) -> Result<Figure>,
}

/// Rows of records.
#[derive(Clone, Copy)]
enum Rows {
    /// The lines of a training log.
    Log,
    /// The summaries of a measurement.
    Summaries(&'static str),
    /// The summaries of a measurement, where those of another one have a number in this column.
    Beside(&'static str, (&'static str, &'static str)),
    /// The summaries of a measurement in a phase that has the figure's name.
    Phase(&'static str),
    /// The rows of this kind of a measurement.
    Kind(&'static str, &'static str),
}

const fn entry(
    name: &'static str,
    rows: Rows,
    column: &'static str,
    figure: fn(&Frame) -> Result<Figure>,
) -> Entry {
    Entry { name, rows, column, figure }
}

/// One whose name is that of the measurement whose summaries it draws.
const fn of(name: &'static str, column: &'static str, figure: fn(&Frame) -> Result<Figure>) -> Entry {
    entry(name, Rows::Summaries(name), column, figure)
}

const GALLERY: &[Entry] = &[
    of("perplexity", "ppl", perplexity),
    entry("size", Rows::Summaries("perplexity"), "bits_per_byte", size),
    entry("rate", Rows::Beside("artifact", ("perplexity", "bits_per_byte")), "artifact_bytes", rate),
    entry("ablation", Rows::Kind("ablation", "variant"), "difference", ablation),
    entry(
        "ablation_quantized",
        Rows::Kind("ablation", "variant"),
        "difference_quantized",
        ablation_quantized,
    ),
    entry("learning", Rows::Kind("ablation", "training"), "bits_per_byte", learning),
    of("divergence", "kl", divergence),
    // Where nothing drifts there is no ranking, and nothing to see.
    of("drift", "tau_measured", drift),
    entry("drift_prediction", Rows::Summaries("drift"), "tau_measured", drift_prediction),
    of("outliers", "kurtosis_max", outliers),
    entry("exponents", Rows::Kind("lyapunov", "pass"), "exponent", exponents),
    entry("experts", Rows::Kind("routing", "expert"), "load", experts),
    of("stability", "together_median", stability),
    of("sensitivity", "kl", sensitivity),
    of("ranking", "tau", ranking),
    of("context", "n_tokens", context),
    entry("context_loss", Rows::Summaries("context"), "n_tokens", context_loss),
    of("passkey", "accuracy", passkey),
    of("copying", "accuracy", copying),
    of("smoothing", "error_scores", smoothing),
    entry("smoothing_bias", Rows::Kind("smoothing", "synthetic"), "bias", smoothing_bias),
    entry("chunk_speed", Rows::Kind("kernel", "case"), "chunk", chunk_speed),
    of("spectrum", "condition_queries_max", spectrum),
    entry("prefill", Rows::Phase("cost"), "tokens_per_s", prefill),
    entry("decode", Rows::Phase("cost"), "tokens_per_s", decode),
    entry("memory", Rows::Summaries("cost"), "peak_bytes", memory),
    entry("training_loss", Rows::Log, "loss", training_loss),
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
    let made = GALLERY.iter().filter_map(|entry| match entry.allowed(frame) {
        Ok(true) => Some((entry.name, (entry.figure)(frame))),
        Ok(false) => None,
        Err(error) => Some((entry.name, Err(error))),
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

impl Entry {
    /// Whether the records have what it draws.
    fn allowed(&self, frame: &Frame) -> Result<bool> {
        if let Rows::Log = self.rows {
            return Ok(known(frame, self.column) && frame.has("tokens"));
        }
        if !frame.has("measure") || !frame.has("row") {
            return Ok(false);
        }
        let rows = match self.rows {
            Rows::Log => return Ok(false),
            Rows::Kind(measure, row) => frame.filter("measure", measure)?.filter("row", row)?,
            Rows::Summaries(measure) => summaries(frame, measure)?,
            Rows::Beside(measure, (other, column)) => {
                if !known(&summaries(frame, other)?, column) {
                    return Ok(false);
                }
                summaries(frame, measure)?
            }
            Rows::Phase(measure) => {
                let rows = summaries(frame, measure)?;
                match rows.has("phase") {
                    true => rows.filter("phase", self.name)?,
                    false => return Ok(false),
                }
            }
        };
        Ok(known(&rows, self.column))
    }
}
