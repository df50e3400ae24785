//! How evenly a mixture of experts uses them.

use super::Figure;
use super::compare::{SERIES, join, series};
use crate::error::{Error, Result};
use crate::frame::Frame;

/// The load of each expert, a row a layer and a column an expert; of several models or schemes a row for each layer of each. 1
/// where all experts of a layer are used alike.
///
/// # Errors
/// If the frame holds no such records.
pub fn experts(frame: &Frame) -> Result<Figure> {
    let (rows, shared) = series(&frame.filter("measure", "routing")?.filter("row", "expert")?)?;
    if rows.height() == 0 {
        return Err(Error::input("there are no experts among these records")
            .hint("measure the routing of a model that has experts"));
    }
    let names = rows.texts(SERIES)?.into_iter().map(Option::unwrap_or_default);
    let layers = rows.numbers("layer")?.into_iter();
    let places: Vec<String> = names
        .zip(layers)
        .map(|(name, layer)| join(&name, &format!("layer {}", layer.unwrap_or(0.0))))
        .collect();
    let rows = rows.with_texts("place", &places)?;
    let mut figure = Figure::heat(&rows, "expert", "place", "load");
    figure.x.label = "expert".into();
    figure.y.label = "share of a layer's choices, times its experts (1: all alike)".into();
    figure.y.from_zero = true;
    Ok(figure.title("Which experts are used").subtitle(shared))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_layer_is_a_row_and_a_scheme_more() {
        let drawn = |schemes: &[&str]| {
            let each = schemes.iter().flat_map(|scheme| {
                (0..6).map(move |i| {
                    json!({"measure": "routing", "row": "expert", "model": "m", "scheme": scheme, "layer": i / 3,
                        "expert": i % 3, "load": 0.25 * i as f64})
                })
            });
            let rows: Vec<_> = each.map(|row| serde_json::from_value(row).unwrap()).collect();
            experts(&Frame::from_rows(&rows).unwrap()).unwrap().svg().unwrap()
        };
        let one = drawn(&["f32"]);
        assert!(one.contains("\nlayer 1\n") && one.contains("\n.75\n"), "{one}");
        assert!(drawn(&["f32", "nf4"]).contains("\nnf4 · layer 0\n"));
    }
}
