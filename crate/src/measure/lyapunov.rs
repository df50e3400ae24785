//! Whether passing a block again and again contracts: how a perturbation of the residual stream grows from pass to pass.
//!
//! A block is a map F of the stream of a sequence. Two streams that differ by δ, ‖δ‖ = ε ‖x‖, are both passed through it; the
//! exponent of the pass is ln(‖F(x + δ) − F(x)‖ / ‖δ‖). What is left of δ is brought back to ε ‖F(x)‖ and the next pass
//! follows (Benettin et al. 1980): after some passes δ points where F stretches most, and the exponents tend to the largest
//! Lyapunov exponent of the iterated block. Below 0 the passes contract and come to rest, above 0 they part. A residual stream grows too, and what
//! reads it norms it: the relative exponent is the growth of δ beside that of the stream, ln(‖δ′‖ / ‖δ‖) − ln(‖x′‖ / ‖x‖). A block is passed as often
//! as is asked for, whatever the model does; what entered the first block, where blocks mix it in, stays as it is. `depth`
//! follows one perturbation of what enters the model through all of its blocks.

use super::instrument::{Listed, Table};
use super::limit::at_most;
use super::window::Window;
use super::{Measure, finite, subject, work};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::init::stream;
use crate::progress::Progress;
use crate::record::{Reading, fingerprint};
use crate::stats::paired;
use candle_core::{D, Device, Tensor};
use rand_distr::{Distribution, StandardNormal};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

settings! {
    /// Lyapunov exponents of blocks that are passed again and again, and of the model from its first block to its last.
    pub struct Lyapunov(pieces) {
        /// Passes through each block.
        #[arg(long)]
        pub iterations: usize,
        /// Size of a perturbation, as a share of the stream that it is added to.
        #[arg(long)]
        pub epsilon: f64,
        /// Seed of its direction.
        #[arg(long)]
        pub seed: u64,
    }
}

impl Default for Lyapunov {
    fn default() -> Self {
        let split = Some("test".to_string());
        let (seq_len, max_tokens) = (256, Some(2048));
        let corpus = PathBuf::from("data/corpus");
        Self { corpus, split, seq_len, max_tokens, iterations: 8, epsilon: 1e-3, seed: 0 }
    }
}

/// Most passes.
const MOST: usize = 1000;

/// ‖x‖ of the residual stream alone.
fn norm(model: &Model, x: &Tensor) -> Result<f64> {
    let x = model.residual(x)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt())
}

/// Two streams that differ by little.
struct Pair<'a> {
    model: &'a Model,
    /// The stream, with the copies beside it.
    x: Tensor,
    /// The other.
    other: Tensor,
    epsilon: f64,
}

impl<'a> Pair<'a> {
    /// Of a stream and one that differs from it in a direction drawn for `name`, in the residual stream alone or in the copies
    /// beside it too.
    fn new(
        model: &'a Model,
        x: Tensor,
        (seed, name): (u64, &str),
        epsilon: f64,
        copies: bool,
    ) -> Result<Self> {
        let residual = model.residual(&x)?;
        let mut rng = stream(seed, name);
        let noise: Vec<f32> = (0..residual.elem_count()).map(|_| StandardNormal.sample(&mut rng)).collect();
        let noise = Tensor::from_vec(noise, residual.shape(), x.device())?;
        let parts = x.dim(D::Minus1)? / residual.dim(D::Minus1)?;
        let rest = if copies { noise.clone() } else { noise.zeros_like()? };
        let mut all = vec![rest; parts];
        all[0] = noise;
        let mut pair = Self { model, other: (&x + Tensor::cat(&all, D::Minus1)?)?, x, epsilon };
        pair.bring_back()?;
        Ok(pair)
    }

