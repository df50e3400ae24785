//! The trait that kernels are written against, and its plain implementation.

/// A vector of `N` f32 values.
pub trait Lanes: Copy {
    /// Number of values.
    const N: usize;
    /// All lanes equal to `x`.
    fn splat(x: f32) -> Self;
    /// The first `N` values of `from`.
    fn load(from: &[f32]) -> Self;
    /// Writes the first `N` values of `to`.
    fn store(self, to: &mut [f32]);
    /// Lane-wise sum.
    fn add(self, other: Self) -> Self;
    /// Lane-wise difference.
    fn sub(self, other: Self) -> Self;
    /// Lane-wise product.
    fn mul(self, other: Self) -> Self;
    /// Lane-wise quotient.
    fn div(self, other: Self) -> Self;
    /// Lane-wise 1 / x of positive numbers, to 2⁻²³.
    #[inline(always)]
    fn recip(self) -> Self {
        Self::splat(1.0).div(self)
    }
    /// `self * b + c`.
    fn fma(self, b: Self, c: Self) -> Self;
    /// `a * b + c`, rounded as a lane of [`fma`](Self::fma) is.
    fn fma_one(a: f32, b: f32, c: f32) -> f32;
    /// Lane-wise maximum; `other` where one of the two is NaN.
    fn max(self, other: Self) -> Self;
    /// Lane-wise minimum; `other` where one of the two is NaN.
    fn min(self, other: Self) -> Self;
    /// Nearest integer, ties to even.
    fn round(self) -> Self;
    /// `self * 2^n` for integral `n` in [-126, 127].
    fn scale2(self, n: Self) -> Self;
    /// Sum over the lanes.
    fn sum(self) -> f32;
    /// `N` bf16 values, widened.
    fn load_bf16(from: &[half::bf16]) -> Self;
    /// The nearest bf16 of each lane, ties to even, widened. NaN as processors make it stays NaN.
    fn to_bf16(self) -> Self;
    /// `N` f16 values, widened.
    fn load_f16(from: &[half::f16]) -> Self;

    /// Writes the nearest bf16 of each lane, ties to even, to the first `N` of `to`.
    fn store_bf16(self, to: &mut [half::bf16]);

    /// Lane-wise |x|.
    #[inline(always)]
    fn abs(self) -> Self {
        self.max(Self::splat(0.0).sub(self))
    }

    /// The largest lane, NaN passed over.
    #[inline(always)]
    fn top(self) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        self.store(&mut lanes);
        // By halves: one after the other each comparison would wait for the one before.
        for half in [8, 4, 2, 1] {
            let (low, high) = lanes.split_at_mut(half);
            for (low, high) in low.iter_mut().zip(high) {
                *low = low.max(*high);
            }
        }
        lanes[0].max(f32::NEG_INFINITY)
    }

    /// The largest lane of values that are not negative.
    #[inline(always)]
    fn largest(self) -> f32 {
        self.max(Self::splat(0.0)).top()
    }

    /// The first `from.len() < N` values, zeros behind them.
    #[inline(always)]
    fn load_part(from: &[f32]) -> Self {
        let mut padded = [0.0; 16];
        padded[..from.len()].copy_from_slice(from);
        Self::load(&padded)
    }

    /// Writes the first `to.len() < N` values.
    #[inline(always)]
    fn store_part(self, to: &mut [f32]) {
        let mut padded = [0.0; 16];
        self.store(&mut padded);
        let len = to.len();
        to.copy_from_slice(&padded[..len]);
    }

    /// e^x to within 2 ulp for results that are normal numbers; underflows to a value below 1.2e-38. NaN stays NaN.
    ///
    /// Cody–Waite reduction by ln 2 and the degree-5 polynomial of Cephes `expf`.
    #[inline(always)]
    fn exp(self) -> Self {
        // Of a number and NaN the second is taken.
        let x = Self::splat(88.3).min(Self::splat(-87.3).max(self));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(Self::splat(-0.693_359_4), x);
        let r = n.fma(Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.fma(r, Self::splat(c));
        }
        p.mul(r).fma(r, r.add(Self::splat(1.0))).scale2(n)
    }

    /// x · σ(x).
    #[inline(always)]
    fn silu(self) -> Self {
        self.mul(self.sigmoid())
    }

    /// The derivative of SiLU: σ(x) (1 + x (1 − σ(x))).
    #[inline(always)]
    fn silu_slope(self) -> Self {
        let (one, sigma) = (Self::splat(1.0), self.sigmoid());
        self.mul(one.sub(sigma)).add(one).mul(sigma)
    }

    /// 1 / (1 + e^−x).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let one = Self::splat(1.0);
        one.add(Self::splat(0.0).sub(self).exp()).recip()
    }
}

impl Lanes for [f32; 8] {
    const N: usize = 8;
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; 8]
    }
    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        std::array::from_fn(|i| from[i])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..8].copy_from_slice(&self);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * other[i])
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] / other[i])
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        // `mul_add` without the instruction is a library call: two roundings are the price of portability.
        std::array::from_fn(|i| self[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn fma_one(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] > other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] < other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Adding and subtracting 1.5 · 2^23 rounds to even for |x| < 2^22.
        std::array::from_fn(|i| (self[i] + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn scale2(self, n: Self) -> Self {
        std::array::from_fn(|i| self[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        ((self[0] + self[4]) + (self[2] + self[6])) + ((self[1] + self[5]) + (self[3] + self[7]))
    }
    #[inline(always)]
    fn load_bf16(from: &[half::bf16]) -> Self {
        std::array::from_fn(|i| from[i].to_f32())
    }
    #[inline(always)]
    fn to_bf16(self) -> Self {
        self.map(|x| half::bf16::from_f32(x).to_f32())
    }
    #[inline(always)]
    fn store_bf16(self, to: &mut [half::bf16]) {
        to[..8].copy_from_slice(&self.map(half::bf16::from_f32));
    }
    #[inline(always)]
    fn load_f16(from: &[half::f16]) -> Self {
        std::array::from_fn(|i| from[i].to_f32())
    }
}
