//! What training sees of a scheme (quantization-aware training, Jacob et al. 2018): in the place of each matrix what its codes
//! stand for, which are those of [`Model::quantized`](crate::Model::quantized), by the same function. The way back takes the
//! rounding for the identity (straight-through, Bengio et al. 2013).

use super::round::encode;
use super::scheme::Scheme;
use super::select::{self, Part};
use crate::error::{Error, Result};
use crate::family::{Config, Site, Stack, Tensors};
use crate::layer::attention::Width;
use crate::layer::linear::Activation;
use crate::layer::op::with_floats;
use crate::layer::recurrence::Recurrence;
use crate::model::init::stream;
use candle_core::{Device, Tensor};
use rand::RngExt;
use rayon::prelude::*;

/// A scheme that a network trains under.
#[derive(Clone, Debug)]
pub struct Straight {
    scheme: Scheme,
    sites: Vec<Site>,
    parts: Vec<Vec<Part>>,
}

impl Straight {
    /// For models of this config.
    ///
    /// # Errors
    /// If the scheme does not fit the model's matrices, or asks for more than rounding.
    pub fn new(scheme: &Scheme, config: &Config) -> Result<Self> {
        let refused = [
            (scheme.blocks, "keeps the blocks of a file, which no training leaves as they are"),
            (scheme.rotation.is_some(), "rotates a trained model"),
            (scheme.smooth.is_some(), "smooths a trained model by a text"),
            (scheme.gptq.is_some(), "chooses codes by a text, and training by nearest ones"),
            (scheme.observer.is_some(), "finds scales of activations by a text"),
            (scheme.budget.is_some() || scheme.rows.is_some(), "finds widths by a text"),
            (
                scheme.dtype.is_some() || scheme.lossless,
                "has a dtype for what is not rounded, and training is in f32",
            ),
            (
                scheme.recurrence != Recurrence::default(),
                "rounds a recurrence: `products` of the training does that",
            ),
            (scheme.cache != Width::F32, "rounds keys and values, which training does not keep"),
        ];
        if let Some((_, why)) = refused.iter().find(|(refused, _)| *refused) {
            return Err(Error::input(format!("training cannot follow a scheme that {why}"))
                .at(format!("scheme {scheme}"))
                .hint("train under formats of weights and bits of activations alone, such as w4a8-g64"));
        }
        let sites = config.sites();
        let parts = select::parts(scheme, &sites)?;
        if !parts.iter().flatten().any(|part| part.coding.is_some()) {
            return Err(Error::input("the scheme rounds no weight").at(format!("scheme {scheme}")));
        }
        Ok(Self { scheme: scheme.clone(), sites, parts })
    }

    /// The tensors of a model, those of rounded matrices replaced by what their codes stand for.
    ///
    /// # Errors
    /// If a weight is not finite.
    pub fn weights(&self, tensors: &Tensors) -> Result<Tensors> {
        self.replaced(tensors, |site, part, values| {
            let coding = part.coding.ok_or_else(|| Error::internal("a part without a format"))?;
            let rounded = encode(values, site, &[Part { first: 0, ..part.clone() }], None)?;
            let rounded = rounded.into_iter().flatten().next();
            rounded.map(|rounded| rounded.decode()).ok_or_else(|| Error::internal(coding.to_string()))
        })
    }

    /// The tensors of a model with noise in the place of rounding: uniform in half a step of the scale up and down
    /// (Défossez et al. 2022), held to the range of the codes; drawn by seed and step.
    ///
    /// # Errors
    /// If a weight is not finite, or a format's levels are not evenly spaced.
    pub fn noisy(&self, tensors: &Tensors, seed: u64, step: u64) -> Result<Tensors> {
        self.replaced(tensors, |site, part, values| {
            let rounded = encode(values, site, &[Part { first: 0, ..part.clone() }], None)?;
            let rounded = rounded.into_iter().flatten().next();
            let rounded = rounded.ok_or_else(|| Error::internal("a part without a format"))?;
            let format = rounded.coding.format;
            if !format.is_integer() {
                return Err(Error::input(format!("{format} has levels at several distances"))
                    .hint("noise stands for the rounding of integers: w2 … w8"));
            }
            let mut draws = stream(seed, &format!("noise {step} {} {}", site.path, part.first));
            let (levels, mut noisy) = (format.levels(), values.to_vec());
            let (low, high) =
                levels.iter().fold((0.0f32, 0.0f32), |(low, high), x| (low.min(*x), high.max(*x)));
            for (row, noisy) in noisy.chunks_mut(site.cols).enumerate() {
                let mut first = 0;
                for (end, scale) in rounded.row_scales(row) {
                    for x in &mut noisy[first..end] {
                        let moved = *x + (draws.random::<f32>() - 0.5) * scale.scale;
                        let bound = |level: f32| (level - scale.zero) * scale.scale;
                        *x = moved.clamp(bound(low), bound(high));
                    }
                    first = end;
                }
            }
            Ok(noisy)
        })
    }

