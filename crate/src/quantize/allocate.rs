//! Widths for layers under one budget of bits: where a bit saves most predicted harm, it is spent first.
//!
//! Each layer offers a few widths, each with its bits and its predicted harm. On the lower convex hull of harm
//! against bits every step up saves less a bit than the one before it, so taking all layers' steps by falling savings
//! per bit minimizes the summed harm for every budget that it meets (Shoham & Gersho 1988). A step that no longer
//! fits whole is given to some of its layer's rows, and what is left to the rows of the steps after it that need
//! fewer bits: the budget is used to within the smallest step of one row. That costs at most what one row's step
//! could have saved. Where all rows of a part must have one width, [`knapsack`](super::knapsack) chooses.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What one layer offers: the same count of widths in `row_bits` and `harm`, from narrow to wide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choices {
    /// Rows of the layer's weight.
    pub rows: usize,
    /// Bits of one row at each width, scales included; rising.
    pub row_bits: Vec<u64>,
    /// Predicted harm of the whole layer at each width. It falls; where it does not, that counts as noise, and the
    /// wider width as no worse.
    pub harm: Vec<f64>,
}

/// Rows of a layer that have one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// How many rows.
    pub rows: usize,
    /// The index of their width among the layer's [`Choices`].
    pub width: usize,
}

/// A step up the hull of one layer.
struct Step {
    layer: usize,
    to: usize,
    /// Harm saved per bit.
    worth: f64,
}

impl Choices {
    /// Bits of a layer whose rows are shared out so.
    pub fn bits(&self, shares: &[Share]) -> u64 {
        shares.iter().map(|share| share.rows as u64 * self.row_bits[share.width]).sum()
    }

    /// Predicted harm of a layer whose rows are shared out so, each row with its part of the layer's.
    pub fn predicted(&self, shares: &[Share]) -> f64 {
        let sum: f64 = shares.iter().map(|share| share.rows as f64 * self.harm[share.width]).sum();
        sum / self.rows.max(1) as f64
    }

    fn check(&self) -> Result<()> {
        if self.row_bits.is_empty() || self.row_bits.len() != self.harm.len() {
            let (bits, harms) = (self.row_bits.len(), self.harm.len());
            return Err(Error::input(format!("{bits} widths with {harms} predictions of harm")));
        }
        if !self.row_bits.is_sorted_by(|a, b| a < b) {
            return Err(Error::input("the widths do not rise in bits"));
        }
        if !self.harm.iter().all(|harm| harm.is_finite()) {
            return Err(Error::input("a predicted harm is not finite"));
        }
        Ok(())
    }

    /// The steps along the hull, from the narrowest width to the widest; their worth falls.
    fn steps(&self, layer: usize) -> Vec<Step> {
        let mut least = f64::INFINITY;
        let harm: Vec<f64> = self
            .harm
            .iter()
            .map(|harm| {
                least = least.min(*harm);
                least
            })
            .collect();
        let mut steps: Vec<Step> = vec![];
        for to in 1..harm.len() {
            let worth = |from: usize| {
                let bits = self.rows as f64 * (self.row_bits[to] - self.row_bits[from]) as f64;
                (harm[from] - harm[to]) / bits
            };
            loop {
                let from = steps.last().map_or(0, |step| step.to);
                let worth = worth(from);
                match steps.last() {
                    Some(last) if last.worth <= worth => drop(steps.pop()),
                    _ => break steps.push(Step { layer, to, worth }),
                }
            }
        }
        steps
    }
}

