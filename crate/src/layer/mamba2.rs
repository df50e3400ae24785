//! Mamba2's mixer (Dao & Gu 2024): in_proj → causal conv + SiLU → recurrence → gated norm → out_proj.
//!
//! Between the projections there are two forms of one computation: `definition`, in differentiable tensor
//! operations on any device, and the fused kernels on a CPU, with and without gradients.
//!
//! | letter | meaning |
//! |---|---|
//! | B, T | sequences, tokens |
//! | H, P | heads, values per head; I = H·P |
//! | G, N | groups that share B and C, state size |
//! | C, K | conv channels I + 2·G·N, conv taps |
//! | R | rows of in_proj: z (I), x (I), B (G·N), C (G·N), dt (H) |

use super::linear::Linear;
use super::norm::rms_normalized;
use super::state::LayerState;
use super::{floats, with_floats};
use crate::kernel::{conv, norm, scan, scan_grad};
use candle_core::{CpuStorage, CustomOp2, D, DType, Device, Layout, Result, Shape, Tensor, bail};
use std::sync::Mutex;

/// The sizes and constants of a mixer.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Heads H.
    pub heads: usize,
    /// Values per head P.
    pub head_dim: usize,
    /// Groups G.
    pub groups: usize,
    /// State size N.
    pub state: usize,
    /// Conv taps K.
    pub conv_width: usize,
    /// ε of the gated norm.
    pub eps: f32,
    /// Δ is clamped to this range.
    pub dt_limit: (f32, f32),
}

impl Sizes {
    /// I = H·P.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// C = I + 2·G·N.
    pub fn channels(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }

    /// R, the rows of in_proj.
    pub fn rows(&self) -> usize {
        self.inner() + self.channels() + self.heads
    }

    fn conv(&self, batch: usize, time: usize) -> conv::Shape {
        conv::Shape { batch, time, channels: self.channels(), width: self.conv_width, row: self.rows() }
    }

    fn scan(&self, batch: usize, time: usize) -> scan::Shape {
        let Self { heads, head_dim, groups, state, .. } = *self;
        scan::Shape { batch, time, heads, head_dim, groups, state }
    }
}

/// The small parameters of a mixer, all f32.
#[derive(Clone, Debug)]
pub struct Parts {
    /// [C, K].
    pub conv_weight: Tensor,
    /// `[C]`.
    pub conv_bias: Tensor,
    /// `[H]`.
    pub dt_bias: Tensor,
    /// `[H]`; A = −e^A_log.
    pub a_log: Tensor,
    /// `[H]`.
    pub d: Tensor,
    /// `[I]`.
    pub norm: Tensor,
}

/// One mixer.
#[derive(Clone, Debug)]
pub struct Mamba2 {
    /// [R, hidden].
    pub in_proj: Linear,
    /// [hidden, I].
    pub out_proj: Linear,
    core: Core,
}

impl Mamba2 {
    /// Joins projections and parameters.
    pub fn new(sizes: Sizes, in_proj: Linear, parts: &Parts, out_proj: Linear) -> Result<Self> {
        Ok(Self { in_proj, out_proj, core: Core::new(sizes, parts)? })
    }

    /// u [B, T, hidden] → [B, T, hidden], moving `state` on by T tokens. Without a state the sequence starts from
    /// zero and nothing is kept: the form for training and for scoring whole windows.
    pub fn forward(&self, u: &Tensor, state: Option<&mut LayerState>) -> Result<Tensor> {
        let zxbcdt = self.in_proj.forward(u)?; // [B, T, R]
        let y = self.core.forward(&zxbcdt, state)?; // [B, T, I]
        self.out_proj.forward(&y)
    }

    /// A state of zeros for `batch` sequences.
    pub fn zero_state(&self, batch: usize, device: &Device) -> Result<LayerState> {
        let s = self.core.sizes;
        LayerState::zeros((batch, s.channels(), s.conv_width), (batch, s.heads, s.head_dim, s.state), device)
    }
}

/// Everything between the projections: z|x|B|C|dt [B, T, R] → y [B, T, I].
#[derive(Clone, Debug)]
pub(crate) struct Core {
    sizes: Sizes,
    /// All parts in one vector, because an operation takes at most three tensors.
    packed: Tensor,
}

