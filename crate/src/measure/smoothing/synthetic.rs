//! Made inputs: normal queries and keys, with a constant on a few channels.

use super::apart::{Apart, Exact};
use super::{EACH, Smoothing};
use crate::error::{Error, Result};
use crate::kernel::scan::CHUNK;
use crate::kernel::scan::products::Products;
use crate::layer::meeting::{Made, Meeting};
use crate::measure::Measure;
use crate::record::{Conditions, Reading, Run, Subject, fingerprint, runs_folder};
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;
use std::path::PathBuf;

/// Which inputs are made, and how their products are rounded: every combination is a row.
///
/// q, k and v are normal, of variance 1; on `biased` channels q and k have a constant of ± `bias` each, of one sign in every second of
/// them and of two in the others, so that without decays the constants alone give a score of 0. Decays are
/// σ(x)^(1/16) of normal x, as in a gated linear attention before training. Rows are of `heads` heads that are made apart, which stand for
/// trials.
#[derive(Clone, Debug, Serialize)]
pub struct Synthetic {
    /// How products are rounded; the tokens of sub-chunks that they name give way to `subs`.
    pub products: Vec<String>,
    /// Channels of a key.
    pub keys: Vec<usize>,
    /// Tokens of a sub-chunk: 8, 16 or 32.
    pub subs: Vec<u8>,
    /// The constants.
    pub biases: Vec<f32>,
    /// Channels that have one.
    pub biased: usize,
    /// Tokens; whole chunks are looked at.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Seed of all that is random.
    pub seed: u64,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self {
            products: EACH.map(String::from).to_vec(),
            keys: vec![64, 128, 256],
            subs: vec![8, 16, 32],
            biases: vec![0.0, 2.0, 4.0, 8.0, 16.0],
            biased: 8,
            time: 256,
            heads: 8,
            seed: 7,
        }
    }
}

/// Channels of a value: they have no part in what is rounded but in FP8.
const VALUE: usize = 64;

impl Synthetic {
    fn identity(&self) -> Result<String> {
        let settings = serde_json::to_value(self)
            .map_err(|e| Error::input(format!("settings that JSON has no spelling for: {e}")))?;
        fingerprint(Smoothing::NAME, Smoothing::VERSION, &settings, &self.subject(), &"synthetic")
    }

    fn subject(&self) -> Subject {
        let plain = "f32".to_string();
        Subject {
            model: "synthetic".into(),
            family: "synthetic".into(),
            dtype: plain.clone(),
            scheme: plain,
            device: "cpu".into(),
            ..Subject::default()
        }
    }

    /// The folder of the newest finished run of this name with these settings and of this version; where there is none, it is
    /// measured now.
    ///
    /// # Errors
    /// As [`measure`](Self::measure), or if the run cannot be written.
    pub fn recorded(&self, name: &str) -> Result<PathBuf> {
        let settings = (Smoothing::VERSION, self);
        if let Some(folder) = Run::finished(runs_folder(), name, &settings)? {
            return Ok(folder);
        }
        let rows = self.measure()?;
        let run = Run::resume_or_create(runs_folder(), name, &settings)?;
        run.write_config(self)?;
        if !run.has(&self.identity()?) {
            run.record(&rows)?;
        }
        run.finish()?;
        Ok(run.path().to_path_buf())
    }

    /// A row for each combination, `kind` synthetic, and a summary that counts them.
    ///
    /// # Errors
    /// If a name of products says nothing, there is no whole chunk, or more channels are biased than there are.
    pub fn measure(&self) -> Result<Vec<Reading>> {
        let products: Vec<Products> =
            self.products.iter().map(|name| name.parse()).collect::<Result<Vec<_>>>()?;
        let narrow = self.keys.iter().min().copied().unwrap_or(0);
        if self.time < CHUNK || self.heads == 0 || self.biased > narrow {
            return Err(Error::input(format!(
                "synthetic inputs of {} tokens, {} heads and {} biased channels of {narrow}",
                self.time, self.heads, self.biased
            ))
            .hint(format!("at least {CHUNK} tokens, one head, and no more biased channels than there are")));
        }
        let (identity, conditions) =
            (self.identity()?, Conditions { seed: Some(self.seed), ..Conditions::default() });
        let mut rows = vec![];
        for key in &self.keys {
            for bias in &self.biases {
                let meeting = self.meeting(*key, *bias);
                for gates in [true, false] {
                    let exact = Exact::of(&meeting, gates);
                    for sub in &self.subs {
                        for (name, products) in self.products.iter().zip(&products) {
                            let mut apart = Apart::default();
                            apart.add(&meeting, &exact, Products { sub: *sub, ..*products }, gates);
                            let row = Reading::new(
                                Smoothing::NAME,
                                Smoothing::VERSION,
                                &self.subject(),
                                &conditions,
                            );
                            let row = row
                                .row("synthetic")
                                .fingerprint(&identity)
                                .value("products", name.as_str())
                                .value("gates", gates)
                                .value("kind", "synthetic")
                                .value("heads", self.heads)
                                .value("key", *key)
                                .value("sub", u64::from(*sub))
                                .value("bias", *bias);
                            rows.push(apart.describe(row));
                        }
                    }
                }
            }
        }
        let summary = Reading::new(Smoothing::NAME, Smoothing::VERSION, &self.subject(), &conditions);
        rows.push(summary.fingerprint(&identity).value("combinations", rows.len()).value("time", self.time));
        Ok(rows)
    }

