//! The steps of a training run.

use super::distill::Teacher;
use super::log::Log;
use super::optimizer::average::Mean;
use super::optimizer::{Optimizer, Settings};
use super::rows::RowGradients;
use super::{Outcome, Training, data, loss, validation};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::family::{Gradients, Stack, Tensors};
use crate::kernel::norm::add;
use crate::layer::room::Room;
use crate::model::checkpoint::{Checkpoint, Wanted};
use crate::model::init;
use crate::model::safetensors::save_safetensors;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Loading, Model, parse_tokenizer};
use crate::progress::Progress;
use crate::whole::{lock, write_bytes};
use candle_core::DType;
use rayon::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

impl Training {
    pub(super) fn run_in_pool(&self, folder: &Path) -> Result<Outcome> {
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
        let settings =
            Settings { adamw: self.optimizer.clone(), muon: self.muon.clone(), groups: self.groups.clone() };
        let mut optimizer = Optimizer::new(settings, &self.model, &weights)?;
        let mut mean = self.average.map(|kind| Mean::new(kind, &weights)).transpose()?;
        let (straight, teacher, mut rows) = (self.straight()?, self.teacher()?, RowGradients::new(self));
        // Bad input has ended here: a folder claimed by wrong settings would refuse the right ones.
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, &error))?;
        let _alone = lock(folder)?.ok_or_else(|| {
            Error::input("another process trains into this folder")
                .at(folder.display())
                .hint("wait for it, or choose another --out folder")
        })?;
        self.claim(folder)?;
        let checkpoint = folder.join("checkpoint.safetensors");
        if checkpoint.exists() {
            resume(&mut optimizer, mean.as_mut(), &mut rows, &checkpoint)?;
        }
        let mut log = Log::open(&folder.join("log.jsonl"), optimizer.steps)?;
        let started = (Instant::now(), optimizer.steps);
        let progress = Progress::new("train", self.steps, "steps");
        progress.tick(optimizer.steps)?;
        let (mut scores, mut work) = (None, Work::default());
        // What is scored on the way, and left in the end.
        let scored = |weights: &Tensors| -> Result<Scores> {
            let plain = valid.bits_per_byte(&self.network(weights)?)?;
            let quantized = match &straight {
                Some(straight) => Some(valid.bits_per_byte(&self.rounded(weights, straight)?)?),
                None => None,
            };
            Ok(Scores { plain, quantized })
        };
        while optimizer.steps < self.steps {
            let (step, clock) = (optimizer.steps, Instant::now());
            let rate = self.schedule.rate(step, self.steps);
            let network = self.network_at(step, &optimizer.tensors(), straight.as_ref())?;
            let (Losses { text, own }, grads) =
                self.gradients(&network, teacher.as_ref(), &data.batch(step)?, &mut work)?;
            rows.add(step, grads);
            let norm = optimizer.update(grads, rate)?;
            let done = optimizer.steps;
            if let Some(mean) = &mut mean {
                mean.add(&optimizer.tensors(), done, self.steps)?;
            }
            let tokens = self.mixture.batch_size * self.mixture.seq_len;
            let speed = tokens as f64 / clock.elapsed().as_secs_f64();
            let mut event = json!({
                "step": done, "tokens": done * tokens as u64, "loss": text, "lr": rate, "grad_norm": norm,
                "tokens_per_s": speed.round(), "elapsed_s": (started.0.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            });
            if own != 0.0 {
                event["balance_loss"] = json!(own);
            }
            log.write(&event)?;
            let last = done == self.steps;
            if done % self.validate_every == 0 || last {
                let left = mean.as_ref().map_or_else(|| optimizer.tensors(), |mean| mean.tensors().clone());
                let found = scored(&left)?;
                let tokens = done * tokens as u64;
                let mut event = json!({"step": done, "tokens": tokens, "valid_bits_per_byte": found.plain});
                if let Some(quantized) = found.quantized {
                    event["valid_bits_per_byte_quantized"] = json!(quantized);
                }
                if mean.is_some() {
                    let last = valid.bits_per_byte(&self.network(&optimizer.tensors())?)?;
                    event["valid_bits_per_byte_last"] = json!(last);
                }
                if let Some((accuracy, key_logprob)) = recall.of(&self.network(&left)?)? {
                    event["passkey_accuracy"] = json!(accuracy);
                    event["key_logprob"] = json!(key_logprob);
                }
                log.write(&event)?;
                scores = Some(found);
            }
            if done % self.checkpoint_every == 0 || last {
                let metadata = BTreeMap::from([("steps".to_string(), done.to_string())]);
                let mut held = optimizer.save()?;
                let average = mean.iter().flat_map(Mean::tensors);
                held.extend(average.map(|(name, tensor)| (format!("average/{name}"), tensor.clone())));
                held.extend(rows.save()?);
                save_safetensors(&checkpoint, &held, &metadata)?;
            }
            let shown = scores.map_or(String::new(), |found| format!("  valid {:.3} bits/byte", found.plain));
            progress.message(format!("loss {text:.3}  {speed:.0} tokens/s{shown}"));
            progress.tick(1)?;
        }
        let model = folder.join("model");
        let left = mean.as_ref().map_or_else(|| optimizer.tensors(), |mean| mean.tensors().clone());
        Model::from_tensors("model", self.model.clone(), left.clone(), &how)?.save(&model)?;
        rows.write(&folder.join("rows.safetensors"))?;
        let Scores { plain, quantized } = match scores {
            Some(scores) => scores,
            None => scored(&left)?,
        };
        let tokens =
            (optimizer.steps - started.1) as f64 * (self.mixture.batch_size * self.mixture.seq_len) as f64;
        let tokens_per_s = tokens / started.0.elapsed().as_secs_f64();
        Ok(Outcome {
            steps: optimizer.steps,
            valid_bits_per_byte: plain,
            valid_bits_per_byte_quantized: quantized,
            tokens_per_s,
            model,
        })
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
        let weights = match (self.overtone, &self.start) {
            (true, None) => {
                init::overtone(weights, &format!("{}.weight", self.model.recipe().ends().embedding))?
            }
            _ => weights,
        };
        Model::from_tensors("model", self.model.clone(), weights.clone(), how)?
            .check_save(&folder.join("model"))?;
        Ok(weights)
    }

    /// The losses of a batch and the gradients of their sum: that of the text, beside a teacher's where there is one, and the mean
    /// over its sequences of the network's own. Every sequence is walked forwards and backwards on its own, many at the same time;
    /// they are added up in their order, whatever the number of threads.
    pub(super) fn gradients<'a>(
        &self,
        network: &Stack,
        teacher: Option<&Teacher>,
        batch: &data::Batch,
        work: &'a mut Work,
    ) -> Result<(Losses, &'a Gradients)> {
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
        let own = len as f32 / batch.inputs.len() as f32;
        let losses = sequences.map(|(((inputs, targets), weights), sums)| {
            let free = || rooms.lock().unwrap_or_else(PoisonError::into_inner);
            let mut room = free().pop().unwrap_or_default();
            let known =
                teacher.map(|teacher| Ok::<_, Error>((teacher, teacher.logits(inputs)?))).transpose()?;
            let loss = |logits: &[f32], grad: &mut [f32]| match &known {
                Some((teacher, known)) => teacher.loss(logits, known, targets, weights, grad),
                None => loss::cross_entropy(logits, targets, weights, grad),
            };
            let loss = network.gradients(inputs, loss, own, sums, &mut room).map_err(Error::from);
            free().push(room);
            loss
        });
        let losses = losses.collect::<Vec<Result<(f32, f32)>>>().into_iter().collect::<Result<Vec<_>>>()?;
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
        let losses = Losses {
            text: losses.iter().map(|(text, _)| text).sum(),
            own: losses.iter().map(|(_, each)| own * each).sum(),
        };
        Ok((losses, first))
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
        write_bytes(&path, serde_saphyr::to_string(self).map_err(Error::internal)?.as_bytes())
    }
}