impl Core {
    pub fn new(sizes: Sizes, parts: &Parts) -> Result<Self> {
        let Parts { conv_weight, conv_bias, dt_bias, a_log, d, norm } = parts;
        let packed = Tensor::cat(&[&conv_weight.flatten_all()?, conv_bias, dt_bias, a_log, d, norm], 0)?;
        Ok(Self { sizes, packed })
    }

    pub fn forward(&self, zxbcdt: &Tensor, state: Option<&mut LayerState>) -> Result<Tensor> {
        let cpu = zxbcdt.device().is_cpu();
        let tracked = zxbcdt.track_op() || self.packed.track_op();
        match state {
            None if cpu => {
                zxbcdt.apply_op2(&self.packed, Fused { sizes: self.sizes, saved: Mutex::new(None) })
            }
            Some(state) if cpu && !tracked => self.advance(zxbcdt, state),
            Some(state) => {
                let (y, next) = self.definition(zxbcdt, state)?;
                *state = next;
                Ok(y)
            }
            None => {
                let s = self.sizes;
                let (b, conv) = (zxbcdt.dim(0)?, (zxbcdt.dim(0)?, s.channels(), s.conv_width));
                let zero = LayerState::zeros(conv, (b, s.heads, s.head_dim, s.state), zxbcdt.device())?;
                Ok(self.definition(zxbcdt, &zero)?.0)
            }
        }
    }

    /// The fused kernels, changing the state in place.
    fn advance(&self, zxbcdt: &Tensor, state: &mut LayerState) -> Result<Tensor> {
        let (batch, time, _) = zxbcdt.dims3()?;
        let s = self.sizes;
        let y = with_floats(zxbcdt, |zxbcdt| {
            with_floats(&self.packed, |packed| {
                state.update(|conv, h| run(s, batch, time, zxbcdt, Slices::new(s, packed), conv, h).1)
            })
        })?;
        Tensor::from_vec(y, (batch, time, s.inner()), zxbcdt.device())
    }

    /// The definition, in tensor operations. Chunked, because a graph with a node per token is too deep to walk.
    pub fn definition(&self, zxbcdt: &Tensor, state: &LayerState) -> Result<(Tensor, LayerState)> {
        let s = self.sizes;
        let (batch, time, _) = zxbcdt.dims3()?;
        let (inner, channels, taps, heads) = (s.inner(), s.channels(), s.conv_width, s.heads);
        let mut at = 0;
        let mut part = |len: usize| {
            at += len;
            self.packed.narrow(0, at - len, len)
        };
        let conv_weight = part(channels * taps)?.reshape((channels, taps))?;
        let (conv_bias, dt_bias, a_log, d, norm) =
            (part(channels)?, part(heads)?, part(heads)?, part(heads)?, part(inner)?);

        let z = zxbcdt.narrow(D::Minus1, 0, inner)?; // [B, T, I]
        let xbc = zxbcdt.narrow(D::Minus1, inner, channels)?; // [B, T, C]
        let dt = zxbcdt.narrow(D::Minus1, inner + channels, heads)?; // [B, T, H]

        let padded = Tensor::cat(&[state.conv.transpose(1, 2)?, xbc], 1)?; // [B, K + T, C]
        let mut sum = conv_bias.broadcast_as((batch, time, channels))?;
        for j in 0..taps {
            let tap = conv_weight.narrow(1, j, 1)?.flatten_all()?; // [C]
            sum = (sum + padded.narrow(1, j + 1, time)?.broadcast_mul(&tap)?)?;
        }
        let conv = padded.narrow(1, time, taps)?.transpose(1, 2)?.contiguous()?; // [B, C, K]
        let xbc = sum.silu()?; // [B, T, C]

        let dt = softplus(&dt.broadcast_add(&dt_bias)?)?; // [B, T, H]
        let dt = dt.clamp(s.dt_limit.0, s.dt_limit.1)?;
        let log_decay = dt.broadcast_mul(&a_log.exp()?.neg()?)?; // [B, T, H]
        let x = xbc.narrow(D::Minus1, 0, inner)?.reshape((batch, time, heads, s.head_dim))?;
        let group = s.groups * s.state;
        let b = per_head(s, &xbc.narrow(D::Minus1, inner, group)?)?; // [B, H, T, N]
        let c = per_head(s, &xbc.narrow(D::Minus1, inner + group, group)?)?; // [B, H, T, N]
        let u = x.broadcast_mul(&dt.unsqueeze(D::Minus1)?)?.transpose(1, 2)?.contiguous()?; // [B, H, T, P]
        let log_decay = log_decay.transpose(1, 2)?.contiguous()?; // [B, H, T]

        let mut h = state.recurrent.clone(); // [B, H, P, N]
        let mut chunks = vec![];
        for first in (0..time).step_by(scan::CHUNK) {
            let len = scan::CHUNK.min(time - first);
            let cut = |t: &Tensor| t.narrow(2, first, len)?.contiguous();
            let (y, next) = chunk(&cut(&u)?, &cut(&log_decay)?, &cut(&b)?, &cut(&c)?, &h)?;
            chunks.push(y);
            h = next;
        }
        let y = Tensor::cat(&chunks, 2)?.transpose(1, 2)?; // [B, T, H, P]
        let y = (y + x.broadcast_mul(&d.unsqueeze(1)?)?)?.reshape((batch, time, inner))?;

        let gated = (y * z.silu()?)?.reshape((batch, time, s.groups, inner / s.groups))?;
        let y = rms_normalized(&gated, f64::from(s.eps))?.reshape((batch, time, inner))?;
        Ok((y.broadcast_mul(&norm)?, LayerState { conv, recurrent: h }))
    }
}