    /// The same noise for every bias: its rows differ by that alone.
    fn meeting(&self, key: usize, bias: f32) -> Meeting {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ (key as u64) << 32);
        let (time, heads) = (self.time / CHUNK * CHUNK, self.heads);
        let mut normal =
            |count: usize| -> Vec<f32> { StandardNormal.sample_iter(&mut rng).take(count).collect() };
        let [mut q, mut k, gates] = [(); 3].map(|()| normal(time * heads * key));
        let v = normal(time * heads * VALUE);
        for head in 0..heads {
            for (i, channel) in sample(&mut rng, key, self.biased).into_iter().enumerate() {
                let of_q = if rng.next_u32() & 1 == 0 { bias } else { -bias };
                let of_k = if i % 2 == 0 { of_q } else { -of_q };
                for (x, by) in [(&mut q, of_q), (&mut k, of_k)] {
                    x.iter_mut().skip(head * key + channel).step_by(heads * key).for_each(|x| *x += by);
                }
            }
        }
        let scale = (key as f32).sqrt().recip();
        q.iter_mut().for_each(|q| *q *= scale);
        let mut a = gates;
        crate::kernel::decay::decays(&mut a, f32::NEG_INFINITY);
        Meeting { time, heads, groups: heads, key, q, k, made: Made::Channels { a, v } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_helps_where_channels_are_biased() {
        let synthetic = Synthetic {
            keys: vec![128],
            subs: vec![16],
            biases: vec![0.0, 8.0],
            heads: 2,
            products: ["qk4", "qk4-smoothqk", "qk4-smoothqkdrop", "qk8", "svfp8"].map(String::from).to_vec(),
            ..Synthetic::default()
        };
        let rows = synthetic.measure().unwrap();
        assert_eq!(rows.len(), 2 * 2 * 5 + 1);
        let of = |products: &str, bias: f64, gates: bool, column: &str| {
            let row = rows.iter().filter(|row| row.row == "synthetic").find(|row| {
                row.values["products"] == products
                    && row.number("bias") == Some(bias)
                    && row.values["gates"] == gates
            });
            row.unwrap().number(column)
        };
        let scores = |products, bias, gates| of(products, bias, gates, "cosine_scores").unwrap();
        for gates in [true, false] {
            // Normal inputs have no means to take away.
            assert!((scores("qk4", 0.0, gates) - scores("qk4-smoothqk", 0.0, gates)).abs() < 0.01);
            let [raw, smoothed] = ["qk4", "qk4-smoothqk"].map(|products| scores(products, 8.0, gates));
            assert!(smoothed > 0.98 && raw < 0.95, "{gates}: {smoothed}, raw {raw}");
            // A linear attention needs all terms.
            assert!(scores("qk4-smoothqkdrop", 8.0, gates) < 0.9);
            assert!(scores("qk8", 8.0, gates) > 0.999);
        }
        // Decays spoil constants.
        assert!(scores("qk4-smoothqk", 8.0, false) > scores("qk4-smoothqk", 8.0, true));
        assert_eq!(of("svfp8", 0.0, true, "cosine_scores"), None);
        assert!(of("svfp8", 0.0, true, "cosine_chunk").unwrap() > 0.999);
        assert_eq!(rows, synthetic.measure().unwrap());
        assert!(Synthetic { biased: 65, ..Synthetic::default() }.measure().is_err());
        let named = Synthetic { products: vec!["qk4-smoth".into()], ..Synthetic::default() };
        assert!(named.measure().unwrap_err().to_string().contains("unknown part \"smoth\""));
    }
}
