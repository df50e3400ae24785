//! How far a number may be from the recorded one where another processor has measured it.
//!
//! Another processor sums in another order. What follows depends on the arithmetic of the scheme: where activations stay
//! floats, the last bits of a sum are all; where they are rounded to integers, a last bit may turn a rounding, by a step
//! of 1/127 or of 1/7; and where GPTQ chooses codes, one that is turned moves those that come after it.

use super::Row;
use super::unit::text;
use serde_json::Value;
use wildmatch::WildMatch;

/// What a difference in the last bit of a sum may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arithmetic {
    /// Activations and state are floats of 32 bits.
    Float,
    /// So they are, but weights are bf16 or f16, and some processors multiply pairs of these.
    Half,
    /// Activations or the state are rounded to integers of 8 bits, or the state to bf16.
    Fine,
    /// They are rounded to fewer bits, or codes are chosen by GPTQ.
    Coarse,
}

impl Arithmetic {
    /// That of a row's scheme; of a column of the reference, which is at full precision.
    pub fn of(row: &Row, column: &str) -> Self {
        if column.starts_with("reference_") {
            return Self::Float;
        }
        let [scheme, probe] =
            ["scheme", "probe"].map(|name| text(row, name).split('+').next().unwrap_or_default());
        // The bits of the state, and all that a probe rounds, stand in names alone: h8ef, bc8, w4a8.
        let parts = scheme.split('-').chain(probe.split('-')).filter_map(|part| {
            let digits = ["bc", "x", "h", "qk", "svfp"].iter().find_map(|name| part.strip_prefix(name));
            let digits =
                digits.or_else(|| part.starts_with('w').then(|| part.rsplit('a').next()).flatten())?;
            digits.trim_end_matches("ef").trim_end_matches("row").parse::<u8>().ok()
        });
        let activations = row.get("a_bits").and_then(Value::as_f64).unwrap_or(16.0) as u8;
        let bits = parts.fold(activations, u8::min);
        let dense = row.get("w_bits").is_none_or(Value::is_null);
        let gptq = text(row, "calib_method").contains("gptq") || probe.contains("gptq");
        match bits {
            _ if bits < 8 || gptq => Self::Coarse,
            _ if bits < 16 || scheme.contains("h16") => Self::Fine,
            _ if dense && ["bf16", "f16"].contains(&text(row, "dtype")) => Self::Half,
            _ => Self::Float,
        }
    }
}

/// How far apart two numbers of a column may be: |found − recorded| ≤ absolute + relative · the smaller of their sizes, with
/// one pair for each [`Arithmetic`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Names of columns, as in [`KINDS`](super::KINDS).
    pub columns: &'static str,
    /// Absolute and relative: float, half, fine, coarse.
    pub within: [(f64, f64); 4],
}

const fn absolute(columns: &'static str, [float, half, fine, coarse]: [f64; 4]) -> Tolerance {
    Tolerance { columns, within: [(float, 0.0), (half, 0.0), (fine, 0.0), (coarse, 0.0)] }
}

const fn relative(columns: &'static str, [float, half, fine, coarse]: [f64; 4]) -> Tolerance {
    Tolerance { columns, within: [(0.0, float), (0.0, half), (0.0, fine), (0.0, coarse)] }
}

