//! What a kernel's result is held to, and on what.

/// The first, the middle and the last.
pub fn some(count: usize) -> Vec<usize> {
    let mut some = vec![0, count / 2, count - 1];
    some.dedup();
    some
}

/// Values between −1 and 1.
pub fn noise(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i + seed) * 7919 + 13) % 10_007) as f32 / 5003.0 - 1.0).collect()
}

/// Panics if something differs from its definition by more than `slack` of the largest value.
pub fn hold(what: &str, found: &[f32], exact: &[f64], slack: f64) {
    assert_eq!(found.len(), exact.len(), "{what}");
    let size = exact.iter().fold(0.0f64, |size, x| size.max(x.abs()));
    for (at, (found, exact)) in found.iter().zip(exact).enumerate() {
        let far = (f64::from(*found) - exact).abs() / size;
        // Written so that NaN is too far.
        assert!(far <= slack, "{what} is wrong at {at}: {found}, not {exact}; no speed of it is printed");
    }
}
