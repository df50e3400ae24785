//! What a model costs: prefill and decode speed, and peak memory, against context length.
//!
//! Each length gives a row for `phase` "prefill" and one for "decode". The first call is timed apart (it warms caches and
//! allocates), then one call is thrown away, then the repetitions are timed: minimum, median and maximum are kept.
//! Prompts are seeded random tokens; nothing of the cost depends on what they say.

use super::instrument::{Listed, Table};
use super::limit::{MADE, at_most, fits, smaller};
use super::{Measure, subject, work};
use crate::error::{Error, Result};
use crate::memory::Watch;
use crate::model::Model;
use crate::model::init::stream;
use crate::progress::Progress;
use crate::record::{Conditions, Reading, fingerprint};
use crate::stats::Summary;
use crate::threads::{check_threads, install, threads, with_threads};
use candle_core::Device;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::time::Instant;

settings! {
    /// Prefill and decode speed, and peak memory, against length.
    pub struct Cost {
        /// Prompt lengths in tokens.
        #[arg(long, value_delimiter = ',')]
        pub lengths: Vec<usize>,
        /// Reading the prompt, and going on from it.
        #[arg(skip)]
        pub phases: Vec<Phase>,
        /// Tokens decoded in a repetition.
        #[arg(long)]
        pub gen_len: usize,
        /// Timed repetitions.
        #[arg(long)]
        pub repetitions: usize,
        /// Threads; those in force by default.
        #[arg(skip)]
        pub threads: Option<usize>,
        /// Seed of the prompts.
        #[arg(long)]
        pub seed: u64,
    }
}

/// Calls beside the repetitions: a first one, and one that is thrown away.
const CALLS: usize = 2;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The whole prompt is read, and the logits after it are made.
    Prefill,
    /// Tokens are read one by one after the prompt, each with its logits.
    Decode,
}

impl Default for Cost {
    fn default() -> Self {
        Self {
            lengths: vec![256, 512, 1024, 2048, 4096],
            phases: vec![Phase::Prefill, Phase::Decode],
            gen_len: 64,
            repetitions: 5,
            threads: None,
            seed: 7,
        }
    }
}

/// Times and memory of the calls.
struct Timed {
    first: f64,
    each: Vec<f64>,
    peak: Option<u64>,
    before: Option<u64>,
}

impl Cost {
    /// The cost at these prompt lengths, in tokens.
    pub fn lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self { lengths: lengths.into_iter().collect(), ..Self::default() }
    }

    /// Pins the number of threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Sets the number of timed repetitions.
    #[must_use]
    pub fn repetitions(mut self, repetitions: usize) -> Self {
        self.repetitions = repetitions;
        self
    }

    fn unit(&self, length: usize, phase: Phase) -> Self {
        Self { lengths: vec![length], phases: vec![phase], ..self.clone() }
    }

    /// Runs `call` 2 + repetitions times; each returns its seconds.
    fn time(
        &self,
        device: &Device,
        progress: &Progress,
        mut call: impl FnMut() -> Result<f64>,
    ) -> Result<Timed> {
        let watch = Watch::begin(device);
        let first = call()?;
        progress.tick(1)?;
        call()?;
        progress.tick(1)?;
        let mut each = vec![];
        for _ in 0..self.repetitions {
            each.push(call()?);
            progress.tick(1)?;
        }
        Ok(Timed { first, each, before: watch.before(), peak: watch.peak() })
    }

    fn measure_unit(&self, model: &Model, length: usize, phase: Phase) -> Result<Reading> {
        let mut rng = stream(self.seed, &format!("cost {length}"));
        let vocab = model.config.vocab_size() as u32;
        let ids: Vec<u32> = (0..length).map(|_| rng.random_range(0..vocab)).collect();
        let calls = self.repetitions.saturating_add(CALLS) as u64;
        let progress = Progress::new(&format!("cost {length}"), calls, "calls");
        let mut state = model.state(1)?;
        let (timed, tokens, state_bytes) = match phase {
            Phase::Prefill => {
                let timed = self.time(model.device(), &progress, || {
                    state.clear()?;
                    let clock = Instant::now();
                    model.prefill(&ids, &mut state)?;
                    Ok(clock.elapsed().as_secs_f64())
                });
                (timed?, length, state.bytes())
            }
            Phase::Decode => {
                let mut logits = model.prefill(&ids, &mut state)?;
                let state_bytes = state.bytes();
                let timed = self.time(model.device(), &progress, || {
                    // A call goes on behind the prompt where there is a way back to it; a recurrence has none, and its steps
                    // cost the same everywhere. The prompt is read again where the state would grow from call to call, and
                    // where the model reads no further.
                    let has_cache = state.layers.iter().any(|layer| layer.cache.is_some());
                    let after = state.position + self.gen_len;
                    let is_full = model.config.longest().is_some_and(|longest| after > longest);
                    if !state.rewind(length)? && (has_cache || is_full) {
                        state.clear()?;
                        model.prefill(&ids, &mut state)?;
                    }
                    let clock = Instant::now();
                    for i in 0..self.gen_len {
                        model.step_into(ids[i % length], &mut state, &mut logits)?;
                    }
                    Ok(clock.elapsed().as_secs_f64())
                });
                (timed?, self.gen_len, state_bytes)
            }
        };
        let conditions = Conditions {
            batch_size: Some(1),
            seq_len: Some(length as u64),
            gen_len: Some(self.gen_len as u64),
            seed: Some(self.seed),
            threads: Some(threads() as u64),
            ..Conditions::default()
        };
        let speeds: Vec<f64> = timed.each.iter().map(|seconds| tokens as f64 / seconds).collect();
        let speed = Summary::of(&speeds).ok_or_else(|| Error::internal("nothing was timed"))?;
        let added = timed.peak.zip(timed.before).map(|(peak, before)| peak.saturating_sub(before));
        Ok(Reading::new(Self::NAME, Self::VERSION, &subject(model), &conditions)
            .fingerprint(&self.unit(length, phase).fingerprint(model)?)
            .value("phase", if phase == Phase::Prefill { "prefill" } else { "decode" })
            .value("context_length", length)
            .value("tokens_per_s", speed.median)
            .value("tokens_per_s_min", speed.min)
            .value("tokens_per_s_max", speed.max)
            .value("first_call_s", timed.first)
            .value("repetitions", self.repetitions)
            .value("peak_bytes", timed.peak)
            .value("added_peak_bytes", added)
            .value("state_bytes", state_bytes))
    }
}