/// The first whose name fits a column holds; the last is that of levels: NLL, perplexity, bits a byte.
///
/// They are two to four times the largest spreads that were found between a Xeon with AMX, which recorded, and a Zen 3 with
/// AVX2 alone, which measured again: `drift` and `outliers` whole; of `phase1` divergence and passkeys. What was found is
/// told beside each line, as float, half, fine, coarse; `–` where there was nothing to be found.
pub const TOLERANCES: [Tolerance; 51] = [
    // 2e-5, 1e-4, .014, .44 a trial; 6e-7, –, 3e-4, .008 in the mean of 50.
    absolute("trial.key_logprob", [1e-4, 5e-4, 0.05, 1.2]),
    absolute("key_logprob", [3e-6, 5e-5, 1e-3, 0.03]),
    // –, .002, .002, .010.
    absolute("*_p", [0.002, 0.01, 0.02, 0.05]),
    absolute("*_p_holm", [0.01, 0.05, 0.1, 0.25]),
    // 0, 2e-4, 2e-4, 5e-4.
    absolute("same_top*", [1e-4, 5e-4, 6e-4, 0.004]),
    // No key of 850; as many as close calls may turn.
    absolute("*accuracy*", [0.02, 0.02, 0.04, 0.1]),
    // –, 0, .13, 0 of 16 prompts; –, 0, 51, 7 tokens of 128.
    absolute("never_parted*", [0.07, 0.07, 0.3, 0.3]),
    absolute("together_*", [2.0, 8.0, 80.0, 80.0]),
    // 2e-7, –, .06, .05; differences and their bounds as much.
    absolute("*entropy*", [0.001, 0.01, 0.2, 0.2]),
    // 0, 0, .10, .11.
    absolute("*repetition*", [0.01, 0.03, 0.25, 0.25]),
    // –, 0, .012, .03.
    absolute("*tau*", [0.002, 0.01, 0.04, 0.1]),
    // 2e-5, –, –, .004.
    absolute("persistence*", [1e-4, 1e-3, 0.004, 0.012]),
    // 6e-7, –, –, .025.
    relative("absmax*", [5e-6, 1e-3, 0.03, 0.08]),
    // Not measured between processors; means of many tokens, as persistence.
    absolute("first_share*", [1e-4, 1e-3, 0.004, 0.012]),
    // Not measured between processors: codes of 4 bits may turn whatever the scheme, and the worst head has most of them.
    absolute("cosine_*", [2e-3, 2e-3, 5e-3, 0.02]),
    absolute("error_*", [0.01, 0.01, 0.02, 0.05]),
    absolute("*_bias", [1e-4, 1e-3, 0.004, 0.012]),
    // Not measured between processors: choices of experts that are close may turn, and the smallest gap is one token's.
    absolute("load*", [0.01, 0.02, 0.05, 0.1]),
    absolute("sent_alike", [0.01, 0.02, 0.05, 0.1]),
    relative("choices", [0.01, 0.02, 0.05, 0.1]),
    absolute("gap_*", [1e-4, 0.002, 0.02, 0.1]),
    // 8e-7, –, –, .004.
    // Not measured between processors: perturbations of 1e-3 leave three digits of f32.
    absolute("exponent*", [1e-3, 5e-3, 0.05, 0.1]),
    relative("kurtosis*", [5e-6, 5e-4, 0.005, 0.01]),
    relative("crest", [5e-6, 5e-4, 0.005, 0.01]),
    relative("channel_ratio", [5e-6, 5e-4, 0.005, 0.01]),
    // 1e-8, –, 1e-7, 1e-7.
    relative("decay*", [1e-6, 1e-6, 1e-6, 1e-6]),
    relative("gain*", [1e-6, 1e-6, 1e-6, 1e-6]),
    // –, –, 2e-4, 2e-7; of all heads to what was predicted: –, –, 7e-4, .015.
    relative("rounding", [1e-6, 1e-5, 1e-3, 1e-3]),
    relative("predicted", [1e-6, 1e-5, 1e-3, 1e-3]),
    relative("drift_to_predicted", [1e-5, 1e-4, 0.003, 0.05]),
    // One head at one position: 2e-5, –, .40, .66.
    relative("drift_at", [1e-3, 0.02, 2.0, 4.0]),
    // All heads at one position: 8e-6, –, .22, .41.
    relative("position.drift_*", [1e-4, 0.01, 0.6, 1.5]),
    // All heads, all positions: 1e-6, –, .018, .028.
    relative("summary.drift_*", [1e-5, 0.005, 0.05, 0.08]),
    relative("growth_median", [1e-5, 0.005, 0.03, 0.04]),
    // One head: 9e-6, –, .064, .35.
    relative("drift", [1e-4, 0.01, 0.2, 1.2]),
    relative("growth", [1e-4, 0.01, 0.2, 1.2]),
    absolute("*_db", [1e-3, 0.02, 0.1, 0.3]),
    // The largest few: 6e-6, .14, .13, .17; 1e-4, .07, .04, .03.
    relative("kl_max", [1e-3, 0.4, 0.4, 0.6]),
    relative("kl_q*", [5e-4, 0.2, 0.15, 0.2]),
    // 2e-5, .005, .001, .018.
    relative("kl_median", [1e-4, 0.03, 0.01, 0.06]),
    // Bins of few tokens: not measured; 256 of them spread eleven times as much as 32,768.
    relative("bin.kl*", [1e-4, 0.2, 0.02, 0.2]),
    // 1e-6, .01, 6e-4, .007.
    Tolerance { columns: "kl*", within: [(1e-9, 1e-5), (1e-7, 0.02), (1e-6, 0.002), (3e-6, 0.02)] },
    // Differences of two levels, in nats a token: 2e-7, 5e-6, 5e-5, 5e-4; bins as above.
    absolute("*delta_nll*", [5e-6, 2e-4, 1.5e-3, 0.015]),
    absolute("bin.nll", [5e-6, 2e-4, 1.5e-3, 0.015]),
    absolute("widening*", [5e-6, 2e-4, 1.5e-3, 0.015]),
    absolute("*ln_ppl_ratio*", [1e-6, 3e-5, 2e-4, 1.5e-3]),
    absolute("delta_logprob", [1e-6, 3e-5, 2e-4, 1.5e-3]),
    absolute("delta_bits_per_byte*", [2e-6, 5e-5, 3e-4, 2e-3]),
    absolute("delta_ppl*", [5e-6, 2e-4, 1e-3, 6e-3]),
    // 512 tokens: not measured, as bins.
    relative("window_nll", [1e-6, 1e-4, 6e-4, 8e-3]),
    // 2e-8, 5e-6, 6e-5, 5e-4.
    Tolerance { columns: "*", within: [(1e-6, 1e-6), (3e-5, 2e-5), (2e-4, 2e-4), (1e-3, 1e-3)] },
];

