//! The weights of a resize along one axis: PyTorch's antialiased filters (`UpSampleKernel.cpp`, after
//! Pillow-SIMD), computed in float64 and rounded to 16-bit integers.

use std::f64::consts::PI;

use super::Processor;
use crate::onnx::Value;

/// Outputs whose weights are one matrix. Of wider ones more would be zero, and of narrower ones the inputs
/// overlap more.
pub(super) const BLOCK: usize = 16;
/// Bits that a sum of products leaves for the weights: 32, less 8 of a level and 2 for weights below 0
/// or sums above 1.
const MAX_PRECISION: u32 = 32 - 8 - 2;

/// What is taken from each sum, for its fraction to have one bit more.
pub(super) const MIDDLE: u8 = 128;

/// Which inputs make each output, and with what weights, by blocks of [`BLOCK`] outputs. Behind the last
/// input another one is expected that is 1 everywhere: its weight takes [`MIDDLE`] from each sum, and adds
/// half a part, so that no sum lies between two levels, where ways of rounding differ.
pub(super) struct Filter<'g> {
    /// Places of the inputs of each block, int64 [blocks, inputs]; places beyond the last are the last once
    /// more, with weights of 0.
    pub(super) inputs: Value<'g>,
    /// Weights, float64 [blocks, BLOCK, inputs], of which most are 0.
    pub(super) weights: Value<'g>,
    /// How many parts there are in 1, of which weights are multiples: float64 scalar, a power of two.
    pub(super) parts: Value<'g>,
}

impl<'g> Processor<'g> {
    /// The antialiased filter `kernel` from `inputs` to `outputs` pixels (int64 scalars).
    pub(super) fn filter(
        self,
        kernel: Kernel,
        inputs: Value<'g>,
        outputs: Value<'g>,
    ) -> Filter<'g> {
        let g = self.g;
        let support = kernel.support();
        let (zero, half, one) = (g.double(0.0), g.double(0.5), g.double(1.0));
        let length = inputs.to_f64();
        let scale = length / outputs.to_f64().max(one);
        let stretch = scale.max(one);
        let radius = g.double(support) * stretch;

        let block = self.int(BLOCK);
        let blocks = (outputs + self.int(BLOCK - 1)) / block;
        let output = (blocks * block).range().min(outputs - self.int(1));
        let output = output.reshape_to_sizes(&[blocks, block, self.int(1)]);
        let centre = (output.to_f64() + half) * scale; // [blocks, BLOCK, 1]
        let first = (centre - radius).floor().max(zero);
        let end = (centre + radius).ceil().min(length);

        let steps = g.double((BLOCK - 1) as f64) * scale;
        let reach = (steps + g.double(2.0) * radius).ceil().to_i64() + self.int(2);
        let start = first.slice(1, 0, 1).to_i64(); // [blocks, 1, 1]
        let input = start + reach.range(); // [blocks, 1, inputs]
        let place = input.to_f64();
        let weights = self.weight(kernel, (place - (centre - half)) * (one / stretch));
        let is_inside = place.greater_or_equal(first).and(place.less(end));
        let weights = is_inside.select(weights, zero);
        // One after the other, as the reference adds them: another order may round differently.
        let sum = weights.running_sum(2).slice_from(2, -1);
        let weights = weights / sum;

        let largest = weights.reshape(&[-1]).concat(&[g.doubles(&[0.0], &[1])], 0).max_all();
        let powers: Vec<f64> = (0..=MAX_PRECISION).map(|bits| f64::from(1 << bits)).collect();
        // The most bits with which the largest weight still fits into 16.
        let twice = g.doubles(&powers[1..], &[powers.len() - 1]);
        let fits = (largest * twice).less(g.double(f64::from(1 << 15) - 0.5));
        let parts = g.doubles(&powers, &[powers.len()]).gather(fits.to_i64().sum_all(), 0);
        let scaled = weights * parts;
        // Halves away from zero.
        let nearest = scaled.less(zero).select((scaled - half).ceil(), (scaled + half).floor());
        let shape = [blocks, self.int(BLOCK), self.int(1)];
        let shift = (half / parts - g.double(MIDDLE.into())).expand(g.vector(&shape));
        let weights = (nearest / parts).concat(&[shift], 2);

        let input = input.min(inputs - self.int(1)).squeeze(&[1]);
        let ones = inputs.expand(g.vector(&[blocks, self.int(1)]));
        Filter { inputs: input.concat(&[ones], 1), weights, parts }
    }

    /// The filter's value at a distance from the centre.
    fn weight(self, kernel: Kernel, distance: Value<'g>) -> Value<'g> {
        let number = |value| self.g.double(value);
        let x = distance.abs();
        match kernel {
            Kernel::Triangle => (number(1.0) - x).max(number(0.0)),
            Kernel::Keys => {
                const A: f64 = -0.5;
                let near = (number(A + 2.0) * x - number(A + 3.0)) * x * x + number(1.0);
                let far = (((x - number(5.0)) * x + number(8.0)) * x - number(4.0)) * number(A);
                let far = x.less(number(2.0)).select(far, number(0.0));
                x.less(number(1.0)).select(near, far)
            }
            Kernel::Lanczos => {
                let sinc = |x: Value<'g>| {
                    let angle = x * number(PI);
                    x.equal(number(0.0)).select(number(1.0), angle.sin() / angle)
                };
                let inside = sinc(x) * sinc(x / number(3.0));
                x.less(number(3.0)).select(inside, number(0.0))
            }
        }
    }

    /// The input of each output (int64 [outputs]) without a filter, in 32 bits as PyTorch has it: that at a
    /// `shift` (in outputs) from the output's left edge.
    pub(super) fn nearest(self, shift: f32, inputs: Value<'g>, outputs: Value<'g>) -> Value<'g> {
        let scale = inputs.to_f32() / outputs.max(self.int(1)).to_f32();
        let places = (outputs.range().to_f32() + self.g.float(shift)) * scale;
        places.floor().to_i64().min(inputs - self.int(1))
    }
}

/// An antialiased filter, from what lies at a distance from its centre.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Bilinear.
    Triangle,
    /// Keys' cubic convolution with a = -0.5.
    Keys,
    /// The sinc function under a sinc of three times its width.
    Lanczos,
}

impl Kernel {
    /// How far it reaches to each side.
    fn support(self) -> f64 {
        match self {
            Kernel::Triangle => 1.0,
            Kernel::Keys => 2.0,
            Kernel::Lanczos => 3.0,
        }
    }

    /// With how many parts at most every sum is exact in float32, in whatever order it is made. Half a part
    /// has to be a multiple of the last of its 24 bits: 2^-17 where sums lie within 128, as those of weights
    /// above 0 do, and 2^-16 within 256 (2^-15, for a whole part, before MIDDLE is taken away).
    pub(super) fn most_parts_in_f32(self) -> f64 {
        f64::from(match self {
            Kernel::Triangle => 1 << 16,
            Kernel::Keys | Kernel::Lanczos => 1 << 15,
        })
    }
}
