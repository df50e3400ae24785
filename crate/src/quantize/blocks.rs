//! Matrices that keep the blocks of the file that they were read from.

use super::Scheme;
use super::select::{Part, ruled};
use crate::error::{Error, Result};
use crate::family::Site;
use crate::model::Model;
use std::collections::BTreeMap;

/// Gives every site whose matrix was read in blocks that can stay, and that no rule speaks of, their format.
///
/// # Errors
/// The model has no such matrix, or the scheme would change what it is to keep.
pub(super) fn keep(scheme: &Scheme, model: &Model, sites: &[Site], parts: &mut [Vec<Part>]) -> Result<()> {
    let refused =
        |what: String, hint: &str| Err(Error::input(what).at(format!("scheme {scheme}")).hint(hint));
    if scheme.moves_inputs() {
        let what = "blocks that stay as they are cannot take in what moves outliers into weights".to_string();
        return refused(what, "leave rot, smooth and perchannel out, or round anew: w4a8-g32-rot");
    }
    let read_in = model.read_in();
    let mut any = false;
    for (site, parts) in sites.iter().zip(parts).filter(|(site, _)| !ruled(scheme, site)) {
        let coding = read_in.get(&*site.weight).and_then(|own| own.coding);
        any |= coding.is_some();
        *parts = vec![Part { segment: None, first: 0, rows: site.rows, coding, widths: None }];
    }
    match any {
        true => Ok(()),
        false => refused(
            format!(
                "no matrix of {} was read in blocks that can stay packed; its weights were stored as {}",
                model.name,
                model.stored_as.as_deref().unwrap_or(model.dtype.as_str())
            ),
            "Q8_0, Q5_0, Q5_1, Q4_0 and Q4_1 of a GGUF file can; round the weights: w4a8-g32",
        ),
    }
}

/// The bits of codes of all matrices between the ends, where they are of one width.
pub(super) fn bits(sites: &[Site], parts: &[Vec<Part>]) -> Option<f64> {
    let within = sites.iter().zip(parts).filter(|(site, _)| site.layer.is_some());
    let mut bits =
        within.flat_map(|(_, parts)| parts).map(|part| part.coding.map(|coding| coding.format.bits()));
    let first = bits.next()??;
    bits.all(|bits| bits == Some(first)).then_some(first)
}

/// What was read in blocks that cannot stay, as the end of a sentence: `Q6_K (3 matrices) widened`.
pub(super) fn widened(model: &Model, sites: &[Site], parts: &[Vec<Part>]) -> Option<String> {
    let read_in = model.read_in();
    let mut counts = BTreeMap::<&str, usize>::new();
    for (site, parts) in sites.iter().zip(parts) {
        if let Some(own) = read_in.get(&*site.weight)
            && parts.iter().all(|part| part.coding.is_none())
        {
            *counts.entry(own.name).or_default() += 1;
        }
    }
    let each = counts
        .into_iter()
        .map(|(name, n)| format!("{name} ({n} {})", if n == 1 { "matrix" } else { "matrices" }));
    let each = each.collect::<Vec<_>>().join(", ");
    (!each.is_empty()).then(|| format!("{each} widened"))
}