/// One chunk of the recurrence: u [B, H, Q, P], log decays [B, H, Q], b and c [B, H, Q, N], h [B, H, P, N].
fn chunk(u: &Tensor, log_decay: &Tensor, b: &Tensor, c: &Tensor, h: &Tensor) -> Result<(Tensor, Tensor)> {
    let (len, device) = (log_decay.dim(2)?, u.device());
    let lower = Tensor::tril2(len, DType::F32, device)?; // [Q, Q]
    let a = log_decay.unsqueeze(D::Minus1)?; // [B, H, Q, 1]
    let a = lower.broadcast_as((a.dim(0)?, a.dim(1)?, len, len))?.contiguous()?.matmul(&a)?; // cumulative sum
    let difference = a.broadcast_sub(&a.transpose(2, 3)?)?; // [B, H, Q, Q]
    let decay = difference.minimum(0.0)?.exp()?.broadcast_mul(&lower)?;
    let mixing = (c.matmul(&b.transpose(2, 3)?)? * decay)?; // (C Bᵀ) ∘ L
    let inside = mixing.matmul(u)?; // [B, H, Q, P]
    let before = c.matmul(&h.transpose(2, 3)?)?.broadcast_mul(&a.exp()?)?;
    let end = a.narrow(2, len - 1, 1)?; // [B, H, 1, 1]
    let to_end = end.broadcast_sub(&a)?.exp()?;
    let added = u.transpose(2, 3)?.matmul(&b.broadcast_mul(&to_end)?)?; // [B, H, P, N]
    let next = (h.broadcast_mul(&end.exp()?)? + added)?;
    Ok(((inside + before)?, next))
}

/// ln(1 + e^x) without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// [B, T, G·N] → [B, H, T, N]: each group's values for all of its heads, one group after the other.
fn per_head(s: Sizes, values: &Tensor) -> Result<Tensor> {
    let (batch, time, _) = values.dims3()?;
    let each = s.heads / s.groups;
    values
        .reshape((batch, time, s.groups, 1, s.state))?
        .broadcast_as((batch, time, s.groups, each, s.state))?
        .reshape((batch, time, s.heads, s.state))?
        .transpose(1, 2)?
        .contiguous()
}

/// The packed parts as slices.
#[derive(Clone, Copy)]
struct Slices<'a> {
    conv_weight: &'a [f32],
    conv_bias: &'a [f32],
    dt_bias: &'a [f32],
    a_log: &'a [f32],
    d: &'a [f32],
    norm: &'a [f32],
}

impl<'a> Slices<'a> {
    fn new(s: Sizes, mut packed: &'a [f32]) -> Self {
        let mut part = |len: usize| {
            let (head, rest) = packed.split_at(len);
            packed = rest;
            head
        };
        Self {
            conv_weight: part(s.channels() * s.conv_width),
            conv_bias: part(s.channels()),
            dt_bias: part(s.heads),
            a_log: part(s.heads),
            d: part(s.heads),
            norm: part(s.inner()),
        }
    }