impl Measure for Cost {
    const NAME: &'static str = "cost";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        let all =
            self.lengths.iter().flat_map(|length| self.phases.iter().map(move |phase| (*length, *phase)));
        all.map(|(length, phase)| self.unit(length, phase)).collect()
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        fingerprint(Self::NAME, Self::VERSION, self, &subject(model), &self.threads.unwrap_or_else(threads))
    }

    fn check(&self, model: &Model) -> Result<()> {
        if self.lengths.is_empty() || self.lengths.contains(&0) || self.repetitions == 0 || self.gen_len == 0
        {
            return Err(Error::input("cost needs lengths, repetitions and gen_len of at least 1"));
        }
        at_most("lengths", self.lengths.iter().copied(), MADE)?;
        at_most("repetitions", [self.repetitions], MADE)?;
        at_most("gen_len", [self.gen_len], MADE)?;
        if self.phases.is_empty() {
            return Err(Error::input("cost needs a phase: prefill, decode or both"));
        }
        let decoded = if self.phases.contains(&Phase::Decode) { self.gen_len } else { 0 };
        let whole = self.lengths.iter().map(|length| length.saturating_add(decoded));
        fits(model, "lengths with what is decoded", whole)?;
        self.threads.map_or(Ok(()), check_threads)
    }

    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let all = || {
            let units = self.units().into_iter();
            units.map(|unit| self.measure_unit(model, unit.lengths[0], unit.phases[0])).collect()
        };
        // Within the pool, as a continuation is made: crossing into it is no part of a step.
        match self.threads {
            Some(threads) => with_threads(threads, all),
            None => install(all),
        }
    }
}

impl Listed for Cost {
    // Memory is measured without the model that a quantized one was made of.
    const ALONE: bool = true;
    const TABLES: &'static [Table] = &[Table::of(
        "cost",
        &[
            "model",
            "scheme",
            "threads",
            "phase",
            "context_length",
            "tokens_per_s",
            "first_call_s",
            "peak_bytes",
        ],
    )];

    fn work(&self, _model: &Model) -> f64 {
        (self.repetitions + CALLS) as f64 * work::prompts(&self.lengths, self.gen_len)
    }

    fn small(&mut self) {
        (self.lengths, self.gen_len, self.repetitions) = (smaller(&self.lengths, [128, 256]), 8, 3);
    }

    fn threaded(&mut self, threads: usize) {
        self.threads = Some(threads);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::counted::allocations;
    use crate::quantize::Scheme;
    use crate::threads::with_threads;

    /// The tensor library asks for a few words whenever a state's tensor is changed in place, and the lookup of a packed row
    /// once; nothing else does.
    #[test]
    fn a_step_allocates_no_buffers() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        for scheme in ["f32", "bf16", "f16", "w8a8", "w4a8", "w4a8-g64", "w8a8-h16"] {
            let model = model.quantized(&scheme.parse::<Scheme>().unwrap()).unwrap();
            let count = with_threads(1, || {
                let mut state = model.state(1)?;
                let mut logits = model.prefill(&[1, 2, 3], &mut state)?;
                model.step_into(4, &mut state, &mut logits)?;
                let mut done = Ok(());
                let count = allocations(|| done = model.step_into(5, &mut state, &mut logits));
                done.map(|()| count)
            });
            assert!(count.unwrap() <= 2 * model.config.layers() + 1, "{scheme}");
        }
    }

    #[test]
    fn both_phases_are_reported_for_every_length() {
        let model = Model::load("random:mamba2-tiny").unwrap();
        let cost =
            Cost { lengths: vec![16, 40], gen_len: 2, repetitions: 3, threads: Some(1), ..Cost::default() };
        let rows = cost.measure(&model).unwrap();
        let told: Vec<_> = rows
            .iter()
            .map(|row| format!("{} {}", row.values["phase"], row.values["context_length"]))
            .collect();
        assert_eq!(told, ["\"prefill\" 16", "\"decode\" 16", "\"prefill\" 40", "\"decode\" 40"]);
        for row in rows {
            let [low, mid, high] =
                ["tokens_per_s_min", "tokens_per_s", "tokens_per_s_max"].map(|n| row.number(n).unwrap());
            assert!(0.0 < low && low <= mid && mid <= high);
            assert_eq!(row.conditions.threads, Some(1));
            let (kept, taps) = (8 * 64 * 64 * 8, 640 * 4 * 8);
            assert_eq!(row.number("state_bytes"), Some(4.0 * f64::from(kept + taps)));
        }
    }
}
