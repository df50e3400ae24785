//! Whether large activations stay in their channels.

use super::Figure;
use super::compare::{SERIES, join, series};
use crate::error::Result;
use crate::frame::Frame;

/// How far beyond chance a token's largest channels are those of a token some way later, against the distance: the
/// median layer for each role, with a band between the quartiles; schemes are told apart by dashes.
///
/// # Errors
/// If the frame holds no records.
pub fn outliers(frame: &Frame) -> Result<Figure> {
    let (rows, shared) = series(&frame.filter("measure", "outliers")?.filter("row", "lag")?)?;
    let several = rows.texts(SERIES)?.iter().flatten().any(|name| !name.is_empty());
    let figure = Figure::line(&rows, "lag", "persistence").color("role").log2_x().bands();
    let figure = if several { figure.dash(SERIES) } else { figure };
    Ok(figure
        .interval("persistence_q25", "persistence_q75")
        .title("Do the largest channels stay the largest?")
        .subtitle(join(&shared, "median of the layers, band between the quartiles"))
        .x_label("distance of two tokens")
        .y_label("common channels (0: as by chance, 1: all)"))
}
