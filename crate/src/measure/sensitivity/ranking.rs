//! How well what is known beforehand ranks the parts of a model: Kendall's τ-b against the measured harm.
//!
//! The harm is told in two ways. The rise of the NLL is what counts, and small ones drown in the luck of a text: parts
//! whose rise is not distinguishable from 0 rank by chance. The divergence from the base ranks them all.

use crate::record::{Reading, Row};
use crate::stats::{Kendall, kendall};

/// The measurement's name in records: a row `predictor` for each, and a summary that names the best.
pub const NAME: &str = "ranking";

/// The columns that claim to rank the parts, what each is, and its sign: −1 where a larger value means less harm.
pub const PREDICTORS: [(&str, &str, f64); 6] = [
    ("kl", "KL from the base", 1.0),
    ("fisher", "diagonal Fisher", 1.0),
    ("gradient", "first-order gradient", 1.0),
    ("hessian", "output error (Hessian)", 1.0),
    ("output_sqnr_db", "SQNR of outputs", -1.0),
    ("weight_sqnr_db", "SQNR of weights", -1.0),
];

/// What they are held against.
pub const TRUTHS: [(&str, &str); 2] = [("delta_nll", "rise of the NLL"), ("kl", "KL from the base")];

/// The readings for the rows of all parts, from rows as `row` makes them; a predictor that is not known for all parts
/// has no τ. The summary names the best predictor of the rise of the NLL.
pub(super) fn rank(rows: &[Row], row: impl Fn() -> Reading) -> Vec<Reading> {
    let column = |name: &str, sign: f64| -> Vec<f64> {
        let of = |row: &Row| row.get(name).and_then(|value| value.as_f64()).map_or(f64::NAN, |x| sign * x);
        rows.iter().map(of).collect()
    };
    let each: Vec<_> = TRUTHS
        .iter()
        .flat_map(|truth| PREDICTORS.iter().map(move |predictor| (truth, predictor)))
        .filter(|(truth, predictor)| truth.0 != predictor.0)
        .map(|(truth, predictor)| {
            (truth, predictor, kendall(&column(predictor.0, predictor.2), &column(truth.0, 1.0)))
        })
        .collect();
    let tau = |row: Reading, found: Option<Kendall>| {
        row.value("tau", found.map(|found| found.tau))
            .value("tau_low", found.map(|found| found.low))
            .value("tau_high", found.map(|found| found.high))
    };
    let of_rise = each.iter().filter(|(truth, _, _)| truth.0 == TRUTHS[0].0);
    let known = of_rise.filter_map(|(_, predictor, found)| Some((predictor.0, (*found)?)));
    let best = known.max_by(|a, b| a.1.tau.total_cmp(&b.1.tau));
    let mut all: Vec<Reading> = each
        .iter()
        .map(|(truth, predictor, found)| {
            let row = row().row("predictor").value("predictor", predictor.0).value("about", predictor.1);
            tau(row.value("against", truth.1), *found)
        })
        .collect();
    let best_of_all = row().value("predictor", best.map(|(name, _)| name)).value("against", TRUTHS[0].1);
    all.push(tau(best_of_all, best.map(|(_, found)| found)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn predictors_are_ranked_in_the_direction_that_they_mean() {
        let row = |i: usize| match json!({
            "delta_nll": i * i, "kl": i, "hessian": ([3, 1, 2, 5, 4][i]), "weight_sqnr_db": 30 - i,
            "output_sqnr_db": i, "fisher": null,
        }) {
            serde_json::Value::Object(row) => row,
            _ => unreachable!(),
        };
        let rows: Vec<Row> = (0..5).map(row).collect();
        let found = rank(&rows, Reading::default);
        let tau = |name: &str| {
            let is = |r: &&Reading| {
                r.row == "predictor"
                    && r.values["predictor"] == name
                    && r.values["against"] == "rise of the NLL"
            };
            found.iter().find(is).unwrap().number("tau")
        };
        assert_eq!(
            (tau("kl"), tau("weight_sqnr_db"), tau("output_sqnr_db")),
            (Some(1.0), Some(1.0), Some(-1.0))
        );
        // Pairs in order: all but (0, 1), (0, 2) and (3, 4) of ten.
        assert_eq!((tau("hessian"), tau("fisher"), tau("gradient")), (Some(0.4), None, None));
        let summary = found.last().unwrap();
        assert_eq!((summary.number("tau"), found.len()), (Some(1.0), 12));
    }
}
