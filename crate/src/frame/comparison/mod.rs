//! Schemes beside a baseline: differences with their intervals, and whether they are differences at all.
//!
//! Everything is paired and comes from records alone. Bits per byte: the losses of both on the same windows of the text,
//! in a block bootstrap. Passkeys: the same prompts, in McNemar's test. Both families of tests are adjusted by Holm over
//! the schemes of a model. The divergence from the reference is shown with the interval that its record holds; where no
//! perplexity was measured and the baseline is the reference itself, the difference in bits per byte is that record's too.

mod table;

use super::Frame;
use super::subject::{Diverged, Subject, divergences, scores, trials};
use crate::error::{Error, Result};
use crate::record::SUMMARY;
use crate::stats::{Bootstrap, Estimate, McNemar, holm};
use std::collections::BTreeMap;

/// Above this adjusted p-value a difference may be chance.
const ALPHA: f64 = 0.05;

/// The schemes of each model beside a baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Name of the baseline's scheme.
    pub baseline: String,
    /// One for each model and scheme, in the order of the records; the baseline is among them.
    pub rows: Vec<Compared>,
}

/// One scheme beside the baseline; what was not measured of it is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compared {
    /// Name of the model.
    pub model: String,
    /// Name of the scheme.
    pub scheme: String,
    /// Bytes of the weights.
    pub weight_bytes: Option<f64>,
    /// Bits per byte of text.
    pub bits_per_byte: Option<f64>,
    /// Bits per byte above the baseline's on the same text.
    pub delta: Option<Estimate>,
    /// p-value of that difference, adjusted over the model's schemes.
    pub delta_p: Option<f64>,
    /// Mean divergence per token from the reference of the record, in nats, and its interval.
    pub kl: Option<(f64, Option<(f64, f64)>)>,
    /// Passkeys recalled, of all prompts that baseline and scheme were both given.
    pub recalled: Option<(u64, u64)>,
    /// The passkeys of baseline (first) and scheme (second), prompt by prompt.
    pub mcnemar: Option<McNemar>,
    /// The mid-p value of that test, adjusted over the model's schemes.
    pub mcnemar_p: Option<f64>,
}

impl Frame {
    /// The schemes of each model beside `baseline`, the name of a scheme that the records hold.
    ///
    /// Losses are resampled in blocks of four windows of the text; [`compare_with`](Self::compare_with) takes others.
    ///
    /// # Errors
    /// If there are no such records, or the windows of two schemes are not the same.
    pub fn compare(&self, baseline: &str) -> Result<Comparison> {
        self.compare_with(baseline, &Bootstrap::default().block(4))
    }

    /// As [`compare`](Self::compare), with a bootstrap whose blocks are so many windows.
    ///
    /// # Errors
    /// As [`compare`](Self::compare).
    pub fn compare_with(&self, baseline: &str, bootstrap: &Bootstrap) -> Result<Comparison> {
        let (scores, trials) = (scores(self)?, trials(self)?);
        let kl = divergences(self)?;
        let bytes = self.each_subject()?.into_iter().zip(self.known("weight_bytes", Self::numbers)?);
        let bytes: BTreeMap<Subject, f64> =
            bytes.filter_map(|(subject, bytes)| Some((subject, bytes?))).collect();
        let mut subjects: Vec<Subject> = Vec::new();
        for measure in ["perplexity", "divergence", "passkey"] {
            for subject in self.rows_of(measure, SUMMARY)?.each_subject()? {
                if !subjects.contains(&subject) {
                    subjects.push(subject);
                }
            }
        }
        let mut rows = Vec::new();
        for subject in &subjects {
            let base = Subject { scheme: baseline.to_string(), ..subject.clone() };
            if !subjects.contains(&base) {
                let known: Vec<&str> = subjects.iter().map(|subject| subject.scheme.as_str()).collect();
                return Err(Error::input(format!("there is no reading of {} in {baseline}", subject.model))
                    .hint(format!("the records hold {}", known.join(", "))));
            }
            let score = scores.get(subject);
            let mut row = Compared {
                model: subject.model.clone(),
                scheme: subject.scheme.clone(),
                weight_bytes: bytes.get(subject).copied(),
                bits_per_byte: score.map(|score| score.bits_per_byte),
                kl: kl.get(subject).map(|found| (found.kl, found.interval)),
                ..Compared::default()
            };
            if let (Some(score), Some(base)) = (score, scores.get(&base)) {
                row.delta = score.above(base, bootstrap).map_err(|e| e.at(&subject.scheme))?;
            } else if let (Some(found), Some(Diverged { kl: 0.0, .. })) = (kl.get(subject), kl.get(&base)) {
                row.delta = found.delta;
            }
            if let (Some(own), Some(base)) = (trials.get(subject), trials.get(&base)) {
                let pairs: Vec<(bool, bool)> =
                    own.iter().filter_map(|(prompt, passed)| Some((*base.get(prompt)?, *passed))).collect();
                let passed = pairs.iter().filter(|(_, passed)| *passed).count();
                row.recalled = Some((passed as u64, pairs.len() as u64));
                row.mcnemar = Some(McNemar::of(pairs));
            }
            rows.push(row);
        }
        if rows.is_empty() {
            return Err(Error::input("there is nothing to compare: no perplexity, divergence or passkeys"));
        }
        adjust(&mut rows, baseline);
        Ok(Comparison { baseline: baseline.to_string(), rows })
    }
}

