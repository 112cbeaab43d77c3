//! Vectors of floats, so that one text of an algorithm serves all instructions.

use crate::Instructions;

/// A vector of floats.
///
/// # Safety
/// All functions need the instructions of the type. They are inlined into functions that have them.
pub(crate) unsafe trait Vector: Copy {
    const LANES: usize;
    /// Rows, and vectors of a row, of a product's sums that stay in registers together.
    const ROWS: usize;
    const COLUMNS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The larger one; `other` where one is no number.
    unsafe fn max(self, other: Self) -> Self;
    /// To the nearest integer, half to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^power` for whole powers from -126 to 127.
    unsafe fn scale_by_power(self, power: Self) -> Self;

    /// Writes a vector of each of the first [`LANES`](Self::LANES) rows, from number `first` on, as a column: number
    /// `first + i` of row `r` to `to[i * stride + r]`.
    #[inline(always)]
    unsafe fn transpose(rows: &[*const f32; 16], first: usize, to: *mut f32, stride: usize) {
        for (lane, row) in rows[..Self::LANES].iter().enumerate() {
            for i in 0..Self::LANES {
                // SAFETY: the caller's.
                unsafe { *to.add(i * stride + lane) = *row.add(first + i) };
            }
        }
    }

    /// The largest of the lanes, if each is a number.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: the caller's.
        unsafe { self.lanes(|lanes| lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)) }
    }

    /// The sum of the lanes.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's.
        unsafe { self.lanes(|lanes| lanes.iter().sum()) }
    }

    #[inline(always)]
    unsafe fn lanes(self, fold: impl FnOnce(&[f32]) -> f32) -> f32 {
        let mut lanes = [0.0; 16];
        // SAFETY: the caller's; there are at most 16 lanes.
        unsafe { self.store(lanes.as_mut_ptr()) };
        fold(&lanes[..Self::LANES])
    }

    /// e to the power of each lane, for lanes of at most 0. (Cephes' `expf`: a polynomial after
    /// reduction to half of ln 2.)
    #[inline(always)]
    unsafe fn exp_of_negative(self) -> Self {
        // Below that the result would have fewer digits than a float; 1.6e-38 is as good as 0.
        const SMALLEST: f32 = -87.0;
        const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
        const POLYNOMIAL: [f32; 6] =
            [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        // SAFETY: the caller's.
        unsafe {
            // In this order, what is no number stays so.
            let x = Self::splat(SMALLEST).max(self);
            let power = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let rest = power.mul_add(Self::splat(-LN_2[0]), x);
            let rest = power.mul_add(Self::splat(-LN_2[1]), rest);
            let mut sum = Self::splat(POLYNOMIAL[0]);
            for coefficient in &POLYNOMIAL[1..] {
                sum = sum.mul_add(rest, Self::splat(*coefficient));
            }
            let sum = sum.mul_add(rest.mul(rest), rest).add(Self::splat(1.0));
            sum.scale_by_power(power)
        }
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; 4]);

