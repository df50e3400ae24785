//! The tensors that a config calls for.

use super::Family;

/// A tensor that a config calls for.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name in a checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How training starts it.
    pub init: Init,
    /// Matrices of linears and embeddings may be stored in bf16 or f16, and decay in training; everything else stays f32 and
    /// does not decay.
    pub matrix: bool,
}

/// How a tensor starts before training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Constant(f32),
    /// Of a tensor of two rows, a value for each.
    Rows([f32; 2]),
    /// Normal deviates with this standard deviation.
    Normal(f32),
    /// Uniform in ± this bound.
    Uniform(f32),
    /// ln of a uniform deviate between the two bounds.
    LogUniform(f32, f32),
    /// x with softplus(x) log-uniform between the two bounds: Mamba's dt_bias.
    InverseSoftplus(f32, f32),
}

/// The matrix `path`.weight [rows, columns], and `path`.bias of zeros if there is one.
pub(super) fn linear(path: &str, (rows, cols): (usize, usize), init: Init, bias: bool) -> Vec<TensorSpec> {
    let spec = |part: &str, shape: Vec<usize>, init, matrix| TensorSpec {
        name: format!("{path}.{part}"),
        shape,
        init,
        matrix,
    };
    let weight = spec("weight", vec![rows, cols], init, true);
    let bias = bias.then(|| spec("bias", vec![rows], Init::Constant(0.0), false));
    std::iter::once(weight).chain(bias).collect()
}

/// The tensors of a network: its embedding, those of each layer, the last norm's weight, and the head where it is a matrix of its own.
pub(super) fn network(of: &impl Family, layer: impl FnMut(usize) -> Vec<TensorSpec>) -> Vec<TensorSpec> {
    let (sizes, ends) = (of.sizes(), of.ends());
    let table = |path| linear(path, (sizes.vocabulary, sizes.hidden), Init::Normal(0.02), false);
    let mut specs = table(ends.embedding);
    specs.extend((0..sizes.layers).flat_map(layer));
    specs.extend(ends.norm.map(|path| norm(path, sizes.hidden)));
    if !of.tied() {
        specs.extend(table(ends.head));
    }
    specs
}

/// The weight `path`.weight of an RMSNorm.
pub(super) fn norm(path: &str, channels: usize) -> TensorSpec {
    let name = format!("{path}.weight");
    TensorSpec { name, shape: vec![channels], init: Init::Constant(1.0), matrix: false }
}
