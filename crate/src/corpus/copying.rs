//! Copying: several keys, each said once with its value in noise, and asked for at the end in another order.
//!
//! ```text
//! 80Ax3Cy190…2?CyAx
//! ```
//!
//! A key is a capital letter, its value the small letter after it, noise is digits. Every character is one token of a byte-level
//! model. Up to the question mark it is the prompt, of a length that is asked for; after each key stands the value to be copied. As
//! associative recall with several queries (Arora et al., "Zoology", 2023), with noise of any length between.

use crate::error::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// Counts up with every change of how a text is laid out.
pub const VERSION: u32 = 1;
/// The most keys: as many as there are capital letters.
pub const MOST: usize = 26;

/// A text with its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copying {
    /// The prompt, the question mark its last character.
    pub prompt: String,
    /// Keys and values, as they are asked for.
    pub pairs: Vec<(char, char)>,
}

impl Copying {
    /// What stands after the prompt: each key with its value.
    pub fn answers(&self) -> String {
        self.pairs.iter().flat_map(|(key, value)| [*key, *value]).collect()
    }
}

/// Characters of the shortest prompt with so many keys.
pub fn shortest(keys: usize) -> usize {
    2 * keys + 1
}

/// A text whose prompt has `length` characters.
///
/// # Errors
/// There are no keys or more than [`MOST`], or the length is below [`shortest`].
pub fn copying(rng: &mut impl Rng, length: usize, keys: usize) -> Result<Copying> {
    if keys == 0 || keys > MOST {
        return Err(Error::input(format!("{keys} keys to copy")).hint(format!("ask for 1 to {MOST}")));
    }
    if length < shortest(keys) {
        return Err(Error::input(format!(
            "a copying prompt of {length} tokens is shorter than one of {keys} keys without noise, {}",
            shortest(keys)
        ))
        .hint("ask for a greater length, or fewer keys"));
    }
    let letters = distinct(rng, MOST, keys);
    let pairs: Vec<(char, char)> =
        letters.into_iter().map(|key| (letter('A', key), letter('a', below(rng, 26)))).collect();
    // Each pair takes one of the places that are left when its second character is put aside.
    let mut places = distinct(rng, length - 1 - keys, keys);
    places.sort_unstable();
    let (mut prompt, mut noise) = (String::with_capacity(length), 0);
    for (place, (key, value)) in places.iter().zip(&pairs) {
        while noise < *place {
            prompt.push(letter('0', below(rng, 10)));
            noise += 1;
        }
        prompt.extend([*key, *value]);
        noise += 1;
    }
    while prompt.len() < length - 1 {
        prompt.push(letter('0', below(rng, 10)));
    }
    prompt.push('?');
    let pairs = distinct(rng, keys, keys).into_iter().map(|i| pairs[i]).collect();
    Ok(Copying { prompt, pairs })
}

/// The text of one trial: a function of the arguments alone, whatever ran before.
///
/// # Errors
/// As [`copying`].
pub fn trial(seed: u64, length: usize, keys: usize, trial: usize) -> Result<Copying> {
    let mut hash = Sha256::new_with_prefix(b"lowbit copying trial");
    for part in [seed, length as u64, keys as u64, trial as u64] {
        hash.update(part.to_le_bytes());
    }
    copying(&mut ChaCha8Rng::from_seed(hash.finalize().into()), length, keys)
}

/// A text to train on, such that it and its answers fit `room` characters; none where none fits. Its prompt has at most `noise`
/// characters of noise; lengths are even between the shortest and the longest of these.
///
/// # Errors
/// As [`copying`].
pub fn training(rng: &mut impl Rng, room: usize, noise: usize, keys: usize) -> Result<Option<Copying>> {
    let Some(spare) = room.checked_sub(shortest(keys) + 2 * keys) else { return Ok(None) };
    let length = shortest(keys) + below(rng, spare.min(noise) + 1);
    copying(rng, length, keys).map(Some)
}

/// The tokens of a prompt, and of its answers.
///
/// # Errors
/// The tokenizer has not one token for each character.
pub fn tokens(encode: impl Fn(&str) -> Result<Vec<u32>>, text: &Copying) -> Result<(Vec<u32>, Vec<u32>)> {
    let answers = text.answers();
    let mut all = encode(&format!("{}{answers}", text.prompt))?;
    if all.len() != text.prompt.len() + answers.len() {
        return Err(Error::input(format!(
            "{} characters of a copying text are {} tokens: keys and values cannot be told apart",
            text.prompt.len() + answers.len(),
            all.len()
        ))
        .hint("copying needs a tokenizer with one token for each character, such as bytes"));
    }
    let answers = all.split_off(text.prompt.len());
    Ok((all, answers))
}

fn letter(first: char, at: usize) -> char {
    char::from(first as u8 + at as u8)
}

/// A number below `n`, drawn from the generator's plain stream: uneven by less than n / 2³².
pub(crate) fn below(rng: &mut impl Rng, n: usize) -> usize {
    ((u64::from(rng.next_u32()) * n as u64) >> 32) as usize
}

/// `count` of the numbers below `n`, in random order (Floyd's way would not be shorter: n is small).
fn distinct(rng: &mut impl Rng, n: usize, count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    for i in 0..count {
        let other = i + below(rng, n - i);
        all.swap(i, other);
    }
    all.truncate(count);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_key_is_said_once_with_its_value(seed: u64, keys in 1usize..=26, more in 0usize..300) {
            let length = shortest(keys) + more;
            let text = trial(seed, length, keys, 3).unwrap();
            prop_assert_eq!(text.prompt.len(), length);
            prop_assert!(text.prompt.ends_with('?'));
            prop_assert_eq!(text.pairs.len(), keys);
            prop_assert_eq!(text.answers().len(), 2 * keys);
            prop_assert_eq!(text.prompt.chars().filter(char::is_ascii_digit).count(), more);
            for (key, value) in &text.pairs {
                prop_assert_eq!(text.prompt.matches(*key).count(), 1);
                let pair: String = [*key, *value].into_iter().collect();
                prop_assert!(text.prompt.contains(&pair));
            }
            prop_assert_eq!(&text, &trial(seed, length, keys, 3).unwrap());
        }

        #[test]
        fn training_texts_fit(seed: u64, room in 0usize..400, noise in 0usize..400, keys in 1usize..9) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            match training(&mut rng, room, noise, keys).unwrap() {
                Some(text) => {
                    prop_assert!(text.prompt.len() + text.answers().len() <= room);
                    prop_assert!(text.prompt.len() <= shortest(keys) + noise);
                }
                None => prop_assert!(room < 4 * keys + 1),
            }
        }
    }

    #[test]
    fn trials_differ_and_places_are_everywhere() {
        assert_ne!(trial(7, 64, 4, 0).unwrap(), trial(7, 64, 4, 1).unwrap());
        let mut seen = [false; 20];
        for i in 0..500 {
            let prompt = trial(7, 20, 1, i).unwrap().prompt;
            seen[prompt.find(|c: char| c.is_ascii_uppercase()).unwrap()] = true;
        }
        assert_eq!(seen.iter().filter(|seen| **seen).count(), 18, "{seen:?}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(trial(7, 8, 4, 0).unwrap_err().to_string().contains("shorter than one of 4 keys"));
        assert!(trial(7, 800, 27, 0).unwrap_err().to_string().contains("1 to 26"));
        assert!(trial(7, 800, 0, 0).is_err());
    }
}