/// The shares of what close calls decide that another processor may decide otherwise: float, half, fine, coarse.
///
/// Greedy words part after one turned call, and their entropy and repetition with them: of 48 continuations, 13 parted
/// from the reference's elsewhere in w8a8, 14 in w4a4-rot, and none in w4a16.
pub const CHOICES: [(&str, [f64; 4]); 3] = [
    ("prompt.*entropy", [0.05, 0.1, 0.7, 0.9]),
    ("prompt.*repetition", [0.05, 0.1, 0.7, 0.9]),
    ("prompt.*", [0.05, 0.1, 0.4, 0.5]),
];
/// The share of other calls, such as answers: of 850 passkeys in ten schemes none was another.
const ANSWERS: [f64; 4] = [0.01, 0.01, 0.03, 0.08];

/// The share of a column's close calls that may be others.
pub(super) fn share(row: &Row, column: &str) -> f64 {
    let found = CHOICES.iter().find(|(pattern, _)| fits(pattern, row, column));
    found.map_or(ANSWERS, |(_, shares)| *shares)[Arithmetic::of(row, column) as usize]
}

/// Whether two values of a column agree, measured on different processors; lists item by item.
pub(super) fn agree(row: &Row, column: &str, values: [&Value; 2]) -> bool {
    let found = TOLERANCES.iter().find(|tolerance| fits(tolerance.columns, row, column));
    let (absolute, relative) = found.map_or((0.0, 0.0), |t| t.within[Arithmetic::of(row, column) as usize]);
    within(absolute, relative, values)
}

