//! Passkey prompts: a number hidden in dull text, to be recalled at the end.
//!
//! The text is that of the published test (Mohtashami & Jaggi, "Landmark Attention", 2023): five lines, the
//! second and fourth being filler. A prompt's length is measured in tokens, by a counter that the caller gives.

use super::copying::below;
use crate::error::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The wording of the prompts. A result names [`PasskeyTemplate::VERSION`] and [`PasskeyTemplate::hash`], since
/// accuracies under different wordings cannot be compared.
pub struct PasskeyTemplate;

impl PasskeyTemplate {
    /// Counts up with every change of the wording or of the way in which filler is laid out.
    pub const VERSION: u32 = 1;
    /// The first line.
    pub const TASK: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and \
        memorize them. I will quiz you about the important information there.";
    /// The sentences of the filler, repeated in this order and joined by spaces.
    pub const FILLER: [&str; 5] = [
        "The grass is green.",
        "The sky is blue.",
        "The sun is yellow.",
        "Here we go.",
        "There and back again.",
    ];
    /// The line to remember; `{k}` stands for the key.
    pub const NEEDLE: &str = "The pass key is {k}. Remember it. {k} is the pass key.";
    /// The last line. It ends without a blank, so that the continuation begins with one: `" 12345"`.
    pub const QUESTION: &str = "What is the pass key? The pass key is";

    /// SHA-256 of the wording, in hexadecimal.
    pub fn hash() -> String {
        let filler = Self::FILLER.join(" ");
        let lines = [Self::TASK, &filler, Self::NEEDLE, &filler, Self::QUESTION];
        super::sha256(lines.join("\n").as_bytes())
    }
}

/// A prompt that asks for a hidden number.
#[derive(Clone, Debug, PartialEq)]
pub struct PasskeyPrompt {
    /// The whole prompt, ending in "The pass key is".
    pub text: String,
    /// The digits to recall.
    pub key: String,
    /// Where the needle was asked to be: 0 before all filler, 1 after it.
    pub depth: f64,
    /// Sentences of filler before the needle.
    pub sentences_before: usize,
    /// Sentences of filler after the needle.
    pub sentences_after: usize,
    /// Tokens of `text`, by the counter it was built with.
    pub tokens: usize,
}

impl PasskeyPrompt {
    /// Where in `text` the needle says the key again, in bytes: the first place where it can be recalled.
    pub fn repetition(&self) -> std::ops::Range<usize> {
        let start = self.text.rfind(&self.key).unwrap_or(self.text.len());
        start..(start + self.key.len()).min(self.text.len())
    }

    /// What a model that recalls the key says next: a blank and the key.
    pub fn answer(&self) -> String {
        format!(" {}", self.key)
    }
}

/// Builds the longest prompt of at most `length` tokens, as `count` counts them.
///
/// Filler is added by whole sentences; the needle stands after the share `depth` (0 to 1) of them.
///
/// # Errors
/// `length` is shorter than the prompt without any filler (the sentence names both), `depth` is outside 0 to 1,
/// `key` is not all digits, filler does not lengthen the prompt as `count` counts, or `count` fails.
pub fn passkey_prompt(
    length: usize,
    depth: f64,
    key: &str,
    count: &dyn Fn(&str) -> Result<usize>,
) -> Result<PasskeyPrompt> {
    if !(0.0..=1.0).contains(&depth) {
        return Err(Error::input(format!("passkey depth {depth} is outside 0 to 1")));
    }
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::input(format!("passkey '{key}' is not a number written in digits")));
    }
    let build = |sentences: usize| -> Result<PasskeyPrompt> {
        let before = (depth * sentences as f64).round() as usize;
        let text = lay_out(before, sentences - before, key);
        let tokens = count(&text)?;
        let key = key.to_string();
        Ok(PasskeyPrompt {
            text,
            key,
            depth,
            sentences_before: before,
            sentences_after: sentences - before,
            tokens,
        })
    };
    let mut best = build(0)?;
    if best.tokens > length {
        return Err(Error::input(format!(
            "a passkey length of {length} tokens is shorter than the prompt without filler, {} tokens",
            best.tokens
        ))
        .hint("ask for a greater length"));
    }
    // One more sentence never shortens the text, so the most that fit are found by doubling, then halving.
    let (mut fits, mut beyond) = (0, 1);
    loop {
        let longer = build(beyond)?;
        if longer.tokens > length {
            break;
        }
        // A sentence is a token at least. Where that is not so, no number of sentences may ever be enough.
        if longer.tokens <= best.tokens || beyond > length {
            return Err(Error::input(format!(
                "{beyond} sentences of filler make a prompt of {} tokens, {fits} one of {}: it does not grow to {length}",
                longer.tokens, best.tokens
            ))
            .hint("use a tokenizer that has tokens for all of a text"));
        }
        (fits, beyond, best) = (beyond, beyond * 2, longer);
    }
    while beyond - fits > 1 {
        let middle = fits + (beyond - fits) / 2;
        let prompt = build(middle)?;
        if prompt.tokens <= length {
            (fits, best) = (middle, prompt);
        } else {
            beyond = middle;
        }
    }
    Ok(best)
}

