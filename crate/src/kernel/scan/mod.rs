//! The recurrence S_t = diag(a_t) S_{t−1} + k_t v_tᵀ, y_t = S_tᵀ q_t: `definition` in f64, one value after the other. [`channels`]
//! has a decay for every channel of the keys; here is Mamba2's (SSD), with one for a head: a = e^{ΔA}, k = B, v = Δ x, q = C, in
//! its own words h_t = e^{Δ_t A} h_{t−1} + (Δ_t x_t) ⊗ B_t, y_t = h_t C_t + D x_t.
//!
//! [`recurrent`] is the definition, token by token. [`chunked()`] computes the same as matrix products within chunks
//! of Q tokens and carries the state between them (Dao & Gu 2024, section 6); `tiled` does so on a matrix unit; [`products`] rounds those products, and
//! `rounded` keeps the state in integers. With a =
//! cumulative sum of ΔA in the chunk, u = Δx and L[t, s] = e^{a_t − a_s} for s ≤ t:
//!
//! - inside the chunk  Y = ((C Bᵀ) ∘ L) u,
//! - from before it    Y += e^{a_t} C_t h,
//! - state after it    h ← e^{a_Q} h + Σ_t e^{a_Q − a_t} B_t ⊗ u_t.
//!
//! | letter | meaning |
//! |---|---|
//! | T, H, P | tokens, heads, values per head |
//! | G, N | groups that share B and C, state size |

pub mod channels;
pub(super) mod chunked;
#[cfg(test)]
mod definition;
pub mod products;
mod rounded;
#[cfg(target_arch = "x86_64")]
mod tiled;

use super::Scatter;
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::simd::{Lanes, dispatch};
use super::stored::{Held, Stored};
pub use chunked::chunked;
use half::bf16;
use rayon::prelude::*;
pub use rounded::recurrent_rounded;

/// Tokens of a chunk. 64 keeps a head's operands in the first two cache levels.
pub const CHUNK: usize = 64;
/// Up to this many tokens the recurrence itself is cheaper than a padded chunk.
const FEW_TOKENS: usize = 8;

/// The sizes of one scan.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Tokens T of each sequence.
    pub time: usize,
    /// Heads H.
    pub heads: usize,
    /// Values per head P.
    pub head_dim: usize,
    /// Groups G; head h uses group ⌊h / (H/G)⌋.
    pub groups: usize,
    /// State size N.
    pub state: usize,
    /// Distance between the rows of y, at least H·P.
    pub out: usize,
}

impl Shape {
    /// Values of a row of `xbc`: x [H, P], then B [G, N], then C [G, N].
    pub fn row(&self) -> usize {
        self.heads * self.head_dim + 2 * self.groups * self.state
    }

    /// The values of y, to be written by several heads at once.
    ///
    /// # Panics
    /// If rows overlap, so that a token's head would not have places of its own.
    pub(super) fn scatter<'a>(&self, y: &'a mut [f32]) -> Scatter<'a> {
        assert!(self.out >= self.heads * self.head_dim, "rows of y overlap");
        Scatter::new(y)
    }

    /// Where y [H, P] of a token has a head's values.
    pub(super) fn y_at(&self, token: usize, head: usize) -> usize {
        token * self.out + head * self.head_dim
    }

    pub(super) fn x_at(&self, head: usize) -> usize {
        head * self.head_dim
    }

    pub(super) fn b_at(&self, group: usize) -> usize {
        self.heads * self.head_dim + group * self.state
    }

    pub(super) fn c_at(&self, group: usize) -> usize {
        self.b_at(group) + self.groups * self.state
    }

    pub(super) fn group_of(&self, head: usize) -> usize {
        head / (self.heads / self.groups)
    }
}

