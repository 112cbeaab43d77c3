//! The gated short convolution of LFM2.

use std::cell::Cell;

use crate::{
    Instructions, Threads,
    buffer::{Buffer, Scratch},
    pack::Shared,
    vector::{self, Vector, Work},
};

/// Channels that are computed together: a multiple of every vector.
const CHANNELS: usize = 128;

/// Numbers of inputs from which on threads share the work.
const SHARED: usize = 1 << 14;

thread_local! {
    static HISTORY: Cell<Buffer> = const { Cell::new(Buffer::empty()) };
}

/// A causal convolution of each channel by itself, between two gates.
///
/// Rows of inputs are three thirds of `channels` numbers each. The product of two of them, `x`, is convolved:
/// `y[t] = sum over k of weight[k] * x[t - width + 1 + k]`, where `x` before the first row is the state.
/// The third one is multiplied with the result. (The operator of LFM2's `Lfm2ShortConv`.)
#[derive(Debug, Clone, Copy)]
pub struct ShortConv<'a> {
    /// [channels, width].
    pub weight: &'a [f32],
    /// A third of a row of inputs.
    pub channels: usize,
    /// Rows of inputs that an output depends on.
    pub width: usize,
    /// Which third of a row is multiplied with the result: 0, 1 or 2.
    pub gate: usize,
}

impl ShortConv<'_> {
    /// Convolves `inputs` [batch, rows, 3 * channels] after `past` [batch, channels, width] into `output`
    /// [batch, rows, channels], and keeps the last columns of state and `x` in `present`
    /// [batch, channels, kept], up to all of them.
    ///
    /// # Panics
    /// Where the lengths do not fit, or the processor does not have the instructions.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        instructions: Instructions,
        batch: usize,
        inputs: &[f32],
        past: &[f32],
        output: &mut [f32],
        present: &mut [f32],
        threads: &dyn Threads,
    ) {
        let state = self.channels * self.width;
        assert!(self.gate < 3 && self.weight.len() == state, "a weight for each channel");
        assert_eq!(past.len(), batch * state, "a state of each sequence");
        assert_eq!(inputs.len(), 3 * output.len(), "three inputs for each output");
        assert!(instructions.are_available(), "this processor has no {instructions}");
        if batch * state == 0 {
            return;
        }
        let rows = output.len() / (batch * self.channels);
        assert_eq!(output.len(), batch * rows * self.channels, "whole rows");
        let kept = present.len() / (batch * self.channels);
        assert_eq!(present.len(), batch * kept * self.channels, "whole columns");
        assert!(kept <= self.width + rows, "as many columns as there are");
        let job = Job {
            conv: *self,
            rows,
            kept,
            inputs,
            past,
            output: Shared(output.as_mut_ptr()),
            present: Shared(present.as_mut_ptr()),
        };
        let blocks = self.channels.div_ceil(CHANNELS);
        let units = batch * blocks;
        let parts = if inputs.len() < SHARED { 1 } else { units };
        threads.run(parts, &|part| {
            for unit in units * part / parts..units * (part + 1) / parts {
                let (sequence, first) = (unit / blocks, unit % blocks * CHANNELS);
                // SAFETY: the lengths and instructions were checked; units have outputs of their own.
                unsafe { vector::run(instructions, &Unit { job: &job, sequence, first }) };
            }
        });
    }
}

/// The width of all models of LFM2, which the compiler is told.
const USUAL: usize = 3;

/// Writes [count, W] as columns [W, CHANNELS].
#[inline(always)]
unsafe fn to_columns<const W: usize>(from: &[f32], to: *mut f32, count: usize) {
    let from = &from.as_chunks::<W>().0[..count];
    for k in 0..W {
        for (channel, row) in from.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { *to.add(k * CHANNELS + channel) = row[k] };
        }
    }
}

/// Writes columns as [count, W].
#[inline(always)]
unsafe fn from_columns<const W: usize>(columns: [*const f32; W], to: *mut f32, count: usize) {
    for channel in 0..count {
        for k in 0..W {
            // SAFETY: the caller's.
            unsafe { *to.add(channel * W + k) = *columns[k].add(channel) };
        }
    }
}