impl Plain {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Plain(self.0.map(f))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Plain(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

// SAFETY: it needs no instructions.
unsafe impl Vector for Plain {
    const LANES: usize = 4;
    const ROWS: usize = 2;
    const COLUMNS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Plain([value; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Plain(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        let product = |lane: usize| self.0[lane].mul_add(factor.0[lane], term.0[lane]);
        Plain(std::array::from_fn(product))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }

    #[inline(always)]
    unsafe fn scale_by_power(self, power: Self) -> Self {
        self.zip(power, |x, power| x * f32::from_bits(((power as i32 + 127) << 23) as u32))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    /// AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Eight(__m256);

    // SAFETY: the caller has AVX2 and FMA.
    unsafe impl Vector for Eight {
        const LANES: usize = 8;
        const ROWS: usize = 4;
        const COLUMNS: usize = 2;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's.
            Eight(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's.
            Eight(unsafe { _mm256_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: the caller's.
            Eight(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the caller's.
            Eight(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: the caller's.
            Eight(unsafe { _mm256_div_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
            // SAFETY: the caller's.
            Eight(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: the caller's.
            Eight(unsafe { _mm256_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn round(self) -> Self {
            // SAFETY: the caller's.
            Eight(unsafe {
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
            })
        }

        #[inline(always)]
        unsafe fn scale_by_power(self, power: Self) -> Self {
            // SAFETY: the caller's.
            Eight(unsafe {
                let power = _mm256_add_epi32(_mm256_cvtps_epi32(power.0), _mm256_set1_epi32(127));
                let factor = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(power));
                _mm256_mul_ps(self.0, factor)
            })
        }
    }

    /// AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Sixteen(pub(crate) __m512);

    // SAFETY: the caller has AVX-512 F.
    unsafe impl Vector for Sixteen {
        const LANES: usize = 16;
        const ROWS: usize = 6;
        const COLUMNS: usize = 4;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's.
            Sixteen(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's.
            Sixteen(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: the caller's.
            Sixteen(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the caller's.
            Sixteen(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: the caller's.
            Sixteen(unsafe { _mm512_div_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
            // SAFETY: the caller's.
            Sixteen(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: the caller's.
            Sixteen(unsafe { _mm512_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn round(self) -> Self {
            // SAFETY: the caller's.
            Sixteen(unsafe {
                _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
            })
        }

        #[inline(always)]
        unsafe fn scale_by_power(self, power: Self) -> Self {
            // SAFETY: the caller's.
            Sixteen(unsafe { _mm512_scalef_ps(self.0, power.0) })
        }

        #[inline(always)]
        unsafe fn transpose(rows: &[*const f32; 16], first: usize, to: *mut f32, stride: usize) {
            // SAFETY: the caller's.
            unsafe {
                let mut lanes = [_mm512_setzero_si512(); 16];
                for (lane, row) in lanes.iter_mut().zip(rows) {
                    *lane = _mm512_loadu_si512(row.add(first).cast());
                }
                for (i, column) in transposed(lanes).into_iter().enumerate() {
                    _mm512_storeu_si512(to.add(i * stride).cast(), column);
                }
            }
        }

        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            // SAFETY: the caller's.
            unsafe { _mm512_reduce_max_ps(self.0) }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: the caller's.
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
    }

    /// Number `i` of row `r` as number `r` of row `i`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn transposed(mut rows: [__m512i; 16]) -> [__m512i; 16] {
        // Each step exchanges halves between rows that are 8, 4, 2 and 1 apart: of a whole vector, of its halves, ...
        for pair in 0..8 {
            let (a, b) = (rows[pair], rows[pair + 8]);
            rows[pair] = _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b);
            rows[pair + 8] = _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b);
        }
        let low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
        let high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
        for pair in [0, 1, 2, 3, 8, 9, 10, 11] {
            let (a, b) = (rows[pair], rows[pair + 4]);
            rows[pair] = _mm512_permutex2var_epi64(a, low, b);
            rows[pair + 4] = _mm512_permutex2var_epi64(a, high, b);
        }
        for pair in [0, 1, 4, 5, 8, 9, 12, 13] {
            let (a, b) = (rows[pair], rows[pair + 2]);
            rows[pair] = _mm512_unpacklo_epi64(a, b);
            rows[pair + 2] = _mm512_unpackhi_epi64(a, b);
        }
        for pair in (0..16).step_by(2) {
            let (a, b) = (rows[pair], rows[pair + 1]);
            let odd_of_a = _mm512_srli_epi64::<32>(a);
            rows[pair] =
                _mm512_mask_blend_epi32(0b1010_1010_1010_1010, a, _mm512_slli_epi64::<32>(b));
            rows[pair + 1] = _mm512_mask_blend_epi32(0b1010_1010_1010_1010, odd_of_a, b);
        }
        rows
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Eight, Sixteen, transposed};

/// Work that is compiled for each kind of vectors.
pub(crate) trait Work {
    /// Does it. (To be inlined always, so that it has the instructions.)
    ///
    /// # Safety
    /// The processor has the instructions of the vectors; and what the work asks for besides.
    unsafe fn run<V: Vector>(&self);
}

/// Does work with vectors of the best kind that the instructions have.
///
/// # Safety
/// The processor has the instructions; and what the work asks for besides.
pub(crate) unsafe fn run(instructions: Instructions, work: &impl Work) {
    // SAFETY: the caller's.
    unsafe {
        match instructions {
            Instructions::Portable => work.run::<Plain>(),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 | Instructions::AvxVnni => with_avx2(work),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni | Instructions::Amx => with_avx512(work),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("the processor has them"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn with_avx2(work: &impl Work) {
    // SAFETY: the caller's.
    unsafe { work.run::<Eight>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn with_avx512(work: &impl Work) {
    // SAFETY: the caller's.
    unsafe { work.run::<Sixteen>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials() {
        let mut x = -87.0f32;
        while x <= 0.0 {
            // SAFETY: plain Rust.
            let found = unsafe { Plain::splat(x).exp_of_negative().largest() };
            let expected = f64::from(x).exp();
            let error = (f64::from(found) - expected).abs();
            assert!(error <= 2e-7 * expected.max(1e-37), "{x}: {found} {expected}");
            x += 0.001;
        }
        // SAFETY: plain Rust.
        let of_zero = unsafe { Plain::splat(0.0).exp_of_negative().largest() };
        assert_eq!(of_zero, 1.0);
        // SAFETY: plain Rust.
        let of_nothing = unsafe { Plain::splat(f32::NEG_INFINITY).exp_of_negative().largest() };
        assert!(of_nothing < 1e-37);
    }
}
