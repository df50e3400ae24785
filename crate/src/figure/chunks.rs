//! How fast the products of chunks are.

use super::Figure;
use crate::error::{Error, Result};
use crate::frame::Frame;

/// Operations a second of the scores of a recurrence's chunks against the tokens of a chunk, on one thread: a colour for each way to
/// multiply. Of several sizes of keys the one nearest to 128. The rows are those of `cargo bench -- "scores of chunks"` with
/// `LOWBIT_RECORD` set.
///
/// # Errors
/// If the frame holds none.
pub fn chunk_speed(frame: &Frame) -> Result<Figure> {
    let none = || {
        Error::input("there are no scores of chunks among these records")
            .hint("LOWBIT_RECORD=int4-speed cargo bench -- 'scores of chunks' makes a run of them")
    };
    if !["key", "chunk", "gop_per_s"].iter().all(|column| frame.has(column)) {
        return Err(none());
    }
    let rows = frame.filter("measure", "kernel")?.filter("threads", 1.0)?.above_zero("key")?;
    let keys = rows.numbers("key")?.into_iter().flatten();
    let key = keys.min_by(|a, b| (a - 128.0).abs().total_cmp(&(b - 128.0).abs())).ok_or_else(none)?;
    let rows = rows.filter("key", key)?;
    Ok(Figure::line(&rows, "chunk", "gop_per_s")
        .color("products")
        .log2_x()
        .zero_y()
        .title("Speed of the scores of a chunk")
        .subtitle(format!("keys of {key} channels, sub-chunks of 16 tokens, one thread"))
        .x_label("tokens of a chunk")
        .y_label("Gop/s, by the median time"))
}