    /// Scales what they differ by to ε ‖x‖. Those that do not differ, or by what is not finite, stay as they are.
    fn bring_back(&mut self) -> Result<()> {
        let apart = (&self.other - &self.x)?;
        let scale = self.epsilon * norm(self.model, &self.x)? / norm(self.model, &apart)?;
        if scale.is_finite() {
            self.other = (&self.x + (apart * scale)?)?;
        }
        Ok(())
    }

    /// ‖δ‖ and ‖x‖.
    fn norms(&self) -> Result<[f64; 2]> {
        Ok([norm(self.model, &(&self.other - &self.x)?)?, norm(self.model, &self.x)?])
    }

    /// Passes both on by `step`: the exponent, and the relative one.
    fn step(&mut self, step: impl Fn(&Tensor) -> Result<Tensor>) -> Result<[f64; 2]> {
        let before = self.norms()?;
        (self.x, self.other) = (step(&self.x)?, step(&self.other)?);
        let after = self.norms()?;
        self.bring_back()?;
        let [apart, stream] = [0, 1].map(|i| (after[i] / before[i]).ln());
        Ok([apart, apart - stream])
    }
}

/// Exponents of one window after the other, and relative ones.
type Exponents = Vec<[f64; 2]>;

impl Lyapunov {
    /// The exponents of each block by pass, and of each block on the way through the model; a window is added to them.
    fn window(
        &self,
        model: &Model,
        ids: &[u32],
        name: &str,
        (blocks, depth): (&mut [Vec<Exponents>], &mut [Exponents]),
    ) -> Result<()> {
        let entering = model.embed(&model.tokens(ids)?)?;
        let mut whole = Pair::new(model, entering.clone(), (self.seed, name), self.epsilon, true)?;
        let mut stream = entering;
        for (block, passes) in blocks.iter_mut().enumerate() {
            let name = format!("{name}.{block}");
            let mut pair = Pair::new(model, stream.clone(), (self.seed, &name), self.epsilon, false)?;
            let (hidden, width) = (model.residual(&stream)?.dim(D::Minus1)?, stream.dim(D::Minus1)?);
            let copies = (width > hidden).then(|| stream.narrow(D::Minus1, hidden, width - hidden));
            let copies = copies.transpose()?;
            for (pass, exponents) in passes.iter_mut().enumerate() {
                let step = |x: &Tensor| -> Result<Tensor> {
                    let x = model.pass(x, block, pass == 0)?;
                    Ok(match &copies {
                        Some(copies) => Tensor::cat(&[&x, copies], D::Minus1)?,
                        None => x,
                    })
                };
                exponents.push(pair.step(step)?);
            }
            depth[block].push(whole.step(|x| model.through(x.clone(), block..block + 1))?);
            stream = model.through(stream, block..block + 1)?;
        }
        Ok(())
    }
}

/// The mean, with the interval of Student's t over windows where there are several.
fn describe(row: Reading, end: &str, exponents: &[[f64; 2]]) -> Reading {
    ["", "_relative"].into_iter().enumerate().fold(row, |row, (i, kind)| {
        let exponents: Vec<f64> = exponents.iter().map(|both| both[i]).collect();
        let mean = exponents.iter().sum::<f64>() / exponents.len() as f64;
        let test = paired(&exponents);
        row.value(&format!("exponent{end}{kind}"), mean)
            .value(&format!("exponent{end}{kind}_low"), test.map(|test| test.low))
            .value(&format!("exponent{end}{kind}_high"), test.map(|test| test.high))
    })
}

/// Of several exponents a window, the mean of each window.
fn means<'a>(all: impl Iterator<Item = &'a Exponents>) -> Exponents {
    let all: Vec<&Exponents> = all.collect();
    let windows = all.first().map_or(0, |one| one.len());
    let mean = |window: usize, i: usize| {
        all.iter().map(|one: &&Exponents| one[window][i]).sum::<f64>() / all.len() as f64
    };
    (0..windows).map(|window| [0, 1].map(|i| mean(window, i))).collect()
}

impl Measure for Lyapunov {
    const NAME: &'static str = "lyapunov";
    const VERSION: u32 = 1;

