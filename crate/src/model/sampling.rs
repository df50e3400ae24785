//! Which token comes next: drawn from what the model holds likely, or the likeliest.
//!
//! The order is that of Hugging Face transformers (`GenerationMixin._get_logits_processor`, version 4.57): the repetition
//! penalty, temperature, `top_k`, `top_p`, `min_p`, each on what the one before it left. llama.cpp's default chain
//! (`common_params_sampling`) differs in one place: there the temperature comes last, so that `top_p` and `min_p` look at
//! the distribution as it is. At temperature 1 both are the same.
//!
//! | filter | keeps | of |
//! |---|---|---|
//! | `repetition_penalty` r | all: logit / r where it is above 0, logit · r where below, of each token that was read or said | N. S. Keskar et al., "CTRL" (2019) |
//! | `temperature` T | all: softmax(logits / T); at 0 the likeliest token alone | |
//! | `top_k` | the k likeliest, and what is as likely as the last of them | A. Fan et al., "Hierarchical neural story generation" (2018) |
//! | `top_p` | the likeliest, as long as those before hold less than p | A. Holtzman et al., "The curious case of neural text degeneration" (2020) |
//! | `min_p` | what has at least this share of the likeliest's probability | M. Nguyen et al., "Turning up the heat" (2024) |

use super::init::stream;
use crate::error::{Error, Result};
use crate::kernel::softmax::argmax;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How a text is continued. By default greedily: the likeliest token each time.
///
/// ```
/// # use lowbit::prelude::*;
/// # fn main() -> lowbit::Result<()> {
/// let model = Model::load("random:mamba2-tiny")?;
/// let how = Sampling { temperature: 0.8, top_p: 0.95, seed: 1, max_tokens: 20, ..Sampling::default() };
/// let text = model.sample("To be, or", &how)?; // seen as it is said
/// assert_eq!(model.sample("To be, or", &how)?.text, text.text);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// What logits are divided by: 0 takes the likeliest token each time, 1 draws from the model's own distribution.
    #[arg(long, allow_negative_numbers = true, default_value_t = Self::default().temperature)]
    pub temperature: f64,
    /// Draw among so many of the likeliest tokens alone.
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Draw among the likeliest tokens that together hold this share of the probability; 1: among all.
    #[arg(long, allow_negative_numbers = true, default_value_t = Self::default().top_p)]
    pub top_p: f64,
    /// Draw among tokens with at least this share of the likeliest token's probability; 0: among all.
    #[arg(long, allow_negative_numbers = true, default_value_t = Self::default().min_p)]
    pub min_p: f64,
    /// Makes what was read or said already less likely; 1: does not.
    #[arg(long, allow_negative_numbers = true, default_value_t = Self::default().repetition_penalty)]
    pub repetition_penalty: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = Self::default().seed)]
    pub seed: u64,
    /// A text that ends the continuation, and is not part of it; may be given several times. \n, \t and \\ are read as in
    /// strings.
    #[arg(long, value_name = "TEXT", value_parser = unescaped)]
    pub stop: Vec<String>,
    /// Most tokens.
    #[arg(long, default_value_t = Self::default().max_tokens)]
    pub max_tokens: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: vec![],
            max_tokens: 256,
        }
    }
}

/// A text from a command line.
fn unescaped(text: &str) -> Result<String, String> {
    let (mut out, mut letters) = (String::new(), text.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some('\\') => out.push('\\'),
                other => {
                    let found = other.map_or_else(|| "\\".to_string(), |other| format!("\\{other}"));
                    return Err(format!("'{found}' is none of \\n, \\t, \\r and \\\\"));
                }
            },
            letter => out.push(letter),
        }
    }
    Ok(out)
}

