use super::*;
use candle_core::{DType, Var};

pub(super) fn noise(shape: &[usize], seed: u64, scale: f32) -> Tensor {
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
    let (eps, dt_limit, end) = (1e-5, (0.0, f32::INFINITY), End::default());
    Sizes { heads, head_dim, groups, state, conv_width, eps, dt_limit, end }
}

pub(super) fn parts(s: Sizes) -> Parts {
    Parts {
        conv_weight: noise(&[s.channels(), s.conv_width], 1, 0.5),
        conv_bias: noise(&[s.channels()], 2, 0.3),
        dt_bias: noise(&[s.heads], 3, 1.0),
        a_log: noise(&[s.heads], 4, 1.0),
        d: noise(&[s.heads], 5, 1.0),
        norm: noise(&[s.inner()], 6, 1.0),
    }
}

pub(super) fn far(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Shapes with groups, odd widths, other ends, and times around the chunk's borders.
pub(super) fn cases() -> Vec<(Sizes, usize, usize)> {
    let limited = Sizes { dt_limit: (0.3, 0.9), ..sizes(2, 5, 1, 3, 3) };
    vec![
        (sizes(2, 16, 1, 16, 4), 2, 64),
        (sizes(4, 7, 2, 5, 4), 1, 65),
        (sizes(6, 8, 3, 17, 2), 2, 131),
        (sizes(3, 33, 1, 64, 5), 1, 9),
        (sizes(1, 64, 1, 64, 1), 1, 200),
        (limited, 2, 77),
        (Sizes { end: End::NormThenGate, ..sizes(4, 7, 2, 5, 4) }, 2, 70),
        (Sizes { end: End::Gate, ..sizes(3, 5, 1, 6, 4) }, 1, 131),
    ]
}

#[test]
fn fused_is_the_definition() {
    for (s, batch, time) in cases() {
        let core = Core::new(s, &parts(s)).unwrap();
        let x = noise(&[batch, time, s.rows()], 7, 1.0);
        let (expected, end) = core.definition(&x, &s.zero_state(batch, &Device::Cpu).unwrap()).unwrap();
        let mut state = s.zero_state(batch, &Device::Cpu).unwrap();
        let y = core.forward(&x, Some(&mut state), true).unwrap();
        assert!(far(&y, &expected) < 2e-5, "{s:?} {time}: {}", far(&y, &expected));
        assert!(far(state.recurrence().unwrap(), end.recurrence().unwrap()) < 2e-5);
        assert_eq!(far(state.convolution().unwrap(), end.convolution().unwrap()), 0.0);
        assert!(far(&core.forward(&x, None, true).unwrap(), &expected) < 2e-5);
    }
}

/// The output and the end state of `x` [B, T, R] read piece by piece: in several splits, the last into single tokens.
pub(super) fn in_pieces(core: &Core, x: &Tensor) -> Vec<(Tensor, LayerState)> {
    let (batch, time, _) = x.dims3().unwrap();
    let splits = [vec![1], vec![3, 70], vec![time / 2], (1..time).collect()];
    let read = |cuts: Vec<usize>| {
        let mut state = core.zero_state(batch, &Device::Cpu).unwrap();
        let (mut first, mut pieces) = (0, vec![]);
        for cut in cuts.into_iter().filter(|cut| *cut < time).chain([time]) {
            let piece = x.narrow(1, first, cut - first).unwrap().contiguous().unwrap();
            pieces.push(core.forward(&piece, Some(&mut state), true).unwrap());
            first = cut;
        }
        (Tensor::cat(&pieces, 1).unwrap(), state)
    };
    splits.into_iter().map(read).collect()
}

#[test]
fn any_split_and_single_steps_continue_the_sequence() {
    for (s, batch, time) in cases() {
        let core = Core::new(s, &parts(s)).unwrap();
        let x = noise(&[batch, time, s.rows()], 8, 1.0);
        let whole = core.forward(&x, None, true).unwrap();
        for (joined, _) in in_pieces(&core, &x) {
            assert!(far(&joined, &whole) < 1e-5, "{s:?}: {}", far(&joined, &whole));
        }
    }
}

#[test]
fn fused_gradients_are_the_definitions() {
    let fewer_tokens_than_taps = (sizes(3, 7, 1, 4, 4), 2, 2);
    for (s, batch, time) in cases().into_iter().chain([fewer_tokens_than_taps]) {
        let p = parts(s);
        let vars = [&p.conv_weight, &p.conv_bias, &p.dt_bias, &p.a_log, &p.d, &p.norm]
            .map(|t| Var::from_tensor(t).unwrap());
        let [conv_weight, conv_bias, dt_bias, a_log, d, norm] =
            vars.each_ref().map(|v| v.as_tensor().clone());
        let core = Core::new(s, &Parts { conv_weight, conv_bias, dt_bias, a_log, d, norm }).unwrap();
        let x = Var::from_tensor(&noise(&[batch, time, s.rows()], 9, 1.0)).unwrap();
        let pull = noise(&[batch, time, s.inner()], 10, 1.0);
        let y = core.definition(&x, &s.zero_state(batch, &Device::Cpu).unwrap()).unwrap().0;
        let defined = (&y * &pull).unwrap().sum_all().unwrap().backward().unwrap();
        let mut grads = [&p.conv_weight, &p.conv_bias, &p.dt_bias, &p.a_log, &p.d, &p.norm]
            .map(|t| vec![f32::NAN; t.elem_count()]);
        let mut dx = vec![f32::NAN; x.elem_count()];
        let (mut out, mut room) = (vec![f32::NAN; batch * time * s.inner()], Room::default());
        with_floats([x.as_tensor(), &pull], |[x, pull]| {
            let trace = core.trace(x, (batch, time), &mut out, &mut room).unwrap();
            let mut left = grads.iter_mut();
            let places = Parts::cut(s, |_| left.next().unwrap().as_mut_slice());
            core.backward(x, trace, (batch, time), pull, &mut dx, places, &mut room).unwrap();
        })
        .unwrap();
        let out = Tensor::from_vec(out, y.shape(), &Device::Cpu).unwrap();
        assert!(far(&out, &y.detach()) < 1e-4, "{s:?} {time}: {}", far(&out, &y.detach()));
        let names = ["conv_weight", "conv_bias", "dt_bias", "a_log", "d", "norm", "x"];
        for ((name, var), found) in
            names.into_iter().zip(vars.iter().chain([&x])).zip(grads.into_iter().chain([dx]))
        {
            let (a, b) =
                (Tensor::from_vec(found, var.shape(), &Device::Cpu).unwrap(), defined.get(var).unwrap());
            let size: f32 = b.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            assert!(far(&a, b) < 2e-4 * size.max(1.0), "{s:?} {name}: {} of {size}", far(&a, b));
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
        let y = core.definition(x, &s.zero_state(batch, &Device::Cpu).unwrap()).unwrap().0;
        (y * &pull).unwrap().to_dtype(DType::F64).unwrap().sum_all().unwrap()
    };
    let grad = value(&x).backward().unwrap();
    let slope = (grad.get(&x).unwrap() * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    let moved =
        |by: f64| value(&(x.as_tensor() + (&direction * by).unwrap()).unwrap()).to_scalar::<f64>().unwrap();
    let measured = (moved(1e-3) - moved(-1e-3)) / 2e-3;
    assert!((measured - f64::from(slope)).abs() < 2e-2 * measured.abs().max(1.0), "{measured} {slope}");
}
