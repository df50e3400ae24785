//! Schemes beside a baseline: differences with their intervals, and whether they are differences at all.
//!
//! Everything is paired and comes from records alone. Bits per byte: the losses of both on the same windows of the text,
//! with the [`Interval`] of blocks or documents. Passkeys and items of tasks: the same prompts, in McNemar's test. The
//! divergence from the reference is shown with the interval that its record holds; where no perplexity was measured and the
//! baseline is the reference itself, the difference in bits per byte is that record's too.
//!
//! **The family.** All of these tests are adjusted together (Holm): models × schemes × (bits per byte, keys of each length, items of
//! each task).
//! A frame that was filtered to one length or scheme remembers what it was filtered from, and its p-values stay those of
//! the whole: who picks the length where a difference shows has looked at all of them. Keys of a length where few prompts
//! came out differently have few possible p-values, and count against another only by those ([`holm_discrete`]); for that
//! the exact p-values are taken.

mod contexts;
mod table;

use super::Frame;
use super::subject::{Diverged, Subject, answers, divergences, scores, trials};
use crate::error::{Error, Result};
use crate::record::SUMMARY;
use crate::stats::{Estimate, Interval, McNemar, holm_discrete};
use std::collections::{BTreeMap, BTreeSet};

/// Above this adjusted p-value a difference may be chance.
pub(super) const ALPHA: f64 = 0.05;

/// The schemes of each model beside a baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Name of the baseline's scheme.
    pub baseline: String,
    /// One for each model and scheme, in the order of the records; the baseline is among them.
    pub rows: Vec<Compared>,
    /// Of how many tests the p-values are adjusted for being one: those of the records that were filtered too, and those that
    /// count little since their p-values cannot be small.
    pub tests: usize,
    /// Which tests these are, in words.
    pub family: String,
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
    /// p-value of that difference, adjusted over the family.
    pub delta_p: Option<f64>,
    /// Mean divergence per token from the reference of the record, in nats, and its interval.
    pub kl: Option<(f64, Option<(f64, f64)>)>,
    /// The passkeys, length by length.
    pub keys: Vec<Keys>,
    /// The tasks that were asked item by item.
    pub tasks: Vec<Task>,
}

/// Passkeys of one length that baseline and scheme were both asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keys {
    /// Tokens of the prompts.
    pub context_length: u64,
    /// Keys that the scheme recalled.
    pub recalled: u64,
    /// Prompts.
    pub prompts: u64,
    /// Baseline (first) and scheme (second), prompt by prompt.
    pub mcnemar: McNemar,
    /// The exact p-value of that test, adjusted over the family; `None` for the baseline.
    pub p: Option<f64>,
}

/// Items of a task that baseline and scheme were both asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Task {
    /// What was asked for: `words` of LAMBADA, `choices`, `choices by length`.
    pub name: &'static str,
    /// Items that the scheme got right.
    pub right: u64,
    /// Items.
    pub items: u64,
    /// Baseline (first) and scheme (second), item by item.
    pub mcnemar: McNemar,
    /// The exact p-value of that test, adjusted over the family; `None` for the baseline.
    pub p: Option<f64>,
}

impl Frame {
    /// The schemes of each model beside `baseline`, the name of a scheme that the records hold.
    ///
    /// # Errors
    /// If there are no such records, or the windows of two schemes are not the same.
    pub fn compare(&self, baseline: &str) -> Result<Comparison> {
        self.compare_with(baseline, &Interval::default())
    }

