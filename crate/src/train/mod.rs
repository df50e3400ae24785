//! Training: a seeded model, a mixture of text and prompts, AdamW, and checkpoints that resume exactly.
//!
//! | file | holds |
//! |---|---|
//! | [`data`] | batches, a function of seed and step |
//! | [`loss`] | weighted cross-entropy |
//! | [`adamw`] | the optimizer |
//! | [`schedule`] | the learning rate over a run |
//! | `validation` | held-out text and recall, scored on the way |

pub mod adamw;
pub mod data;
pub mod loss;
pub mod schedule;
mod validation;

use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::family::{Config, Gradients, Stack, Tensors};
use crate::kernel::norm::add;
use crate::layer::recurrence::Recurrence;
use crate::layer::room::Room;
use crate::model::checkpoint::{Checkpoint, Wanted};
use crate::model::init;
use crate::model::safetensors::save_safetensors;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Loading, Model, parse_tokenizer};
use crate::progress::Progress;
use crate::threads::install;
use candle_core::DType;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Everything that a training run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// The model.
    pub model: Config,
    /// A model of this shape whose weights the run starts from; none: seeded random ones.
    pub start: Option<String>,
    /// How text is read: `bytes`, or the path of a `tokenizer.json` or of its folder; none: as the start reads it, and as
    /// bytes where there is no start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Folder with the splits `train` and `valid`.
    pub corpus: PathBuf,
    /// Updates in all.
    pub steps: u64,
    /// Seed of weights and batches.
    pub seed: u64,
    /// What a batch is made of.
    pub mixture: data::Mixture,
    /// The learning rate over the run.
    pub schedule: schedule::Schedule,
    /// The optimizer.
    pub optimizer: adamw::AdamW,
    /// Parameters with settings of their own.
    pub groups: Vec<adamw::Group>,
    /// How the products of a recurrence's chunks are rounded while it trains, such as qk4-smoothqk-svfp8, as in the names of schemes;
    /// none: not at all. The way back takes them for exact (straight-through).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub products: Option<String>,
    /// Steps between validations.
    pub validate_every: u64,
    /// Windows of `seq_len` that a validation scores.
    pub validate_windows: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            model: Config::Mamba2(crate::family::mamba2::Config::default()),
            start: None,
            tokenizer: None,
            corpus: PathBuf::from("data/corpus"),
            steps: 3600,
            seed: 0,
            mixture: data::Mixture::default(),
            schedule: schedule::Schedule::default(),
            optimizer: adamw::AdamW::default(),
            groups: vec![],
            products: None,
            validate_every: 250,
            validate_windows: 64,
            checkpoint_every: 100,
        }
    }
}

/// What a finished run reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Updates made in all, before and after any resumption.
    pub steps: u64,
    /// Bits per byte on the validation windows.
    pub valid_bits_per_byte: f64,
    /// Tokens per second of this process's steps.
    pub tokens_per_s: f64,
    /// The trained weights, f32, as a checkpoint folder.
    pub model: PathBuf,
}

impl Training {
    /// Trains in `folder`, going on from its last checkpoint if there is one.
    ///
    /// The folder gets `training.yaml`, `log.jsonl`, `checkpoint.safetensors` and, at the end, `model/`. A run that
    /// was killed and resumed ends with the same weights as one that was not.
    pub fn run(&self, folder: &Path) -> Result<Outcome> {
        install(|| self.run_in_pool(folder))
    }