    fn rates(&self) -> Vec<f32> {
        self.a_log.iter().map(|a| -a.exp()).collect()
    }
}

/// What the backward pass needs of the forward pass.
struct Saved {
    /// After conv and SiLU, [B, T, C].
    xbc: Vec<f32>,
    /// Δ, [B, T, H].
    dt: Vec<f32>,
    /// Before the gated norm, [B, T, I].
    y: Vec<f32>,
}

/// The fused forward pass: everything saved, and the output [B, T, I].
fn run(
    s: Sizes,
    batch: usize,
    time: usize,
    zxbcdt: &[f32],
    p: Slices<'_>,
    conv: &mut [f32],
    h: &mut [f32],
) -> (Saved, Vec<f32>) {
    let (rows, inner, channels) = (s.rows(), s.inner(), s.channels());
    let mut xbc = vec![0.0; batch * time * channels];
    conv::conv_silu(s.conv(batch, time), &zxbcdt[inner..], p.conv_weight, p.conv_bias, conv, &mut xbc);
    let mut dt = Vec::with_capacity(batch * time * s.heads);
    for row in zxbcdt.chunks(rows) {
        dt.extend(row[inner + channels..].iter().zip(p.dt_bias).map(|(dt, bias)| {
            let x = dt + bias;
            (x.max(0.0) + (-x.abs()).exp().ln_1p()).clamp(s.dt_limit.0, s.dt_limit.1)
        }));
    }
    let mut y = vec![0.0; batch * time * inner];
    scan::scan(s.scan(batch, time), &xbc, &dt, &p.rates(), p.d, h, &mut y);
    let mut out = vec![0.0; batch * time * inner];
    norm::gated_rms_norm(&y, zxbcdt, rows, p.norm, inner / s.groups, s.eps, &mut out);
    (Saved { xbc, dt, y }, out)
}

/// [`Core`] from a zero state, with gradients.
struct Fused {
    sizes: Sizes,
    saved: Mutex<Option<Saved>>,
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "mamba2-core"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (s, (batch, time, _)) = (self.sizes, l1.shape().dims3()?);
        let parts = Slices::new(s, floats(s2, l2)?);
        let mut conv = vec![0.0; batch * s.channels() * s.conv_width];
        let mut h = vec![0.0; batch * s.inner() * s.state];
        let (saved, y) = run(s, batch, time, floats(s1, l1)?, parts, &mut conv, &mut h);
        *self.saved.lock().map_err(|_| candle_core::Error::Msg("a forward pass panicked".into()))? =
            Some(saved);
        Ok((CpuStorage::F32(y), (batch, time, s.inner()).into()))
    }

    fn bwd(
        &self,
        zxbcdt: &Tensor,
        packed: &Tensor,
        _y: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let saved = self.saved.lock().ok().and_then(|mut saved| saved.take());
        let Some(saved) = saved else { bail!("a graph can be walked backwards only once") };
        let mut dzxbcdt = vec![0.0; zxbcdt.elem_count()];
        let mut dpacked = vec![0.0; packed.elem_count()];
        with_floats(zxbcdt, |x| {
            with_floats(packed, |p| {
                with_floats(&dout.contiguous()?, |dout| {
                    self.gradients(zxbcdt.dims3()?, x, p, saved, dout, &mut dzxbcdt, &mut dpacked);
                    Ok(())
                })
            })
        })?;
        let device = zxbcdt.device();
        let dzxbcdt = Tensor::from_vec(dzxbcdt, zxbcdt.shape().clone(), device)?;
        Ok((Some(dzxbcdt), Some(Tensor::from_vec(dpacked, packed.shape().clone(), device)?)))
    }
}

