//! What several tests of the kernels need.

use lfm2vl_kernels::Instructions;

/// What this processor has.
pub(crate) fn available() -> impl Iterator<Item = Instructions> {
    Instructions::ALL.into_iter().filter(|i| i.are_available())
}

/// Numbers from `-size` to `size`, the same everywhere (xorshift64*, Vigna 2016).
pub(crate) fn numbers(count: usize, size: f32, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let number = |_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bits = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        size * (bits as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..count).map(number).collect()
}
