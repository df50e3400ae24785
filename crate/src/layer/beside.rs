//! Branches side by side: all read the same, and what they give is added, y = Σ g · branch(f · u) with constant factors f and g.

use super::attention::{Attention, Width};
use super::branch::{Back, Branch};
use super::linear::Linear;
use super::meeting::Meeting;
use super::moe::Moe;
use super::recurrence::{Recurrence, Recurrent};
use super::room::{Buffer, Room};
use super::state::LayerState;
use crate::kernel::diagonal::add_times;
use candle_core::{Device, Result, Tensor};
use std::cmp::Reverse;

/// Branches that read the same and are added.
#[derive(Clone, Debug)]
pub struct SideBySide {
    parts: Vec<Part>,
    /// The names of all linears, and of all other parameters.
    names: [Vec<String>; 2],
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Part {
    /// What the names of its parameters begin with, the dot included; empty where they stand beside the others.
    pub place: String,
    /// The branch.
    pub branch: Box<dyn Branch>,
    /// The factor f on what it reads.
    pub input: f32,
    /// The factor g on what it gives.
    pub output: f32,
}

impl Part {
    /// A branch of that place, which is empty or a name, with factors 1.
    pub fn new(place: &str, branch: Box<dyn Branch>) -> Self {
        let place = if place.is_empty() { String::new() } else { format!("{place}.") };
        Self { place, branch, input: 1.0, output: 1.0 }
    }

    /// The same with factors on what it reads and on what it gives.
    #[must_use]
    pub fn times(self, input: f64, output: f64) -> Self {
        Self { input: input as f32, output: output as f32, ..self }
    }

    /// f · u.
    fn reads(&self, u: &Tensor) -> Result<Tensor> {
        if self.input == 1.0 { Ok(u.clone()) } else { u * f64::from(self.input) }
    }

    /// The same of rows, in a buffer.
    fn read(&self, u: &[f32], room: &mut Room) -> Buffer {
        times(self.input, u, room)
    }
}

/// factor · x, in a buffer.
fn times(factor: f32, x: &[f32], room: &mut Room) -> Buffer {
    let mut y = room.take(x.len());
    y.iter_mut().zip(x).for_each(|(y, x)| *y = factor * x);
    y
}

impl SideBySide {
    /// Of parts whose places differ. At most one carries each kind of state.
    pub fn new(mut parts: Vec<Part>) -> Self {
        let mut names = [vec![], vec![]];
        for Part { place, branch, .. } in &mut parts {
            names[0].extend(branch.linears().into_iter().map(|(name, _)| format!("{place}{name}")));
            names[1].extend(branch.smalls_mut().into_iter().map(|(name, _)| format!("{place}{name}")));
        }
        Self { parts, names }
    }

    fn ask<'a, T>(&'a self, ask: impl Fn(&'a dyn Branch) -> Option<T>) -> Option<T> {
        self.parts.iter().find_map(|part| ask(&*part.branch))
    }

    /// What the first part says of what it reads that has anything to say.
    fn ask_with<T>(
        &self,
        u: &Tensor,
        ask: impl Fn(&dyn Branch, &Tensor) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let all = self.parts.iter().map(|part| ask(&*part.branch, &part.reads(u)?));
        all.filter_map(Result::transpose).next().transpose()
    }
}

impl Branch for SideBySide {
    fn forward(&self, u: &Tensor, mut state: Option<&mut LayerState>) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for part in &self.parts {
            let given = part.branch.forward(&part.reads(u)?, state.as_deref_mut())?;
            let given = if part.output == 1.0 { given } else { (given * f64::from(part.output))? };
            sum = Some(match sum {
                Some(sum) => (sum + given)?,
                None => given,
            });
        }
        sum.map_or_else(|| u.zeros_like(), Ok)
    }

    fn apply(
        &self,
        u: &mut [f32],
        size: (usize, usize),
        state: &mut LayerState,
        room: &mut Room,
    ) -> Result<()> {
        let mut sum = room.take(u.len());
        sum.fill(0.0);
        for part in &self.parts {
            let mut rows = part.read(u, room);
            part.branch.apply(&mut rows, size, state, room)?;
            add_times(part.output, &rows, &mut sum);
            room.give(rows);
        }
        u.copy_from_slice(&sum);
        room.give(sum);
        Ok(())
    }

    fn zero_state(&self, batch: usize, device: &Device) -> Result<LayerState> {
        let mut state = LayerState::default();
        self.parts.iter().try_for_each(|part| state.join(part.branch.zero_state(batch, device)?))?;
        Ok(state)
    }

    fn state_bytes(&self, batch: usize, tokens: usize) -> usize {
        self.parts.iter().map(|part| part.branch.state_bytes(batch, tokens)).sum()
    }

    fn linears(&self) -> Vec<(&str, &Linear)> {
        let linears = self.parts.iter().flat_map(|part| part.branch.linears());
        self.names[0].iter().zip(linears).map(|(name, (_, linear))| (name.as_str(), linear)).collect()
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        let linears = self.parts.iter_mut().flat_map(|part| part.branch.linears_mut());
        self.names[0].iter().zip(linears).map(|(name, (_, linear))| (name.as_str(), linear)).collect()
    }

    fn smalls_mut(&mut self) -> Vec<(&str, &mut Tensor)> {
        let smalls = self.parts.iter_mut().flat_map(|part| part.branch.smalls_mut());
        self.names[1].iter().zip(smalls).map(|(name, (_, small))| (name.as_str(), small)).collect()
    }

