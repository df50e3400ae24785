use super::*;
use crate::kernel::attention as kernel;
use crate::layer::branch::{Places, by_autograd};
use crate::layer::linear::Weight;
use std::collections::BTreeMap;

pub(in crate::layer) fn noise(shape: &[usize], seed: usize, scale: f32) -> Tensor {
    let wave = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 10_007) as f32 / 5003.0 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| scale * wave(i)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn layer(sizes: Sizes, hidden: usize, bias: bool) -> Attention {
    let Sizes { heads, shared, dim, longest } = sizes;
    let linear = |out: usize, inner: usize, seed: usize| {
        let bias = bias.then(|| noise(&[out], seed + 10, 0.5));
        Linear::new(Weight::Dense(noise(&[out, inner], seed, 0.6)), bias)
    };
    let all = [
        linear(heads * dim, hidden, 1),
        linear(shared * dim, hidden, 2),
        linear(shared * dim, hidden, 3),
        linear(hidden, heads * dim, 4),
    ];
    let frequencies = (0..dim / 2).map(|c| 100f32.powf(-2.0 * c as f32 / dim as f32)).collect();
    Attention::new(sizes, all, Arc::new(Rotary::new(frequencies, longest)))
}

pub(in crate::layer) fn cases() -> [(Attention, usize, usize); 7] {
    let sizes = |heads, shared, dim| Sizes { heads, shared, dim, longest: 300 };
    let heads = |heads, dim| Heads {
        norm: Norm::plain(dim, 1e-7, &Device::Cpu).unwrap(),
        gain: (noise(&[heads], 20, 0.5) + 1.5).unwrap(),
    };
    let linear =
        |out: usize, inner: usize, seed| Linear::new(Weight::Dense(noise(&[out, inner], seed, 0.6)), None);
    let low = |layer: Attention, rank: usize| {
        let (rows, cols) = layer.query_linears()[0].weight.shape().unwrap();
        let Attention { k_proj, v_proj, o_proj, sizes, rotary, .. } = layer;
        let queries = [linear(rank, cols, 30), linear(rows, rank, 31)];
        Attention::low_rank(sizes, queries, [k_proj, v_proj, o_proj], rotary.unwrap())
    };
    let part = |layer: Attention| {
        let rotary = Rotary::new(vec![1.0, 0.3], 300).within(layer.sizes.dim);
        Attention { rotary: Some(Arc::new(rotary)), ..layer }
    };
    let nowhere = |layer: Attention| Attention { rotary: None, ..layer };
    [
        (layer(sizes(4, 2, 6), 16, true), 2, 37),
        (layer(sizes(3, 1, 20), 12, false), 1, 130),
        (layer(sizes(2, 2, 8), 16, true), 3, 5),
        (low(layer(sizes(4, 2, 6), 16, true), 5), 2, 37),
        (low(layer(sizes(3, 1, 20), 12, false), 3).with_heads(heads(3, 20)), 1, 70),
        (part(layer(sizes(4, 2, 7), 16, true)).scaled(0.3).with_keys_times(0.6), 2, 70),
        (nowhere(layer(sizes(3, 1, 5), 12, true)).with_keys_times(1.7), 1, 37),
    ]
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn kernels_are_the_definition_in_any_split() {
    for (layer, batch, time) in cases() {
        let hidden = layer.k_proj.weight.shape().unwrap().1;
        let u = noise(&[batch, time, hidden], 5, 1.0);
        let whole = layer.definition(&u, None).unwrap();
        assert!(far(&layer.forward(&u, None).unwrap(), &whole) < 1e-5);
        for cuts in [vec![1], vec![3, 20], vec![time / 2], (1..time).collect()] {
            let mut state = layer.zero_state(batch, &Device::Cpu).unwrap();
            let mut by_tensors = LayerState { cache: Some(Cache::Tensors(None)), ..LayerState::default() };
            let (mut first, mut pieces, mut defined) = (0, vec![], vec![]);
            for cut in cuts.into_iter().filter(|cut| (1..time).contains(cut)).chain([time]) {
                let piece = u.narrow(1, first, cut - first).unwrap();
                pieces.push(layer.forward(&piece, Some(&mut state)).unwrap());
                defined.push(layer.definition(&piece, Some(&mut by_tensors)).unwrap());
                first = cut;
            }
            assert!(far(&Tensor::cat(&pieces, 1).unwrap(), &whole) < 1e-5);
            assert!(far(&Tensor::cat(&defined, 1).unwrap(), &whole) < 1e-5);
            let bytes = layer.state_bytes(batch, time);
            let caches = [state.cache().unwrap().bytes(), by_tensors.cache().unwrap().bytes()];
            assert_eq!(caches, [bytes, bytes]);
        }
    }
}

#[test]
fn a_cache_in_eight_bits_is_close_and_one_in_four_less() {
    let (layer, batch, time) = cases()[1].clone();
    let u = noise(&[batch, time, 12], 5, 1.0);
    let whole = layer.definition(&u, None).unwrap();
    let error = |width| far(&Attention { width, ..layer.clone() }.forward(&u, None).unwrap(), &whole);
    let by_channel = [Width::Channel(8), Width::Channel(4)].map(error);
    assert!(
        0.0 < by_channel[0] && 3.0 * by_channel[0] < by_channel[1] && by_channel[0] < 0.1,
        "{by_channel:?}"
    );
    let errors = [Width::F32, Width::Bf16, Width::Int(8), Width::Int(4)].map(error);
    assert!(errors[0] < 1e-5 && errors[1] > errors[0] && errors[3] > 3.0 * errors[2], "{errors:?}");
    assert!(errors[2] < 0.1, "{errors:?}");
}

#[test]
fn the_share_of_the_first_token_is_what_arrives_of_its_value() {
    let (mut layer, ..) = cases()[0].clone();
    let (Sizes { heads, shared, dim, .. }, hidden, time) = (layer.sizes, 16, 290);
    // The first token alone has a value: ones, by the first channel; of each head the first value comes out.
    let mut u = noise(&[time * hidden], 5, 1.0).to_vec1::<f32>().unwrap();
    u.iter_mut().step_by(hidden).enumerate().for_each(|(t, x)| *x = if t == 0 { 1.0 } else { 0.0 });
    let matrix = |rows: usize, cols: usize, one: &dyn Fn(usize, usize) -> bool| {
        let values = (0..rows * cols).map(|i| f32::from(u8::from(one(i / cols, i % cols)))).collect();
        Linear::new(Weight::Dense(Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()), None)
    };
    layer.v_proj = matrix(shared * dim, hidden, &|_, col| col == 0);
    layer.o_proj = matrix(hidden, heads * dim, &|row, col| row < heads && col == row * dim);
    let u = Tensor::from_vec(u, (1, time, hidden), &Device::Cpu).unwrap();
    let arrived = layer.definition(&u, None).unwrap().narrow(2, 0, heads).unwrap().transpose(1, 2).unwrap();
    let shares = layer.shares_of_first(&u).unwrap();
    assert_eq!(shares.dims(), [1, heads, time]);
    assert!(far(&shares, &arrived) < 1e-6);
}

#[test]
fn more_tokens_than_a_sequence_has_are_refused() {
    let (layer, ..) = cases()[2].clone();
    let u = noise(&[1, 301, 16], 6, 1.0);
    for found in [layer.forward(&u, None), layer.definition(&u, None)] {
        let error = found.unwrap_err().to_string();
        assert!(error.contains("301 tokens are more than 300"), "{error}");
    }
    let mut state = LayerState::default();
    let error = layer.apply(&mut [0.0; 16], (1, 1), &mut state, &mut Room::default()).unwrap_err();
    assert!(error.to_string().contains("has no cache"), "{error}");
}

/// The way back of a branch, and that of autograd over its definition.
pub(in crate::layer) fn hold_gradients(branch: &dyn Branch, hidden: usize, time: usize) {
    let mut copied = branch.copied();
    let smalls = copied.smalls_mut().into_iter().map(|(name, x)| (name.to_string(), x.elem_count()));
    let names: Vec<(String, usize)> = branch
        .linears()
        .into_iter()
        .flat_map(|(name, linear)| {
            let (out, inner) = linear.weight.shape().unwrap();
            let bias = linear.bias.iter().map(move |_| (format!("{name}.bias"), out));
            std::iter::once((format!("{name}.weight"), out * inner)).chain(bias)
        })
        .chain(smalls)
        .collect();
    let [u, dy] = [7, 8].map(|seed| noise(&[time * hidden], seed, 1.0).to_vec1::<f32>().unwrap());
    let mut room = Room::default();
    let mut run = |fused: bool| {
        let mut grads: BTreeMap<String, Vec<f32>> =
            names.iter().map(|(name, len)| (name.clone(), vec![f32::NAN; *len])).collect();
        let (mut y, mut du) = (vec![f32::NAN; u.len()], vec![f32::NAN; u.len()]);
        let back = match fused {
            true => branch.trace(&u, &mut y, time, &mut room).unwrap(),
            false => by_autograd(branch.copied(), &u, &mut y, time).unwrap(),
        };
        let all = grads.iter_mut().map(|(name, values)| (name.as_str(), values.as_mut_slice())).collect();
        let mut places = Places { path: String::new(), all, own: 0.0 };
        (back.pull)(&u, &dy, &mut du, &mut places, &mut room).unwrap();
        assert!(places.all.is_empty());
        drop(places);
        grads.insert("y".into(), y);
        grads.insert("u".into(), du);
        grads
    };
    let (found, expected) = (run(true), run(false));
    for (name, expected) in expected {
        let size = expected.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        let far = found[&name].iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // No gradient reaches what moves the choice of experts alone.
        assert!(size > 0.0 || name == "correction", "{name}");
        assert!(far < 1e-4 * size.max(1.0), "{name} of {time} tokens: {far} of {size}");
    }
}

#[test]
fn gradients_are_those_of_the_definition() {
    for (layer, _, time) in cases() {
        let hidden = layer.k_proj.weight.shape().unwrap().1;
        hold_gradients(&layer, hidden, time);
    }
    let mut rounded = cases()[0].0.clone();
    rounded.width = kernel::Width::Int(8);
    let error = rounded.trace(&[0.0; 16], &mut [0.0; 16], 1, &mut Room::default()).err().unwrap();
    assert!(error.to_string().contains("has no gradients"), "{error}");
}
