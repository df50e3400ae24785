//! Several tests at once.

/// p-values adjusted for being one of a family, in the order given: whoever calls those below α significant is wrong
/// anywhere in the family with a probability of at most α, however the tests depend on each other.
///
/// NaN stays NaN and is not of the family.
///
/// S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
pub fn holm(p: &[f64]) -> Vec<f64> {
    holm_discrete(p, &vec![0.0; p.len()])
}

/// As [`holm`], of tests whose p-values cannot be arbitrarily small: a test counts against a p-value only if it could have had one
/// as small, since it cannot have been there by chance otherwise. `least` holds the smallest p-value that each test could have
/// had: [`McNemar::least`](super::McNemar::least), or 0.
///
/// R. E. Tarone, "A modified Bonferroni method for discrete data", Biometrics 46 (1990); for adjusted p-values P. H. Westfall and
/// R. D. Wolfinger, "Multiple tests with discrete distributions", The American Statistician 51 (1997), equation 2.
pub fn holm_discrete(p: &[f64], least: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).filter(|i| !p[*i].is_nan()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut adjusted, mut so_far) = (vec![f64::NAN; p.len()], 0.0_f64);
    for (rank, i) in order.iter().enumerate() {
        let as_small = order[rank..].iter().filter(|other| least[**other] <= p[*i]).count();
        so_far = so_far.max(p[*i] * as_small as f64).min(1.0);
        adjusted[*i] = so_far;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjusted_values_are_those_of_r() {
        // p.adjust(c(.01, .02, .03, .04, .05), "holm")
        let close = |found: Vec<f64>, expected: &[f64]| {
            let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
            assert!(found.len() == expected.len() && near, "{found:?} {expected:?}");
        };
        close(holm(&[0.01, 0.02, 0.03, 0.04, 0.05]), &[0.05, 0.08, 0.09, 0.09, 0.09]);
        // The order given is kept, nothing exceeds 1.
        close(holm(&[0.9, 0.01, 0.6]), &[1.0, 0.03, 1.0]);
        close(holm(&[0.04]), &[0.04]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn what_could_not_be_as_small_does_not_count() {
        // Of four tests two can reach .01, three .03; the last can reach nothing.
        let adjusted = holm_discrete(&[0.01, 0.03, 0.5, 1.0], &[0.0, 0.02, 0.001, 1.0]);
        assert_eq!(adjusted, [0.02, 0.06, 0.5, 1.0]);
        // Steps never fall.
        assert_eq!(holm_discrete(&[0.02, 0.021], &[0.0, 0.0]), [0.04, 0.04]);
    }

    #[test]
    fn what_is_not_known_is_no_test() {
        let adjusted = holm(&[0.01, f64::NAN, 0.04]);
        assert!(adjusted[1].is_nan() && adjusted[0] == 0.02 && adjusted[2] == 0.04, "{adjusted:?}");
    }
}
