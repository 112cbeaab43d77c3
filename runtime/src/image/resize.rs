//! Antialiased resizing of 8-bit images, equal bit for bit to PyTorch's
//! `interpolate(uint8, mode, antialias=True)` on a CPU, which torchvision and so the reference
//! uses: filter weights as 16-bit integers, a horizontal pass rounded to 8 bits, then a vertical
//! one (`UpSampleKernel.cpp`, after Pillow's `Resample.c`). Pillow itself keeps 22-bit weights and
//! so differs by a level here and there.

use image::RgbImage;

use super::{Resample, geometry::Size};

const CHANNELS: usize = 3;

/// Resizes to `size`.
pub(super) fn resize(image: &RgbImage, size: Size, resample: Resample) -> RgbImage {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut pixels = image.as_raw().as_slice();
    let (horizontal, vertical);
    if size.width != width {
        horizontal = resize_rows(pixels, width, &Filter::new(width, size.width, resample));
        pixels = &horizontal;
    }
    if size.height != height {
        let row = size.width * CHANNELS;
        vertical = resize_columns(pixels, row, &Filter::new(height, size.height, resample));
        pixels = &vertical;
    }
    let mut resized = RgbImage::new(size.width as u32, size.height as u32);
    resized.copy_from_slice(pixels);
    resized
}

/// For every output position, the input positions that count and their weights.
struct Filter {
    /// First input position and range of `weights` for each output position.
    windows: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<i16>,
    /// The weights are multiples of 2^-precision.
    precision: u32,
}

impl Filter {
    fn new(input: usize, output: usize, resample: Resample) -> Self {
        let (radius, kernel): (f64, fn(f64) -> f64) = match resample {
            Resample::Bilinear => (1.0, triangle),
            Resample::Bicubic => (2.0, cubic),
        };
        let scale = input as f64 / output as f64;
        let support = radius * scale.max(1.0);
        let inverse_scale = if scale >= 1.0 { 1.0 / scale } else { 1.0 };

        let mut windows = Vec::with_capacity(output);
        let mut exact: Vec<f64> = Vec::new();
        for position in 0..output {
            let centre = scale * (position as f64 + 0.5);
            let first = ((centre - support + 0.5) as i64).max(0) as usize;
            let end = ((centre + support + 0.5) as usize).min(input);
            let start = exact.len();
            exact.extend((first..end).map(|i| {
                let offset = (i - first) as f64 + first as f64 - centre + 0.5;
                kernel(offset * inverse_scale)
            }));
            let sum: f64 = exact[start..].iter().sum();
            exact[start..].iter_mut().for_each(|weight| *weight /= sum);
            windows.push((first, start..exact.len()));
        }

        let largest = exact.iter().copied().fold(0.0, f64::max);
        // The most bits with which the largest weight still fits.
        let precision = (0..22)
            .find(|bits| (0.5 + largest * f64::from(1 << (bits + 1))) as i32 >= 1 << 15)
            .unwrap_or(22);
        let quantise = |&weight: &f64| {
            let scaled = weight * f64::from(1 << precision);
            (scaled + if weight < 0.0 { -0.5 } else { 0.5 }) as i16
        };
        Filter { windows, weights: exact.iter().map(quantise).collect(), precision }
    }

    fn half(&self) -> i32 {
        1 << (self.precision - 1)
    }

    fn to_u8(&self, sum: i32) -> u8 {
        (sum >> self.precision).clamp(0, 255) as u8
    }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' cubic convolution with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Resizes each row of `width` pixels.
fn resize_rows(pixels: &[u8], width: usize, filter: &Filter) -> Vec<u8> {
    let mut resized = Vec::with_capacity(pixels.len() / width * filter.windows.len());
    for row in pixels.chunks_exact(width * CHANNELS) {
        for (first, range) in &filter.windows {
            let weights = &filter.weights[range.clone()];
            let window = row[first * CHANNELS..].chunks_exact(CHANNELS);
            let mut sums = [filter.half(); CHANNELS];
            for (&weight, pixel) in weights.iter().zip(window) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(weight) * i32::from(level);
                }
            }
            resized.extend(sums.map(|sum| filter.to_u8(sum)));
        }
    }
    resized
}

/// Resizes the columns of an image whose rows have `row` bytes.
fn resize_columns(pixels: &[u8], row: usize, filter: &Filter) -> Vec<u8> {
    let mut resized = Vec::with_capacity(filter.windows.len() * row);
    let mut sums = vec![0; row];
    for (first, range) in &filter.windows {
        sums.fill(filter.half());
        let rows = pixels[first * row..].chunks_exact(row);
        for (&weight, levels) in filter.weights[range.clone()].iter().zip(rows) {
            for (sum, &level) in sums.iter_mut().zip(levels) {
                *sum += i32::from(weight) * i32::from(level);
            }
        }
        resized.extend(sums.iter().map(|&sum| filter.to_u8(sum)));
    }
    resized
}
