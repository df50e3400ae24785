//! Tensors that hold the matrices of all experts of a layer, [E, rows, columns]: cut into a matrix for each expert on the way in, and
//! joined again on the way out.

use super::{FAMILIES, Shapes, Tensors};
use candle_core::Result;
use std::collections::BTreeMap;

/// How a tensor that holds the matrices of all experts is called, and its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stacked {
    /// How its name ends.
    pub whole: &'static str,
    /// How the name of the matrix of expert e ends: this, the number e,
    pub before: &'static str,
    /// and this.
    pub after: &'static str,
}

impl Stacked {
    /// The names of the matrices of `experts` experts in a tensor of this name; none if it is none of these.
    fn parts(self, name: &str, experts: usize) -> Option<Vec<String>> {
        let start = name.strip_suffix(self.whole)?;
        Some((0..experts).map(|e| format!("{start}{}{e}{}", self.before, self.after)).collect())
    }

    /// The name of the tensor that the matrix of this name is a part of, and its expert; none if it is of none.
    fn of_part(self, name: &str) -> Option<(String, usize)> {
        let (start, expert) = name.strip_suffix(self.after)?.rsplit_once(self.before)?;
        let canonical = expert.parse().ok().filter(|e: &usize| e.to_string() == expert);
        canonical.map(|e| (format!("{start}{}", self.whole), e))
    }
}

fn all() -> impl Iterator<Item = Stacked> {
    FAMILIES.iter().flat_map(|about| about.stacked).copied()
}

/// The names of the matrices that a tensor of this name and shape holds; none if it holds none.
pub(crate) fn parts_of(name: &str, shape: &[usize]) -> Option<Vec<String>> {
    let [experts, _, _] = shape else { return None };
    all().find_map(|stacked| stacked.parts(name, *experts))
}

/// Puts the shapes of their matrices in the place of those of all that are stacked.
pub(crate) fn cut_shapes(shapes: Shapes) -> Shapes {
    let parts = |(name, shape): (String, Vec<usize>)| match parts_of(&name, &shape) {
        Some(parts) => parts.into_iter().map(|part| (part, shape[1..].to_vec())).collect(),
        None => vec![(name, shape)],
    };
    shapes.into_iter().flat_map(parts).collect()
}

/// Puts their matrices in the place of all that are stacked.
///
/// # Errors
/// If memory fails.
pub(crate) fn cut(tensors: Tensors) -> Result<Tensors> {
    let mut all = Tensors::new();
    for (name, tensor) in tensors {
        match parts_of(&name, tensor.dims()) {
            Some(parts) => {
                for (e, part) in parts.into_iter().enumerate() {
                    all.insert(part, tensor.get(e)?.copy()?);
                }
            }
            None => drop(all.insert(name, tensor)),
        }
    }
    Ok(all)
}

/// Puts what is stacked in a checkpoint in the place of its matrices, where all are there.
///
/// # Errors
/// If they differ in shape.
pub(crate) fn join(mut tensors: Tensors) -> Result<Tensors> {
    let mut stacks: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    for name in tensors.keys() {
        if let Some((whole, expert)) = all().find_map(|stacked| stacked.of_part(name)) {
            stacks.entry(whole).or_default().insert(expert, name.clone());
        }
    }
    for (whole, parts) in stacks {
        if parts.keys().copied().eq(0..parts.len()) {
            let matrices: Vec<_> = parts.values().filter_map(|name| tensors.remove(name)).collect();
            tensors.insert(whole, candle_core::Tensor::stack(&matrices, 0)?);
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn what_is_cut_is_joined_again() {
        let whole = Tensor::arange(0f32, 24.0, &Device::Cpu).unwrap();
        let name = "model.layers.3.block_sparse_moe.input_linear.weight";
        let plain = ("model.norm.weight".to_string(), whole.clone());
        let stacked = (name.to_string(), whole.reshape((12, 2, 1)).unwrap());
        let tensors = Tensors::from([plain, stacked]);
        let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        let parts = cut(tensors.clone()).unwrap();
        let found: Shapes =
            parts.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        assert_eq!((cut_shapes(shapes), parts.len()), (found, 13));
        let eleventh = &parts["model.layers.3.block_sparse_moe.experts.11.input_linear.weight"];
        assert_eq!(eleventh.to_vec2::<f32>().unwrap(), [[22.0], [23.0]]);
        let again = join(parts.clone()).unwrap();
        assert!(again.keys().eq(tensors.keys()));
        assert_eq!(again[name].to_vec3::<f32>().unwrap(), tensors[name].to_vec3::<f32>().unwrap());
        // Of experts of which one is elsewhere the others stay apart.
        let mut some = parts;
        some.remove("model.layers.3.block_sparse_moe.experts.4.input_linear.weight");
        assert!(join(some.clone()).unwrap().keys().eq(some.keys()));
    }
}