    fn run_in_pool(&self, folder: &Path) -> Result<Outcome> {
        crate::memory::keep_large_buffers();
        self.check()?;
        let start = self.started(folder)?;
        let how = Loading { tokenizer: Some(self.reader(start.as_ref())?), ..Loading::default() };
        let tokenizer = how.tokenizer.clone().unwrap_or_default();
        let train = Corpus::split(&self.corpus, "train")?;
        let valid = validation::Text::new(&Corpus::split(&self.corpus, "valid")?, &tokenizer, self)?;
        let recall = validation::Recall::new(&tokenizer, self)?;
        let data = data::Data::new(self.mixture.clone(), &train, tokenizer, self.seed)?;
        let weights = self.initial(start, &how, folder)?;
        let matrices: BTreeSet<String> =
            self.model.tensors().into_iter().filter(|spec| spec.matrix).map(|spec| spec.name).collect();
        let decays = |name: &str| matrices.contains(name);
        let mut optimizer = adamw::Optimizer::new(self.optimizer.clone(), &self.groups, &weights, decays)?;
        // Bad input has ended here: a folder claimed by wrong settings would refuse the right ones.
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, &error))?;
        self.claim(folder)?;
        let checkpoint = folder.join("checkpoint.safetensors");
        if checkpoint.exists() {
            resume(&mut optimizer, &checkpoint)?;
        }
        let mut log = Log::open(&folder.join("log.jsonl"), optimizer.steps)?;
        let started = (Instant::now(), optimizer.steps);
        let progress = Progress::new("train", self.steps, "steps");
        progress.tick(optimizer.steps)?;
        let (mut bits, mut work) = (None, Work::default());
        while optimizer.steps < self.steps {
            let (step, clock) = (optimizer.steps, Instant::now());
            let rate = self.schedule.rate(step, self.steps);
            let network = self.network(&optimizer.tensors())?;
            let (loss, grads) = self.gradients(&network, &data.batch(step)?, &mut work)?;
            let norm = optimizer.update(grads, rate)?;
            let done = optimizer.steps;
            let tokens = self.mixture.batch_size * self.mixture.seq_len;
            let speed = tokens as f64 / clock.elapsed().as_secs_f64();
            log.write(&json!({
                "step": done, "tokens": done * tokens as u64, "loss": loss, "lr": rate, "grad_norm": norm,
                "tokens_per_s": speed.round(), "elapsed_s": (started.0.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            }))?;
            let last = done == self.steps;
            if done % self.validate_every == 0 || last {
                let network = self.network(&optimizer.tensors())?;
                let found = valid.bits_per_byte(&network)?;
                let mut event =
                    json!({"step": done, "tokens": done * tokens as u64, "valid_bits_per_byte": found});
                if let Some((accuracy, key_logprob)) = recall.of(&network)? {
                    event["passkey_accuracy"] = json!(accuracy);
                    event["key_logprob"] = json!(key_logprob);
                }
                log.write(&event)?;
                bits = Some(found);
            }
            if done % self.checkpoint_every == 0 || last {
                let metadata = BTreeMap::from([("steps".to_string(), done.to_string())]);
                save_safetensors(&checkpoint, &optimizer.save()?, &metadata)?;
            }
            let shown = bits.map_or(String::new(), |bits| format!("  valid {bits:.3} bits/byte"));
            progress.message(format!("loss {loss:.3}  {speed:.0} tokens/s{shown}"));
            progress.tick(1)?;
        }
        let model = folder.join("model");
        let tensors = optimizer.tensors();
        Model::from_tensors("model", self.model.clone(), tensors.clone(), &how)?.save(&model)?;
        let bits = match bits {
            Some(bits) => bits,
            None => valid.bits_per_byte(&self.model.stack(&tensors, &Default::default())?)?,
        };
        let tokens =
            (optimizer.steps - started.1) as f64 * (self.mixture.batch_size * self.mixture.seq_len) as f64;
        let tokens_per_s = tokens / started.0.elapsed().as_secs_f64();
        Ok(Outcome { steps: optimizer.steps, valid_bits_per_byte: bits, tokens_per_s, model })
    }

    /// Refuses settings that no run can follow.
    fn check(&self) -> Result<()> {
        self.model.recipe().check().map_err(|error| error.at("model"))?;
        for (name, value) in [
            ("mixture.batch_size", self.mixture.batch_size as u64),
            ("mixture.seq_len", self.mixture.seq_len as u64),
            ("validate_every", self.validate_every),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            if value == 0 {
                return Err(Error::input(format!("{name} must be at least 1, found 0")));
            }
        }
        for (name, value, most) in [
            ("mixture.batch_size", self.mixture.batch_size, 1 << 16),
            ("mixture.seq_len", self.mixture.seq_len, self.model.longest().unwrap_or(usize::MAX)),
            ("mixture.digits", self.mixture.digits, 1000),
        ] {
            if value > most {
                return Err(Error::input(format!("{name} must be at most {most}, found {value}")));
            }
        }
        let (passkey, copying) = (self.mixture.passkey, self.mixture.copying);
        for (name, share) in
            [("mixture.passkey", passkey), ("mixture.copying", copying), ("their sum", passkey + copying)]
        {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::input(format!("{name} is a share from 0 to 1, found {share}")));
            }
        }
        if copying > 0.0 {
            crate::corpus::copying::trial(0, self.mixture.seq_len, self.mixture.keys, 0)
                .map_err(|error| error.at("mixture.keys"))?;
        }
        self.rounded()?;
        let peak = self.schedule.peak;
        if !peak.is_finite() || peak < 0.0 {
            return Err(Error::input(format!("schedule.peak must be a learning rate, found {peak}")));
        }
        Ok(())
    }

    /// What of the recurrence is rounded while it trains.
    fn rounded(&self) -> Result<Recurrence> {
        let products = self.products.as_ref().map(|name| name.parse()).transpose();
        let products = products.map_err(|error: Error| error.at("products"))?;
        Ok(Recurrence { products, ..Recurrence::default() })
    }

    /// The network of these weights, with what is rounded while it trains.
    fn network(&self, tensors: &Tensors) -> Result<Stack> {
        let mut network = self.model.stack(tensors, &Default::default())?;
        network.set_recurrence(self.rounded()?).map_err(|error| error.at("products"))?;
        Ok(network)
    }

    /// The model to start from, if one is named.
    fn started(&self, folder: &Path) -> Result<Option<Model>> {
        let Some(start) = &self.start else { return Ok(None) };
        let model = Model::load_with(start, &Loading { dtype: Some(DType::F32), ..Loading::default() })?;
        if model.config != self.model {
            return Err(Error::input("this model has another config than the run")
                .at(start)
                .hint("give the run's model the start's sizes, or leave start out"));
        }
        [folder, &folder.join("model")].into_iter().try_for_each(|folder| model.check_folder(folder))?;
        Ok(Some(model))
    }

    /// How text is read.
    fn reader(&self, start: Option<&Model>) -> Result<Tokenizer> {
        let (tokenizer, place) = match (&self.tokenizer, start) {
            (Some(name), _) => (parse_tokenizer(name).map_err(|error| error.at("tokenizer"))?, "tokenizer"),
            (None, Some(start)) => (start.tokenizer.clone(), "start"),
            (None, None) => (Tokenizer::Bytes, "model: vocab_size"),
        };
        tokenizer.present()?;
        tokenizer.check(self.model.vocab_size()).map_err(|error| error.at(place))?;
        Ok(tokenizer)
    }

    /// The weights to start from, where the model can be saved in the end.
    fn initial(&self, start: Option<Model>, how: &Loading, folder: &Path) -> Result<Tensors> {
        let weights = match start {
            Some(start) => start.tensors().clone(),
            None => init::initialize(&self.model, self.seed)?,
        };
        Model::from_tensors("model", self.model.clone(), weights.clone(), how)?
            .check_save(&folder.join("model"))?;
        Ok(weights)
    }

    /// The loss of a batch and its gradients. Every sequence is walked forwards and backwards on its own, many at the
    /// same time; they are added up in their order, whatever the number of threads.
    fn gradients<'a>(
        &self,
        network: &Stack,
        batch: &data::Batch,
        work: &'a mut Work,
    ) -> Result<(f32, &'a Gradients)> {
        let len = self.mixture.seq_len;
        let total: f32 = batch.weights.iter().sum();
        if total <= 0.0 {
            return Err(Error::input("no token of a batch has a weight: there is nothing to learn from it")
                .hint("raise filler_weight, or lower the share of passkey prompts"));
        }
        loss::check(&batch.targets, self.model.vocab_size())?;
        let Work { sums, rooms } = work;
        let rooms = &*rooms;
        sums.resize_with(batch.inputs.len() / len, || self.model.zero_gradients());
        let weights: Vec<f32> = batch.weights.iter().map(|weight| weight / total).collect();
        let sequences = batch.inputs.par_chunks(len).zip(batch.targets.par_chunks(len));
        let sequences = sequences.zip(weights.par_chunks(len)).zip(sums.par_iter_mut());
        let losses = sequences.map(|(((inputs, targets), weights), sums)| {
            let free = || rooms.lock().unwrap_or_else(PoisonError::into_inner);
            let mut room = free().pop().unwrap_or_default();
            let loss = |logits: &[f32], grad: &mut [f32]| loss::cross_entropy(logits, targets, weights, grad);
            let loss = network.gradients(inputs, loss, sums, &mut room).map_err(Error::from);
            free().push(room);
            loss
        });
        let losses = losses.collect::<Vec<Result<f32>>>().into_iter().collect::<Result<Vec<_>>>()?;
        let [first, others @ ..] = sums.as_mut_slice() else {
            return Err(Error::internal("a batch of no sequences"));
        };
        for (name, sum) in &mut *first {
            let others: Vec<&[f32]> = others.iter().map(|other| other[name].as_slice()).collect();
            sum.par_chunks_mut(1 << 14).enumerate().for_each(|(i, sum)| {
                for other in &others {
                    add(&other[i << 14..][..sum.len()], sum);
                }
            });
        }
        Ok((losses.iter().sum(), first))
    }

    /// Writes the settings, or refuses a folder that belongs to other settings. More steps are welcome: the run then
    /// goes on, on a schedule for the new total.
    fn claim(&self, folder: &Path) -> Result<()> {
        let path = folder.join("training.yaml");
        if path.exists() {
            let before: Self = crate::settings::read(&path)?;
            if (Self { steps: self.steps, ..before.clone() }) != *self {
                return Err(Error::input("this folder holds a run with other settings")
                    .at(path.display())
                    .hint("choose another --out folder, or repeat the run's own settings"));
            }
        }
        write_file(&path, &serde_saphyr::to_string(self).map_err(Error::internal)?)
    }
}

