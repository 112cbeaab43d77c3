//! The gate of a feed-forward layer.

use crate::{
    Instructions, Threads,
    pack::Shared,
    vector::{self, Vector, Work},
};

/// Numbers of a part: what takes a few microseconds.
const PART: usize = 1 << 14;

/// `silu(gate) * up`, number by number, where `silu(x) = x / (1 + e^-x)`.
/// (Shazeer, "GLU Variants Improve Transformer", 2020: SwiGLU.)
///
/// # Panics
/// Where the lengths differ, or the processor does not have the instructions.
pub fn swiglu(
    instructions: Instructions,
    gate: &[f32],
    up: &[f32],
    output: &mut [f32],
    threads: &dyn Threads,
) {
    assert_eq!([up.len(), output.len()], [gate.len(); 2], "as many numbers each");
    assert!(instructions.are_available(), "this processor has no {instructions}");
    let (len, to) = (gate.len(), Shared(output.as_mut_ptr()));
    let parts = (len / PART).max(1);
    threads.run(parts, &|part| {
        let range = len * part / parts..len * (part + 1) / parts;
        let job = Job {
            gate: &gate[range.clone()],
            up: &up[range.clone()],
            output: to.get().wrapping_add(range.start),
        };
        // SAFETY: the instructions were checked, and each number is in one part.
        unsafe { vector::run(instructions, &job) };
    });
}

struct Job<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    /// As many numbers.
    output: *mut f32,
}

impl Work for Job<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self) {
        let len = self.gate.len();
        let whole = len / V::LANES * V::LANES;
        // SAFETY: the caller's; all is within the parts.
        unsafe {
            for at in (0..whole).step_by(V::LANES) {
                let (gate, up) = (self.gate.as_ptr().add(at), self.up.as_ptr().add(at));
                silu(V::load(gate)).mul(V::load(up)).store(self.output.add(at));
            }
            if whole < len {
                let (mut gate, mut up, rest) = ([0.0; 16], [0.0; 16], len - whole);
                gate[..rest].copy_from_slice(&self.gate[whole..]);
                up[..rest].copy_from_slice(&self.up[whole..]);
                silu(V::load(gate.as_ptr())).mul(V::load(up.as_ptr())).store(gate.as_mut_ptr());
                self.output.add(whole).copy_from_nonoverlapping(gate.as_ptr(), rest);
            }
        }
    }
}

/// `x * e^min(x, 0) / (1 + e^-|x|)`: the same as `x / (1 + e^-x)`, and no power is too large.
#[inline(always)]
unsafe fn silu<V: Vector>(x: V) -> V {
    // SAFETY: the caller's.
    unsafe {
        let (zero, minus) = (V::splat(0.0), V::splat(-1.0));
        let magnitude = x.mul(minus).max(x);
        let below = x.mul(minus).max(zero);
        let one_and_power = magnitude.mul(minus).exp_of_negative().add(V::splat(1.0));
        x.mul(below.mul(minus).exp_of_negative()).div(one_and_power)
    }
}
