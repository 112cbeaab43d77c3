//! The inner loops of resizing, over levels of red, green and blue: 16-bit weights, 32-bit sums,
//! rounded to 8 bits after each pass.

use super::filter::Filter;

/// Levels that a horizontal pass may read, and write, beyond the last one it needs.
pub(super) const SLACK: usize = 4;

/// Resizes two rows of pixels along their length. The inputs go on for [`SLACK`] levels beyond
/// the filter's reach, and the outputs beyond its last output.
pub(super) fn horizontal(rows: [&[u8]; 2], filter: &Filter, resized: [&mut [u8]; 2]) {
    let [top, bottom] = resized;
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        done = unsafe { avx2::horizontal(rows, filter, top, bottom) };
    }
    horizontal_from(done, rows[0], filter, top);
    horizontal_from(done, rows[1], filter, bottom);
}

fn horizontal_from(done: usize, row: &[u8], filter: &Filter, resized: &mut [u8]) {
    let round = 1 << (filter.precision() - 1);
    let pixels = resized.chunks_exact_mut(3);
    for ((start, weights), pixel) in filter.outputs().zip(pixels).skip(done) {
        let mut sums = [round; 3];
        for (&weight, levels) in weights.iter().zip(row[3 * start..].chunks_exact(3)) {
            for (sum, &level) in sums.iter_mut().zip(levels) {
                *sum += i32::from(weight) * i32::from(level);
            }
        }
        for (level, sum) in pixel.iter_mut().zip(sums) {
            *level = (sum >> filter.precision()).clamp(0, 255) as u8;
        }
    }
}

/// One row out of several: the sum of each column, by weights. Rows and weights come in pairs.
pub(super) fn vertical(rows: &[&[u8]], weights: &[i16], precision: u32, resized: &mut [u8]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        done = unsafe { avx2::vertical(rows, weights, precision, resized) };
    }
    vertical_from(done, rows, weights, precision, resized);
}

/// Columns whose sums are kept in registers.
const COLUMNS: usize = 32;

