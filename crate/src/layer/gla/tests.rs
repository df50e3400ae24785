use super::super::attention::tests::noise;
use super::*;
use crate::layer::linear::Weight;
use crate::layer::recurrence::StateBits;

const CPU: &Device = &Device::Cpu;

fn mixer(sizes: Sizes, hidden: usize, gated: bool) -> Gla {
    let Sizes { heads, groups, key, value, .. } = sizes;
    let linear = |out: usize, inner: usize, seed: usize| {
        Linear::new(Weight::Dense(noise(&[out, inner], seed, 0.6)), None)
    };
    let mut second = linear(groups * key, 3, 5);
    second.bias = Some(noise(&[groups * key], 6, 2.0));
    let parts = Parts {
        q_proj: linear(heads * key, hidden, 1),
        k_proj: linear(groups * key, hidden, 2),
        v_proj: linear(groups * value, hidden, 3),
        g_proj: gated.then(|| linear(heads * value, hidden, 4)),
        gk_proj: [linear(3, hidden, 7), second],
        o_proj: linear(hidden, heads * value, 8),
        norm: noise(&[value], 9, 1.0),
    };
    Gla::new(sizes, parts)
}

fn cases() -> [(Gla, usize, usize); 3] {
    let sizes =
        |heads, groups, key, value, clamp_min| Sizes { heads, groups, key, value, eps: 1e-6, clamp_min };
    [
        (mixer(sizes(4, 2, 6, 10, f32::NEG_INFINITY), 16, true), 2, 37),
        (mixer(sizes(2, 2, 16, 24, -0.05), 12, false), 1, 130),
        (mixer(sizes(3, 1, 8, 8, f32::NEG_INFINITY), 16, true), 3, 5),
    ]
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn size(t: &Tensor) -> f32 {
    t.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar().unwrap()
}

fn hidden(mixer: &Gla) -> usize {
    mixer.parts.o_proj.weight.shape().unwrap().0
}

#[test]
fn kernels_are_the_definition_in_any_split() {
    for (mixer, batch, time) in cases() {
        let u = noise(&[batch, time, hidden(&mixer)], 5, 1.0);
        let mut state = mixer.zero_state(batch, CPU).unwrap();
        let whole = mixer.definition(&u, &mut state).unwrap();
        let after = state.recurrence().unwrap().clone();
        let near = |y: &Tensor| assert!(far(y, &whole) < 2e-5 * (1.0 + size(&whole)), "{}", far(y, &whole));
        near(&mixer.forward(&u, None).unwrap());
        for cuts in [vec![1], vec![3, 20], vec![time / 2], (1..time).collect()] {
            let [mut state, mut by_tensors] = [(); 2].map(|()| mixer.zero_state(batch, CPU).unwrap());
            let (mut first, mut pieces, mut defined) = (0, vec![], vec![]);
            for cut in cuts.into_iter().filter(|cut| (1..time).contains(cut)).chain([time]) {
                let piece = u.narrow(1, first, cut - first).unwrap();
                pieces.push(mixer.forward(&piece, Some(&mut state)).unwrap());
                defined.push(mixer.definition(&piece, &mut by_tensors).unwrap());
                first = cut;
            }
            near(&Tensor::cat(&pieces, 1).unwrap());
            near(&Tensor::cat(&defined, 1).unwrap());
            assert!(far(state.recurrence().unwrap(), &after) < 1e-5 * (1.0 + size(&after)));
        }
    }
}

#[test]
fn decays_are_those_of_the_gates() {
    for (mixer, _, _) in cases() {
        let Sizes { heads, groups, key, clamp_min, .. } = mixer.sizes;
        let u = noise(&[1, 4, hidden(&mixer)], 31, 1.0);
        let [first, second] = &mixer.parts.gk_proj;
        let gates: Vec<Vec<f32>> =
            second.forward(&first.forward(&u).unwrap()).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        let found: Vec<Vec<Vec<f32>>> = mixer.decays(&u).unwrap().to_vec3().unwrap();
        for (found, gates) in found.iter().zip(&gates) {
            for head in 0..heads {
                for d in 0..key {
                    let gate = f64::from(gates[head / (heads / groups) * key + d]);
                    let expected = (-(-gate).exp().ln_1p() / 16.0).max(clamp_min.into()).exp();
                    assert!((f64::from(found[head][d]) - expected).abs() < 1e-6);
                }
            }
        }
        assert_eq!(mixer.at_rest().unwrap().dims(), [heads, key]);
        let inputs = mixer.inputs(&u).unwrap();
        assert_eq!(inputs.iter().map(|(name, _)| *name).collect::<String>(), "qkv");
    }
}

fn state(bits: u8, feedback: bool) -> Recurrence {
    let state = StateBits { bits, feedback, residual: None };
    Recurrence { state: Some(state), ..Recurrence::default() }
}

#[test]
fn a_state_in_bf16_is_the_definition_rounded_after_every_token() {
    for (mixer, batch, time) in cases() {
        let u = noise(&[batch, time, hidden(&mixer)], 21, 1.0);
        let exact = mixer.forward(&u, None).unwrap();
        let mut held = mixer.zero_state(batch, CPU).unwrap();
        let mut token = |t: usize| {
            let y = mixer.definition(&u.narrow(1, t, 1).unwrap(), &mut held).unwrap();
            let rounded = held.recurrence().unwrap().to_dtype(DType::BF16).unwrap();
            held.recurrent = Some(rounded.to_dtype(DType::F32).unwrap());
            y
        };
        let expected = Tensor::cat(&(0..time).map(&mut token).collect::<Vec<_>>(), 1).unwrap();
        let mut half = mixer.clone();
        half.set_recurrence(state(16, false)).unwrap();
        let missed = size(&(half.forward(&u, None).unwrap() - &expected).unwrap());
        let lost = size(&(&expected - &exact).unwrap());
        // A sum in another order rounds a value to the other side now and then.
        assert!(missed < 0.1 * lost, "{missed} from the definition, which is {lost} from full precision");
    }
}

#[test]
fn fewer_bits_are_farther_and_any_split_gives_the_same() {
    for (mixer, batch, time) in cases() {
        let u = noise(&[batch, time, hidden(&mixer)], 21, 1.0);
        let exact = mixer.forward(&u, None).unwrap();
        let with = |recurrence| {
            let mut mixer = mixer.clone();
            mixer.set_recurrence(recurrence).unwrap();
            mixer
        };
        let error = |recurrence| {
            size(&(with(recurrence).forward(&u, None).unwrap() - &exact).unwrap()) / size(&exact)
        };
        let switches = |bits: u8| {
            let (x, bc) = (Some(bits), Some(bits));
            let plain = Recurrence::default();
            [Recurrence { x, ..plain }, Recurrence { bc, ..plain }, state(bits, false), state(bits, true)]
        };
        for (eight, three) in switches(8).into_iter().zip(switches(3)) {
            let (near, far) = (error(eight), error(three));
            // What a state in eight bits loses at every token adds up in channels that forget slowly.
            assert!(0.0 < near && near < 0.1 && far > 5.0 * near, "{eight:?}: {near}, {far}");
        }
        for recurrence in [state(8, false), state(4, true), state(16, false)] {
            let mixer = with(recurrence);
            let whole = mixer.forward(&u, None).unwrap();
            let mut held = mixer.zero_state(batch, CPU).unwrap();
            let pieces: Vec<Tensor> = (0..time)
                .map(|t| mixer.forward(&u.narrow(1, t, 1).unwrap(), Some(&mut held)).unwrap())
                .collect();
            // Products of one row and of many round differently.
            assert!(far(&Tensor::cat(&pieces, 1).unwrap(), &whole) < 0.02 * size(&whole));
        }
    }
}

#[test]
fn a_state_is_counted_in_its_widths() {
    let (mut mixer, _, _) = cases()[0].clone(); // 4 heads of 6 × 10 values
    assert_eq!(mixer.state_bytes(2, 0), 2 * 4 * 60 * 4);
    for (recurrence, head) in [(state(8, false), 60 + 4), (state(4, false), 30 + 4), (state(16, false), 120)]
    {
        mixer.set_recurrence(recurrence).unwrap();
        assert_eq!(mixer.state_bytes(2, 9), 2 * 4 * head);
    }
    let u = candle_core::Var::from_tensor(&noise(&[1, 3, 16], 1, 1.0)).unwrap();
    let error = mixer.forward(&u, None).unwrap_err().to_string();
    assert!(error.contains("no gradients"), "{error}");
}

#[test]
fn products_of_chunks_are_rounded_where_tokens_come_together() {
    use crate::kernel::scan::products::{Products, Scores, Share, Smooth};
    let of = |bits| {
        let scores = Scores { bits, share: Share::Block, smooth: Smooth::Qk };
        let products = Products { scores: Some(scores), fp8_values: false, sub: 16 };
        Recurrence { products: Some(products), ..Recurrence::default() }
    };
    for (mixer, batch, time) in cases() {
        let u = noise(&[batch, time, hidden(&mixer)], 5, 1.0);
        let with = |recurrence| {
            let mut mixer = mixer.clone();
            mixer.set_recurrence(recurrence).unwrap();
            mixer
        };
        let mut after = mixer.zero_state(batch, CPU).unwrap();
        let exact = mixer.forward(&u, Some(&mut after)).unwrap();
        let rounded = with(of(8));
        let mut held = rounded.zero_state(batch, CPU).unwrap();
        let y = rounded.forward(&u, Some(&mut held)).unwrap();
        let error = |y: &Tensor| far(y, &exact) / size(&exact);
        // Within a sub-chunk nothing is rounded, and nothing that goes to the state.
        assert_eq!(error(&y) > 1e-4, time > 16, "{}", error(&y));
        assert!(
            error(&y) < 0.1
                && (time <= 16 || error(&with(of(2)).forward(&u, None).unwrap()) > 3.0 * error(&y))
        );
        let states = (held.recurrence().unwrap(), after.recurrence().unwrap());
        assert!(far(states.0, states.1) < 1e-5 * (1.0 + size(states.1)));
        let mut held = rounded.zero_state(batch, CPU).unwrap();
        let one_by_one: Vec<Tensor> = (0..time)
            .map(|t| rounded.forward(&u.narrow(1, t, 1).unwrap(), Some(&mut held)).unwrap())
            .collect();
        assert!(far(&Tensor::cat(&one_by_one, 1).unwrap(), &exact) < 2e-5 * (1.0 + size(&exact)));
        // What is trained is what is run.
        let row = u.narrow(0, 0, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut traced = vec![0.0; row.len()];
        drop(rounded.trace(&row, &mut traced, time, &mut Room::default()).unwrap());
        let run = y.narrow(0, 0, 1).unwrap().flatten_all().unwrap();
        let traced = Tensor::from_vec(traced, run.shape(), CPU).unwrap();
        assert!(far(&traced, &run) < 1e-5 * (1.0 + size(&run)));
    }
    let both = Recurrence { state: state(8, false).state, ..of(4) };
    assert!(both.check().unwrap_err().to_string().contains("rounded token by token"));
}