/// Scans `xbc` [B, T, row] with steps `dt` [B, T, H] (Δ, already positive), rates `a` `[H]` (A < 0) and skips `d` `[H]`.
///
/// `h` [B, H, P, N] is the state before the first token and, on return, after the last; `y` has rows [B·T] of [H, P] from its start,
/// `out` apart, and what lies between them stays as it is.
/// Chooses the fastest form. All agree to rounding, that of a matrix unit only if the result is to be `fine`; else its
/// products have an error of 2⁻¹⁶, less than that of any weights but f32.
pub fn scan(
    shape: Shape,
    fine: bool,
    xbc: &[f32],
    dt: &[f32],
    a: &[f32],
    d: &[f32],
    h: &mut [f32],
    y: &mut [f32],
) {
    if shape.time <= FEW_TOKENS {
        return recurrent(shape, xbc, dt, a, d, h, y);
    }
    #[cfg(target_arch = "x86_64")]
    if amx::has_bf16() {
        return match fine {
            true => tiled::tiled::<3>(shape, xbc, dt, a, d, h, y),
            false => tiled::tiled::<2>(shape, xbc, dt, a, d, h, y),
        };
    }
    let _ = fine;
    chunked(shape, None, xbc, dt, a, d, h, y);
}

/// The recurrence, one token after the other. Arguments as in [`scan`]; a state in bf16 is rounded to the nearest after every
/// token, and y_t reads h_t as it is before.
pub fn recurrent<H: Stepped>(
    shape: Shape,
    xbc: &[f32],
    dt: &[f32],
    a: &[f32],
    d: &[f32],
    h: &mut [H],
    y: &mut [f32],
) {
    each_token(shape, xbc, dt, a, d, h, y, |_, _| {});
}

/// [`recurrent`], where `after` each token gets the number of (sequence, head) and its state [P, N].
fn each_token<H: Stepped>(
    shape: Shape,
    xbc: &[f32],
    dt: &[f32],
    a: &[f32],
    d: &[f32],
    h: &mut [H],
    y: &mut [f32],
    after: impl Fn(usize, &mut [H]) + Sync,
) {
    let Shape { time, heads, head_dim, state, .. } = shape;
    let out = shape.scatter(y);
    let size = head_dim * state;
    let head_work = |(index, h): (usize, &mut [H])| {
        let (b, head) = (index / heads, index % heads);
        let group = shape.group_of(head);
        for t in 0..time {
            let row = &xbc[(b * time + t) * shape.row()..][..shape.row()];
            let dt = dt[(b * time + t) * heads + head];
            // SAFETY: every (b, t, head) has its own P values.
            let y = unsafe { out.slice(shape.y_at(b * time + t, head), head_dim) };
            let x = &row[shape.x_at(head)..][..head_dim];
            let (b, c) = (&row[shape.b_at(group)..][..state], &row[shape.c_at(group)..][..state]);
            H::step((dt * a[head]).exp(), dt, d[head], x, b, c, h, y);
            after(index, h);
        }
    };
    if h.len() * time < 1 << 16 {
        h.chunks_mut(size).enumerate().for_each(head_work);
    } else {
        h.par_chunks_mut(size).with_min_len(4).enumerate().for_each(head_work);
    }
}

/// A storage of states that can move on by a token.
pub trait Stepped: Held {
    /// One token of one head: h [P, N] ← decay · h + (dt · x) ⊗ b, y = h c + d · x.
    fn step(decay: f32, dt: f32, d: f32, x: &[f32], b: &[f32], c: &[f32], h: &mut [Self], y: &mut [f32]);
    /// The same with a decay for each channel of the keys: s [K, V] ← diag(a) s + k vᵀ, y = sᵀ q.
    fn step_channels(a: &[f32], k: &[f32], v: &[f32], q: &[f32], s: &mut [Self], y: &mut [f32]);
    /// Writes a vector, each value the nearest.
    fn keep<V: Lanes>(values: V, to: &mut [Self]);
    /// The nearest of one value.
    fn nearest(x: f32) -> Self;
}

macro_rules! stepped {
    ($ty:ty, $step:ident, $step_channels:path, $store:ident, $nearest:expr) => {
        impl Stepped for $ty {
            fn step(
                decay: f32,
                dt: f32,
                d: f32,
                x: &[f32],
                b: &[f32],
                c: &[f32],
                h: &mut [Self],
                y: &mut [f32],
            ) {
                $step(decay, dt, d, x, b, c, h, y);
            }
            fn step_channels(a: &[f32], k: &[f32], v: &[f32], q: &[f32], s: &mut [Self], y: &mut [f32]) {
                $step_channels(a, k, v, q, s, y);
            }
            #[inline(always)]
            fn keep<V: Lanes>(values: V, to: &mut [Self]) {
                values.$store(to);
            }
            #[inline(always)]
            fn nearest(x: f32) -> Self {
                $nearest(x)
            }
        }
    };
}
stepped!(f32, step_f32, channels::step_f32, store, |x| x);
stepped!(bf16, step_bf16, channels::step_bf16, store_bf16, bf16::from_f32);

