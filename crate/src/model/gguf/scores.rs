//! Merges from the scores of pieces.
//!
//! SentencePiece joins the two neighbours whose piece has the highest score, leftmost first, where the tokenizers library
//! joins those of the first merge in a list, leftmost first. So the merges are the pairs that make up a piece, those of
//! higher scores first: one order for all, unless two pieces have one score.

use super::tokens::Kind;
use crate::error::{Error, Result};
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

/// Two pieces that are joined, many of them.
pub(super) type Pairs<'a> = Vec<(&'a str, &'a str)>;

/// The pairs of pieces to be joined, in order; and what of that order is assumed.
pub(super) fn merges<'a>(
    pieces: &'a [String],
    kinds: &[Kind],
    scores: &[f32],
    ids: &BTreeMap<&str, usize>,
) -> Result<(Pairs<'a>, Option<String>)> {
    let is_part = |part: &str| ids.get(part).is_some_and(|id| kinds[*id] == Kind::Normal);
    let mut pairs = vec![];
    for (id, piece) in pieces.iter().enumerate().filter(|(id, _)| kinds[*id] == Kind::Normal) {
        if piece.chars().nth(1).is_none() {
            continue;
        }
        if let Some(letter) = piece.chars().find(|letter| !is_part(letter.encode_utf8(&mut [0; 4]))) {
            // SentencePiece joins letters that are no pieces, the library does not.
            return Err(Error::input(format!(
                "the piece {piece:?} has {letter:?} in it, which is no piece by itself"
            ))
            .at("tokenizer.ggml.tokens")
            .hint("name the model's tokenizer.json with --tokenizer"));
        }
        for (middle, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(middle);
            if is_part(left) && is_part(right) {
                pairs.push((id, left, right));
            }
        }
    }
    // Of the pairs of one piece that with the longer left part comes first, as in converters to a tokenizer.json.
    let length = |text: &str| Reverse(text.len());
    pairs.sort_by(|(a, left, _), (b, other, _)| {
        scores[*b]
            .partial_cmp(&scores[*a])
            .unwrap_or(Ordering::Equal)
            .then(a.cmp(b))
            .then_with(|| length(left).cmp(&length(other)))
    });
    let equal = pairs.windows(2).find(|two| two[0].0 != two[1].0 && scores[two[0].0] == scores[two[1].0]);
    let told = equal.map(|two| {
        let [one, other] = [0, 1].map(|i| &pieces[two[i].0]);
        format!(
            "pieces of one score, such as {one:?} and {other:?}, are joined in the order of the vocabulary"
        )
    });
    Ok((pairs.into_iter().map(|(_, left, right)| (left, right)).collect(), told))
}
