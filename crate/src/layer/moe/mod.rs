//! A mixture of experts (Shazeer et al. 2017): a router chooses k of E feed-forward layers for each token, and adds what they give,
//! each by its weight. Only chosen experts compute: those of a prompt see their tokens together, a single token meets k of them.

mod choice;
mod trace;

use super::branch::{Back, Branch, by_kernels};
use super::linear::Linear;
use super::op::with_floats;
use super::room::Room;
use super::state::LayerState;
use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::{sigmoid, softmax};
pub use choice::{Pick, Picks, Rule, Scores, balance, choose, choose_by_scores, probabilities};

/// One such layer.
#[derive(Clone, Debug)]
pub struct Moe {
    /// [E, hidden].
    router: Linear,
    experts: Vec<Box<dyn Branch>>,
    /// k.
    chosen: usize,
    rule: Rule,
    /// The weight λ of the loss of unequal use in training.
    balance: f64,
    /// What the names of each expert's linears begin with.
    places: Vec<String>,
    /// Those of all linears: the router's, then the experts'.
    names: Vec<String>,
}

/// What a router makes of some tokens.
#[derive(Clone, Debug)]
pub struct Routed {
    /// E.
    pub experts: usize,
    /// How many of them see a token.
    pub chosen: usize,
    /// Which ones, and by which weights.
    pub picks: Picks,
    /// The probabilities of softmax, or the scores, [T, E].
    pub likely: Vec<f32>,
    /// By what the choice goes, [T, E]: logits, or scores with their correction.
    pub ranks: Vec<f32>,
}

impl Moe {
    /// A router of this name, and experts, which keep nothing from token to token, named `place`.0, `place`.1, …; `chosen` of them see
    /// a token, those of the largest logits.
    pub fn new(
        (name, router): (&str, Linear),
        (place, experts): (&str, Vec<Box<dyn Branch>>),
        chosen: usize,
        balance: f64,
    ) -> Self {
        let places: Vec<String> = (0..experts.len()).map(|expert| format!("{place}.{expert}.")).collect();
        let of_experts = places.iter().zip(&experts).flat_map(|(place, expert)| {
            expert.linears().into_iter().map(move |(name, _)| format!("{place}{name}"))
        });
        let names = std::iter::once(name.to_string()).chain(of_experts).collect();
        Self { router, experts, chosen, rule: Rule::Softmax, balance, places, names }
    }

    /// The same with a choice by scores.
    #[must_use]
    pub fn by_scores(self, scores: Scores) -> Self {
        Self { rule: Rule::Sigmoid(scores), ..self }
    }

    /// The choice by logits [T, E] of the router.
    fn picks(&self, logits: &[f32]) -> Result<Picks> {
        match &self.rule {
            Rule::Softmax => Ok(choose(logits, self.count(), self.chosen)),
            Rule::Sigmoid(by) => with_floats([&by.correction], |[correction]| {
                choose_by_scores(logits, correction, self.chosen, by)
            }),
        }
    }

    /// How many experts there are.
    pub fn count(&self) -> usize {
        self.experts.len()
    }

    /// k, of them for each token.
    pub fn chosen(&self) -> usize {
        self.chosen.min(self.count())
    }

