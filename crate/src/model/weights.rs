//! From a checkpoint to the parts of a network: which of its tensors are the network's, what they are called there, and
//! what else it holds.

use super::checkpoint::{Checkpoint, Wanted};
use super::quantization::Quantization;
use super::saved;
use crate::error::{Error, Result};
use crate::family::{self, Config, Matrices, Names, Shapes, Tensors};
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// The parts of a network, and what must be told of them.
pub(super) struct Weights {
    pub config: Config,
    /// What was taken for granted, or chosen among several.
    pub assumed: Vec<String>,
    /// Tensors of the checkpoint that the network has no use for, as they are called there.
    pub unused: Vec<String>,
    pub quantization: Option<Quantization>,
    pub tensors: Tensors,
    pub matrices: Matrices,
    /// SHA-256 of the weight files.
    pub hash: String,
}

impl Weights {
    /// Reads what the network needs of a checkpoint, and nothing else.
    ///
    /// # Errors
    /// The checkpoint is of no known family, lacks a tensor, or contradicts itself or its config; or a tensor that is
    /// needed cannot be used.
    pub fn read(found: &Checkpoint) -> Result<Self> {
        let at = |error: Error| error.at(found.source.display());
        let quantization = saved::read_report(&found.metadata).map_err(at)?;
        if quantization.is_some() && found.stated.is_none() {
            return Err(at(Error::input("config.json is missing")));
        }
        Config::stated_family(found.stated.as_ref()).map_err(at)?;
        let names = Names::find(found.tensors().map(|(name, ..)| name)).map_err(at)?;
        if names.network.is_empty() {
            let what = format!(
                "no known model family has tensors of these names: {}",
                family::some_of(&names.others)
            );
            return Err(at(Error::input(what).hint(family::known_by_tensors())));
        }
        let coded = |own: &str| {
            let layers = quantization.iter().flat_map(|report| &report.layers);
            let mut layers = layers.filter(|layer| layer.is_encoded());
            layers.any(|layer| own.strip_prefix(&*layer.weight).is_some_and(|rest| rest.starts_with('.')))
        };
        let mut shapes = family::cut_shapes(shapes(found, &names, coded));
        for layer in quantization.iter().flat_map(|report| &report.layers).filter(|layer| layer.is_encoded())
        {
            shapes.insert(layer.weight.clone(), vec![layer.shape.0, layer.shape.1]);
        }
        let pickled = found.pickled.as_ref().filter(|_| family::pickles_config(&shapes));
        let stated = found.stated.as_ref().or(pickled);
        let (mut config, mut assumed) = Config::resolve(stated, &shapes).map_err(at)?;
        assumed.extend(names.told.clone());
        quantization.iter().try_for_each(|report| saved::check_report(report, &config)).map_err(at)?;
        if let Some((place, told)) = found.layers.iter().find(|(_, told)| *told > config.layers() as u64) {
            let what = format!("{place} is {told}, and the checkpoint has {} layers", config.layers());
            return Err(
                at(Error::input(what).hint("are its last layers missing? copy or download it again")),
            );
        }

        let called: BTreeSet<String> = config.tensors().into_iter().map(|spec| spec.name).collect();
        // Whatever is no floating-point number is no weight: masks and counters may lie in blocks too.
        let floats: BTreeSet<&str> =
            found.tensors().filter(|(.., is_float)| *is_float).map(|(name, ..)| name).collect();
        let no_weight = |own: &str| names.network.get(own).is_some_and(|name| !floats.contains(&**name));
        let (mut unused, head) = (names.others, config.tied().map(|(head, _)| head));
        shapes.retain(|own, _| {
            let keep = called.contains(own) || head.as_ref() == Some(own) || !no_weight(own);
            if !keep {
                unused.push(names.network[own].clone());
            }
            keep
        });
        let beside = family::check(&config, &shapes).map_err(at)?;

        let own: BTreeMap<&str, &str> =
            names.network.iter().map(|(own, name)| (name.as_str(), own.as_str())).collect();
        let dims: BTreeMap<&str, &[usize]> = found.tensors().map(|(name, shape, _)| (name, shape)).collect();
        let is_called = |name: &str, own: &str| match family::parts_of(own, dims[name]) {
            Some(parts) => parts.iter().any(|part| called.contains(part)),
            None => called.contains(own),
        };
        let (tensors, hash) = found.read(|name| match own.get(name) {
            Some(own) if coded(own) => Some(Wanted::Part),
            Some(own) if is_called(name, own) || head.as_deref() == Some(own) => Some(Wanted::Weights),
            _ => None,
        })?;
        let tensors = tensors.into_iter().map(|(name, tensor)| (own[&*name].to_string(), tensor));
        let mut tensors = family::cut(tensors.collect())?;
        let matrices = match &quantization {
            Some(report) => saved::read_matrices(report, &mut tensors).map_err(at)?,
            None => Matrices::new(),
        };
        if let Some((head, embedding)) = config.tied().filter(|(head, _)| shapes.contains_key(head)) {
            if tensors.get(&head).zip(tensors.get(&embedding)).is_none_or(|(a, b)| !equal(a, b)) {
                config.untie();
                family::check(&config, &shapes).map_err(at)?;
                quantization
                    .iter()
                    .try_for_each(|report| saved::check_report(report, &config))
                    .map_err(at)?;
                if config.states_tied(stated) == Some(true) {
                    assumed.push(format!(
                        "the head is {head}, which differs from the embedding it is said to be"
                    ));
                }
            } else {
                tensors.remove(&head);
            }
        }
        let tied = config.tied().is_some();
        let beside = beside.into_iter().filter(|own| tied || head.as_ref() != Some(own));
        unused.extend(beside.map(|own| names.network.get(&own).cloned().unwrap_or(own)));
        unused.sort();
        Ok(Self { config, assumed, unused, quantization, tensors, matrices, hash })
    }
}

