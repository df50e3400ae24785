//! What is shown of a finished run: a table for each measurement, the schemes beside a baseline, figures.

use lowbit::error::{Error, Result};
use lowbit::figure;
use lowbit::frame::{Comparison, Frame};
use lowbit::record::Run;

/// The columns of each measurement's table.
const TABLES: [(&str, &[&str]); 11] = [
    (
        "perplexity",
        &["model", "scheme", "weight_bytes", "corpus", "ppl", "bits_per_byte", "n_tokens", "tokens_per_s"],
    ),
    (
        "divergence",
        &[
            "model",
            "scheme",
            "reference",
            "kl",
            "kl_low",
            "kl_high",
            "kl_q99",
            "same_top",
            "delta_bits_per_byte",
        ],
    ),
    ("sqnr", &["model", "scheme", "reference", "sqnr_db", "worst_layer", "worst_sqnr_db", "input_sqnr_db"]),
    (
        "drift",
        &[
            "model",
            "scheme",
            "reference",
            "drift_median",
            "drift_max",
            "worst_layer",
            "worst_head",
            "drift_to_predicted",
            "tau_measured",
            "tau_measured_low",
            "tau_measured_high",
        ],
    ),
    (
        "outliers",
        &[
            "model",
            "scheme",
            "role",
            "kurtosis",
            "crest",
            "channel_ratio",
            "persistence_near",
            "persistence_far",
            "persistence_fixed",
        ],
    ),
    (
        "stability",
        &[
            "model",
            "scheme",
            "reference",
            "context_length",
            "together_median",
            "never_parted",
            "repetition",
            "reference_repetition",
            "delta_entropy",
            "delta_entropy_low",
            "delta_entropy_high",
        ],
    ),
    (
        "sensitivity",
        &[
            "model",
            "probe",
            "unit",
            "delta_nll",
            "delta_nll_low",
            "delta_nll_high",
            "kl",
            "hessian",
            "fisher",
        ],
    ),
    (
        "ranking",
        &[
            "model",
            "probe",
            "units",
            "predictor",
            "tau",
            "tau_low",
            "tau_high",
            "blocks_read",
            "blocks_whole",
        ],
    ),
    (
        "context",
        &[
            "model",
            "scheme",
            "reference",
            "parts_at",
            "widens_at",
            "widening",
            "widening_low",
            "widening_high",
        ],
    ),
    (
        "passkey",
        &["model", "scheme", "context_length", "accuracy", "accuracy_low", "accuracy_high", "key_logprob"],
    ),
    (
        "cost",
        &[
            "model",
            "scheme",
            "threads",
            "phase",
            "context_length",
            "tokens_per_s",
            "first_call_s",
            "peak_bytes",
        ],
    ),
];

/// Tables and figures of a finished run.
pub fn report(run: &Run) -> Result<()> {
    let frame = Frame::load(run.path())?;
    for (measure, columns) in TABLES {
        // Of outliers the roles say more than the summary.
        let kind = if measure == "outliers" { "role" } else { "summary" };
        let rows = frame.filter("measure", measure)?.filter("row", kind)?;
        if rows.height() > 0 {
            println!("\n{measure}\n{}", rows.select(columns.iter().copied())?);
        }
    }
    // Where there is nothing to compare, or not with one baseline, the tables above are all.
    if let Some(comparison) = comparison(&frame, None).ok().filter(|comparison| comparison.rows.len() > 1) {
        println!("\nschemes\n{comparison}");
    }
    for warning in frame.filter("row", "summary")?.texts("warning").unwrap_or_default().into_iter().flatten()
    {
        lowbit::warning::warn(&warning);
    }
    let figures = figure::draw_all(&frame, &run.plots_dir()?)?;
    println!("\n{} figures and all readings in {}", figures.len(), run.path().display());
    Ok(())
}

/// The schemes of the records beside a baseline: the one named, or the first that was recorded.
pub fn comparison(frame: &Frame, baseline: Option<&str>) -> Result<Comparison> {
    let first = || -> Result<_> { Ok(frame.texts("scheme")?.into_iter().flatten().next()) };
    match baseline {
        Some(baseline) => frame.compare(baseline),
        None => frame.compare(&first()?.ok_or_else(|| Error::input("the records name no scheme"))?),
    }
}