    fn replaced(
        &self,
        tensors: &Tensors,
        value: impl Fn(&Site, &Part, &[f32]) -> Result<Vec<f32>> + Sync,
    ) -> Result<Tensors> {
        let rounded = self.sites.par_iter().zip(&self.parts).filter(|(_, parts)| in_scope(parts));
        let rounded = rounded.map(|(site, parts)| {
            let weight = tensors.get(&site.weight).ok_or_else(|| Error::internal("a missing tensor"))?;
            let mut values = with_floats([&weight.contiguous()?], |[values]| values.to_vec())?;
            for part in parts.iter().filter(|part| part.coding.is_some()) {
                let rows = &mut values[part.first * site.cols..][..part.rows * site.cols];
                let given = value(site, part, rows).map_err(|error| error.at(&site.path))?;
                rows.copy_from_slice(&given);
            }
            let tensor = Tensor::from_vec(values, (site.rows, site.cols), &Device::Cpu)?;
            Ok((site.weight.clone(), tensor))
        });
        let rounded = rounded.collect::<Vec<Result<_>>>().into_iter().collect::<Result<Vec<_>>>()?;
        let mut all = tensors.clone();
        all.extend(rounded);
        Ok(all)
    }

    /// Tells a network of these matrices to round what they read, as the scheme does.
    pub fn round_inputs(&self, stack: &mut Stack) {
        let Some(bits) = self.scheme.activations else { return };
        for (((_, linear), site), parts) in stack.linears_mut().into_iter().zip(&self.sites).zip(&self.parts)
        {
            if select::reads_rounded(&self.scheme, site, parts) {
                linear.activation = Some(Activation { bits, scale: None });
            }
        }
    }
}

fn in_scope(parts: &[Part]) -> bool {
    parts.iter().any(|part| part.coding.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::mamba2;
    use crate::layer::op::with_values;
    use crate::model::quantization::Backend;
    use crate::model::{Loading, Model};
    use crate::quantize::Quantizing;

    fn model() -> Model {
        let config =
            mamba2::Config { num_hidden_layers: 2, hidden_size: 96, num_heads: 3, ..Default::default() };
        Model::random("small", Config::Mamba2(config), 3, &Loading::default()).unwrap()
    }

    #[test]
    fn training_sees_what_quantizing_makes() {
        let (model, ids) = (model(), (0..70).map(|i| i * 37 % 256).collect::<Vec<u32>>());
        for scheme in ["w4a16", "w3a16-g32-mse+dt=w8+head=w6", "w6a16-sf16late-floor1", "nf4", "w4a8"] {
            let scheme: Scheme = scheme.parse().unwrap();
            let straight = Straight::new(&scheme, &model.config).unwrap();
            let seen = straight.weights(model.tensors()).unwrap();
            let how = Quantizing { backend: Backend::Fake, ..Quantizing::default() };
            let fake = model.quantized_with(&scheme, &how).unwrap();
            for ((path, linear), site) in fake.linears().into_iter().zip(model.config.sites()) {
                let [a, b] = [&seen[&site.weight], &linear.weight.values().unwrap()]
                    .map(|x| with_values::<f32, 1, _>([&x.contiguous().unwrap()], |[x]| x.to_vec()).unwrap());
                assert_eq!(a, b, "{scheme}: {path}");
            }
            let mut stack = model.config.stack(&seen, &Default::default()).unwrap();
            straight.round_inputs(&mut stack);
            let tokens = model.tokens(&ids).unwrap();
            let logits = stack.logits(&stack.hidden(&tokens, None).unwrap()).unwrap();
            let expected = fake.forward(&tokens, None, crate::model::Positions::All).unwrap();
            let [a, b] = [logits, expected].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            assert_eq!(a, b, "{scheme}");
        }
    }

    #[test]
    fn noise_stays_within_half_a_step() {
        let model = model();
        let straight = Straight::new(&"w4a16-g32".parse().unwrap(), &model.config).unwrap();
        let [once, again, later] = [1, 1, 2].map(|step| straight.noisy(model.tensors(), 7, step).unwrap());
        let rounded = straight.weights(model.tensors()).unwrap();
        let name = "backbone.layers.0.mixer.in_proj.weight";
        let values = |tensors: &Tensors| tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (plain, noisy) = (values(model.tensors()), values(&once));
        assert_eq!(noisy, values(&again));
        assert_ne!(noisy, values(&later));
        let error = |a: &[f32]| -> f64 { a.iter().zip(&plain).map(|(a, b)| f64::from(a - b).powi(2)).sum() };
        let ratio = error(&noisy) / error(&values(&rounded));
        assert!((0.8..1.25).contains(&ratio), "noise is as large as the error of rounding: {ratio}");
        let nf4 = Straight::new(&"nf4".parse().unwrap(), &model.config).unwrap();
        let told = nf4.noisy(model.tensors(), 0, 0).unwrap_err().to_string();
        assert!(told.contains("levels at several distances"), "{told}");
    }

    #[test]
    fn what_training_cannot_follow_says_why() {
        let told =
            |name: &str| Straight::new(&name.parse().unwrap(), &model().config).unwrap_err().to_string();
        for (name, part) in [
            ("w4a4-rot", "rotates a trained model"),
            ("w4a8-smooth0.5", "by a text"),
            ("w4a16-gptq", "training by nearest ones"),
            ("w4a8-static", "scales of activations by a text"),
            ("w4a16-mix4.5", "finds widths by a text"),
            ("w4a16-bf16", "training is in f32"),
            ("w4a16-h8", "`products` of the training"),
            ("w16a8", "rounds no weight"),
        ] {
            assert!(told(name).contains(part), "{name}: {}", told(name));
        }
    }
}
