//! The way back through a mixture of experts: to what was read through the chosen experts and through the weights of the choice,
//! which is itself taken as it is.

use super::choice::sigmoid;
use super::{Moe, Pick, Rule, balance, gather, probabilities, scatter};
use crate::kernel::norm::{add, dot};
use crate::layer::branch::Back;
use crate::layer::room::{Buffer, Room};
use candle_core::Result;
use std::ops::Range;

/// What an expert saw, and what it gave.
struct Seen<'a> {
    /// Its picks.
    group: Range<usize>,
    /// [tokens, hidden] each.
    read: Buffer,
    gave: Buffer,
    back: Back<'a>,
}

/// [`Branch::trace`](super::Branch::trace).
pub(super) fn trace<'a>(
    moe: &'a Moe,
    u: &[f32],
    y: &mut [f32],
    time: usize,
    room: &mut Room,
) -> Result<Back<'a>> {
    let (count, hidden) = (moe.count(), u.len() / time.max(1));
    let mut logits = room.take(time * count);
    moe.router.trace(u, &mut logits)?;
    let picks = moe.picks(&logits)?;
    y.fill(0.0);
    let (mut seen, mut first) = (vec![], 0);
    for group in picks.chunk_by(|a, b| a.expert == b.expert) {
        let [mut read, mut gave] = [(); 2].map(|()| room.take(group.len() * hidden));
        gather(group, u, &mut read);
        let expert = &moe.experts[group[0].expert as usize];
        let back = expert.trace(&read, &mut gave, group.len(), room)?;
        scatter(group, &gave, y);
        seen.push(Seen { group: first..first + group.len(), read, gave, back });
        first += group.len();
    }
    let likely = probabilities(&logits, count);
    let mut mean = vec![0.0; count];
    likely
        .chunks(count)
        .for_each(|row| mean.iter_mut().zip(row).for_each(|(mean, p)| *mean += f64::from(*p)));
    mean.iter_mut().for_each(|mean| *mean /= time as f64);
    let (own, slopes) = balance(&mean, moe.balance);
    let pull = move |u: &[f32],
                     dy: &[f32],
                     du: &mut [f32],
                     places: &mut crate::layer::branch::Places<'_>,
                     room: &mut Room| {
        // What each weight is worth, in the order of the picks.
        let mut worth = vec![0.0; picks.len()];
        let mut from_experts = room.take(du.len());
        from_experts.fill(0.0);
        let mut unseen: Vec<bool> = vec![true; count];
        for Seen { group, read, gave, back } in seen {
            let mine = &picks[group.clone()];
            let [mut dgave, mut dread] = [(); 2].map(|()| room.take(read.len()));
            gather(mine, dy, &mut dgave);
            let rows = dgave.chunks_mut(hidden).zip(gave.chunks(hidden));
            for ((dgave, gave), (pick, worth)) in rows.zip(mine.iter().zip(&mut worth[group])) {
                *worth = dot(dgave, gave);
                dgave.iter_mut().for_each(|d| *d *= pick.weight);
            }
            let expert = mine[0].expert as usize;
            unseen[expert] = false;
            let mut within = places.within(&moe.places[expert]);
            (back.pull)(&read, &dgave, &mut dread, &mut within, room)?;
            let plain: Vec<Pick> = mine.iter().map(|pick| Pick { weight: 1.0, ..*pick }).collect();
            scatter(&plain, &dread, &mut from_experts);
            [read, gave, dgave, dread].into_iter().for_each(|buffer| room.give(buffer));
        }
        for (place, _) in moe.places.iter().zip(unseen).filter(|(_, unseen)| *unseen) {
            places.within(place).all.into_values().for_each(|grad| grad.fill(0.0));
        }
        let mut dlogits = room.take(time * count);
        let share = f64::from(places.own) / time as f64;
        for (dlogits, likely) in dlogits.chunks_mut(count).zip(likely.chunks(count)) {
            let middle: f64 = likely.iter().zip(&slopes).map(|(p, slope)| f64::from(*p) * slope).sum();
            for ((d, p), slope) in dlogits.iter_mut().zip(likely).zip(&slopes) {
                *d = (share * f64::from(*p) * (slope - middle)) as f32;
            }
        }
        match &moe.rule {
            Rule::Softmax => {
                let mut middles = vec![0.0; time];
                for (pick, worth) in picks.iter().zip(&worth) {
                    middles[pick.row as usize] += pick.weight * worth;
                }
                for (pick, worth) in picks.iter().zip(&worth) {
                    let row = pick.row as usize;
                    dlogits[row * count + pick.expert as usize] += pick.weight * (worth - middles[row]);
                }
            }
            Rule::Sigmoid(by) => {
                let mut of_rows = vec![(vec![], vec![], vec![]); time];
                for (pick, worth) in picks.iter().zip(&worth) {
                    let (row, expert) = (pick.row as usize, pick.expert as usize);
                    let (places, scores, worths) = &mut of_rows[row];
                    places.push(row * count + expert);
                    scores.push(sigmoid(logits[row * count + expert]));
                    worths.push(*worth);
                }
                for (places, scores, mut worths) in of_rows {
                    by.back(&scores, &mut worths);
                    places.into_iter().zip(worths).for_each(|(at, d)| dlogits[at] += d);
                }
                places.take(by.name)?.fill(0.0); // no gradient passes the choice
            }
        }
        moe.router.pull(&moe.names[0], (u, &dlogits), du, places)?;
        add(&from_experts, du);
        room.give(dlogits);
        room.give(logits);
        room.give(from_experts);
        Ok(())
    };
    Ok(Back { own: own as f32, pull: Box::new(pull) })
}

