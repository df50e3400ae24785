//! Several tests at once.

/// p-values adjusted for being one of a family, in the order given: whoever calls those below α significant is wrong
/// anywhere in the family with a probability of at most α, however the tests depend on each other.
///
/// NaN stays NaN and is not of the family.
///
/// S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
pub fn holm(p: &[f64]) -> Vec<f64> {
    holm_discrete(p, |_, p| p)
}

/// As [`holm`], of tests whose p-values take few values: `reach(i, p)` is the probability that test `i` has a p-value of at most `p`
/// if there is nothing to find. That is `p` itself where any value can come out, and the largest possible value up to `p` where
/// not ([`McNemar::reach`](super::McNemar::reach)): a test that cannot have so small a value does not count against it.
///
/// R. E. Tarone, "A modified Bonferroni method for discrete data", Biometrics 46 (1990); for adjusted p-values P. H. Westfall and
/// R. D. Wolfinger, "Multiple tests with discrete distributions", The American Statistician 51 (1997).
pub fn holm_discrete(p: &[f64], reach: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).filter(|i| !p[*i].is_nan()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut adjusted, mut so_far) = (vec![f64::NAN; p.len()], 0.0_f64);
    for (rank, i) in order.iter().enumerate() {
        let any: f64 = order[rank..].iter().map(|other| reach(*other, p[*i])).sum();
        so_far = so_far.max(any).min(1.0);
        adjusted[*i] = so_far;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::McNemar;

    fn close(found: &[f64], expected: &[f64]) {
        let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(found.len() == expected.len() && near, "{found:?} {expected:?}");
    }

    #[test]
    fn adjusted_values_are_those_of_r() {
        // p.adjust(c(.01, .02, .03, .04, .05), "holm")
        close(&holm(&[0.01, 0.02, 0.03, 0.04, 0.05]), &[0.05, 0.08, 0.09, 0.09, 0.09]);
        // The order given is kept, nothing exceeds 1.
        close(&holm(&[0.9, 0.01, 0.6]), &[1.0, 0.03, 1.0]);
        close(&holm(&[0.04]), &[0.04]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn what_could_not_be_as_small_does_not_count() {
        // The first can have any value, the second those of six pairs, the third those of one.
        let reach = |test: usize, p: f64| match test {
            0 => p,
            1 => McNemar::counts(6, 0).reach(p),
            _ => McNemar::counts(1, 0).reach(p),
        };
        let adjusted = holm_discrete(&[0.01, 0.03125, 1.0], reach);
        close(&adjusted, &[0.01, 0.03125, 1.0]);
        // At .04 the second can have been there by chance as well, with .03125.
        close(&holm_discrete(&[0.04, 0.21875, 1.0], reach), &[0.04 + 0.03125, 0.21875, 1.0]);
    }

    #[test]
    fn what_is_not_known_is_no_test() {
        let adjusted = holm(&[0.01, f64::NAN, 0.04]);
        assert!(adjusted[1].is_nan() && adjusted[0] == 0.02 && adjusted[2] == 0.04, "{adjusted:?}");
    }
}