    /// As [`compare`](Self::compare), with intervals found in another way.
    ///
    /// # Errors
    /// As [`compare`](Self::compare), and if the settings of the interval mean nothing.
    pub fn compare_with(&self, baseline: &str, interval: &Interval) -> Result<Comparison> {
        interval.check()?;
        let mut rows: Vec<(Subject, Compared)> = self.beside(baseline, interval)?;
        if rows.is_empty() {
            return Err(Error::input(
                "there is nothing to compare: no perplexity, divergence, passkeys or items",
            ));
        }
        // The family is of everything that was measured; a whole that cannot be compared adds nothing to the part.
        let whole = self.whole().beside(baseline, interval).unwrap_or_else(|_| rows.clone());
        let tests: Vec<(Test, Tried)> =
            whole.iter().flat_map(|(subject, row)| row.tests(subject, baseline)).collect();
        let p: Vec<f64> = tests.iter().map(|(_, tried)| tried.p()).collect();
        let adjusted = holm_discrete(&p, |test, p| tests[test].1.reach(p));
        let adjusted: BTreeMap<&Test, f64> = tests.iter().map(|(test, _)| test).zip(adjusted).collect();
        let family = family(tests.iter().map(|(test, _)| test));
        for (subject, row) in &mut rows {
            let p = |about| adjusted.get(&(subject.clone(), about)).copied().filter(|p| !p.is_nan());
            row.delta_p = p(About::Text);
            row.keys.iter_mut().for_each(|keys| keys.p = p(About::Keys(keys.context_length)));
            row.tasks.iter_mut().for_each(|task| task.p = p(About::Task(task.name)));
        }
        let rows = rows.into_iter().map(|(_, row)| row).collect();
        Ok(Comparison { baseline: baseline.to_string(), rows, tests: tests.len(), family })
    }

    /// Each subject beside the baseline, without adjusted p-values.
    fn beside(&self, baseline: &str, interval: &Interval) -> Result<Vec<(Subject, Compared)>> {
        let (scores, trials, answers) = (scores(self)?, trials(self)?, answers(self)?);
        let kl = divergences(self)?;
        let bytes = self.each_subject()?.into_iter().zip(self.known("weight_bytes", Self::numbers)?);
        let bytes: BTreeMap<Subject, f64> =
            bytes.filter_map(|(subject, bytes)| Some((subject, bytes?))).collect();
        let mut subjects: Vec<Subject> = Vec::new();
        for measure in ["perplexity", "divergence", "passkey", "copying", "lambada", "choice"] {
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
                row.delta = score.above(base, interval).map_err(|e| e.at(&subject.scheme))?;
            } else if let (Some(found), Some(Diverged { kl: 0.0, .. })) = (kl.get(subject), kl.get(&base)) {
                row.delta = found.delta;
            }
            if let (Some(own), Some(base)) = (trials.get(subject), trials.get(&base)) {
                let both = own.iter().filter_map(|(length, own)| Some((*length, own, base.get(length)?)));
                row.keys = both.map(|(length, own, base)| Keys::of(length, own, base)).collect();
            }
            if let (Some(own), Some(base)) = (answers.get(subject), answers.get(&base)) {
                let both = own.iter().filter_map(|(name, own)| Some((*name, own, base.get(name)?)));
                row.tasks = both.map(|(name, own, base)| Task::of(name, own, base)).collect();
            }
            rows.push((subject.clone(), row));
        }
        Ok(rows)
    }
}

/// What a test is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Text,
    Keys(u64),
    Task(&'static str),
}

/// A test of a family: of whom, and about what.
type Test = (Subject, About);

/// What came of a test.
enum Tried {
    /// A p-value that may have been any.
    Text(f64),
    Pairs(McNemar),
}

impl Tried {
    fn p(&self) -> f64 {
        match self {
            Self::Text(p) => *p,
            Self::Pairs(test) => test.exact,
        }
    }

    /// The probability of a p-value of at most `p` if there is nothing to find.
    fn reach(&self, p: f64) -> f64 {
        match self {
            Self::Text(_) => p,
            Self::Pairs(test) => test.reach(p),
        }
    }
}

