//! Widths for whole parts under one budget of bytes, exactly: the best of all choices, not of those along the hull.
//!
//! Where a part has one width for all its rows, the greedy choice of [`allocate`](super::allocate) stops at the first
//! step that does not fit, and up to a whole part's step is left over. Parts are few, so that the multiple-choice
//! knapsack is solved by dynamic programming (Kellerer, Pferschy & Pisinger 2004, section 11.5): parts × widths ×
//! budget steps, a second for the default model. Bytes are counted in their greatest common divisor; were that more
//! than `CELLS` of them, in a coarser unit that each part's bytes are rounded up to, so that the budget holds in
//! any case.

use crate::error::{Error, Result};

/// What one part can be at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Bytes, scales included.
    pub bytes: u64,
    /// Harm that it is expected to do.
    pub harm: f64,
}

/// Most steps that a budget is cut into.
const CELLS: u64 = 1 << 19;

/// The number of one offer for each part: the least summed harm for at most `budget` bytes in all. Offers rise in
/// bytes; one that harms more than a smaller one counts as noise, and as no worse: of equals the larger is taken.
///
/// # Errors
/// If the smallest offers need more than `budget`, or a part's offers are none, not rising in bytes, or not finite.
pub fn best(parts: &[Vec<Offer>], budget: u64) -> Result<Vec<usize>> {
    for (i, offers) in parts.iter().enumerate() {
        let sound = !offers.is_empty()
            && offers.is_sorted_by(|a, b| a.bytes < b.bytes)
            && offers.iter().all(|offer| offer.harm.is_finite());
        if !sound {
            return Err(Error::input("its offers are none, do not rise in bytes or have no finite harm")
                .at(format!("part {i}")));
        }
    }
    let least: u64 = parts.iter().map(|offers| offers[0].bytes).sum();
    let Some(spare) = budget.checked_sub(least) else {
        let what = format!("a budget of {budget} bytes, where the narrowest widths need {least}");
        return Err(Error::input(what).hint("raise it, or offer narrower widths"));
    };
    let extra = |offers: &[Offer], i: usize| offers[i].bytes - offers[0].bytes;
    let all: u64 = parts.iter().map(|offers| extra(offers, offers.len() - 1)).sum();
    let divisor =
        parts.iter().flat_map(|offers| (1..offers.len()).map(|i| extra(offers, i))).fold(0, common_divisor);
    let spare = spare.min(all);
    let unit = divisor.max(spare.div_ceil(CELLS)).max(1);
    let cells = (spare / unit) as usize + 1;
    // The least harm of the parts so far for at most so many units above the smallest offers.
    let mut harms = vec![0.0; cells];
    let mut taken: Vec<Vec<u8>> = vec![];
    for offers in parts {
        let mut next = vec![f64::INFINITY; cells];
        let mut choice = vec![0; cells];
        let mut least = f64::INFINITY;
        for (i, offer) in offers.iter().enumerate() {
            least = least.min(offer.harm);
            let Ok(units) = usize::try_from(extra(offers, i).div_ceil(unit)) else { break };
            for cell in units..cells {
                let harm = harms[cell - units] + least;
                if harm <= next[cell] {
                    (next[cell], choice[cell]) = (harm, i as u8);
                }
            }
        }
        harms = next;
        taken.push(choice);
    }
    let mut cell = cells - 1;
    let mut chosen = vec![0; parts.len()];
    for (part, choice) in taken.iter().enumerate().rev() {
        chosen[part] = usize::from(choice[cell]);
        cell -= extra(&parts[part], chosen[part]).div_ceil(unit) as usize;
    }
    Ok(chosen)
}

fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts() -> impl Strategy<Value = Vec<Vec<Offer>>> {
        let offers = proptest::collection::vec((1u64..30, 0u32..50), 1..5).prop_map(|steps| {
            let (mut bytes, mut left) = (0, steps.iter().map(|step| step.1).sum::<u32>());
            let offer = |(more, saved): (u64, u32)| {
                (bytes, left) = (bytes + more, left - saved);
                Offer { bytes, harm: f64::from(left) }
            };
            steps.into_iter().map(offer).collect()
        });
        proptest::collection::vec(offers, 1..6)
    }

    fn spent(parts: &[Vec<Offer>], chosen: &[usize]) -> (u64, f64) {
        let taken = parts.iter().zip(chosen).map(|(offers, i)| offers[*i]);
        taken.fold((0, 0.0), |(bytes, harm), offer| (bytes + offer.bytes, harm + offer.harm))
    }

    /// The least harm of all choices.
    fn least(parts: &[Vec<Offer>], budget: u64) -> f64 {
        let Some((first, rest)) = parts.split_first() else { return 0.0 };
        let with = |offer: &Offer| Some(offer.harm + least(rest, budget.checked_sub(offer.bytes)?));
        first.iter().filter_map(with).fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn no_choice_is_better_and_none_that_is_larger_fits(parts in parts(), share in 0.0..1.1) {
            let at = |end: fn(&Vec<Offer>) -> Option<&Offer>| parts.iter().map(|p| end(p).unwrap().bytes).sum::<u64>();
            let (narrow, wide) = (at(|p| p.first()), at(|p| p.last()));
            let budget = narrow + ((wide - narrow) as f64 * share) as u64;
            let chosen = best(&parts, budget).unwrap();
            let (bytes, harm) = spent(&parts, &chosen);
            prop_assert!(bytes <= budget);
            prop_assert!((harm - least(&parts, budget)).abs() < 1e-9);
            // What is left would not widen any part.
            for (offers, i) in parts.iter().zip(&chosen) {
                let wider = offers.get(i + 1).map_or(u64::MAX, |next| next.bytes - offers[*i].bytes);
                prop_assert!(budget - bytes < wider);
            }
            prop_assert!(best(&parts, narrow - 1).is_err());
        }
    }

    #[test]
    fn a_small_step_behind_a_large_one_is_taken() {
        let offers = |all: &[(u64, f64)]| {
            all.iter().map(|(bytes, harm)| Offer { bytes: *bytes, harm: *harm }).collect()
        };
        let parts: [Vec<Offer>; 2] =
            [offers(&[(10, 9.0), (30, 1.0)]), offers(&[(10, 2.0), (15, 1.5), (20, 1.4)])];
        // By worth the large step comes first and does not fit; greedily nothing would follow.
        assert_eq!(best(&parts, 39).unwrap(), [0, 2]);
        assert_eq!(best(&parts, 40).unwrap(), [1, 0]);
        assert_eq!(best(&parts, 45).unwrap(), [1, 1]);
        assert_eq!(best(&parts, u64::MAX).unwrap(), [1, 2]);
    }

    #[test]
    fn a_budget_of_many_bytes_is_cut_into_fewer_steps_and_still_holds() {
        // No common divisor, and 3 · CELLS bytes to share out.
        let part = |i: u64| {
            let bytes = |width: u64| width * (CELLS / 8 + 2 * i + 1);
            (1..8).map(|width| Offer { bytes: bytes(width), harm: (9 - width + i) as f64 }).collect()
        };
        let parts: Vec<Vec<Offer>> = (0..8).map(part).collect();
        let budget = 4 * CELLS + 12_345;
        let (bytes, _) = spent(&parts, &best(&parts, budget).unwrap());
        assert!(bytes <= budget && budget - bytes < CELLS / 8 + 100, "{bytes} of {budget}");
    }

    #[test]
    fn offers_that_are_none_are_one_sentence() {
        let error = |offers: Vec<Offer>| best(&[offers], 100).unwrap_err().to_string();
        let of = |bytes, harm| Offer { bytes, harm };
        for offers in [vec![], vec![of(3, 1.0), of(3, 0.5)], vec![of(3, f64::NAN)]] {
            assert!(error(offers).starts_with("part 0: its offers are none"));
        }
        assert!(
            error(vec![of(101, 0.0)]).contains("a budget of 100 bytes, where the narrowest widths need 101")
        );
        // Noise: the larger offer counts as no worse.
        assert_eq!(best(&[vec![of(1, 1.0), of(2, 1.5)]], 2).unwrap(), [1]);
    }
}
