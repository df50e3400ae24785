//! What leaving parts of a training out costs.

use super::Figure;
use crate::error::Result;
use crate::frame::Frame;

/// The difference in bits per byte of each variant of a training from the first, the mean over seeds, with the 95 % interval of
/// Student's t.
///
/// # Errors
/// If the frame holds no records of an ablation.
pub fn ablation(frame: &Frame) -> Result<Figure> {
    let rows = frame.filter("measure", "ablation")?.filter("row", "variant")?;
    let first = rows.texts("variant")?.into_iter().flatten().next().unwrap_or_default();
    let others: Vec<String> = rows
        .texts("variant")?
        .into_iter()
        .zip(rows.numbers("difference")?)
        .filter_map(|(variant, difference)| variant.filter(|_| difference.is_some()))
        .collect();
    let known = rows.filter_any("variant", &others)?;
    let figure = Figure::bar(&known, "variant", "difference").interval("difference_low", "difference_high");
    Ok(figure
        .title("What each part is worth")
        .subtitle(format!(
            "difference from {first}, mean over seeds, whiskers: 95 % intervals of Student’s t"
        ))
        .y_label("bits per byte of held-out text, higher is worse"))
}