impl Sampling {
    /// Refuses settings that mean nothing, or would be left aside.
    ///
    /// # Errors
    /// The first that does, in a sentence.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::input(what));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong(format!("temperature must be 0 or more, found {}", self.temperature));
        }
        if self.top_k == Some(0) {
            return wrong("top_k must be at least 1, found 0: no token would be left".to_string());
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong(format!("top_p is a share above 0 and up to 1, found {}", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong(format!("min_p is a share between 0 and 1, found {}", self.min_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let found = self.repetition_penalty;
            return wrong(format!("repetition_penalty must be above 0, found {found}; 1 changes nothing"));
        }
        if self.max_tokens == 0 {
            return wrong("max_tokens must be at least 1, found 0".to_string());
        }
        if self.stop.iter().any(String::is_empty) {
            return wrong("a stop text is empty: it would end every text before it begins".to_string());
        }
        let filters =
            [("top_k", self.top_k.is_some()), ("top_p", self.top_p < 1.0), ("min_p", self.min_p > 0.0)];
        match filters.into_iter().find(|(_, set)| self.temperature == 0.0 && *set) {
            Some((name, _)) => {
                Err(Error::input(format!("{name} is set, but at temperature 0 nothing is drawn"))
                    .hint("set a temperature too, such as 0.8"))
            }
            None => Ok(()),
        }
    }

    /// The tokens among which the next is drawn, each with its probability; `seen` says of each token of the vocabulary
    /// whether it was read or said.
    ///
    /// # Errors
    /// If a logit is not a number, or none is finite.
    pub fn candidates(&self, logits: &[f32], seen: &[bool]) -> Result<Vec<(u32, f64)>> {
        let mut scores = logits.to_vec();
        if self.repetition_penalty != 1.0 {
            let penalty = self.repetition_penalty as f32;
            for (score, _) in scores.iter_mut().zip(seen).filter(|(_, seen)| **seen) {
                *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
            }
        }
        let top = scores.get(argmax(&scores) as usize).copied().unwrap_or(f32::NAN);
        if !top.is_finite() || scores.iter().any(|score| score.is_nan()) {
            return Err(Error::input("the model's logits are not finite: there is no next token")
                .hint("measure its perplexity: it names the layer where that begins"));
        }
        if self.temperature == 0.0 {
            return Ok(vec![(argmax(&scores), 1.0)]);
        }
        let least = self.top_k.filter(|k| *k < scores.len()).map(|k| {
            let mut order = scores.clone();
            *order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        });
        // Weights relative to the likeliest: softmax up to its sum.
        let weight = |score: f32| ((f64::from(score) - f64::from(top)) / self.temperature).exp();
        let mut kept: Vec<(u32, f64)> = (0..)
            .zip(&scores)
            .filter(|(_, score)| least.is_none_or(|least| **score >= least))
            .map(|(id, score)| (id, weight(*score)))
            .collect();
        if self.top_p < 1.0 {
            kept.sort_by(|a, b| b.1.total_cmp(&a.1));
            let enough = self.top_p * kept.iter().map(|(_, weight)| weight).sum::<f64>();
            let before = kept.iter().scan(0.0, |sum, (_, weight)| {
                let before = *sum;
                *sum += weight;
                Some(before)
            });
            let count = before.take_while(|before| *before < enough).count();
            kept.truncate(count);
        }
        kept.retain(|(_, weight)| *weight > 0.0 && *weight >= self.min_p);
        let sum: f64 = kept.iter().map(|(_, weight)| weight).sum();
        kept.iter_mut().for_each(|(_, weight)| *weight /= sum);
        Ok(kept)
    }

    /// The stream of draws that belongs to the seed.
    pub(super) fn draws(&self) -> ChaCha8Rng {
        stream(self.seed, "sampling")
    }
}

/// One of the candidates, by their probabilities.
pub(super) fn draw(candidates: &[(u32, f64)], draws: &mut ChaCha8Rng) -> u32 {
    let mut left: f64 = draws.random();
    for (id, probability) in candidates {
        left -= probability;
        if left < 0.0 {
            return *id;
        }
    }
    // What rounding left over.
    candidates.last().map_or(0, |(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 7] = [1.5, -0.5, 3.0, 0.0, 2.0, 2.0, -4.0];

    fn of(how: Sampling) -> Vec<f64> {
        let seen = [true, true, false, false, false, false, false];
        let mut all = vec![0.0; LOGITS.len()];
        how.candidates(&LOGITS, &seen).unwrap().into_iter().for_each(|(id, p)| all[id as usize] = p);
        all
    }

    /// The probabilities of scores of which some are kept, by the definition.
    fn softmax(scores: [f64; 7], kept: [u8; 7]) -> Vec<f64> {
        let weights: Vec<f64> =
            scores.iter().zip(kept).map(|(score, kept)| f64::from(kept) * score.exp()).collect();
        weights.iter().map(|weight| weight / weights.iter().sum::<f64>()).collect()
    }

    fn close(found: &[f64], expected: &[f64]) {
        let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-12, "{found:?} {expected:?}");
    }

    #[test]
    fn filters_are_their_definitions_in_their_order() {
        let exact = LOGITS.map(f64::from);
        let hot = Sampling { temperature: 1.0, ..Sampling::default() };
        let half = exact.map(|score| score / 0.5);
        close(&of(hot.clone()), &softmax(exact, [1; 7]));
        close(&of(Sampling { temperature: 0.5, ..hot.clone() }), &softmax(half, [1; 7]));
        // The second and third are equally likely: two are three.
        close(&of(Sampling { top_k: Some(2), ..hot.clone() }), &softmax(exact, [0, 0, 1, 0, 1, 1, 0]));
        close(&of(Sampling { top_k: Some(70), ..hot.clone() }), &softmax(exact, [1; 7]));
        // The likeliest hold .490, .180, .180, .109: 3 of them .851, 4 of them .960.
        let p = |top_p: f64| of(Sampling { top_p, ..hot.clone() });
        close(&p(0.01), &softmax(exact, [0, 0, 1, 0, 0, 0, 0]));
        close(&p(0.85), &softmax(exact, [0, 0, 1, 0, 1, 1, 0]));
        close(&p(0.87), &softmax(exact, [1, 0, 1, 0, 1, 1, 0]));
        // A fifth of the likeliest: e^(−1) and e^(−1.5) are more, e^(−3) is less.
        close(&of(Sampling { min_p: 0.2, ..hot.clone() }), &softmax(exact, [1, 0, 1, 0, 1, 1, 0]));
        close(&of(Sampling { min_p: 1.0, ..hot.clone() }), &softmax(exact, [0, 0, 1, 0, 0, 0, 0]));
        // Of what was seen, the score above 0 is divided and the one below multiplied.
        let penal = [1.0, -0.75, 3.0, 0.0, 2.0, 2.0, -4.0];
        let penalty = Sampling { repetition_penalty: 1.5, ..hot.clone() };
        close(&of(penalty.clone()), &softmax(penal, [1; 7]));
        // Temperature comes before top_p: at ½ three hold .96 of the whole, at 1 they do not.
        let both = Sampling { temperature: 0.5, top_p: 0.9, ..hot.clone() };
        close(&of(both), &softmax(half, [0, 0, 1, 0, 1, 1, 0]));
        // top_p looks at what top_k left: the first three hold it all, and the likeliest alone .576 of that.
        let both = Sampling { top_k: Some(3), top_p: 0.57, ..hot };
        close(&of(both), &softmax(exact, [0, 0, 1, 0, 0, 0, 0]));
        close(&of(Sampling::default()), &softmax(exact, [0, 0, 1, 0, 0, 0, 0]));
    }

    /// Pearson's χ² of 50,000 draws: 5 degrees of freedom go beyond 20.5 once in a thousand seeds.
    #[test]
    fn draws_have_the_probabilities_of_their_candidates() {
        let how = Sampling { temperature: 1.3, min_p: 0.05, seed: 5, ..Sampling::default() };
        let candidates = how.candidates(&LOGITS, &[false; 7]).unwrap();
        assert_eq!(candidates.len(), 6);
        let (mut draws, mut counts) = (how.draws(), [0_u32; 7]);
        for _ in 0..50_000 {
            counts[draw(&candidates, &mut draws) as usize] += 1;
        }
        let terms = candidates.iter().map(|(id, p)| {
            let expected = 50_000.0 * p;
            (f64::from(counts[*id as usize]) - expected).powi(2) / expected
        });
        let chi_square: f64 = terms.sum();
        assert!(chi_square < 20.5, "{chi_square}: {counts:?}");
        assert_eq!(counts.iter().sum::<u32>(), 50_000);
    }

    #[test]
    fn each_bad_setting_has_its_sentence() {
        let hot = Sampling { temperature: 1.0, ..Sampling::default() };
        for (how, part) in [
            (Sampling { temperature: -1.0, ..hot.clone() }, "temperature must be 0 or more, found -1"),
            (Sampling { temperature: f64::NAN, ..hot.clone() }, "temperature must be"),
            (Sampling { top_k: Some(0), ..hot.clone() }, "top_k must be at least 1"),
            (Sampling { top_p: 0.0, ..hot.clone() }, "top_p is a share above 0"),
            (Sampling { top_p: 1.5, ..hot.clone() }, "top_p is a share above 0"),
            (Sampling { min_p: -0.1, ..hot.clone() }, "min_p is a share between 0 and 1"),
            (Sampling { repetition_penalty: 0.0, ..hot.clone() }, "repetition_penalty must be above 0"),
            (Sampling { max_tokens: 0, ..hot.clone() }, "max_tokens must be at least 1"),
            (Sampling { stop: vec![String::new()], ..hot.clone() }, "a stop text is empty"),
            (Sampling { top_p: 0.9, ..Sampling::default() }, "top_p is set, but at temperature 0"),
        ] {
            let error = how.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        hot.check().unwrap();
        for logits in [vec![], vec![f32::NAN, 1.0], vec![1.0, f32::NAN], vec![f32::INFINITY, 0.0]] {
            let error = hot.candidates(&logits, &vec![false; logits.len()]).unwrap_err().to_string();
            assert!(error.contains("logits are not finite"), "{error}");
        }
        // What cannot come is no candidate.
        let possible = hot.candidates(&[0.0, f32::NEG_INFINITY], &[false; 2]).unwrap();
        assert_eq!(possible, [(0, 1.0)]);
        assert_eq!(unescaped(r"a\n\\n\t").unwrap(), "a\n\\n\t");
        assert!(unescaped(r"a\x").unwrap_err().contains(r"'\x' is none of"));
    }
}
