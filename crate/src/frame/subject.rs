//! What the records of a frame say of each model in each scheme, for two of them to be compared.

use super::Frame;
use crate::error::{Error, Result};
use crate::record::{Row, SUMMARY};
use crate::stats::{Estimate, Interval};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// What makes two models of one name two, and what it is called in a name.
const APART: [(&str, &str); 3] =
    [("model_hash", "weights"), ("config_hash", "config"), ("tokenizer_hash", "tokenizer")];

/// Rows in which no two models have one name: where the hashes of one name differ, they are added to it, so that no mean,
/// table or figure takes the two for one. Also a sentence on each such name.
pub(super) fn tell_apart(rows: &[Row]) -> (Cow<'_, [Row]>, Vec<String>) {
    let text = |row: &Row, column: &str| row.get(column).and_then(|value| Some(value.as_str()?.to_string()));
    let mut found: BTreeMap<String, [BTreeSet<String>; 3]> = BTreeMap::new();
    for row in rows {
        let Some(model) = text(row, "model") else { continue };
        let hashes = found.entry(model).or_default();
        for ((column, _), hashes) in APART.iter().zip(hashes) {
            // Older records do not know of some.
            hashes.extend(text(row, column).filter(|hash| !hash.is_empty()));
        }
    }
    found.retain(|_, hashes| hashes.iter().any(|hashes| hashes.len() > 1));
    if found.is_empty() {
        return (Cow::Borrowed(rows), vec![]);
    }
    let mut names: BTreeMap<&String, BTreeSet<String>> = BTreeMap::new();
    let mut rows = rows.to_vec();
    for row in &mut rows {
        let model = text(row, "model").unwrap_or_default();
        let Some((model, hashes)) = found.get_key_value(&model) else { continue };
        let parts: Vec<String> = APART
            .iter()
            .zip(hashes)
            .filter(|(_, hashes)| hashes.len() > 1)
            .filter_map(|((column, word), _)| {
                let hash = text(row, column).filter(|hash| !hash.is_empty())?;
                Some(format!("{word} {}", hash.chars().take(8).collect::<String>()))
            })
            .collect();
        if !parts.is_empty() {
            let name = format!("{model} ({})", parts.join(", "));
            row.insert("model".to_string(), name.clone().into());
            names.entry(model).or_default().insert(name);
        }
    }
    let sentence = |(model, names): (&String, BTreeSet<String>)| {
        let names: Vec<String> = names.into_iter().collect();
        format!("the records are of several models named {model}: {}", names.join(", "))
    };
    let warnings = names.into_iter().map(sentence).collect();
    (Cow::Owned(rows), warnings)
}

/// A model in a scheme.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    pub model: String,
    pub hash: String,
    pub scheme: String,
}

/// The losses of a text, window by window.
pub(super) struct Score {
    pub bits_per_byte: f64,
    /// What makes two scores comparable: text and windows.
    text: String,
    nll: Vec<f64>,
    tokens: Vec<f64>,
    /// Windows of each document.
    documents: Vec<usize>,
    /// Nats per token → bits per byte.
    bits: f64,
}

impl Score {
    /// Bits per byte above another's, on the same windows.
    pub fn above(&self, base: &Self, interval: &Interval) -> Result<Option<Estimate>> {
        if self.text != base.text || self.nll.len() != base.nll.len() {
            return Err(Error::input("the texts or the windows are not those of the baseline")
                .hint("measure the perplexity of both with the same settings"));
        }
        let series = [self.nll.as_slice(), &base.nll, &self.tokens];
        Ok(interval.of(series, &self.documents, |[own, base, tokens]| self.bits * (own - base) / tokens))
    }
}

/// The last perplexity of each subject.
pub(super) fn scores(frame: &Frame) -> Result<BTreeMap<Subject, Score>> {
    let rows = frame.rows_of("perplexity", SUMMARY)?;
    if rows.height() == 0 {
        return Ok(BTreeMap::new());
    }
    let numbers = |name: &str| rows.known(name, Frame::numbers);
    let (bits, bytes, tokens) = (numbers("bits_per_byte")?, numbers("n_bytes")?, numbers("n_tokens")?);
    let lists = |name: &str| rows.known(name, Frame::lists);
    let (nll, counts) = (lists("window_nll")?, lists("window_tokens")?);
    // Older records do not know of documents.
    let documents = lists("document_windows")?;
    let told = ["corpus_hash", "seq_len", "stride", "n_tokens"].map(|name| rows.known(name, Frame::texts));
    let [corpus, seq_len, stride, scored] = told;
    let (corpus, seq_len, stride, scored) = (corpus?, seq_len?, stride?, scored?);
    let each = rows.each_subject()?.into_iter().enumerate().filter_map(|(i, subject)| {
        let per_byte = tokens[i]? / bytes[i]?;
        let score = Score {
            bits_per_byte: bits[i]?,
            text: format!("{:?}", [&corpus[i], &seq_len[i], &stride[i], &scored[i]]),
            nll: nll[i].clone()?,
            tokens: counts[i].clone()?,
            documents: documents[i].iter().flatten().map(|count| *count as usize).collect(),
            bits: per_byte / std::f64::consts::LN_2,
        };
        Some((subject, score))
    });
    Ok(each.collect())
}

/// What a record tells of the distance from its reference.
pub(super) struct Diverged {
    pub kl: f64,
    pub interval: Option<(f64, f64)>,
    /// Bits per byte above the reference's.
    pub delta: Option<Estimate>,
}

