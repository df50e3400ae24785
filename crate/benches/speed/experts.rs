//! A mixture of experts: only those that are chosen, and all of them for every token.

use crate::check::{hold, noise};
use crate::table::{Bound, Table};
use candle_core::{Device, Tensor};
use lowbit::layer::branch::Branch;
use lowbit::layer::feed_forward::{Curve, FeedForward};
use lowbit::layer::linear::{Linear, Weight};
use lowbit::layer::moe::Moe;

const HIDDEN: usize = 512;
const WIDTH: usize = 512;
const EXPERTS: usize = 8;

/// A prompt and a single token, with 2 experts a token and with all.
pub fn all(table: &mut Table) {
    for time in [512, 1] {
        for chosen in [2, EXPERTS] {
            let bound = || match time {
                1 => Bound::Bytes(4 * HIDDEN * (EXPERTS + 2 * chosen * WIDTH)),
                _ => Bound::Float(2 * time * HIDDEN * (EXPERTS + 2 * chosen * WIDTH)),
            };
            table.case(&format!("experts {chosen} of {EXPERTS}, tokens {time}"), bound, || {
                let (moe, u) = (layer(chosen), tensor(&[1, time, HIDDEN], 5, 1.0));
                let run = |u: &Tensor| moe.forward(u, None).expect("it fits");
                let values = |x: Tensor| x.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("values");
                let exact = values(moe.definition(&u).expect("it fits")).into_iter().map(f64::from);
                hold("a mixture of experts", &values(run(&u)), &exact.collect::<Vec<_>>(), 1e-5);
                move || drop(moe.forward(&u, None).expect("it fits"))
            });
        }
    }
}

fn layer(chosen: usize) -> Moe {
    let linear = |shape: [usize; 2], seed| Linear::new(Weight::Dense(tensor(&shape, seed, 0.05)), None);
    let expert = |e: usize| -> Box<dyn Branch> {
        let (first, second) = (linear([WIDTH, HIDDEN], 20 + e), linear([HIDDEN, WIDTH], 40 + e));
        Box::new(FeedForward { first, second, curve: Curve::Gelu, names: ["w1", "w2"] })
    };
    let router = linear([EXPERTS, HIDDEN], 3);
    Moe::new(("router", router), ("experts", (0..EXPERTS).map(expert).collect()), chosen, 0.0)
}

fn tensor(shape: &[usize], seed: usize, size: f32) -> Tensor {
    let values = noise(shape.iter().product(), seed).into_iter().map(|x| size * x).collect::<Vec<_>>();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values")
}