dispatch! { fn step_f32(decay: f32, dt: f32, d: f32, x: &[f32], b: &[f32], c: &[f32], h: &mut [f32], y: &mut [f32]) = step_body; }
dispatch! { fn step_bf16(decay: f32, dt: f32, d: f32, x: &[f32], b: &[f32], c: &[f32], h: &mut [bf16], y: &mut [f32]) = step_body; }

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn step_body<V: Lanes>(
    decay: f32,
    dt: f32,
    d: f32,
    x: &[f32],
    b: &[f32],
    c: &[f32],
    h: &mut [impl Held],
    y: &mut [f32],
) {
    let state = h.len() / x.len();
    let (b, c) = (&b[..state], &c[..state]);
    let whole = state / V::N * V::N;
    let keep = V::splat(decay);
    for ((h, x), y) in h.chunks_exact_mut(state).zip(x).zip(y) {
        let (u, mut dots) = (dt * x, V::splat(0.0));
        for n in (0..whole).step_by(V::N) {
            let new = keep.fma(Stored::vector(&h[n..]), V::splat(u).mul(V::load(&b[n..])));
            Held::keep(new, &mut h[n..]);
            dots = new.fma(V::load(&c[n..]), dots);
        }
        let mut dot = dots.sum();
        for n in whole..state {
            let new = decay * h[n].one() + u * b[n];
            h[n] = Held::nearest(new);
            dot += new * c[n];
        }
        *y = dot + d * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::round::fake_bf16;

    /// The recurrence in f64: y, then the state.
    fn exact(shape: Shape, xbc: &[f32], dt: &[f32], a: &[f32], d: &[f32], h: &[f32]) -> Vec<f64> {
        let Shape { batch, time, heads, head_dim, state, .. } = shape;
        let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let (mut y, mut all) = (vec![0.0; batch * time * heads * head_dim], vec![]);
        for (index, h) in h.chunks(head_dim * state).enumerate() {
            let (b, head) = (index / heads, index % heads);
            let mut turned = vec![0.0; h.len()];
            crate::kernel::tile::transpose(head_dim, state, h, state, &mut turned, head_dim);
            let mut s = wide(&turned);
            for token in b * time..(b + 1) * time {
                let row = &xbc[token * shape.row()..];
                let (dt, at) = (f64::from(dt[token * heads + head]), (token * heads + head) * head_dim);
                let x = wide(&row[shape.x_at(head)..][..head_dim]);
                let v: Vec<f64> = x.iter().map(|x| dt * x).collect();
                let [k, q] = [shape.b_at(shape.group_of(head)), shape.c_at(shape.group_of(head))]
                    .map(|at| wide(&row[at..][..state]));
                let read = definition::step(&mut s, &[(dt * f64::from(a[head])).exp()], &k, &v, &q);
                for ((y, read), x) in y[at..].iter_mut().zip(read).zip(x) {
                    *y = read + f64::from(d[head]) * x;
                }
            }
            all.extend((0..h.len()).map(|i| s[i % state * head_dim + i / state]));
        }
        y.extend(all);
        y
    }

    #[test]
    #[should_panic(expected = "rows of y overlap")]
    fn rows_that_overlap_are_refused() {
        let shape = Shape { batch: 1, time: 2, heads: 2, head_dim: 3, groups: 1, state: 1, out: 5 };
        let xbc = vec![0.0; 2 * shape.row()];
        scan(shape, true, &xbc, &[0.1; 4], &[-1.0; 2], &[1.0; 2], &mut [0.0; 6], &mut [0.0; 12]);
    }

    #[test]
    fn a_state_in_bf16_is_one_that_is_rounded_after_every_token() {
        for (batch, time, heads, head_dim, groups, state) in
            [(1, 1, 1, 1, 1, 1), (2, 5, 4, 16, 2, 33), (1, 30, 5, 40, 1, 50), (1, 3, 24, 64, 1, 128)]
        {
            let shape = Shape { batch, time, heads, head_dim, groups, state, out: heads * head_dim };
            let noise = |n: usize, seed: usize| -> Vec<f32> {
                (0..n).map(|i| (((i + seed) * 7919 + 13) % 10007) as f32 / 5003.0 - 1.0).collect()
            };
            let (xbc, d) = (noise(batch * time * shape.row(), 1), noise(heads, 3));
            let dt: Vec<f32> = noise(batch * time * heads, 2).iter().map(|x| x.exp()).collect();
            let a: Vec<f32> = (0..heads).map(|head| -0.1 * head as f32 - 0.01).collect();
            let mut narrow: Vec<bf16> =
                noise(batch * heads * head_dim * state, 4).into_iter().map(bf16::from_f32).collect();
            let mut wide: Vec<f32> = narrow.iter().map(|h| h.to_f32()).collect();
            let [mut y, mut expected] = [(); 2].map(|()| vec![f32::NAN; batch * time * heads * head_dim]);
            recurrent(shape, &xbc, &dt, &a, &d, &mut narrow, &mut y);
            each_token(shape, &xbc, &dt, &a, &d, &mut wide, &mut expected, |_, h| fake_bf16(h));
            assert_eq!(y, expected);
            assert_eq!(narrow.iter().map(|h| h.to_f32()).collect::<Vec<_>>(), wide);
        }
    }

    #[test]
    fn every_form_is_the_definition_at_odd_sizes() {
        for (batch, time, heads, head_dim, groups, state) in [
            (1, 1, 1, 1, 1, 1),
            (1, 63, 2, 5, 1, 3),
            (2, 65, 4, 16, 2, 33),
            (1, 130, 5, 40, 1, 50),
            (1, 200, 4, 64, 4, 128),
            (3, 17, 2, 48, 1, 16),
        ] {
            // Rows of y with something between them.
            let (inner, gap) = (heads * head_dim, 3);
            let shape = Shape { batch, time, heads, head_dim, groups, state, out: inner + gap };
            let noise = |n: usize, seed: usize| -> Vec<f32> {
                (0..n).map(|i| (((i + seed) * 7919 + 13) % 10007) as f32 / 5003.0 - 1.0).collect()
            };
            let xbc = noise(batch * time * shape.row(), 1);
            // From steps that keep everything to steps that forget all before them.
            let dt: Vec<f32> = noise(batch * time * heads, 2).iter().map(|x| (3.0 * x - 2.0).exp()).collect();
            let a: Vec<f32> = (0..heads).map(|head| -(0.1 + 0.5 * head as f32)).collect();
            let (d, h) = (noise(heads, 3), noise(batch * heads * head_dim * state, 4));
            let exact = exact(shape, &xbc, &dt, &a, &d, &h);
            let size = exact.iter().fold(0.0f64, |size, x| size.max(x.abs()));
            let run = |name: &str, h: &mut [f32], y: &mut [f32]| match name {
                "recurrent" => recurrent(shape, &xbc, &dt, &a, &d, h, y),
                "chunked" => chunked(shape, None, &xbc, &dt, &a, &d, h, y),
                #[cfg(target_arch = "x86_64")]
                "tiled" if amx::has_bf16() => tiled::tiled::<3>(shape, &xbc, &dt, &a, &d, h, y),
                _ => scan(shape, name != "coarse", &xbc, &dt, &a, &d, h, y),
            };
            // The decays of a chunk come from differences of sums of up to 60, each rounded to 2⁻²⁴ of its size.
            for (name, bound) in
                [("recurrent", 1e-6), ("chunked", 4e-6), ("tiled", 4e-6), ("fine", 4e-6), ("coarse", 1.5e-5)]
            {
                let (mut h, mut rows) = (h.clone(), vec![f32::NAN; batch * time * shape.out - gap]);
                run(name, &mut h, &mut rows);
                let mut y = vec![];
                for row in rows.chunks(shape.out) {
                    y.extend(&row[..inner]);
                    assert!(
                        row[inner..].iter().all(|between| between.is_nan()),
                        "{name} writes between rows"
                    );
                }
                y.extend(h);
                for (at, (found, exact)) in y.iter().zip(&exact).enumerate() {
                    let error = (f64::from(*found) - exact).abs() / size;
                    assert!(error < bound, "{name} {shape:?} at {at}: {found}, not {exact}");
                }
            }
        }
    }
}