/// The last divergence of each subject.
pub(super) fn divergences(frame: &Frame) -> Result<BTreeMap<Subject, Diverged>> {
    let rows = frame.rows_of("divergence", SUMMARY)?;
    // Records of before there were intervals lack columns.
    let numbers = |name: &str| rows.known(name, Frame::numbers);
    let (kl, kl_low, kl_high) = (numbers("kl")?, numbers("kl_low")?, numbers("kl_high")?);
    let (delta, p) = (numbers("delta_bits_per_byte")?, numbers("ln_ppl_ratio_p")?);
    let (low, high) = (numbers("delta_bits_per_byte_low")?, numbers("delta_bits_per_byte_high")?);
    let (blocks, error, ratio) =
        (numbers("ln_ppl_ratio_blocks")?, numbers("ln_ppl_ratio_error")?, numbers("ln_ppl_ratio")?);
    let each = rows.each_subject()?.into_iter().enumerate().filter_map(|(i, subject)| {
        let delta = || {
            let (value, known) = (delta[i]?, |number: Option<f64>| number.unwrap_or(f64::NAN));
            // In bits per byte as in nats per token.
            let error = known(error[i]) * known(ratio[i].map(|ratio| value / ratio)).abs();
            Some(Estimate { value, error, low: low[i]?, high: high[i]?, p: p[i]?, blocks: known(blocks[i]) })
        };
        Some((subject, Diverged { kl: kl[i]?, interval: kl_low[i].zip(kl_high[i]), delta: delta() }))
    });
    Ok(each.collect())
}

/// Whether each prompt's key was recalled, by its length in tokens and by what makes a prompt the same prompt.
pub(super) type Trials = BTreeMap<u64, BTreeMap<String, bool>>;

/// The passkey trials of each subject.
pub(super) fn trials(frame: &Frame) -> Result<BTreeMap<Subject, Trials>> {
    let rows = frame.rows_of("passkey", "trial")?;
    let mut all: BTreeMap<Subject, Trials> = BTreeMap::new();
    if rows.height() == 0 {
        return Ok(all);
    }
    let told = ["depth", "key", "seed", "trial"].map(|name| rows.known(name, Frame::texts));
    let told = told.into_iter().collect::<Result<Vec<_>>>()?;
    let (correct, lengths) =
        (rows.known("correct", Frame::numbers)?, rows.known("context_length", Frame::numbers)?);
    for (i, subject) in rows.each_subject()?.into_iter().enumerate() {
        // Whose answer comes of logits that are no numbers has not been asked.
        let Some(correct) = correct[i].filter(|correct| !correct.is_nan()) else { continue };
        let prompt = format!("{:?}", told.iter().map(|column| &column[i]).collect::<Vec<_>>());
        let length = lengths[i].unwrap_or_default() as u64;
        all.entry(subject).or_default().entry(length).or_default().insert(prompt, correct == 1.0);
    }
    Ok(all)
}

/// Tasks that are asked item by item: what a table calls them, their measurement, and the column that says what was right.
const TASKS: [[&str; 3]; 4] = [
    ["copies", "copying", "correct"],
    ["words", "lambada", "correct"],
    ["choices", "choice", "correct"],
    ["choices by length", "choice", "correct_norm"],
];

/// Whether each item of a task was right, by what makes an item the same item.
pub(super) type Answers = BTreeMap<&'static str, BTreeMap<String, bool>>;

/// The items that each subject was asked.
pub(super) fn answers(frame: &Frame) -> Result<BTreeMap<Subject, Answers>> {
    let mut all: BTreeMap<Subject, Answers> = BTreeMap::new();
    for [task, measure, column] in TASKS {
        let rows = frame.rows_of(measure, "item")?;
        if rows.height() == 0 {
            continue;
        }
        let [file, item] = ["corpus_hash", "item"].map(|name| rows.known(name, Frame::texts));
        let (file, item, right) = (file?, item?, rows.known(column, Frame::numbers)?);
        for (i, subject) in rows.each_subject()?.into_iter().enumerate() {
            // What comes of logits that are no numbers is no answer.
            let Some(right) = right[i].filter(|right| !right.is_nan()) else { continue };
            let item = format!("{:?}", [&file[i], &item[i]]);
            all.entry(subject).or_default().entry(task).or_default().insert(item, right == 1.0);
        }
    }
    Ok(all)
}

impl Frame {
    pub(super) fn rows_of(&self, measure: &str, row: &str) -> Result<Self> {
        self.filter("measure", measure)?.filter("row", row)
    }

    /// A column as `read` gives it; nothing in any row where there is no such column.
    pub(super) fn known<T: Clone>(
        &self,
        name: &str,
        read: impl Fn(&Self, &str) -> Result<Vec<Option<T>>>,
    ) -> Result<Vec<Option<T>>> {
        if self.has(name) { read(self, name) } else { Ok(vec![None; self.height()]) }
    }

    pub(super) fn each_subject(&self) -> Result<Vec<Subject>> {
        let text = |name: &str| -> Result<Vec<String>> {
            Ok(self.known(name, Self::texts)?.into_iter().map(Option::unwrap_or_default).collect())
        };
        let named = text("model")?.into_iter().zip(text("model_hash")?).zip(text("scheme")?);
        Ok(named.map(|((model, hash), scheme)| Subject { model, hash, scheme }).collect())
    }
}