/// What steps use again and again.
#[derive(Default)]
struct Work {
    /// The gradients of each sequence of a batch; the first ones become the sums.
    sums: Vec<Gradients>,
    /// Working memory that no sequence uses now.
    rooms: Mutex<Vec<Room>>,
}

fn resume(optimizer: &mut adamw::Optimizer, path: &Path) -> Result<()> {
    let saved = Checkpoint::open(&path.to_string_lossy(), None)?;
    let steps = saved.metadata.get("steps").and_then(|steps| steps.parse().ok());
    let steps =
        steps.ok_or_else(|| Error::input("not a training checkpoint: no step count").at(path.display()))?;
    let (tensors, _) = saved.read(|_| Some(Wanted::Weights))?;
    optimizer.restore(&tensors, steps).map_err(|error| error.at(path.display()))
}

/// Writes through a temporary neighbour, so that a crash leaves the old file or the new one.
fn write_file(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("tmp");
    fs::write(&draft, text).and_then(|()| fs::rename(&draft, path)).map_err(|error| Error::io(path, &error))
}

/// The JSONL log: one flushed line an event. Lines after the checkpoint that a run resumes from are dropped.
struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    fn open(path: &Path, steps: u64) -> Result<Self> {
        let failed = |error: std::io::Error| Error::io(path, &error);
        if path.exists() {
            let text = fs::read_to_string(path).map_err(failed)?;
            let step =
                |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64();
            let kept: String = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n') && step(line).is_some_and(|step| step <= steps))
                .collect();
            write_file(path, &kept)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    fn write(&mut self, event: &serde_json::Value) -> Result<()> {
        let written = self.file.write_all(format!("{event}\n").as_bytes()).and_then(|()| self.file.flush());
        written.map_err(|error| Error::io(&self.path, &error))
    }
}

#[cfg(test)]
mod tests;