#[cfg(test)]
mod tests {
    use super::super::super::attention::tests::noise;
    use super::super::super::branch::Places;
    use super::super::tests::layer;
    use super::super::{Branch, balance, probabilities};
    use super::*;
    use std::collections::BTreeMap;

    /// The gradient of the branch's own loss is its slope, by the router's weights alone.
    #[test]
    fn the_loss_of_unequal_use_has_its_slope() {
        let (hidden, time) = (6, 11);
        let moe = layer(hidden, 3, 1, 0.5);
        let u = noise(&[time * hidden], 9, 1.0).to_vec1::<f32>().unwrap();
        let mut room = Room::default();
        let mut grads: BTreeMap<String, Vec<f32>> = moe
            .linears()
            .into_iter()
            .map(|(name, linear)| {
                (format!("{name}.weight"), vec![f32::NAN; linear.weight.shape().map(|(a, b)| a * b).unwrap()])
            })
            .collect();
        let (mut y, mut du) = (vec![0.0; u.len()], vec![0.0; u.len()]);
        let back = moe.trace(&u, &mut y, time, &mut room).unwrap();
        let of = |weights: &[f32]| -> f64 {
            let row = |u: &[f32], w: &[f32]| u.iter().zip(w).map(|(u, w)| u * w).sum::<f32>();
            let logits: Vec<f32> =
                u.chunks(hidden).flat_map(|u| weights.chunks(hidden).map(move |w| row(u, w))).collect();
            let mut mean = [0.0; 3];
            probabilities(&logits, 3)
                .chunks(3)
                .for_each(|p| (0..3).for_each(|e| mean[e] += f64::from(p[e]) / time as f64));
            balance(&mean, 0.5).0
        };
        let weights = moe.router.weight.values().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!((f64::from(back.own) - of(&weights)).abs() < 1e-6 && back.own > 0.0);
        let all = grads.iter_mut().map(|(name, values)| (name.as_str(), values.as_mut_slice())).collect();
        let mut places = Places { path: String::new(), all, own: 2.0 };
        (back.pull)(&u, &vec![0.0; u.len()], &mut du, &mut places, &mut room).unwrap();
        assert!(places.all.is_empty());
        drop(places);
        for i in 0..weights.len() {
            let moved = |by: f32| {
                let mut weights = weights.clone();
                weights[i] += by;
                of(&weights)
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2 * 2.0;
            let found = f64::from(grads["router.gate.weight"][i]);
            assert!((found - slope).abs() < 2e-3 * (0.05 + slope.abs()), "{i}: {found} {slope}");
        }
        assert!(
            grads.iter().all(|(name, grad)| name.starts_with("router") || grad.iter().all(|g| *g == 0.0))
        );
    }
}
