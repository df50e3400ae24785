//! What is shown of a finished run: a table for each measurement, the schemes beside a baseline, figures.

use crate::out::{linked, say};
use lowbit::error::Result;
use lowbit::figure::{self, Gallery};
use lowbit::frame::Frame;
use lowbit::record::Run;
use lowbit::report::Findings;
use lowbit::warning::warn;

/// Figures and tables of a run that holds all of its readings. The figures come first, and finish it: whoever reads the
/// tables may stop at any line, and a run whose figures were cut short is still one that the same command goes on with.
pub fn tell(run: &Run) -> Result<()> {
    let frame = Frame::load(run.path())?;
    let figures = figure::draw_all(&frame, &run.plots_dir()?)?;
    run.finish()?;
    let findings = Findings::of(&frame)?;
    for (measure, table) in &findings.tables {
        say!("\n{measure}\n{table}")?;
    }
    if let Some(contexts) = &findings.contexts {
        say!("\nby length of context, all schemes and bins in one family (Holm)\n{contexts}")?;
    }
    if let Some(comparison) = &findings.comparison {
        say!("\nschemes\n{comparison}")?;
    }
    findings.warnings.iter().for_each(warn);
    failures(&figures);
    say!("")?;
    if let Some(first) = figures.drawn.iter().find(|path| path.extension().is_some_and(|end| end == "png")) {
        let others = figures.drawn.len() / 2 - 1;
        let beside = if others > 0 { format!(", and {others} more beside it") } else { String::new() };
        say!("figure    {}{beside}", linked(first))?;
    }
    say!("readings  {}", linked(&run.path().join("metrics.jsonl")))
}

/// Tells of the figures that could not be drawn.
pub fn failures(figures: &Gallery) {
    for (name, error) in &figures.failed {
        warn(format!("the figure {name} was not drawn: {error}"));
    }
}