    fn units(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn fingerprint(&self, model: &Model) -> Result<String> {
        let own = json!({"iterations": self.iterations, "epsilon": self.epsilon, "seed": self.seed});
        let settings = json!({"reads": self.reads().identity(), "own": own});
        fingerprint(Self::NAME, Self::VERSION, &settings, &subject(model), &self.reads().text()?.sha256)
    }

    fn check(&self, model: &Model) -> Result<()> {
        if self.iterations == 0 {
            return Err(Error::input("iterations must be at least 1, found 0"));
        }
        at_most("iterations", [self.iterations], MOST)?;
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            let what = format!("epsilon must be a positive number, found {}", self.epsilon);
            return Err(Error::input(what).hint(".001 is customary in f32"));
        }
        self.reads().cut(model).map(drop)
    }

    /// A row for each pass of each block, one for each block on the way through the model, and a summary.
    fn measure(&self, model: &Model) -> Result<Vec<Reading>> {
        self.check(model)?;
        let (text, clock) = (self.reads().cut(model)?, Instant::now());
        let layers = model.config.layers();
        let mut blocks = vec![vec![vec![]; self.iterations]; layers];
        let mut depth = vec![vec![]; layers];
        let progress = Progress::new("lyapunov", text.scored(), "tokens");
        for Window { scored, start } in &text.windows {
            let ids = &text.ids[*start..scored.end - 1];
            self.window(model, ids, &format!("window {start}"), (&mut blocks, &mut depth))?;
            progress.tick(scored.len() as u64)?;
        }
        let identity = self.fingerprint(model)?;
        let conditions = crate::record::Conditions { seed: Some(self.seed), ..self.reads().conditions() };
        let row =
            || Reading::new(Self::NAME, Self::VERSION, &subject(model), &conditions).fingerprint(&identity);
        let mut rows = vec![];
        for (layer, passes) in blocks.iter().enumerate() {
            let own = model.passes_of(layer);
            for (pass, exponents) in passes.iter().enumerate() {
                let row = row().row("pass").value("layer", layer).value("iteration", pass + 1);
                rows.push(describe(row.value("own_passes", own), "", exponents));
            }
            let row = row().row("depth").value("layer", layer);
            rows.push(describe(row, "", &depth[layer]));
        }
        let passes: usize = (0..layers).map(|layer| model.passes_of(layer)).sum();
        let through: Exponents = means(depth.iter())
            .into_iter()
            .map(|both| both.map(|x| x * layers as f64 / passes as f64))
            .collect();
        let later = means(blocks.iter().flat_map(|passes| &passes[passes.len() / 2..]));
        let summary = row().value("passes", passes).value("iterations", self.iterations);
        let summary = summary.value("epsilon", self.epsilon);
        let summary = describe(describe(summary, "", &later), "_depth", &through);
        rows.push(text.describe(summary, clock.elapsed().as_secs_f64()));
        finite::told(rows, &[("", model)], finite::windows(&text))
    }
}