/// The lines of a prompt. A filler line without sentences is left out.
fn lay_out(before: usize, after: usize, key: &str) -> String {
    let filler = |sentences: usize| -> String {
        let cycle = PasskeyTemplate::FILLER.into_iter().cycle();
        cycle.take(sentences).collect::<Vec<_>>().join(" ")
    };
    let needle = PasskeyTemplate::NEEDLE.replace("{k}", key);
    let lines = [PasskeyTemplate::TASK, &filler(before), &needle, &filler(after), PasskeyTemplate::QUESTION];
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    lines.join("\n")
}

/// The key and the needle's depth of one trial: a function of the arguments alone, whatever ran before.
///
/// The key has `digits` digits, leading zeros allowed. Depths go round `(i + ½) / depths`.
///
/// # Errors
/// `digits` or `depths` is 0.
pub fn trial(seed: u64, length: usize, trial: usize, digits: usize, depths: usize) -> Result<(String, f64)> {
    if digits == 0 || depths == 0 {
        return Err(Error::input(format!(
            "passkey trials need at least one digit and one depth, found {digits} and {depths}"
        )));
    }
    let mut hash = Sha256::new_with_prefix(b"lowbit passkey trial");
    for part in [seed, length as u64, trial as u64] {
        hash.update(part.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
    let depth = ((trial % depths) as f64 + 0.5) / depths as f64;
    Ok((key(&mut rng, digits), depth))
}

// Drawn from the generator's plain stream, not through a distribution, whose algorithm a library may change.
fn key(rng: &mut impl Rng, digits: usize) -> String {
    (0..digits).map(|_| char::from(b'0' + below(rng, 10) as u8)).collect()
}

/// A prompt to train on, such that it and `ending` tokens after it fit `room` tokens; None where none fits.
///
/// It has at most `filler` tokens of filler. The length is even between the shortest and the longest of these, the
/// needle's depth even from 0 to 1.
///
/// # Errors
/// As for [`passkey_prompt`].
pub fn training_prompt(
    rng: &mut impl Rng,
    room: usize,
    ending: usize,
    filler: usize,
    digits: usize,
    count: &dyn Fn(&str) -> Result<usize>,
) -> Result<Option<PasskeyPrompt>> {
    let key = key(rng, digits);
    let shortest = count(&lay_out(0, 0, &key))?;
    let Some(spare) = room.checked_sub(shortest.saturating_add(ending)) else { return Ok(None) };
    let length = shortest + below(rng, spare.min(filler) + 1);
    let depth = f64::from(rng.next_u32()) / f64::from(u32::MAX);
    passkey_prompt(length, depth, &key, count).map(Some)
}

/// The first run of digits in a continuation: what the model says the key is.
pub fn first_number(continuation: &str) -> Option<String> {
    let start = continuation.find(|c: char| c.is_ascii_digit())?;
    Some(continuation[start..].chars().take_while(char::is_ascii_digit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str) -> Result<usize> {
        Ok(text.len())
    }

    #[test]
    fn the_wording_is_pinned() {
        let prompt = passkey_prompt(365, 0.5, "00123", &bytes).unwrap();
        assert_eq!(
            prompt.text,
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. \
             I will quiz you about the important information there.\n\
             The grass is green. The sky is blue. The sun is yellow.\n\
             The pass key is 00123. Remember it. 00123 is the pass key.\n\
             The grass is green. The sky is blue. The sun is yellow.\n\
             What is the pass key? The pass key is"
        );
        // A change of these two needs a new version: records made before it must not mix with those after it.
        assert_eq!(PasskeyTemplate::VERSION, 1);
        assert_eq!(
            PasskeyTemplate::hash(),
            "9dfae6b3efa04f7cd842a5b255a0bc9cd60cfadd71d85a1353c07ac2928da7b8"
        );
    }

    proptest! {
        #[test]
        fn prompts_come_within_a_sentence_of_their_length(length in 260usize..5000, depth in 0.0f64..=1.0) {
            let prompt = passkey_prompt(length, depth, "90210", &bytes).unwrap();
            let longest = PasskeyTemplate::FILLER.iter().map(|s| s.len() + 1).max().unwrap();
            prop_assert!(prompt.tokens <= length && prompt.tokens + longest > length);
            prop_assert_eq!(prompt.text.len(), prompt.tokens);
            prop_assert!(prompt.text.ends_with("The pass key is"));
            prop_assert_eq!(prompt.text.matches("90210").count(), 2);
            let again = prompt.repetition();
            prop_assert_eq!(&prompt.text[again.start..again.end + 16], "90210 is the pass key");
            let sentences = (prompt.sentences_before + prompt.sentences_after) as f64;
            prop_assert!((prompt.sentences_before as f64 - depth * sentences).abs() <= 0.5);
        }

        #[test]
        fn training_prompts_fit_with_their_ending(
            seed: u64, room in 0usize..3000, ending in 0usize..20, filler in 0usize..3000
        ) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            match training_prompt(&mut rng, room, ending, filler, 5, &bytes).unwrap() {
                Some(prompt) => {
                    prop_assert!(prompt.text.len() + ending <= room);
                    prop_assert!(prompt.text.len() <= lay_out(0, 0, "12345").len() + filler);
                    prop_assert_eq!(prompt.text.matches(&prompt.key).count(), 2);
                }
                None => prop_assert!(room < lay_out(0, 0, "12345").len() + ending),
            }
        }
    }

    #[test]
    fn other_counters_are_obeyed() {
        let words = |text: &str| Ok(text.split_whitespace().count());
        let prompt = passkey_prompt(100, 0.25, "5", &words).unwrap();
        assert!(prompt.tokens <= 100 && prompt.tokens > 95, "{}", prompt.tokens);
    }

    #[test]
    fn a_counter_that_stands_still_is_no_endless_prompt() {
        for most in [0, 1, 120] {
            let still = |text: &str| Ok(text.split_whitespace().count().min(most));
            let error = passkey_prompt(1000, 0.5, "12345", &still).unwrap_err().to_string();
            assert!(error.contains("does not grow to 1000"), "{error}");
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let prompt = training_prompt(&mut rng, 1000, 1, 1000, 5, &still);
            assert!(prompt.unwrap_err().to_string().contains("does not grow"));
        }
        // A token for every doubling.
        let slow = |text: &str| Ok(text.len().ilog2() as usize);
        assert!(passkey_prompt(64, 0.5, "12345", &slow).unwrap_err().to_string().contains("does not grow"));
    }

    #[test]
    fn training_prompts_reach_the_whole_range() {
        let draw = |seed| {
            training_prompt(&mut ChaCha8Rng::seed_from_u64(seed), 1024, 8, 1024, 5, &bytes).unwrap().unwrap()
        };
        let lengths: Vec<usize> = (0..400).map(|seed| draw(seed).text.len()).collect();
        assert!(lengths.iter().any(|length| *length < 320) && lengths.iter().any(|length| *length > 960));
        assert_eq!(draw(3), draw(3));
    }

    #[test]
    fn a_trial_depends_on_its_arguments_alone() {
        let (first, depth) = trial(7, 1024, 3, 5, 10).unwrap();
        assert_eq!((first.len(), depth), (5, 0.35));
        assert_eq!(trial(7, 1024, 3, 5, 10).unwrap().0, first);
        // pinned, so that a run can be repeated with a later version
        assert_eq!(first, "74525");
        for (seed, length, index) in [(8, 1024, 3), (7, 2048, 3), (7, 1024, 13)] {
            assert_ne!(trial(seed, length, index, 5, 10).unwrap().0, first);
        }
        assert_eq!(trial(7, 1024, 13, 5, 10).unwrap().1, 0.35);
        assert!(trial(7, 1024, 3, 0, 10).is_err() && trial(7, 1024, 3, 5, 0).is_err());
    }

    #[test]
    fn keys_cover_all_digits_evenly() {
        let keys: String = (0..2000).map(|i| trial(1, 256, i, 5, 4).unwrap().0).collect();
        for digit in '0'..='9' {
            let n = keys.matches(digit).count();
            assert!((850..1150).contains(&n), "{digit}: {n} of 10000"); // five standard deviations
        }
    }

    #[test]
    fn a_length_below_the_bare_prompt_is_refused_with_both_numbers() {
        let bare = lay_out(0, 0, "12345").len();
        assert_eq!(passkey_prompt(bare, 0.5, "12345", &bytes).unwrap().tokens, bare);
        let error = passkey_prompt(bare - 1, 0.5, "12345", &bytes).unwrap_err().to_string();
        assert!(error.contains(&bare.to_string()) && error.contains(&(bare - 1).to_string()), "{error}");
        assert!(passkey_prompt(1000, 1.5, "12345", &bytes).is_err());
        assert!(passkey_prompt(1000, 0.5, "12a45", &bytes).is_err());
    }

    #[test]
    fn the_first_number_is_the_answer() {
        assert_eq!(first_number(" 01234. Remember it. 99999").as_deref(), Some("01234"));
        assert_eq!(first_number("é 7"), Some("7".to_string()));
        assert_eq!(first_number(" not known"), None);
    }
}