/// Adjusts the p-values of each model's schemes; the baseline is not among those tested.
fn adjust(rows: &mut [Compared], baseline: &str) {
    let models: Vec<String> = rows.iter().map(|row| row.model.clone()).collect();
    for model in models.iter().collect::<std::collections::BTreeSet<_>>() {
        let tested: Vec<usize> =
            (0..rows.len()).filter(|i| rows[*i].model == *model && rows[*i].scheme != baseline).collect();
        let known = |p: Option<f64>| p.unwrap_or(f64::NAN);
        let deltas: Vec<f64> = tested.iter().map(|i| known(rows[*i].delta.map(|delta| delta.p))).collect();
        let pairs: Vec<f64> = tested.iter().map(|i| known(rows[*i].mcnemar.map(|test| test.mid))).collect();
        for ((i, delta), pair) in tested.into_iter().zip(holm(&deltas)).zip(holm(&pairs)) {
            rows[i].delta_p = Some(delta).filter(|p| !p.is_nan());
            rows[i].mcnemar_p = Some(pair).filter(|p| !p.is_nan());
        }
    }
}

impl Compared {
    /// What the tests allow to say of it beside the baseline.
    pub fn verdict(&self) -> String {
        let text = self.delta_p.zip(self.delta).map(|(p, delta)| match () {
            () if p >= ALPHA => "not distinguishable",
            () if delta.value > 0.0 => "worse",
            () => "better",
        });
        let keys = self.mcnemar_p.zip(self.mcnemar).and_then(|(p, test)| match () {
            () if p >= ALPHA => text.is_none().then_some("not distinguishable"),
            () if test.lost > test.gained => Some("fewer keys"),
            () => Some("more keys"),
        });
        [text, keys].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Row;
    use serde_json::{Value, json};

    /// Perplexity of 80 windows whose losses go up and down together, `above` that of the text and a bit of its own.
    fn perplexity(scheme: &str, above: f64, own: f64) -> Value {
        let nll: Vec<f64> = (0..80)
            .map(|i| 700.0 + 80.0 * (f64::from(i) / 9.0).sin() + above + own * (f64::from(i) * 2.3).sin())
            .collect();
        let bits = nll.iter().sum::<f64>() / 40_960.0 / std::f64::consts::LN_2;
        json!({
            "measure": "perplexity", "row": "summary", "model": "m", "model_hash": "1", "scheme": scheme,
            "weight_bytes": 2_000_000, "corpus_hash": "c", "seq_len": 512, "stride": 512, "n_tokens": 40_960,
            "n_bytes": 40_960, "bits_per_byte": bits, "window_nll": nll, "window_tokens": vec![512; 80],
        })
    }

    fn passkeys(scheme: &str, passed: usize) -> Vec<Value> {
        let common =
            json!({"measure": "passkey", "model": "m", "model_hash": "1", "scheme": scheme, "seed": 7});
        let with = |more: Value| {
            let mut row = common.as_object().unwrap().clone();
            row.extend(more.as_object().unwrap().clone());
            Value::Object(row)
        };
        let trial = |i: usize| {
            with(json!({
                "row": "trial", "trial": i, "context_length": 256, "depth": 0.5, "key": format!("{i:05}"),
                "correct": u8::from(i < passed),
            }))
        };
        (0..40).map(trial).chain([with(json!({"row": "summary"}))]).collect()
    }

    fn frame(rows: Vec<Value>) -> Frame {
        let rows: Vec<Row> = rows.into_iter().map(|row| row.as_object().unwrap().clone()).collect();
        Frame::from_rows(&rows).unwrap()
    }

    #[test]
    fn differences_are_told_from_chance() {
        let mut rows = vec![
            perplexity("f32", 0.0, 0.0),
            perplexity("same", 0.0, 0.0),
            perplexity("noise", 0.05, 5.0),
            perplexity("worse", 3.0, 5.0),
            json!({"measure": "divergence", "row": "summary", "model": "m", "model_hash": "1", "scheme": "worse",
                   "kl": 0.0123, "kl_low": 0.01, "kl_high": 0.015}),
        ];
        for (scheme, passed) in [("f32", 40), ("same", 40), ("noise", 38), ("worse", 10)] {
            rows.extend(passkeys(scheme, passed));
        }
        let comparison = frame(rows).compare("f32").unwrap();
        let verdicts: Vec<String> = comparison.rows.iter().map(Compared::verdict).collect();
        assert_eq!(verdicts, ["", "not distinguishable", "not distinguishable", "worse, fewer keys"]);
        let delta = comparison.rows[3].delta.unwrap();
        assert!((delta.value - 3.0 / 512.0 / std::f64::consts::LN_2).abs() < 3e-4, "{delta:?}");
        assert!(delta.low > 0.0 && delta.high < 2.0 * delta.value);
        // Unpaired, the text's own ups and downs would hide it.
        let apart = comparison.rows[3].bits_per_byte.unwrap() - comparison.rows[0].bits_per_byte.unwrap();
        assert!((apart - delta.value).abs() < 1e-9);
        assert_eq!(
            (comparison.rows[3].mcnemar.unwrap().lost, comparison.rows[3].recalled),
            (30, Some((10, 40)))
        );
        // Three schemes are tested: the smallest p-value is tripled.
        let row = &comparison.rows[3];
        assert!((row.mcnemar_p.unwrap() - 3.0 * row.mcnemar.unwrap().mid).abs() < 1e-15);
        let text = comparison.to_string();
        for part in
            ["baseline", "not distinguishable", "worse, fewer keys", ".0123 [.0100, .0150]", "10/40", "<.001"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let numbers = comparison.frame().unwrap();
        assert_eq!(numbers.numbers("delta").unwrap()[1], Some(0.0));
        assert_eq!(numbers.numbers("kl_high").unwrap()[3], Some(0.015));
    }

    #[test]
    fn a_divergence_from_the_baseline_tells_the_difference() {
        let divergence = |scheme: &str, kl: f64, delta: f64| {
            json!({"measure": "divergence", "row": "summary", "model": "m", "model_hash": "1", "scheme": scheme,
                   "weight_bytes": 1, "kl": kl, "delta_bits_per_byte": delta, "delta_bits_per_byte_low": delta - 0.01,
                   "delta_bits_per_byte_high": delta + 0.01, "ln_ppl_ratio_p": if delta > 0.01 { 0.002 } else { 0.6 }})
        };
        let rows = frame(vec![
            divergence("f32", 0.0, 0.0),
            divergence("w4", 0.01, 0.1),
            divergence("w8", 0.001, 0.001),
        ]);
        let beside = rows.compare("f32").unwrap();
        assert_eq!([1, 2].map(|i| beside.rows[i].verdict()), ["worse", "not distinguishable"]);
        assert_eq!((beside.rows[1].delta_p, beside.rows[1].delta.unwrap().low), (Some(0.004), 0.1 - 0.01));
        // Another baseline is not what the records compared with.
        assert!(rows.compare("w8").unwrap().rows.iter().all(|row| row.delta.is_none()));
    }

    #[test]
    fn what_cannot_be_paired_is_refused() {
        let mut other = perplexity("w4", 1.0, 0.0);
        let rows = frame(vec![perplexity("f32", 0.0, 0.0), other.clone()]);
        let sentence = rows.compare("bf16").unwrap_err().to_string();
        assert_eq!(sentence, "there is no reading of m in bf16; the records hold f32, w4");
        other["corpus_hash"] = json!("another");
        let sentence =
            frame(vec![perplexity("f32", 0.0, 0.0), other]).compare("f32").unwrap_err().to_string();
        assert!(
            sentence.contains("w4: the texts or the windows are not those of the baseline"),
            "{sentence}"
        );
        let nothing = frame(vec![
            json!({"measure": "cost", "row": "summary", "model": "m", "model_hash": "1", "scheme": "f32", "weight_bytes": 1}),
        ]);
        assert!(nothing.compare("f32").unwrap_err().to_string().contains("nothing to compare"));
    }
}
