//! Marks that a normalizer joined to the letter before them, of which the tokenizers library tells the letter's place only.

use super::encoding::Place;
use tokenizers::normalizers::NFC;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

/// Makes places reach over the marks that went into their last letters: `e` and an acute accent that were read as `é`.
/// What a normalizer took away stays outside.
pub(super) fn extend(places: &mut [Place], text: &str, normalizer: &NormalizerWrapper) {
    for i in 0..places.len() {
        let next = places.get(i + 1).map_or(text.len(), |next| next.start);
        let (start, end) = (places[i].start, places[i].end);
        let (Some(of), Some(gap)) = (text.get(start..end), text.get(end..next)) else { continue };
        let Some((letter, _)) = of.char_indices().next_back() else { continue };
        for mark in gap.chars() {
            let end = places[i].end;
            let with = end + mark.len_utf8();
            if !joined(&text[start + letter..end], &text[end..with], &text[start + letter..with], normalizer)
            {
                break;
            }
            places[i].end = with;
        }
    }
}

/// Whether a letter and a mark are one character by Unicode, and the normalizer left the mark on it.
fn joined(letter: &str, mark: &str, both: &str, normalizer: &NormalizerWrapper) -> bool {
    let composed = |text: &str| normal(text, &NFC);
    composed(both) != composed(letter) + &composed(mark)
        && normal(both, normalizer) != normal(letter, normalizer)
}

fn normal(text: &str, normalizer: &impl Normalizer) -> String {
    let mut normal = NormalizedString::from(text);
    match normalizer.normalize(&mut normal) {
        Ok(()) => normal.get().to_string(),
        Err(_) => text.to_string(),
    }
}