impl Listed for Lyapunov {
    const TABLES: &'static [Table] = &[Table::of(
        "lyapunov",
        &[
            "model",
            "scheme",
            "passes",
            "exponent",
            "exponent_low",
            "exponent_high",
            "exponent_relative",
            "exponent_depth",
        ],
    )];

    fn work(&self, model: &Model) -> f64 {
        // Two streams, each pass about a layer of the model.
        2.0 * (self.iterations as f64 + 1.5) * work::text(&self.reads(), model)
    }

    fn small(&mut self) {
        (self.seq_len, self.max_tokens, self.iterations) = (self.seq_len.min(64), Some(128), 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Config, lowrankq};
    use crate::model::{Loading, init::initialize};
    use std::collections::BTreeMap;

    /// A model whose blocks multiply the stream by `kept` and add nothing, passed `iterations` times.
    fn model(kept: f32, iterations: usize) -> Model {
        let config = Config::LowrankQ(lowrankq::Config {
            model_dim: 16,
            num_layers: 2,
            iterations,
            num_heads: 2,
            num_kv_heads: 1,
            mlp_hidden: 16,
            q_rank: lowrankq::Rank::All(4),
            bigram_vocab_size: 0,
            ..Default::default()
        });
        let mut tensors: BTreeMap<String, Tensor> = initialize(&config, 0).unwrap();
        for (name, tensor) in &mut tensors {
            if name.ends_with("resid_mix") {
                let values: Vec<f32> = [kept, 0.0].into_iter().flat_map(|x| vec![x; 16]).collect();
                *tensor = Tensor::from_vec(values, (2, 16), &Device::Cpu).unwrap();
            } else if name == "skip_weights" {
                *tensor = tensor.zeros_like().unwrap();
            }
        }
        // Projections out of attention and feed-forward layers start at zero.
        Model::from_tensors("toy", config, tensors, &Loading::default()).unwrap()
    }

    #[test]
    fn a_linear_map_has_the_exponent_of_its_factor() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "Passed again and again, it comes to rest. ".repeat(8)).unwrap();
        let lyapunov =
            Lyapunov { seq_len: 64, iterations: 5, ..Lyapunov::default() }.on(file).max_tokens(192);
        for (kept, iterations) in [(0.5f32, 1), (0.9, 3), (1.25, 2)] {
            let rows = lyapunov.measure(&model(kept, iterations)).unwrap();
            let expected = f64::from(kept).ln();
            let of = |kind: &str| rows.iter().filter(|row| row.row == kind).collect::<Vec<_>>();
            assert_eq!((of("pass").len(), of("depth").len()), (2 * 5, 2));
            for row in of("pass") {
                // The stream itself is multiplied by as much.
                assert!(row.number("exponent_relative").unwrap().abs() < 1e-3, "{row:?}");
                assert!((row.number("exponent").unwrap() - expected).abs() < 1e-3, "{row:?}");
                assert_eq!(row.number("own_passes"), Some(iterations as f64));
            }
            for row in of("depth") {
                // A block is passed as often as the model does.
                let whole = expected * iterations as f64;
                assert!((row.number("exponent").unwrap() - whole).abs() < 1e-3, "{row:?}");
            }
            let summary = of("summary")[0];
            for name in ["exponent", "exponent_depth", "exponent_low", "exponent_depth_high"] {
                assert!((summary.number(name).unwrap() - expected).abs() < 2e-3, "{name} {summary:?}");
            }
            assert_eq!(summary.number("passes"), Some(2.0 * iterations as f64));
        }
    }

    #[test]
    fn every_family_has_exponents_and_bad_settings_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text.txt");
        std::fs::write(&file, "Each block is a map of its own. ".repeat(8)).unwrap();
        let mut lyapunov = Lyapunov::default().on(file);
        lyapunov.small();
        for source in ["random:mamba2-tiny", "random:llama-tiny", "random:gla-tiny", "random:lowrank-q-tiny"]
        {
            let model = Model::load(source).unwrap();
            let [once, again] = [(); 2].map(|()| lyapunov.measure(&model).unwrap());
            let exponents =
                |rows: &[Reading]| -> Vec<_> { rows.iter().map(|row| row.number("exponent")).collect() };
            assert_eq!(exponents(&once), exponents(&again));
            assert!(exponents(&once).iter().all(|x| x.unwrap().is_finite()), "{source}");
        }
        let model = Model::load("random:mamba2-tiny").unwrap();
        let error = Lyapunov { iterations: 0, ..lyapunov.clone() }.check(&model).unwrap_err().to_string();
        assert!(error.contains("at least 1"), "{error}");
        let error = Lyapunov { epsilon: 0.0, ..lyapunov }.check(&model).unwrap_err().to_string();
        assert!(error.contains("positive"), "{error}");
    }
}
