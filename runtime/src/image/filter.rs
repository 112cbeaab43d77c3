//! The weights of a resize along one axis.

use std::{f64::consts::PI, ops::Range};

use super::Resample;

/// Which inputs make each output, and with what weights: PyTorch's antialiased filters
/// (`UpSampleKernel.cpp`, after Pillow-SIMD), as 16-bit integers. Pillow itself has 22 bits, and
/// so differs by a level here and there.
pub(super) struct Filter {
    /// Inputs of an output.
    taps: usize,
    /// Place of the first input of each output. `start + taps` goes beyond the last input only
    /// where the padding is wider than the whole axis.
    starts: Vec<usize>,
    /// Weights [outputs, taps], of which most outputs need fewer; the others are 0.
    weights: Vec<i16>,
    /// Bits of the weights after the binary point.
    precision: u32,
}

/// Bits that a sum of products leaves for the weights: 32, less 8 of a level and 2 for weights
/// below 0 or sums above 1.
const MAX_PRECISION: u32 = 32 - 8 - 2;

impl Filter {
    /// From `inputs` to `outputs` pixels, with a number of taps that is a multiple of `padding`.
    pub(super) fn new(inputs: usize, outputs: usize, resample: Resample, padding: usize) -> Self {
        let windows = match resample {
            Resample::NearestExact => nearest(inputs, outputs, 0.5),
            Resample::Nearest => nearest(inputs, outputs, 0.0),
            Resample::Lanczos => windows(inputs, outputs, 3.0, lanczos),
            Resample::Bilinear => windows(inputs, outputs, 1.0, triangle),
            Resample::Bicubic => windows(inputs, outputs, 2.0, keys),
        };
        Self::quantized(inputs, &windows, padding)
    }

    fn quantized(inputs: usize, windows: &[Window], padding: usize) -> Self {
        let outputs = windows.len();
        let largest = windows.iter().flat_map(|(_, weights)| weights).copied().fold(0.0, f64::max);
        // The most bits with which the largest weight still fits into 16.
        let fits = |bits: u32| (largest * f64::from(1 << (bits + 1))).round() < f64::from(1 << 15);
        let precision = (0..MAX_PRECISION).find(|&b| !fits(b)).unwrap_or(MAX_PRECISION);

        let taps = windows.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        let taps = taps.next_multiple_of(padding);
        let mut starts = Vec::with_capacity(outputs);
        let mut quantized = vec![0; outputs * taps];
        for ((first, weights), padded) in windows.iter().zip(quantized.chunks_exact_mut(taps)) {
            // Near the end the window moves back, for all of it to be inside.
            let start = (*first).min(inputs.saturating_sub(taps));
            starts.push(start);
            for (weight, place) in weights.iter().zip(&mut padded[first - start..]) {
                *place = (weight * f64::from(1 << precision)).round() as i16;
            }
        }
        Filter { taps, starts, weights: quantized, precision }
    }

    /// First input and weights of each output.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (usize, &[i16])> {
        self.starts.iter().copied().zip(self.weights.chunks_exact(self.taps))
    }

    /// First inputs and weights of four outputs at a time, without the last few.
    pub(super) fn steps_of_four(&self) -> impl Iterator<Item = (&[usize], &[i16])> {
        self.starts.chunks_exact(4).zip(self.weights.chunks_exact(4 * self.taps))
    }

    /// How many outputs there are.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// First input and weights of one output.
    pub(super) fn output(&self, output: usize) -> (usize, &[i16]) {
        (self.starts[output], &self.weights[output * self.taps..][..self.taps])
    }

    /// The inputs of some outputs together, padding included. Not even the first ones are in
    /// order: a window loses the zeros at its ends.
    pub(super) fn inputs(&self, outputs: Range<usize>) -> Range<usize> {
        let starts = &self.starts[outputs];
        let first = starts.iter().min().copied().unwrap_or(0);
        let last = starts.iter().max().copied().unwrap_or(0);
        first..last + self.taps
    }

    /// One past the last input of all outputs, padding included.
    pub(super) fn reach(&self) -> usize {
        self.inputs(0..self.starts.len()).end
    }

    /// Bits of the weights after the binary point.
    pub(super) fn precision(&self) -> u32 {
        self.precision
    }
}

/// First input of an output, and the weights from there on.
type Window = (usize, Vec<f64>);

/// The windows of an antialiased filter that reaches `support` inputs to each side.
fn windows(inputs: usize, outputs: usize, support: f64, weight: fn(f64) -> f64) -> Vec<Window> {
    let scale = inputs as f64 / outputs as f64;
    let stretch = scale.max(1.0);
    let radius = support * stretch;

    let mut windows = Vec::with_capacity(outputs);
    for output in 0..outputs {
        let centre = (output as f64 + 0.5) * scale;
        let first = (centre - radius).floor().max(0.0) as usize;
        let end = ((centre + radius).ceil() as usize).min(inputs);
        let inverse = 1.0 / stretch;
        let weights: Vec<f64> =
            (first..end).map(|input| weight((input as f64 - (centre - 0.5)) * inverse)).collect();
        let sum: f64 = weights.iter().sum();
        let zeros = weights.iter().take_while(|&&weight| weight == 0.0).count();
        let last = weights.iter().rposition(|&weight| weight != 0.0).map_or(zeros, |i| i + 1);
        let weights: Vec<f64> = weights[zeros..last].iter().map(|weight| weight / sum).collect();
        windows.push((first + zeros, weights));
    }
    windows
}

/// Windows of one input each, in 32 bits as PyTorch has it: that at a `shift` (in outputs) from the
/// output's left edge.
fn nearest(inputs: usize, outputs: usize, shift: f32) -> Vec<Window> {
    let scale = inputs as f32 / outputs as f32;
    let input = |output: usize| ((output as f32 + shift) * scale) as usize;
    (0..outputs).map(|output| (input(output).min(inputs - 1), vec![1.0])).collect()
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' cubic convolution with a = -0.5.
fn keys(x: f64) -> f64 {
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

/// The sinc function under a sinc of three times its width.
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
    if x.abs() < 3.0 { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}