    /// What the router makes of each of the tokens that the branch reads, [.., hidden].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn routed(&self, u: &Tensor) -> Result<Routed> {
        let (experts, chosen) = (self.count(), self.chosen());
        let logits = self.router.forward(u)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let picks = self.picks(&logits)?;
        let (likely, ranks) = match &self.rule {
            Rule::Softmax => (probabilities(&logits, experts), logits),
            Rule::Sigmoid(by) => {
                let scores: Vec<f32> = logits.iter().map(|x| choice::sigmoid(*x)).collect();
                let correction = by.correction.to_vec1::<f32>()?;
                let ranks = scores.iter().zip(correction.iter().cycle()).map(|(s, c)| s + c).collect();
                (scores, ranks)
            }
        };
        Ok(Routed { experts, chosen, picks, likely, ranks })
    }

    /// In tensor operations, every expert for every token: with gradients, on any device.
    pub fn definition(&self, u: &Tensor) -> Result<Tensor> {
        let (logits, count) = (self.router.forward(u)?, self.count()); // [B, T, E]
        let flat = logits.detach().to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let mut chosen = vec![0.0f32; flat.len()];
        for pick in self.picks(&flat)? {
            chosen[pick.row as usize * count + pick.expert as usize] = 1.0;
        }
        let chosen = Tensor::from_vec(chosen, logits.shape(), u.device())?;
        // 0 where not chosen.
        let weights = match &self.rule {
            Rule::Softmax => softmax(&(logits + chosen.affine(1e30, -1e30)?)?, D::Minus1)?,
            Rule::Sigmoid(by) => {
                let scores = (sigmoid(&logits)? * chosen)?;
                let scores = match by.normed {
                    true => scores.broadcast_div(&(scores.sum_keepdim(D::Minus1)? + 1e-20)?)?,
                    false => scores,
                };
                (scores * f64::from(by.factor))?
            }
        };
        let mut all = u.zeros_like()?;
        for (e, expert) in self.experts.iter().enumerate() {
            all = (all + expert.forward(u, None)?.broadcast_mul(&weights.narrow(D::Minus1, e, 1)?)?)?;
        }
        Ok(all)
    }

    fn tracked(&self) -> bool {
        self.linears().iter().any(|(_, linear)| linear.tracked())
    }
}

impl Branch for Moe {
    fn forward(&self, u: &Tensor, _state: Option<&mut LayerState>) -> Result<Tensor> {
        if !u.device().is_cpu() || u.track_op() || self.tracked() {
            return self.definition(u);
        }
        by_kernels(self, u, None)
    }

    fn apply(
        &self,
        u: &mut [f32],
        (batch, time): (usize, usize),
        _state: &mut LayerState,
        room: &mut Room,
    ) -> Result<()> {
        let (rows, count) = (batch * time, self.count());
        let hidden = u.len() / rows.max(1);
        let mut logits = room.take(rows * count);
        self.router.apply(u, &mut logits, room)?;
        let picks = self.picks(&logits)?;
        let mut given = room.take(u.len());
        given.fill(0.0);
        for group in picks.chunk_by(|a, b| a.expert == b.expert) {
            let mut part = room.take(group.len() * hidden);
            gather(group, u, &mut part);
            let expert = &self.experts[group[0].expert as usize];
            expert.apply(&mut part, (1, group.len()), &mut LayerState::default(), room)?;
            scatter(group, &part, &mut given);
            room.give(part);
        }
        u.copy_from_slice(&given);
        room.give(logits);
        room.give(given);
        Ok(())
    }

    fn linears(&self) -> Vec<(&str, &Linear)> {
        let experts = self.experts.iter().flat_map(|expert| expert.linears());
        let linears = std::iter::once(&self.router).chain(experts.map(|(_, linear)| linear));
        self.names.iter().map(String::as_str).zip(linears).collect()
    }

    fn linears_mut(&mut self) -> Vec<(&str, &mut Linear)> {
        let Self { router, experts, names, .. } = self;
        let experts = experts.iter_mut().flat_map(|expert| expert.linears_mut());
        let linears = std::iter::once(router).chain(experts.map(|(_, linear)| linear));
        names.iter().map(String::as_str).zip(linears).collect()
    }

    fn smalls_mut(&mut self) -> Vec<(&str, &mut Tensor)> {
        match &mut self.rule {
            Rule::Softmax => vec![],
            Rule::Sigmoid(by) => vec![(by.name, &mut by.correction)],
        }
    }

    fn experts(&self) -> Option<&Moe> {
        Some(self)
    }

    fn trace<'a>(&'a self, u: &[f32], y: &mut [f32], time: usize, room: &mut Room) -> Result<Back<'a>> {
        trace::trace(self, u, y, time, room)
    }

    fn copied(&self) -> Box<dyn Branch> {
        Box::new(self.clone())
    }
}