/// The shapes of the network's tensors that are not parts of something coded, by the network's names.
fn shapes(found: &Checkpoint, names: &Names, coded: impl Fn(&str) -> bool) -> Shapes {
    let by_name: BTreeMap<&str, &[usize]> = found.tensors().map(|(name, shape, _)| (name, shape)).collect();
    let network = names.network.iter().filter(|(own, _)| !coded(own));
    network.map(|(own, name)| (own.clone(), by_name[&**name].to_vec())).collect()
}

/// Whether two tensors hold the same numbers.
fn equal(a: &Tensor, b: &Tensor) -> bool {
    let same = |a: &Tensor, b: &Tensor| -> candle_core::Result<bool> {
        // The wider type of the two is not always there: f16 and bf16 have none of each other.
        let wide = |x: &Tensor| if a.dtype() == b.dtype() { Ok(x.clone()) } else { x.to_dtype(DType::F64) };
        Ok(wide(a)?.eq(&wide(b)?)?.flatten_all()?.min(0)?.to_scalar::<u8>()? == 1)
    };
    a.dims() == b.dims() && same(a, b).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::itera;
    use std::path::Path;

    /// The config of an Itera-Lite model, and what was assumed.
    fn read(path: &Path) -> (itera::Config, Vec<String>) {
        let found = Checkpoint::open(path.to_str().unwrap(), None).unwrap();
        match Weights::read(&found).unwrap() {
            Weights { config: Config::IteraLite(config), assumed, .. } => (config, assumed),
            Weights { config, .. } => panic!("{}", config.family()),
        }
    }

    #[test]
    fn a_pickled_config_is_asked_where_no_file_beside_the_weights_states_one() {
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/itera-tiny/object-config.pt");
        let (config, assumed) = read(&fixture);
        assert_eq!((config.top_k_experts, assumed), (1, vec![]));
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("last.pt");
        std::fs::copy(&fixture, &copy).unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"top_k_experts": 2}"#).unwrap();
        assert_eq!(read(&copy).0.top_k_experts, 2);
        assert_eq!(read(folder.path()).0.top_k_experts, 2);
    }
}
