//! What is shown of a finished run: a table for each measurement, the schemes beside a baseline, figures.

use crate::out::{linked, say};
use lowbit::error::{Error, Result};
use lowbit::figure::{self, Gallery};
use lowbit::frame::{Comparison, Frame};
use lowbit::record::Run;
use lowbit::warning::warn;
use std::collections::BTreeSet;

/// The columns of each measurement's table.
const TABLES: [(&str, &[&str]); 12] = [
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
    ("context", &["model", "scheme", "reference", "n_tokens", "documents"]),
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
    (
        "making",
        &[
            "model",
            "scheme",
            "weight_bytes",
            "quantizing_s",
            "quantizing_tokens",
            "choosing_s",
            "choosing_tokens",
            "budget_bytes",
            "budget_used_bytes",
            "state_packed_bytes",
        ],
    ),
];

/// Figures and tables of a run that holds all of its readings. The figures come first, and finish it: whoever reads the
/// tables may stop at any line, and a run whose figures were cut short is still one that the same command goes on with.
pub fn report(run: &Run) -> Result<()> {
    let frame = Frame::load(run.path())?;
    let figures = figure::draw_all(&frame, &run.plots_dir()?)?;
    run.finish()?;
    for (measure, columns) in TABLES {
        // Of outliers the roles say more than the summary.
        let kind = if measure == "outliers" { "role" } else { "summary" };
        let rows = frame.filter("measure", measure)?.filter("row", kind)?;
        if rows.height() > 0 {
            // What a measurement had no reason to record has no column.
            let known = columns.iter().filter(|column| rows.has(column));
            say!("\n{measure}\n{}", rows.select(known)?)?;
        }
    }
    let contexts = frame.contexts()?;
    if contexts.height() > 0 {
        say!("\nby length of context, all schemes and bins in one family (Holm)\n{contexts}")?;
    }
    // Where there is nothing to compare, or not with one baseline, the tables above are all.
    if let Some(comparison) = comparison(&frame, None).ok().filter(|comparison| comparison.rows.len() > 1) {
        say!("\nschemes\n{comparison}")?;
    }
    warnings(&frame)?.iter().for_each(warn);
    failures(&figures);
    say!("")?;
    if let Some(first) = figures.drawn.iter().find(|path| path.extension().is_some_and(|end| end == "png")) {
        let others = figures.drawn.len() / 2 - 1;
        let beside = if others > 0 { format!(", and {others} more beside it") } else { String::new() };
        say!("figure    {}{beside}", linked(first))?;
    }
    say!("readings  {}", linked(&run.path().join("metrics.jsonl")))
}

/// What the records of a run warn of, each once, with the schemes that it is about where not all are.
fn warnings(frame: &Frame) -> Result<Vec<String>> {
    let rows = frame.filter("row", "summary")?;
    if !rows.has("warning") || !rows.has("scheme") {
        return Ok(vec![]);
    }
    let named = |column: &str| -> Result<Vec<String>> {
        Ok(rows.texts(column)?.into_iter().map(Option::unwrap_or_default).collect())
    };
    let (schemes, warnings) = (named("scheme")?, named("warning")?);
    let all: BTreeSet<&String> = schemes.iter().collect();
    let mut about: Vec<(&String, Vec<&String>)> = vec![];
    for (warning, scheme) in warnings.iter().zip(&schemes).filter(|(warning, _)| !warning.is_empty()) {
        match about.iter_mut().find(|(told, _)| *told == warning) {
            Some((_, schemes)) if schemes.contains(&scheme) => {}
            Some((_, schemes)) => schemes.push(scheme),
            None => about.push((warning, vec![scheme])),
        }
    }
    let told = about.into_iter().map(|(warning, schemes)| match schemes.len() == all.len() {
        true => warning.clone(),
        false => {
            let schemes = schemes.into_iter().map(String::as_str).collect::<Vec<_>>();
            format!("{}: {warning}", schemes.join(", "))
        }
    });
    Ok(told.collect())
}

/// Tells of the figures that could not be drawn.
pub fn failures(figures: &Gallery) {
    for (name, error) in &figures.failed {
        warn(format!("the figure {name} was not drawn: {error}"));
    }
}

/// The schemes of the records beside a baseline: the one named, or the first that was recorded.
pub fn comparison(frame: &Frame, baseline: Option<&str>) -> Result<Comparison> {
    let first = || -> Result<_> { Ok(frame.texts("scheme")?.into_iter().flatten().next()) };
    match baseline {
        Some(baseline) => frame.compare(baseline),
        None => frame.compare(&first()?.ok_or_else(|| Error::input("the records name no scheme"))?),
    }
}