    fn starts(&self) -> Vec<&str> {
        self.parts.iter().map(|part| part.place.as_str()).collect()
    }

    fn recurrence(&self) -> Option<&dyn Recurrent> {
        self.ask(|branch| branch.recurrence())
    }

    fn set_recurrence(&mut self, recurrence: Recurrence) -> crate::error::Result<bool> {
        let mut any = false;
        for part in &mut self.parts {
            any |= part.branch.set_recurrence(recurrence)?;
        }
        Ok(any)
    }

    fn set_cache(&mut self, width: Width) -> bool {
        self.parts.iter_mut().fold(false, |any, part| part.branch.set_cache(width) | any)
    }

    fn attention(&self) -> Option<&Attention> {
        self.ask(|branch| branch.attention())
    }

    fn first_shares(&self, u: &Tensor) -> Result<Option<Tensor>> {
        self.ask_with(u, |branch, u| branch.first_shares(u))
    }

    fn experts(&self) -> Option<&Moe> {
        self.ask(|branch| branch.experts())
    }

    fn meeting(&self, u: &Tensor) -> Result<Option<Meeting>> {
        self.ask_with(u, |branch, u| branch.meeting(u))
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        y.fill(0.0);
        let (mut own, mut traced) = (0.0, vec![]);
        for part in &self.parts {
            let (read, mut given) = (part.read(u, room), room.take(u.len()));
            let back = part.branch.trace(&read, &mut given, time, room)?;
            add_times(part.output, &given, y);
            room.give(given);
            own += back.own;
            traced.push((part, read, back.pull));
        }
        // A place within another is taken first.
        traced.sort_by_key(|(part, ..)| Reverse(part.place.len()));
        let pull = move |_: &[f32],
                         dy: &[f32],
                         du: &mut [f32],
                         places: &mut super::branch::Places<'_>,
                         room: &mut Room| {
            du.fill(0.0);
            for (part, read, pull) in traced {
                let (dgiven, mut dread) = (times(part.output, dy, room), room.take(du.len()));
                let mut within = places.within(&part.place);
                pull(&read, &dgiven, &mut dread, &mut within, room)?;
                within.all_taken()?;
                add_times(part.input, &dread, du);
                [read, dgiven, dread].into_iter().for_each(|buffer| room.give(buffer));
            }
            Ok(())
        };
        Ok(Back { own, pull: Box::new(pull) })
    }

    fn copied(&self) -> Box<dyn Branch> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::{cases, hold_gradients, noise};
    use super::*;
    use crate::layer::feed_forward::{Curve, FeedForward};
    use crate::layer::linear::Weight;

    fn layer(hidden: usize) -> SideBySide {
        let linear = |shape: [usize; 2], seed| Linear::new(Weight::Dense(noise(&shape, seed, 0.6)), None);
        let feed = |inner: usize, seed| -> Box<dyn Branch> {
            let (first, second) = (linear([inner, hidden], seed), linear([hidden, inner], seed + 1));
            Box::new(FeedForward { first, second, curve: Curve::Gelu, names: ["up", "down"] })
        };
        SideBySide::new(vec![
            Part::new("", feed(9, 1)).times(0.7, 1.3),
            Part::new("shared", feed(14, 5)).times(1.0, 0.4),
        ])
    }

    #[test]
    fn parts_are_added_by_their_factors() {
        let (layer, u) = (layer(7), noise(&[2, 9, 7], 3, 1.0));
        let found = layer.forward(&u, None).unwrap();
        let [first, second] = [0, 1].map(|part| layer.parts[part].branch.copied());
        let first = (first.forward(&(&u * 0.7).unwrap(), None).unwrap() * 1.3).unwrap();
        let second = (second.forward(&u, None).unwrap() * 0.4).unwrap();
        let mut rows = u.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        layer.apply(&mut rows, (2, 9), &mut LayerState::default(), &mut Room::default()).unwrap();
        let rows = Tensor::from_vec(rows, u.shape(), u.device()).unwrap();
        let sum = (first + second).unwrap();
        for found in [found, rows] {
            let far = (found - &sum).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-5);
        }
        let names: Vec<&str> = layer.linears().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["up", "down", "shared.up", "shared.down"]);
    }

    #[test]
    fn what_a_part_says_is_of_what_it_reads() {
        let (attention, hidden, time) =
            cases().into_iter().next().map(|(layer, _, time)| (layer, 16, time)).unwrap();
        let u = noise(&[1, time, hidden], 3, 1.0);
        let alone = |u: &Tensor| attention.first_shares(u).unwrap().unwrap();
        let (expected, other) = (alone(&(&u * 0.3).unwrap()), alone(&u));
        let beside = SideBySide::new(vec![
            Part::new("feed", Box::new(layer(hidden))),
            Part::new("attn", attention.copied()).times(0.3, 2.0),
        ]);
        let found = beside.first_shares(&u).unwrap().unwrap();
        let far = |a: &Tensor, b: &Tensor| {
            (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(far(&found, &expected) < 1e-6 && far(&found, &other) > 1e-3);
        let (state, alone) = (beside.zero_state(2, u.device()).unwrap(), beside.attention().unwrap());
        assert!(state.cache.is_some() && state.recurrent.is_none());
        assert_eq!(beside.state_bytes(2, 9), alone.state_bytes(2, 9));
    }

    #[test]
    fn gradients_are_those_of_the_definition() {
        hold_gradients(&layer(7), 7, 33);
    }
}
