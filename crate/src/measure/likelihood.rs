//! How likely a model holds one text to go on after another, by the conventions of lm-evaluation-harness.
//!
//! Those of its `loglikelihood` (EleutherAI/lm-evaluation-harness 0.4, `lm_eval/api/model.py`, `_encode_pair`, and
//! `lm_eval/models/huggingface.py`, `_loglikelihood_tokens`):
//!
//! - White space at the end of the context is given to the continuation.
//! - Context and continuation are tokenized as one text, and the continuation are the tokens beyond as many as the context has
//!   alone. No token is added at the beginning.
//! - Beyond the model's maximum length tokens are left out at the beginning.
//! - The continuation is greedy if each of its tokens is the likeliest at its place; of equal ones the first counts.

use crate::error::{Error, Result};
use crate::kernel::softmax::{argmax, log_sum_exp};
use crate::layer::op::with_floats;
use crate::model::Model;
use crate::progress::check_interrupt;

/// A context and a continuation in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub ids: Vec<u32>,
    /// Tokens of the continuation, the last of `ids`: at least one, with one before it.
    pub scored: usize,
    /// Tokens left out at the beginning, which the model cannot read at once.
    pub cut: usize,
    /// Bytes that no token stands for, and tokens that stand for the unknown.
    pub lost: (usize, usize),
}

/// What a model holds of a continuation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Likelihood {
    /// ln p of the continuation given the context: the sum over its tokens, in nats.
    pub logprob: f64,
    /// Whether it is what greedy decoding would say.
    pub greedy: bool,
}

impl Pair {
    /// # Errors
    /// If there is nothing before the continuation, or it has no tokens of its own.
    pub fn of(model: &Model, context: &str, continuation: &str) -> Result<Self> {
        let whole = format!("{context}{continuation}");
        let context = context.trim_end();
        let before = model.tokenizer.encode(context)?.len();
        if before == 0 {
            return Err(Error::input("there is nothing before it that it could be predicted from")
                .hint("give each continuation a context"));
        }
        let text = model.tokenizer.encoding(&whole)?;
        let lost = (text.dropped(), text.unknown());
        let mut ids = text.ids;
        let scored = ids.len().saturating_sub(before);
        if scored == 0 {
            return Err(Error::input("the tokenizer has no tokens for it beyond those of its context"));
        }
        // The last token is predicted, and not read.
        let cut = model.max_length().map_or(0, |most| ids.len().saturating_sub(most.saturating_add(1)));
        if ids.len() - cut <= scored {
            let most = ids.len() - 1 - cut;
            return Err(Error::input(format!(
                "its {scored} tokens leave no room for a context: the model reads {most} at once"
            )));
        }
        ids.drain(..cut);
        Ok(Self { ids, scored, cut, lost })
    }

    /// Reads it from a state of zeros.
    pub fn likelihood(&self, model: &Model) -> Result<Likelihood> {
        let hidden = model.predicting(&self.ids, self.scored)?;
        let (vocab, targets) = (model.config.vocab_size(), &self.ids[self.ids.len() - self.scored..]);
        let mut found = Likelihood { logprob: 0.0, greedy: true };
        for piece in model.pieces(self.scored) {
            let logits = model.logits(&hidden, &piece)?;
            with_floats([&logits], |[logits]| {
                for (row, target) in logits.chunks(vocab).zip(&targets[piece]) {
                    found.logprob += f64::from(row[*target as usize] - log_sum_exp(row));
                    found.greedy &= argmax(row) == *target;
                }
            })?;
            check_interrupt()?;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continuation_is_scored_as_the_end_of_its_text() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let pair = Pair::of(&model, "To be, or not to", " be").unwrap();
        assert_eq!((pair.ids.len(), pair.scored, pair.cut, pair.lost), (19, 3, 0, (0, 0)));
        let nll: f32 = model.nll(&pair.ids, 3).unwrap().iter().sum();
        let found = pair.likelihood(&model).unwrap();
        assert!((found.logprob + f64::from(nll)).abs() < 1e-4 && !found.greedy);
        // What the model itself would say is greedy, to the last token.
        let said = model.continue_greedily(&pair.ids[..16], 4).unwrap();
        let greedy = |last: u32| {
            let ids = [&pair.ids[..16], &said[..3], &[last]].concat();
            Pair { ids, scored: 4, ..pair.clone() }.likelihood(&model).unwrap().greedy
        };
        assert!(greedy(said[3]) && !greedy(said[3] ^ 1));
    }

    #[test]
    fn blanks_between_belong_to_the_continuation() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let pair = |context: &str, continuation: &str| Pair::of(&model, context, continuation);
        assert_eq!(pair("a b \n", "c").unwrap().scored, 3);
        assert_eq!(pair("a b", " \nc").unwrap(), pair("a b \n", "c").unwrap());
        for context in ["", " \n"] {
            let error = pair(context, "c").unwrap_err().to_string();
            assert!(error.contains("there is nothing before it"), "{error}");
        }
        assert!(pair("a", "").unwrap_err().to_string().contains("no tokens for it"));
    }

    #[test]
    fn what_is_too_long_is_cut_at_the_beginning() {
        let model = Model::that_reads(8);
        let cut = Pair::of(&model, "To be, or not to", " be").unwrap();
        // Nine tokens, of which eight are read.
        assert_eq!((cut.ids.len(), cut.scored, cut.cut), (9, 3, 10));
        assert_eq!(cut.ids, "not to be".bytes().map(u32::from).collect::<Vec<_>>());
        let error = Pair::of(&model, "a", " long word").unwrap_err().to_string();
        assert!(error.contains("its 10 tokens leave no room for a context: the model reads 8"), "{error}");
    }
}
