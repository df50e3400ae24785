//! What a pickled checkpoint says was done to weights that are floating-point numbers all the same.

use super::stored::{Listing, Stored};
use crate::family::Names;
use std::collections::{BTreeMap, BTreeSet};

/// What is told of quantization.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Claim {
    /// So many tensors were rounded to few values each, and kept as numbers of the type before.
    FakeQuantized(usize),
    /// Weights are to be of this format.
    Configured(String),
}

impl Claim {
    /// What weights are stored in according to it and to their types, in a line. None where matrices of the network are of
    /// other numbers, of which only their reader knows what they stand for.
    pub fn stored_as<'a>(&self, listings: impl Iterator<Item = &'a Listing>) -> Option<String> {
        let stored: BTreeMap<&str, &Stored> =
            listings.flat_map(|listing| &listing.tensors).map(|(name, stored)| (&**name, stored)).collect();
        let network = Names::find(stored.keys().copied()).unwrap_or_default().network;
        let weights: Vec<&Stored> = match network.is_empty() {
            true => stored.values().copied().collect(),
            false => network.values().map(|name| stored[&**name]).collect(),
        };
        if weights.iter().any(|stored| stored.shape.len() > 1 && !stored.is_float()) {
            return None;
        }
        let dtypes = weights.iter().filter(|stored| stored.is_float()).filter_map(|stored| stored.dtype);
        let dtypes: BTreeSet<&str> = dtypes.map(|dtype| dtype.as_str()).collect();
        let dtypes = dtypes.into_iter().collect::<Vec<_>>().join(" and ");
        let told = match self {
            Self::FakeQuantized(1) => "; 1 tensor is already fake-quantized (quantization_info)".to_string(),
            Self::FakeQuantized(n) => format!("; {n} tensors are already fake-quantized (quantization_info)"),
            Self::Configured(kind) => format!(", though quantization_config says {kind}"),
        };
        (!dtypes.is_empty()).then(|| dtypes + &told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn listing(tensors: &[(&str, DType, &[usize])]) -> Listing {
        let stored = |dtype: DType, shape: &[usize]| Stored::rows(dtype, "".into(), shape.to_vec(), 0..0);
        let tensors = tensors.iter().map(|(name, dtype, shape)| (name.to_string(), stored(*dtype, shape)));
        Listing { tensors: tensors.collect(), ..Listing::default() }
    }

    #[test]
    fn the_types_are_those_of_the_network() {
        let (claim, info) = (Claim::Configured("NF4".to_string()), Claim::FakeQuantized(2));
        let mut tensors = vec![
            ("model.backbone.layers.0.mixer.A_log", DType::F32, &[2][..]),
            ("model.backbone.layers.0.mixer.in_proj.weight", DType::F16, &[2, 2]),
            ("model.backbone.layers.0.mixer.seen", DType::I64, &[]),
            ("optimizer.0.exp_avg", DType::BF16, &[2, 2]),
            ("optimizer.0.codes", DType::U8, &[2, 2]),
        ];
        let told = |claim: &Claim, tensors: &[_]| claim.stored_as([listing(tensors)].iter());
        assert_eq!(
            told(&claim, &tensors).as_deref(),
            Some("f16 and f32, though quantization_config says NF4")
        );
        let line = "f16 and f32; 2 tensors are already fake-quantized (quantization_info)";
        assert_eq!(told(&info, &tensors).as_deref(), Some(line));
        let line = "f16 and f32; 1 tensor is already fake-quantized (quantization_info)";
        assert_eq!(told(&Claim::FakeQuantized(1), &tensors).as_deref(), Some(line));
        // Codes in the place of a matrix are what is claimed.
        tensors[1].1 = DType::U8;
        assert_eq!((told(&claim, &tensors), told(&claim, &[])), (None, None));
    }

    #[test]
    fn of_an_unknown_network_all_types_are_told() {
        let files = [listing(&[("a", DType::BF16, &[2, 2])]), listing(&[("b", DType::F32, &[2])])];
        let line = "bf16 and f32, though quantization_config says quantized";
        assert_eq!(Claim::Configured("quantized".to_string()).stored_as(files.iter()).as_deref(), Some(line));
    }
}
