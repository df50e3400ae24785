//! A whole model of the 130M shape by width: a token decoded, and prompts read.

use crate::mixer;
use crate::table::{Bound, Table};
use lowbit::{Model, Scheme};
use std::sync::OnceLock;

const MODEL: &str = "random:mamba2-130m";
/// Tokens of the prompt that is read at once and one by one, for the two to be compared: more than a chunk.
const CHECKED: usize = 70;

/// Decode and prefill from f32 to four bits.
pub fn all(table: &mut Table) {
    for scheme in ["f32", "f32-lossless", "bf16", "bf16-lossless", "w8a8", "w4a8"] {
        let loaded = OnceLock::new();
        let model = || loaded.get_or_init(|| load(scheme));
        table.case(
            &format!("decode {scheme}"),
            || Bound::Bytes(read_for_a_token(model())),
            || {
                let (model, mut state) = (model(), model().state(1).expect("a state"));
                move || drop(model.step(13, &mut state).expect("a token"))
            },
        );
        for time in [512, 2048] {
            let bound = || match (scheme, operations(model(), time)) {
                ("f32" | "f32-lossless", count) => Bound::Float(count),
                ("bf16" | "bf16-lossless", count) => Bound::Bf16(count),
                (_, count) => Bound::Int8(count),
            };
            table.case(&format!("prefill {scheme} {time}"), bound, || {
                // One prompt after the other, each from the state that the last one left: the work is the same.
                let (model, ids, mut state) = (model(), ids(time), model().state(1).expect("a state"));
                move || drop(model.prefill(&ids, &mut state).expect("a prompt"))
            });
        }
    }
}

/// Bytes of all matrices, and of the state, which is read and written.
fn read_for_a_token(model: &Model) -> usize {
    let matrices: usize = model.linears().iter().map(|(_, linear)| linear.weight.bytes()).sum();
    matrices + 2 * model.state(1).expect("a state").bytes()
}

/// Operations of a prompt: every matrix for every token, the head for the last one, and the scans.
fn operations(model: &Model, time: usize) -> usize {
    let linears = model.linears();
    let each = linears.iter().map(|(_, linear)| linear.weight.shape().expect("a matrix"));
    let mut sizes: Vec<usize> = each.map(|(rows, cols)| 2 * rows * cols).collect();
    let head = sizes.pop().unwrap_or_default();
    head + time * sizes.iter().sum::<usize>() + model.config.layers() * mixer::operations_of_scan(time)
}

fn load(scheme: &str) -> Model {
    let plain = Model::load(MODEL).expect("a random model needs nothing");
    let model = plain.quantized(&scheme.parse::<Scheme>().expect("a scheme")).expect("it fits every model");
    held(&model, &plain, scheme);
    model
}

/// Panics if a prompt read at once, on the kernels of many rows, leads elsewhere than the same prompt token by token, on
/// those of one. With activations in integers the last bit of a sum may decide a rounding, which the following layers
/// pass on: the two may then differ, but by less than both from the model in f32.
fn held(model: &Model, plain: &Model, scheme: &str) {
    let at_once = |model: &Model| {
        let mut state = model.state(1).expect("a state");
        model.prefill(&ids(CHECKED), &mut state).expect("a prompt")
    };
    let (mut state, mut stepped) = (model.state(1).expect("a state"), vec![]);
    for id in ids(CHECKED) {
        stepped = model.step(id, &mut state).expect("a token");
    }
    let (found, exact) = (at_once(model), at_once(plain));
    let (far, size) = (distance(&found, &stepped), distance(&stepped, &vec![0.0; stepped.len()]));
    let allowed = distance(&stepped, &exact).max(1e-4 * size);
    assert!(far <= allowed, "{scheme}: read at once and token by token is {far} apart, more than {allowed}");
}

/// √ Σ (a − b)²
fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

fn ids(count: usize) -> Vec<u32> {
    (0..count).map(|i| (i * 7919 + 13) as u32 % 50_000).collect()
}