struct Job<'a> {
    conv: ShortConv<'a>,
    rows: usize,
    kept: usize,
    inputs: &'a [f32],
    past: &'a [f32],
    output: Shared<f32>,
    present: Shared<f32>,
}

/// Some channels of a sequence, from the first one on.
struct Unit<'a> {
    job: &'a Job<'a>,
    sequence: usize,
    first: usize,
}

impl Work for Unit<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self) {
        let &Unit { job, sequence, first } = self;
        let ShortConv { weight, channels, width, gate } = job.conv;
        let count = CHANNELS.min(channels - first);
        let state = (sequence * channels + first) * width;
        let mut scratch = Scratch::take(&HISTORY, 2 * width * CHANNELS * size_of::<f32>());
        // Columns of the weight [width, CHANNELS], and of x: that of place t is in slot t modulo width,
        // and the state is in those before place 0.
        let weights = scratch.as_mut_ptr().cast::<f32>();
        let history = weights.wrapping_add(width * CHANNELS);
        // SAFETY: the caller's; all is within the scratch memory, the rows and the states. Lanes past the
        // last channel are those of the scratch memory.
        unsafe {
            let (weight, past) = (&weight[first * width..], &job.past[state..]);
            for (from, to) in [(weight, weights), (past, history)] {
                match width {
                    USUAL => to_columns::<USUAL>(from, to, count),
                    _ => (0..count * width).for_each(|i| {
                        *to.add(i % width * CHANNELS + i / width) = from[i];
                    }),
                }
            }
            let whole = count / V::LANES * V::LANES;
            let others = [(gate + 1) % 3, (gate + 2) % 3];
            for row in 0..job.rows {
                let at = sequence * job.rows + row;
                let input = job.inputs.as_ptr().add(at * 3 * channels + first);
                let [a, b] = others.map(|third| input.add(third * channels));
                let gate = input.add(gate * channels);
                let output = job.output.get().add(at * channels + first);
                let newest = history.add(row % width * CHANNELS);
                for at in (0..whole).step_by(V::LANES) {
                    V::load(a.add(at)).mul(V::load(b.add(at))).store(newest.add(at));
                    let mut sum = V::splat(0.0);
                    for k in 0..width {
                        let x = V::load(history.add((row + 1 + k) % width * CHANNELS + at));
                        sum = x.mul_add(V::load(weights.add(k * CHANNELS + at)), sum);
                    }
                    sum.mul(V::load(gate.add(at))).store(output.add(at));
                }
                for at in whole..count {
                    *newest.add(at) = *a.add(at) * *b.add(at);
                    let mut sum = 0.0f32;
                    for k in 0..width {
                        let x = *history.add((row + 1 + k) % width * CHANNELS + at);
                        sum = x.mul_add(*weights.add(k * CHANNELS + at), sum);
                    }
                    *output.add(at) = sum * *gate.add(at);
                }
            }
            let kept = job.kept;
            let present = job.present.get().add((sequence * channels + first) * kept);
            let slots = |k: usize| history.add((job.rows + k) % width * CHANNELS).cast_const();
            if kept == USUAL && width == USUAL {
                from_columns::<USUAL>(std::array::from_fn(slots), present, count);
            } else if kept <= width {
                (0..count * kept).for_each(|i| {
                    *present.add(i) = *slots(width - kept + i % kept).add(i / kept);
                });
            } else {
                let inputs = &job.inputs[sequence * job.rows * 3 * channels..];
                (0..count * kept).for_each(|i| {
                    let (channel, place) = (i / kept, width + job.rows - kept + i % kept);
                    *present.add(i) = match place.checked_sub(width) {
                        None => past[channel * width + place],
                        Some(row) => {
                            let third = |third| (3 * row + third) * channels + first + channel;
                            inputs[third(others[0])] * inputs[third(others[1])]
                        }
                    };
                });
            }
        }
    }
}