/// The rows of a group, one after the other.
fn gather(group: &[Pick], rows: &[f32], to: &mut [f32]) {
    let hidden = to.len() / group.len();
    for (pick, to) in group.iter().zip(to.chunks_mut(hidden)) {
        to.copy_from_slice(&rows[pick.row as usize * hidden..][..hidden]);
    }
}

/// Adds what an expert gave of a group to its rows, by their weights.
fn scatter(group: &[Pick], part: &[f32], rows: &mut [f32]) {
    let hidden = part.len() / group.len();
    for (pick, part) in group.iter().zip(part.chunks(hidden)) {
        let row = &mut rows[pick.row as usize * hidden..][..hidden];
        row.iter_mut().zip(part).for_each(|(row, part)| *row += pick.weight * part);
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::{hold_gradients, noise};
    use super::*;
    use crate::layer::feed_forward::{Curve, FeedForward};
    use crate::layer::linear::Weight;

    pub(super) fn layer(hidden: usize, experts: usize, chosen: usize, balance: f64) -> Moe {
        let linear =
            |shape: [usize; 2], seed: usize| Linear::new(Weight::Dense(noise(&shape, seed, 0.8)), None);
        let expert = |e: usize| {
            let inner = 3 + 5 * e; // experts may differ in width
            let (first, second) = (linear([inner, hidden], 20 + e), linear([hidden, inner], 40 + e));
            FeedForward { first, second, curve: Curve::Gelu, names: ["w1", "w2"] }.copied()
        };
        let experts = (0..experts).map(expert).collect::<Vec<_>>();
        let router = linear([experts.len(), hidden], 3);
        Moe::new(("router.gate", router), ("experts", experts), chosen, balance)
    }

    #[test]
    fn sparse_is_dense_and_gradients_are_those_of_the_definition() {
        for (hidden, experts, chosen, time) in
            [(16, 4, 2, 70), (12, 3, 1, 9), (7, 5, 5, 33), (8, 1, 1, 4), (8, 2, 1, 1)]
        {
            let moe = layer(hidden, experts, chosen, 0.0);
            let u = noise(&[2, time, hidden], 5, 1.0);
            let (found, expected) = (moe.forward(&u, None).unwrap(), moe.definition(&u).unwrap());
            let far = (&found - expected).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-5);
            // A token alone is the token among others.
            let one = u.narrow(1, time - 1, 1).unwrap().contiguous().unwrap();
            let alone = moe.forward(&one, None).unwrap();
            let far =
                (alone - found.narrow(1, time - 1, 1).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-6);
            // The weight of a single choice is 1, whatever the router says: it has no gradient to hold.
            if chosen > 1 && time > experts {
                hold_gradients(&moe, hidden, time);
            }
        }
        for (groups, normed) in [(1, true), (2, true), (2, false)] {
            let correction = noise(&[4], 8, 0.3);
            let by = Scores { correction, name: "correction", groups, of_groups: 1, normed, factor: 1.7 };
            let moe = layer(9, 4, 2, 0.0).by_scores(by);
            let u = noise(&[2, 70, 9], 5, 1.0);
            let (found, expected) = (moe.forward(&u, None).unwrap(), moe.definition(&u).unwrap());
            let far = (&found - expected).unwrap().abs().unwrap().max_all().unwrap();
            assert!(far.to_scalar::<f32>().unwrap() < 1e-5);
            hold_gradients(&moe, 9, 70);
        }
    }

    #[test]
    fn names_are_those_of_the_router_and_of_each_expert() {
        let moe = layer(4, 2, 1, 0.0);
        let names: Vec<&str> = moe.linears().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["router.gate", "experts.0.w1", "experts.0.w2", "experts.1.w1", "experts.1.w2"]);
        let mut moe = moe;
        assert_eq!(moe.linears_mut().len(), 5);
    }
}
