//! What it took to make a quantized model, and what it takes up: time and tokens of calibrating, of choosing widths,
//! the budget that was given and used, the bytes of its state.
//!
//! Nothing is run here: it is what [`Model::quantized`] noted, so that a study can put the price of a method beside
//! what the other measurements say of its result. A model that was loaded quantized, or is not, has no such notes.

use super::instrument::{Listed, Table};
use super::{Measure, subject};
use crate::error::Result;
use crate::model::Model;
use crate::record::{Conditions, Reading, fingerprint};

/// Tokens over which the bytes of one in a cache are a mean: whole groups of those that share scales.
const TOKENS: usize = 64;

settings! {
    /// What quantizing takes: seconds and tokens, of choosing widths apart; the budget, and the bytes of the state.
    #[derive(Default, Eq)]
    pub struct Making {}
}

impl Measure for Making {
    const NAME: &'static str = "making";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        fingerprint(Self::NAME, Self::VERSION, self, &subject(model), &())
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        let whole = model.made.map(|made| made.whole);
        let choosing = model.made.and_then(|made| made.choosing);
        let spent = model.quantization.as_ref().and_then(|quantization| quantization.budget);
        Ok(vec![
            Reading::new(Self::NAME, Self::VERSION, &subject(model), &Conditions::default())
                .fingerprint(&self.fingerprint(model)?)
                .value("quantizing_s", whole.map(|effort| effort.seconds))
                .value("quantizing_tokens", whole.map(|effort| effort.tokens))
                .value("choosing_s", choosing.map(|effort| effort.seconds))
                .value("choosing_tokens", choosing.map(|effort| effort.tokens))
                .value("budget_bytes", spent.map(|spent| spent.asked))
                .value("budget_used_bytes", spent.map(|spent| spent.used))
                .value("state_packed_bytes", model.state_bytes(1, 0))
                .value(
                    "cache_token_bytes",
                    Some((model.state_bytes(1, TOKENS) - model.state_bytes(1, 0)) / TOKENS)
                        .filter(|b| *b > 0),
                ),
        ])
    }
}

impl Listed for Making {
    const TABLES: &'static [Table] = &[Table::of(
        "making",
        &[
            "model",
            "scheme",
            "weight_bytes",
            "quantizing_s",
            "quantizing_tokens",
            "choosing_s",
            "choosing_tokens",
            "budget_bytes",
            "budget_used_bytes",
            "state_packed_bytes",
        ],
    )];

    fn work(&self, _model: &Model) -> f64 {
        0.0
    }

    fn small(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{Calibration, Quantizing};

    #[test]
    fn what_was_read_and_spent_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "So foul and fair a day I have not seen. ".repeat(20)).unwrap();
        let calibration = Calibration { samples: 4, length: 50, ..Calibration::of(file) };
        let how = Quantizing { calibration, ..Quantizing::default() };
        let model = Model::load("random:mamba2-tiny").unwrap();
        let told = |scheme: &str| {
            let made = model.quantized_with(&scheme.parse().unwrap(), &how).unwrap();
            let reading = Making::default().measure(&made).unwrap().remove(0);
            let columns = [
                "quantizing_tokens",
                "choosing_tokens",
                "budget_bytes",
                "budget_used_bytes",
                "state_packed_bytes",
            ];
            (columns.map(|column| reading.number(column)), reading.number("quantizing_s"))
        };
        // 200 tokens of text; 8 layers of 8 heads of 64 × 64 values and of 640 channels of 4 taps.
        let (heads, taps) = (64.0, f64::from(4 * 8 * 640 * 4));
        let state = |head: f64| Some(heads * head + taps);
        assert_eq!(told("f32"), ([None, None, None, None, state(16384.0)], None));
        let (nearest, seconds) = told("w4a16-h8ef8");
        assert_eq!(nearest, [Some(0.0), None, None, None, state(2.0 * 4100.0)]);
        assert!(seconds.is_some_and(|seconds| seconds > 0.0));
        assert_eq!(told("w4a16-gptq").0[..2], [Some(200.0), None]);
        // Once to see each block's inputs, once to leave it, but for the last.
        assert_eq!(told("w4a16-gptqseq").0[..2], [Some(375.0), None]);
        let ([all, choosing, asked, used, _], _) = told("w4a16-mix4.5");
        // XᵀX, the reference, and each of 48 parts.
        assert_eq!((all, choosing), (Some(200.0 * 50.0), Some(200.0 * 50.0)));
        let (asked, used) = (asked.unwrap(), used.unwrap());
        assert!(used <= asked && asked - used < 64.0, "{used} of {asked}");
    }
}
