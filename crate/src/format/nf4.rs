//! NF4 (Dettmers et al. 2023), as bitsandbytes computes it.

/// The 16 levels.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The levels nearest to x / divisor; half-way between two, the lower one.
pub(super) fn encode(values: &[f32], divisor: f32, codes: &mut [u8]) {
    let middles: [f32; 15] = std::array::from_fn(|i| (LEVELS[i] + LEVELS[i + 1]) / 2.0);
    for (x, code) in values.iter().zip(codes) {
        let x = x / divisor;
        // Counting has no branches, so it is done for many values at a time.
        *code = middles.iter().map(|middle| u8::from(x > *middle)).sum();
    }
}

/// The 8-bit signed dynamic map of bitsandbytes: seven decades, each with twice the numbers of the one below, in
/// rising order.
pub fn dynamic_map() -> [f32; 256] {
    let mut map = Vec::with_capacity(256);
    for decade in 0..7i32 {
        let steps = 1usize << decade;
        // torch.linspace(0.1, 1, steps + 1) in f32: the upper half is counted from the end, each rounded once.
        let step = (1.0f32 - 0.1) / steps as f32;
        let border = |i: usize| {
            if i < steps.div_ceil(2) {
                step.mul_add(i as f32, 0.1)
            } else {
                step.mul_add(-((steps - i) as f32), 1.0)
            }
        };
        let unit = 10f64.powi(decade - 6) as f32;
        for i in 0..steps {
            let mean = (border(i) + border(i + 1)) / 2.0;
            map.extend([unit * mean, -unit * mean]);
        }
    }
    map.extend([0.0, 1.0]);
    map.sort_by(f32::total_cmp);
    let mut all = [0.0; 256];
    all.copy_from_slice(&map);
    all
}

/// The position in `map`, in rising order, of the number nearest to `x`; half-way, the lower one. bitsandbytes looks it
/// up in a table of 2^16 places from −1 to 1, so `x` goes to the nearest place first.
pub(super) fn nearest(map: &[f32; 256], x: f32) -> u8 {
    const PLACES: f32 = 65_535.0;
    let x = ((x + 1.0) * 0.5 * PLACES).round() / PLACES * 2.0 - 1.0;
    let above = map.partition_point(|level| *level < x).min(255);
    let below = above.saturating_sub(1);
    if x - map[below] <= map[above] - x { below as u8 } else { above as u8 }
}