/// The tests of a family in words: `5 schemes × (bits per byte, keys at 1024 and 2048 tokens)`.
fn family<'a>(tests: impl Iterator<Item = &'a Test>) -> String {
    let (mut models, mut schemes, mut abouts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (subject, about) in tests {
        models.insert((&subject.model, &subject.hash));
        schemes.insert(&subject.scheme);
        abouts.insert(*about);
    }
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let lengths: Vec<String> = abouts
        .iter()
        .filter_map(|about| match about {
            About::Keys(length) => Some(length.to_string()),
            About::Text | About::Task(_) => None,
        })
        .collect();
    let text = abouts.contains(&About::Text).then(|| "bits per byte".to_string());
    let keys = (!lengths.is_empty()).then(|| format!("keys at {} tokens", lengths.join(", ")));
    let tasks = abouts.iter().filter_map(|about| match about {
        About::Task(name) => Some((*name).to_string()),
        About::Text | About::Keys(_) => None,
    });
    let abouts: Vec<String> = text.into_iter().chain(keys).chain(tasks).collect();
    let models = (models.len() > 1).then(|| plural(models.len(), "model"));
    let parts =
        models.into_iter().chain([plural(schemes.len(), "scheme"), format!("({})", abouts.join("; "))]);
    parts.collect::<Vec<_>>().join(" × ")
}

/// What both were asked: how many the scheme passed, how many they are, and the test of baseline (first) and scheme.
fn paired(own: &BTreeMap<String, bool>, base: &BTreeMap<String, bool>) -> (u64, u64, McNemar) {
    let pairs: Vec<(bool, bool)> =
        own.iter().filter_map(|(item, passed)| Some((*base.get(item)?, *passed))).collect();
    let passed = pairs.iter().filter(|(_, passed)| *passed).count() as u64;
    (passed, pairs.len() as u64, McNemar::of(pairs))
}

impl Keys {
    fn of(context_length: u64, own: &BTreeMap<String, bool>, base: &BTreeMap<String, bool>) -> Self {
        let (recalled, prompts, mcnemar) = paired(own, base);
        Self { context_length, recalled, prompts, mcnemar, p: None }
    }
}

impl Task {
    fn of(name: &'static str, own: &BTreeMap<String, bool>, base: &BTreeMap<String, bool>) -> Self {
        let (right, items, mcnemar) = paired(own, base);
        Self { name, right, items, mcnemar, p: None }
    }
}

impl Compared {
    /// The tests that it takes part in; none of the baseline, nor where nothing is known.
    fn tests(&self, subject: &Subject, baseline: &str) -> Vec<(Test, Tried)> {
        if self.scheme == baseline {
            return vec![];
        }
        let text = self.delta.map(|delta| (About::Text, Tried::Text(delta.p)));
        let keys =
            self.keys.iter().map(|keys| (About::Keys(keys.context_length), Tried::Pairs(keys.mcnemar)));
        let tasks = self.tasks.iter().map(|task| (About::Task(task.name), Tried::Pairs(task.mcnemar)));
        let all = text.into_iter().chain(keys).chain(tasks).filter(|(_, tried)| !tried.p().is_nan());
        all.map(|(about, tried)| ((subject.clone(), about), tried)).collect()
    }

    /// What the tests allow to say of it beside the baseline.
    pub fn verdict(&self) -> String {
        let text = self.delta.and_then(|delta| match self.delta_p {
            Some(p) if p >= ALPHA => Some("not distinguishable".to_string()),
            Some(_) if delta.value > 0.0 => Some("worse".to_string()),
            Some(_) => Some("better".to_string()),
            None => delta.is_alone().then(|| "too little text".to_string()),
        });
        let told = |word: &str, of: fn(&McNemar) -> bool| {
            let lengths: Vec<String> = self
                .keys
                .iter()
                .filter(|keys| keys.p.is_some_and(|p| p < ALPHA) && of(&keys.mcnemar))
                .map(|keys| keys.context_length.to_string())
                .collect();
            (!lengths.is_empty()).then(|| format!("{word} keys at {}", lengths.join(", ")))
        };
        let keys =
            [told("fewer", |test| test.lost > test.gained), told("more", |test| test.lost < test.gained)];
        let found = self.tasks.iter().filter(|task| task.p.is_some_and(|p| p < ALPHA)).map(|task| {
            let word = if task.mcnemar.lost > task.mcnemar.gained { "fewer" } else { "more" };
            format!("{word} {}", task.name)
        });
        let tested =
            self.keys.iter().any(|keys| keys.p.is_some()) || self.tasks.iter().any(|task| task.p.is_some());
        let all: Vec<String> = text.into_iter().chain(keys.into_iter().flatten()).chain(found).collect();
        if all.is_empty() && tested { "not distinguishable".into() } else { all.join(", ") }
    }
}

#[cfg(test)]
mod tests;