/// The losses of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Losses {
    /// The weighted mean cross entropy of its tokens, in nats.
    pub text: f32,
    /// Losses that branches have of their own: of experts which are used unequally.
    pub own: f32,
}

/// What steps use again and again.
#[derive(Default)]
pub(super) struct Work {
    /// The gradients of each sequence of a batch; the first ones become the sums.
    sums: Vec<Gradients>,
    /// Working memory that no sequence uses now.
    rooms: Mutex<Vec<Room>>,
}

/// Bits per byte of held-out text.
#[derive(Clone, Copy)]
struct Scores {
    plain: f64,
    quantized: Option<f64>,
}

fn resume(
    optimizer: &mut Optimizer,
    mean: Option<&mut Mean>,
    rows: &mut RowGradients,
    path: &Path,
) -> Result<()> {
    let saved = Checkpoint::open(&path.to_string_lossy(), None)?;
    let steps = saved.metadata.get("steps").and_then(|steps| steps.parse().ok());
    let steps =
        steps.ok_or_else(|| Error::input("not a training checkpoint: no step count").at(path.display()))?;
    let (tensors, _) =
        saved.read(|name| Some(if name.starts_with("rows/") { Wanted::Part } else { Wanted::Weights }))?;
    let restored = optimizer.restore(&tensors, steps);
    let restored = restored.and_then(|()| mean.map_or(Ok(()), |mean| mean.restore(&tensors)));
    restored.and_then(|()| rows.restore(&tensors)).map_err(|error| error.at(path.display()))
}