fn within(absolute: f64, relative: f64, values: [&Value; 2]) -> bool {
    match values {
        [Value::Array(a), Value::Array(b)] => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| within(absolute, relative, [a, b]))
        }
        [a, b] => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (b - a).abs() <= absolute + relative * a.abs().min(b.abs()),
            _ => a == b,
        },
    }
}

fn fits(pattern: &str, row: &Row, column: &str) -> bool {
    match pattern.contains('.') {
        true => WildMatch::new(pattern).matches(&format!("{}.{column}", text(row, "row"))),
        false => WildMatch::new(pattern).matches(column),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_scheme_says_what_a_last_bit_may_do() {
        let of = |scheme: &str, a_bits: Value, dtype: &str, method: &str| {
            let w_bits = scheme.starts_with("w4").then_some(4.0);
            let row = json!({"scheme": scheme, "w_bits": w_bits, "a_bits": a_bits, "dtype": dtype, "calib_method": method});
            Arithmetic::of(&serde_json::from_value(row).unwrap(), "kl")
        };
        for (scheme, a_bits, dtype, method, expected) in [
            ("f32", json!(null), "f32", "", Arithmetic::Float),
            ("bf16", json!(null), "bf16", "", Arithmetic::Half),
            ("w4a16", json!(null), "bf16", "nearest", Arithmetic::Float),
            ("w4a16-g64-f32", json!(null), "f32", "nearest", Arithmetic::Float),
            ("w4a16-gptq", json!(null), "f32", "gptq", Arithmetic::Coarse),
            ("w4a8-g64", json!(8.0), "bf16", "nearest", Arithmetic::Fine),
            ("w4a4", json!(4.0), "bf16", "nearest", Arithmetic::Coarse),
            ("w16a16-h16-f32", json!(null), "f32", "", Arithmetic::Fine),
            ("w16a16-h8ef-f32", json!(null), "f32", "", Arithmetic::Fine),
            ("w16a16-h4", json!(null), "bf16", "", Arithmetic::Coarse),
            ("w4a8-x8-bc8+head=w4", json!(8.0), "bf16", "nearest", Arithmetic::Fine),
        ] {
            assert_eq!(of(scheme, a_bits, dtype, method), expected, "{scheme}");
        }
        let probe = |name: &str| {
            let row = json!({"scheme": "f32", "dtype": "f32", "probe": name, "a_bits": null});
            Arithmetic::of(&serde_json::from_value(row).unwrap(), "kl")
        };
        assert_eq!(
            ["w3a16+head=w3", "w4a8", "w4a4-rot", "w4a16-gptq"].map(probe),
            [Arithmetic::Float, Arithmetic::Fine, Arithmetic::Coarse, Arithmetic::Coarse]
        );
        let row = serde_json::from_value(json!({"scheme": "w4a4", "a_bits": 4.0})).unwrap();
        assert_eq!(Arithmetic::of(&row, "reference_nll"), Arithmetic::Float);
    }

    #[test]
    fn every_column_has_its_own_bounds() {
        let row: Row = serde_json::from_value(
            json!({"row": "summary", "scheme": "w8a8", "a_bits": 8.0, "dtype": "bf16"}),
        )
        .unwrap();
        let agrees = |column: &str, a: f64, b: f64| agree(&row, column, [&json!(a), &json!(b)]);
        assert!(agrees("ppl", 4.28066, 4.28080) && !agrees("ppl", 4.28, 4.29));
        assert!(agrees("kl", 6.4546e-4, 6.4582e-4) && !agrees("kl", 6.4546e-4, 7.0e-4));
        assert!(agrees("reference_ppl", 4.0, 4.000_001) && !agrees("reference_ppl", 4.0, 4.0001));
        let lists = |last: f64| agree(&row, "window_nll", [&json!([1000.0, 2.0]), &json!([1000.0, last])]);
        assert!(
            lists(2.000_1) && !lists(2.1) && !agree(&row, "window_nll", [&json!([1.0]), &json!([1.0, 2.0])])
        );
        assert!(!agree(&row, "ppl", [&json!(1.0), &json!(null)]));
    }
}
