//! The places of tokens after letters that were dropped.
//!
//! A model of merged pairs that has no token for a letter, nor one for the unknown, leaves the letter out, and the
//! tokenizers library then puts all later tokens of the word that much too early.

use super::encoding::Place;
use tokenizers::tokenizer::normalizer::Range;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

/// A letter of the vocabulary and its place in the text.
type Letter = (char, usize, usize);

/// How vocabularies write a blank: of bytes, and of characters.
const BLANKS: [char; 2] = ['\u{120}', '\u{2581}'];

/// The letters that a text is made of: its characters once normalized, or their bytes.
pub(super) fn letters(text: &str, normalizer: Option<&NormalizerWrapper>, byte_level: bool) -> Vec<Letter> {
    let mut normal = NormalizedString::from(text);
    let changed = normalizer.is_some_and(|normalizer| normalizer.normalize(&mut normal).is_ok());
    let mut letters = vec![];
    for (i, c) in normal.get().char_indices() {
        let own = i..i + c.len_utf8();
        let place = if changed { normal.convert_offsets(Range::Normalized(own.clone())) } else { None };
        let place = place.unwrap_or_else(|| own.clone());
        match byte_level {
            false => letters.push((c, place.start, place.end)),
            true if changed => {
                letters.extend(normal.get()[own].bytes().map(|byte| (letter(byte), place.start, place.end)));
            }
            true => {
                letters.extend(text[own.clone()].bytes().zip(own).map(|(byte, i)| (letter(byte), i, i + 1)))
            }
        }
    }
    letters
}

/// Puts tokens, spelled as in the vocabulary, where their letters are. Letters may be passed over only where `known` knows
/// of no token for them, and the mark of a blank where a tokenizer put one before a text; where others do not fit, all
/// places stay as they are. Tokens of `fixed` places are right.
pub(super) fn realign(
    places: &mut [Place],
    tokens: &[String],
    letters: &[Letter],
    known: impl Fn(char) -> bool,
    fixed: impl Fn(usize) -> bool,
) {
    let (mut found, mut next) = (places.to_vec(), 0);
    for (i, (place, token)) in found.iter_mut().zip(tokens).enumerate() {
        let after = |end: usize| letters.partition_point(|(_, start, _)| *start < end);
        if fixed(i) {
            next = after(place.end);
            continue;
        }
        next = next.max(after(place.start));
        let mut own: Option<(usize, usize)> = None;
        for (j, c) in token.chars().enumerate() {
            let is = |letter: char| letter == c || (letter == ' ' && c == BLANKS[1]);
            let mut at = next;
            while letters.get(at).is_some_and(|(letter, ..)| !is(*letter) && !known(*letter)) {
                at += 1;
            }
            match letters.get(at) {
                Some((letter, start, end)) if is(*letter) => {
                    own = Some((own.map_or(*start, |(first, _)| first), *end));
                    next = at + 1;
                }
                _ if j == 0 && BLANKS.contains(&c) => {}
                _ => return,
            }
        }
        if let Some((start, end)) = own {
            (place.start, place.end) = (start, end);
        }
    }
    places.copy_from_slice(&found);
}

/// The letter of a byte in vocabularies of bytes: itself where it is printed, else one from 256 on, in their order.
fn letter(byte: u8) -> char {
    let printed = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printed(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|other| !printed(*other)).count() as u32;
    char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn letters_are_those_of_the_library() {
        let letters: std::collections::BTreeSet<char> = (0..=255).map(letter).collect();
        assert_eq!(letters, ByteLevel::alphabet().into_iter().collect());
        assert_eq!((letter(b' '), letter(0x97), letter(b'a')), ('\u{120}', '\u{139}', 'a'));
    }
}
