//! Seeded initial weights: every tensor has a random stream of its own, so that its values do not depend on order.

use super::singular::shaped;
use crate::error::{Error, Result};
use crate::family::{Config, Init, TensorSpec, Tensors};
use candle_core::{Device, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sha2::{Digest, Sha256};

/// All tensors of a fresh model, f32 on the CPU.
pub fn initialize(config: &Config, seed: u64) -> Result<Tensors> {
    config.tensors().into_iter().map(|spec| Ok((spec.name.clone(), tensor(&spec, seed)?))).collect()
}

fn tensor(spec: &TensorSpec, seed: u64) -> Result<Tensor> {
    let mut rng = stream(seed, &spec.name);
    let count: usize = spec.shape.iter().product();
    let values: Vec<f32> = match spec.init {
        Init::Rows(rows) => rows.iter().flat_map(|row| std::iter::repeat_n(*row, count / 2)).collect(),
        init => (0..count).map(|_| init.sample(&mut rng)).collect(),
    };
    Ok(Tensor::from_vec(values, spec.shape.as_slice(), &Device::Cpu)?)
}

/// The random stream of `name` under `seed`.
pub(crate) fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let hash = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name.as_bytes()).finalize();
    ChaCha8Rng::from_seed(hash.into())
}

/// The tensors with the singular values of one matrix replaced by S₁ · k^−½, k from 1 (overtone initialization, parameter-golf's
/// pull request 316).
///
/// # Errors
/// If the matrix is not there, or has no decomposition.
pub fn overtone(mut tensors: Tensors, name: &str) -> Result<Tensors> {
    let tensor = tensors.get(name).ok_or_else(|| Error::internal("a missing tensor").at(name))?;
    let shaped = shaped(tensor, |first, k| first / ((k + 1) as f64).sqrt())?;
    tensors.insert(name.to_string(), shaped);
    Ok(tensors)
}

impl Init {
    fn sample(self, rng: &mut impl Rng) -> f32 {
        match self {
            Self::Constant(value) | Self::Rows([value, _]) => value,
            Self::Normal(deviation) => {
                let unit: f32 = StandardNormal.sample(rng);
                unit * deviation
            }
            Self::Uniform(bound) => rng.random_range(-bound..bound),
            Self::LogUniform(low, high) => rng.random_range(low..high).ln(),
            Self::InverseSoftplus(low, high) => {
                let x = rng.random_range(low.ln()..high.ln()).exp();
                x + (-(-x).exp_m1()).ln()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_depend_on_seed_and_name_alone() {
        let config =
            Config::Mamba2(crate::family::mamba2::Config { num_hidden_layers: 2, ..Default::default() });
        let (a, b) = (initialize(&config, 1).unwrap(), initialize(&config, 1).unwrap());
        let other = initialize(&config, 2).unwrap();
        let name = "backbone.layers.1.mixer.in_proj.weight";
        let values = |tensors: &Tensors| tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&a), values(&b));
        assert_ne!(values(&a), values(&other));
        let dt_bias = a["backbone.layers.0.mixer.dt_bias"].to_vec1::<f32>().unwrap();
        assert!(dt_bias.iter().all(|x| (0.000_99..0.1001).contains(&x.exp().ln_1p())));
    }
}