impl Fused {
    /// Norm, scan, Δ and conv, walked backwards.
    #[allow(clippy::too_many_arguments)]
    fn gradients(
        &self,
        (batch, time, rows): (usize, usize, usize),
        zxbcdt: &[f32],
        packed: &[f32],
        saved: Saved,
        dout: &[f32],
        dzxbcdt: &mut [f32],
        dpacked: &mut [f32],
    ) {
        let s = self.sizes;
        let (inner, channels, heads) = (s.inner(), s.channels(), s.heads);
        let p = Slices::new(s, packed);
        let (dconv_weight, rest) = dpacked.split_at_mut(channels * s.conv_width);
        let (dconv_bias, rest) = rest.split_at_mut(channels);
        let (ddt_bias, rest) = rest.split_at_mut(heads);
        let (da_log, rest) = rest.split_at_mut(heads);
        let (dd, dnorm) = rest.split_at_mut(heads);

        let Saved { xbc, dt, y } = saved;
        let mut dy = vec![0.0; y.len()];
        let group = inner / s.groups;
        norm::gated_rms_norm_grad(&y, zxbcdt, rows, p.norm, group, s.eps, dout, &mut dy, dzxbcdt, dnorm);

        let (mut dxbc, mut ddt) = (vec![0.0; xbc.len()], vec![0.0; dt.len()]);
        let rates = p.rates();
        let grads = scan_grad::Gradients { xbc: &mut dxbc, dt: &mut ddt, a: da_log, d: dd };
        scan_grad::scan_grad(s.scan(batch, time), &xbc, &dt, &rates, p.d, &y, &dy, grads);
        for (da_log, rate) in da_log.iter_mut().zip(&rates) {
            *da_log *= rate; // dA/dA_log = A
        }

        // Softplus and clamp: no gradient where the limit holds.
        for ((row, ddt), (drow, dt)) in
            zxbcdt.chunks(rows).zip(ddt.chunks(heads)).zip(dzxbcdt.chunks_mut(rows).zip(dt.chunks(heads)))
        {
            for head in 0..heads {
                let raw = row[inner + channels + head] + p.dt_bias[head];
                let free = dt[head] > s.dt_limit.0 && dt[head] < s.dt_limit.1;
                let grad = if free { ddt[head] / (1.0 + (-raw).exp()) } else { 0.0 };
                drow[inner + channels + head] = grad;
                ddt_bias[head] += grad;
            }
        }

        let (x, dx) = (&zxbcdt[inner..], &mut dzxbcdt[inner..]);
        conv::conv_silu_grad(
            s.conv(batch, time),
            x,
            p.conv_weight,
            p.conv_bias,
            &dxbc,
            dx,
            dconv_weight,
            dconv_bias,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    fn noise(shape: &[usize], seed: u64, scale: f32) -> Tensor {
        let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                ((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
            })
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn sizes(heads: usize, head_dim: usize, groups: usize, state: usize, conv_width: usize) -> Sizes {
        Sizes { heads, head_dim, groups, state, conv_width, eps: 1e-5, dt_limit: (0.0, f32::INFINITY) }
    }

    fn parts(s: Sizes) -> Parts {
        Parts {
            conv_weight: noise(&[s.channels(), s.conv_width], 1, 0.5),
            conv_bias: noise(&[s.channels()], 2, 0.3),
            dt_bias: noise(&[s.heads], 3, 1.0),
            a_log: noise(&[s.heads], 4, 1.0),
            d: noise(&[s.heads], 5, 1.0),
            norm: noise(&[s.inner()], 6, 1.0),
        }
    }

    fn zeros(s: Sizes, batch: usize) -> LayerState {
        let h = (batch, s.heads, s.head_dim, s.state);
        LayerState::zeros((batch, s.channels(), s.conv_width), h, &Device::Cpu).unwrap()
    }

    fn far(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// Shapes with groups, odd widths, and times around the chunk's borders.
    fn cases() -> Vec<(Sizes, usize, usize)> {
        let limited = Sizes { dt_limit: (0.3, 0.9), ..sizes(2, 5, 1, 3, 3) };
        vec![
            (sizes(2, 16, 1, 16, 4), 2, 64),
            (sizes(4, 7, 2, 5, 4), 1, 65),
            (sizes(6, 8, 3, 17, 2), 2, 131),
            (sizes(3, 33, 1, 64, 5), 1, 9),
            (sizes(1, 64, 1, 64, 1), 1, 200),
            (limited, 2, 77),
        ]
    }

    #[test]
    fn fused_is_the_definition() {
        for (s, batch, time) in cases() {
            let core = Core::new(s, &parts(s)).unwrap();
            let x = noise(&[batch, time, s.rows()], 7, 1.0);
            let (expected, end) = core.definition(&x, &zeros(s, batch)).unwrap();
            let mut state = zeros(s, batch);
            let y = core.forward(&x, Some(&mut state)).unwrap();
            assert!(far(&y, &expected) < 2e-5, "{s:?} {time}: {}", far(&y, &expected));
            assert!(far(&state.recurrent, &end.recurrent) < 2e-5);
            assert_eq!(far(&state.conv, &end.conv), 0.0);
            assert!(far(&core.forward(&x, None).unwrap(), &expected) < 2e-5);
        }
    }

    #[test]
    fn any_split_and_single_steps_continue_the_sequence() {
        for (s, batch, time) in cases() {
            let core = Core::new(s, &parts(s)).unwrap();
            let x = noise(&[batch, time, s.rows()], 8, 1.0);
            let whole = core.forward(&x, None).unwrap();
            for cuts in [vec![1], vec![3, 70], vec![time / 2], (1..time).collect()] {
                let (mut state, mut first, mut pieces) = (zeros(s, batch), 0, vec![]);
                for cut in cuts.into_iter().filter(|cut| *cut < time).chain([time]) {
                    let piece = x.narrow(1, first, cut - first).unwrap().contiguous().unwrap();
                    pieces.push(core.forward(&piece, Some(&mut state)).unwrap());
                    first = cut;
                }
                let joined = Tensor::cat(&pieces, 1).unwrap();
                assert!(far(&joined, &whole) < 1e-5, "{s:?}: {}", far(&joined, &whole));
            }
        }
    }

    #[test]
    fn fused_gradients_are_the_definitions() {
        for (s, batch, time) in cases() {
            let p = parts(s);
            let vars = [&p.conv_weight, &p.conv_bias, &p.dt_bias, &p.a_log, &p.d, &p.norm]
                .map(|t| Var::from_tensor(t).unwrap());
            let [conv_weight, conv_bias, dt_bias, a_log, d, norm] =
                vars.each_ref().map(|v| v.as_tensor().clone());
            let core = Core::new(s, &Parts { conv_weight, conv_bias, dt_bias, a_log, d, norm }).unwrap();
            let x = Var::from_tensor(&noise(&[batch, time, s.rows()], 9, 1.0)).unwrap();
            let pull = noise(&[batch, time, s.inner()], 10, 1.0);
            let grads = |y: &Tensor| (y * &pull).unwrap().sum_all().unwrap().backward().unwrap();
            let fused = grads(&core.forward(&x, None).unwrap());
            let defined = grads(&core.definition(&x, &zeros(s, batch)).unwrap().0);
            for (name, var) in ["conv_weight", "conv_bias", "dt_bias", "a_log", "d", "norm"]
                .into_iter()
                .zip(&vars)
                .chain([("x", &x)])
            {
                let (a, b) = (fused.get(var).unwrap(), defined.get(var).unwrap());
                let size: f32 = b.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
                assert!(far(a, b) < 2e-4 * size.max(1.0), "{s:?} {name}: {} of {size}", far(a, b));
            }
        }
    }

    #[test]
    fn the_definitions_gradient_is_the_slope() {
        // The oracle of the test above, held to finite differences along one random direction.
        let (s, batch, time) = (sizes(2, 3, 1, 2, 3), 1, 70);
        let core = Core::new(s, &parts(s)).unwrap();
        let x = Var::from_tensor(&noise(&[batch, time, s.rows()], 11, 1.0)).unwrap();
        let (direction, pull) =
            (noise(&[batch, time, s.rows()], 12, 1.0), noise(&[batch, time, s.inner()], 13, 1.0));
        let value = |x: &Tensor| {
            let y = core.definition(x, &zeros(s, batch)).unwrap().0;
            (y * &pull).unwrap().to_dtype(DType::F64).unwrap().sum_all().unwrap()
        };
        let grad = value(&x).backward().unwrap();
        let slope =
            (grad.get(&x).unwrap() * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let moved = |by: f64| {
            value(&(x.as_tensor() + (&direction * by).unwrap()).unwrap()).to_scalar::<f64>().unwrap()
        };
        let measured = (moved(1e-3) - moved(-1e-3)) / 2e-3;
        assert!((measured - f64::from(slope)).abs() < 2e-2 * measured.abs().max(1.0), "{measured} {slope}");
    }
}