/// Gives every layer its widths: the least predicted harm for at most `budget` bits in all.
///
/// A layer has one width, and so one [`Share`]; the few layers whose step fits in part have two, the wider first. What
/// is left of the budget is less than any row's next step.
///
/// # Errors
/// If the narrowest widths already need more than `budget`, or a layer's choices are empty, of unequal count, not
/// rising in bits, or not finite.
pub fn allocate(layers: &[Choices], budget: u64) -> Result<Vec<Vec<Share>>> {
    for (i, layer) in layers.iter().enumerate() {
        layer.check().map_err(|e| e.at(format!("layer {i}")))?;
    }
    let cost = |layer: &Choices, bits: u64| layer.rows as u128 * u128::from(bits);
    let narrowest: u128 = layers.iter().map(|layer| cost(layer, layer.row_bits[0])).sum();
    let Some(mut left) = u128::from(budget).checked_sub(narrowest) else {
        let what = format!("a budget of {budget} bits, where the narrowest widths need {narrowest}");
        return Err(Error::input(what).hint("raise it, or offer narrower widths"));
    };
    let mut steps: Vec<Step> = layers
        .iter()
        .enumerate()
        .filter(|(_, layer)| layer.rows > 0)
        .flat_map(|(i, layer)| layer.steps(i))
        .collect();
    // Stable: of equal worth the earlier layer comes first, and a layer's steps keep their order.
    steps.sort_by(|a, b| b.worth.total_cmp(&a.worth));
    let mut shares: Vec<Vec<Share>> =
        layers.iter().map(|layer| vec![Share { rows: layer.rows, width: 0 }]).collect();
    for Step { layer, to, .. } in steps {
        let Choices { rows, row_bits, .. } = &layers[layer];
        // A layer that a step fitted in part has no whole width to step up from.
        let [Share { width: from, .. }] = shares[layer][..] else { continue };
        let row_step = u128::from(row_bits[to] - row_bits[from]);
        let fit = (left / row_step).min(*rows as u128) as usize;
        left -= fit as u128 * row_step;
        if fit == *rows {
            shares[layer][0].width = to;
        } else if fit > 0 {
            shares[layer] = vec![Share { rows: fit, width: to }, Share { rows: rows - fit, width: from }];
        }
    }
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choices() -> impl Strategy<Value = Vec<Choices>> {
        let layer = (1usize..6, proptest::collection::vec((1u64..9, 0u32..50), 1..5));
        proptest::collection::vec(layer, 1..5).prop_map(|layers| {
            let layer = |(rows, steps): (usize, Vec<(u64, u32)>)| {
                let (mut bits, mut left) = (3, steps.iter().map(|s| s.1).sum::<u32>());
                let mut layer = Choices { rows, row_bits: vec![bits], harm: vec![f64::from(left)] };
                for (more, saved) in steps {
                    (bits, left) = (bits + more, left - saved);
                    layer.row_bits.push(bits);
                    layer.harm.push(f64::from(left));
                }
                layer
            };
            layers.into_iter().map(layer).collect()
        })
    }

    fn bits(layers: &[Choices], shares: &[Vec<Share>]) -> u64 {
        layers.iter().zip(shares).map(|(layer, shares)| layer.bits(shares)).sum()
    }

    fn harm(layers: &[Choices], shares: &[Vec<Share>]) -> f64 {
        layers.iter().zip(shares).map(|(layer, shares)| layer.predicted(shares)).sum()
    }

    /// The least harm of all ways to give whole layers one width each.
    fn best(layers: &[Choices], budget: u64) -> f64 {
        let Some((first, rest)) = layers.split_first() else { return 0.0 };
        let at = |width: usize| {
            let left = budget.checked_sub(first.rows as u64 * first.row_bits[width])?;
            Some(first.harm[width] + best(rest, left))
        };
        (0..first.harm.len()).filter_map(at).fold(f64::INFINITY, f64::min)
    }

    fn ends(layers: &[Choices]) -> (u64, u64) {
        let narrow = layers.iter().map(|layer| layer.rows as u64 * layer.row_bits[0]);
        let wide = layers.iter().map(|layer| layer.rows as u64 * layer.row_bits.last().unwrap());
        (narrow.sum(), wide.sum())
    }

    proptest! {
        #[test]
        fn the_budget_is_used_and_more_of_it_never_harms(layers in choices()) {
            let (narrow, wide) = ends(&layers);
            let mut before = f64::INFINITY;
            for budget in narrow..=wide + 2 {
                let shares = allocate(&layers, budget).unwrap();
                prop_assert_eq!(&shares, &allocate(&layers, budget).unwrap());
                for (layer, shares) in layers.iter().zip(&shares) {
                    prop_assert_eq!(layer.rows, shares.iter().map(|share| share.rows).sum::<usize>());
                }
                let (used, harm) = (bits(&layers, &shares), harm(&layers, &shares));
                prop_assert!(used <= budget && harm <= before + 1e-9);
                let climb = |layer: &Choices, shares: &[Share]| {
                    let from = shares.last().unwrap().width;
                    let step = layer.steps(0).into_iter().find(|step| step.to > from)?;
                    Some(layer.row_bits[step.to] - layer.row_bits[from])
                };
                let row_step = layers.iter().zip(&shares).filter_map(|(layer, shares)| climb(layer, shares)).min();
                prop_assert!(row_step.map_or(used == wide, |step| budget - used < step));
                before = harm;
            }
            prop_assert_eq!(bits(&layers, &allocate(&layers, wide).unwrap()), wide);
            prop_assert!(allocate(&layers, narrow - 1).is_err());
        }

        /// No choice of whole layers beats the shares by more than what a row's step saves.
        #[test]
        fn nothing_whole_is_better(layers in choices(), part in 0.0..1.0) {
            let (narrow, wide) = ends(&layers);
            let budget = narrow + ((wide - narrow) as f64 * part) as u64;
            let shares = allocate(&layers, budget).unwrap();
            let step = |layer: &Choices| {
                let falls = layer.harm.windows(2).map(|pair| (pair[0] - pair[1]) / layer.rows as f64);
                falls.sum::<f64>()
            };
            let row = layers.iter().map(step).fold(0.0, f64::max);
            prop_assert!(harm(&layers, &shares) <= best(&layers, budget) + row + 1e-9);
        }
    }

    #[test]
    fn a_step_off_the_hull_is_jumped_over_and_the_last_one_split() {
        let layer = |harm: [f64; 3]| Choices { rows: 10, row_bits: vec![2, 3, 4], harm: harm.to_vec() };
        let layers = [layer([9.0, 8.0, 1.0]), layer([6.0, 2.0, 1.0])];
        // Worth per bit: .4 for both rows' first steps (the jump over 3 bits saves 8 for 20), then .1.
        let share = |rows, width| Share { rows, width };
        let left = vec![share(1, 1), share(9, 0)]; // one bit is too few for the first layer's jump
        assert_eq!(allocate(&layers, 47).unwrap(), [vec![share(3, 2), share(7, 0)], left]);
        assert_eq!(allocate(&layers, 60).unwrap(), [vec![share(10, 2)], vec![share(10, 0)]]);
        assert_eq!(allocate(&layers, 64).unwrap(), [vec![share(10, 2)], vec![share(4, 1), share(6, 0)]]);
        assert_eq!(allocate(&layers, u64::MAX).unwrap(), [vec![share(10, 2)], vec![share(10, 2)]]);
        let error = allocate(&layers, 39).unwrap_err().to_string();
        assert_eq!(
            error,
            "a budget of 39 bits, where the narrowest widths need 40; raise it, or offer narrower widths"
        );
    }

    #[test]
    fn choices_that_are_none_are_one_sentence() {
        let run = |row_bits: &[u64], harm: &[f64]| {
            let layer = Choices { rows: 1, row_bits: row_bits.to_vec(), harm: harm.to_vec() };
            allocate(&[layer], 100).map_err(|e| e.to_string())
        };
        assert!(run(&[], &[]).unwrap_err().starts_with("layer 0: 0 widths"));
        assert!(run(&[2, 3], &[1.0]).unwrap_err().contains("2 widths with 1"));
        assert!(run(&[3, 3], &[1.0, 0.0]).unwrap_err().contains("do not rise"));
        assert!(run(&[2, 3], &[f64::NAN, 0.0]).unwrap_err().contains("not finite"));
        // Noise: the wider width counts as no worse, and a large budget still reaches it.
        assert_eq!(run(&[2, 3], &[1.0, 1.5]).unwrap(), [[Share { rows: 1, width: 1 }]]);
        assert!(allocate(&[], 0).unwrap().is_empty());
    }
}
