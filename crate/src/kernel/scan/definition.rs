//! The recurrence in f64, one value after the other: what all forms are held to.

/// One token of one head: S [K, V] ← diag(a) S + k vᵀ, where there is a decay for each channel of the key or one for all;
/// returns y = Sᵀ q.
pub(super) fn step(s: &mut [f64], a: &[f64], k: &[f64], v: &[f64], q: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; v.len()];
    for (d, s) in s.chunks_mut(v.len()).enumerate() {
        for ((s, v), y) in s.iter_mut().zip(v).zip(&mut y) {
            *s = a[d % a.len()] * *s + k[d] * v;
            *y += *s * q[d];
        }
    }
    y
}