fn vertical_from(done: usize, rows: &[&[u8]], weights: &[i16], precision: u32, resized: &mut [u8]) {
    for (chunk, resized) in resized[done..].chunks_mut(COLUMNS).enumerate() {
        let mut sums = [1 << (precision - 1); COLUMNS];
        for (row, &weight) in rows.iter().zip(weights) {
            let levels = &row[done + chunk * COLUMNS..][..resized.len()];
            for (sum, &level) in sums.iter_mut().zip(levels) {
                *sum += i32::from(weight) * i32::from(level);
            }
        }
        for (level, sum) in resized.iter_mut().zip(sums) {
            *level = (sum >> precision).clamp(0, 255) as u8;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{COLUMNS, Filter};

    // What is called from here is a function with the same features, and no closure: only such
    // are compiled into one.

    /// Does as many pixels as it can in steps of four, and says how many. Each half of a register
    /// has one of the two rows.
    #[target_feature(enable = "avx2")]
    pub(super) fn horizontal(
        rows: [&[u8]; 2],
        filter: &Filter,
        top: &mut [u8],
        bottom: &mut [u8],
    ) -> usize {
        const NO: i8 = -1;
        let round = _mm256_set1_epi32(1 << (filter.precision() - 1));
        let precision = _mm_cvtsi32_si128(filter.precision() as i32);
        // Of four pixels with four levels each, those that count.
        let three = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, NO, NO, NO, NO,
        ));
        let shuffles = [pixels(0), pixels(6)];
        let steps = filter.steps_of_four();
        for (i, (starts, weights)) in steps.enumerate() {
            let taps = weights.len() / 4;
            let mut sums = [round; 4];
            for (pixel, sum) in sums.iter_mut().enumerate() {
                let weights = &weights[pixel * taps..][..taps];
                *sum = add_products(*sum, rows, starts[pixel], weights, shuffles);
                *sum = _mm256_sra_epi32(*sum, precision);
            }
            let first = _mm256_packs_epi32(sums[0], sums[1]);
            let second = _mm256_packs_epi32(sums[2], sums[3]);
            let levels = _mm256_shuffle_epi8(_mm256_packus_epi16(first, second), three);
            // The last four bytes are overwritten by the next pixels.
            store(&mut top[12 * i..], _mm256_castsi256_si128(levels));
            store(&mut bottom[12 * i..], _mm256_extracti128_si256::<1>(levels));
        }
        filter.len() / 4 * 4
    }

    /// A shuffle that takes the levels of two pixels by channel, as pairs of 16-bit numbers.
    #[target_feature(enable = "avx2")]
    fn pixels(first: i8) -> __m256i {
        const NO: i8 = -1;
        let (r, g, b) = (first, first + 1, first + 2);
        let (r2, g2, b2) = (r + 3, g + 3, b + 3);
        _mm256_broadcastsi128_si256(_mm_setr_epi8(
            r, NO, r2, NO, g, NO, g2, NO, b, NO, b2, NO, NO, NO, NO, NO,
        ))
    }

    /// Adds the products of one pixel, four taps a step: 12 of the 16 bytes that a load gives.
    #[target_feature(enable = "avx2")]
    fn add_products(
        mut sums: __m256i,
        rows: [&[u8]; 2],
        start: usize,
        weights: &[i16],
        shuffles: [__m256i; 2],
    ) -> __m256i {
        for (step, weights) in weights.chunks_exact(4).enumerate() {
            let at = 3 * (start + 4 * step);
            let levels = _mm256_set_m128i(load(rows[1], at), load(rows[0], at));
            let pairs = _mm256_shuffle_epi8(levels, shuffles[0]);
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, both(&weights[..2])));
            let pairs = _mm256_shuffle_epi8(levels, shuffles[1]);
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, both(&weights[2..])));
        }
        sums
    }

    #[target_feature(enable = "avx2")]
    fn load(levels: &[u8], at: usize) -> __m128i {
        let levels = &levels[at..at + 16];
        // SAFETY: it reads 16 bytes, which are there; any alignment will do.
        unsafe { _mm_loadu_si128(levels.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn store(levels: &mut [u8], value: __m128i) {
        let levels = &mut levels[..16];
        // SAFETY: it writes 16 bytes, which are there; any alignment will do.
        unsafe { _mm_storeu_si128(levels.as_mut_ptr().cast(), value) }
    }

    /// Two weights in every 32 bits.
    #[target_feature(enable = "avx2")]
    fn both(pair: &[i16]) -> __m256i {
        _mm256_set1_epi32(i32::from(pair[1]) << 16 | i32::from(pair[0] as u16))
    }

    /// Does as many columns as it can in steps of [`COLUMNS`], and says how many.
    #[target_feature(enable = "avx2")]
    pub(super) fn vertical(
        rows: &[&[u8]],
        weights: &[i16],
        precision: u32,
        resized: &mut [u8],
    ) -> usize {
        let round = _mm256_set1_epi32(1 << (precision - 1));
        let shift = _mm_cvtsi32_si128(precision as i32);
        let chunks = resized.chunks_exact_mut(COLUMNS);
        let done = chunks.len() * COLUMNS;
        for (i, resized) in chunks.enumerate() {
            let at = i * COLUMNS;
            let mut sums = [round; 4];
            for (rows, weights) in rows.chunks_exact(2).zip(weights.chunks_exact(2)) {
                let weights = both(weights);
                for half in 0..2 {
                    let at = at + 16 * half;
                    let top = _mm256_cvtepu8_epi16(load(rows[0], at));
                    let bottom = _mm256_cvtepu8_epi16(load(rows[1], at));
                    let pairs = _mm256_madd_epi16(_mm256_unpacklo_epi16(top, bottom), weights);
                    sums[2 * half] = _mm256_add_epi32(sums[2 * half], pairs);
                    let pairs = _mm256_madd_epi16(_mm256_unpackhi_epi16(top, bottom), weights);
                    sums[2 * half + 1] = _mm256_add_epi32(sums[2 * half + 1], pairs);
                }
            }
            for sum in &mut sums {
                *sum = _mm256_sra_epi32(*sum, shift);
            }
            let first = _mm256_packs_epi32(sums[0], sums[1]);
            let second = _mm256_packs_epi32(sums[2], sums[3]);
            // Packing goes by halves of registers; this puts them in order.
            let levels =
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(first, second));
            // SAFETY: it writes 32 bytes, as long as a chunk is; any alignment will do.
            unsafe { _mm256_storeu_si256(resized.as_mut_ptr().cast(), levels) };
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Resample;

    /// The loop for AVX2 gives what the plain one gives.
    #[test]
    fn all_loops_agree() {
        let row: Vec<u8> = (0..3 * 700 + 64).map(|i| (i * i * 7 / 5 % 256) as u8).collect();
        for (inputs, outputs) in [(700, 512), (700, 64), (5, 512), (300, 299), (700, 1)] {
            for resample in [Resample::Bilinear, Resample::Bicubic] {
                let filter = Filter::new(inputs, outputs, resample, 4);
                let mut expected = vec![0; 3 * outputs];
                horizontal_from(0, &row, &filter, &mut expected);
                let mut resized = [vec![0; 3 * outputs + SLACK], vec![0; 3 * outputs + SLACK]];
                let [first, second] = &mut resized;
                horizontal([&row, &row], &filter, [first, second]);
                for resized in resized {
                    assert_eq!(resized[..3 * outputs], expected, "{inputs} to {outputs}");
                }

                let (first, second) = (&row[..701], &row[702..1403]);
                let (_, weights) = filter.output(0);
                let rows: Vec<&[u8]> =
                    [first, second].into_iter().cycle().take(weights.len()).collect();
                let mut expected = vec![0; 701];
                vertical_from(0, &rows, weights, filter.precision(), &mut expected);
                let mut resized = vec![0; 701];
                vertical(&rows, weights, filter.precision(), &mut resized);
                assert_eq!(resized, expected, "{inputs} to {outputs}");
            }
        }
    }
}
