//! Attention of many queries to many keys, as ONNX Runtime's `MultiHeadAttention` computes it, in
//! 32-bit floats or, where fewer digits will do, in two numbers of bfloat16 each.
//!
//! A block of keys and values at a time is brought together, and meets a few queries at a time, with a
//! running maximum and sum of exponentials (Milakov and Gimelshein, "Online normalizer calculation for
//! softmax", 2018), so that scores stay in the cache. A query's output does not depend on other queries; the
//! last digits differ from instructions to instructions, which sum as many numbers at a time as their vectors
//! have.

use std::cell::Cell;

#[cfg(target_arch = "x86_64")]
mod amx;
mod grouped;
mod head;
mod vectors;

pub use grouped::{GroupedAttention, HeadNorms, Rotary};
use head::Head;
use vectors::attend;

use crate::{
    Instructions, Threads,
    buffer::Buffer,
    pack::Shared,
    vector::{self, Vector, Work},
};

/// Queries that pay for bringing keys and values together.
const WORTH_A_PIECE: usize = 96;

thread_local! {
    static SCRATCH: Cell<Buffer> = const { Cell::new(Buffer::empty()) };
}

/// How many digits of their factors products have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// All of a 32-bit float.
    Float32,
    /// 16 of its 24 bits, where that is faster: with AMX. Enough beside products whose inputs are rounded to 8
    /// bits. (A score's error is some 1e-5 of the sum of its products' magnitudes.)
    Bits16,
}

/// Sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Sequences that do not see each other.
    pub batch: usize,
    /// Queries of a sequence.
    pub queries: usize,
    /// Keys of a sequence.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Size of a head of queries and keys.
    pub head_size: usize,
    /// Size of a head of values.
    pub value_size: usize,
}

impl Attention {
    /// `softmax(query * key^T * scale) * value` for each head.
    ///
    /// `query` is [batch, queries, heads * head_size], `key` [batch, keys, heads * head_size], `value`
    /// [batch, keys, heads * value_size], `output` [batch, queries, heads * value_size]. `mask`
    /// [batch, keys] is above 0 for keys that are seen; a sequence that sees none sees all, as with
    /// ONNX Runtime, which lowers their scores instead. Without keys the output is 0.
    ///
    /// # Panics
    /// Where the lengths do not fit, or the processor does not have the instructions.
    #[allow(clippy::too_many_arguments)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn run(
        &self,
        instructions: Instructions,
        precision: Precision,
        query: &[f32],
        key: &[f32],
        value: &[f32],
        mask: Option<&[i32]>,
        scale: f32,
        output: &mut [f32],
        threads: &dyn Threads,
    ) {
        let (batch, queries, keys) = (self.batch, self.queries, self.keys);
        let is_size = |len: usize, sizes: [usize; 4]| {
            let product = sizes.into_iter().try_fold(1usize, usize::checked_mul);
            product == Some(len)
        };
        let (heads, head_size, value_size) = (self.heads, self.head_size, self.value_size);
        assert!(is_size(query.len(), [batch, queries, heads, head_size]), "queries");
        assert!(is_size(key.len(), [batch, keys, heads, head_size]), "keys");
        assert!(is_size(value.len(), [batch, keys, heads, value_size]), "values");
        assert!(is_size(output.len(), [batch, queries, heads, value_size]), "outputs");
        assert!(mask.is_none_or(|mask| is_size(mask.len(), [batch, keys, 1, 1])), "a mask of keys");
        assert!(instructions.are_available(), "this processor has no {instructions}");
        if keys == 0 {
            return output.fill(0.0);
        }
        let job = Job {
            sizes: *self,
            query,
            key,
            value,
            mask,
            scale,
            output: Shared(output.as_mut_ptr()),
        };
        match (instructions, precision) {
            #[cfg(target_arch = "x86_64")]
            (Instructions::Amx, Precision::Bits16) => job.run(threads, |part| {
                // SAFETY: the instructions and lengths were checked; parts write outputs of their own.
                unsafe { job.amx(part) };
            }),
            _ => job.run(threads, |part| {
                let rows = Rows { job: &job, part, seen: job.seen(part.sequence) };
                // SAFETY: as above.
                unsafe { vector::run(instructions, &rows) };
            }),
        }
    }
}

struct Job<'a> {
    sizes: Attention,
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    mask: Option<&'a [i32]>,
    scale: f32,
    output: Shared<f32>,
}

/// Some queries of one head of one sequence.
#[derive(Clone, Copy)]
struct Part {
    sequence: usize,
    head: usize,
    first: usize,
    last: usize,
}

impl Job<'_> {
    fn run(&self, threads: &dyn Threads, compute: impl Fn(Part) + Sync) {
        let heads = self.sizes.batch * self.sizes.heads;
        // Each part brings keys and values together, which pays for many queries.
        let wanted = (4 * threads.count()).div_ceil(heads.max(1));
        let pieces = wanted.clamp(1, self.sizes.queries.div_ceil(WORTH_A_PIECE).max(1));
        threads.run(heads * pieces, &|index| {
            let (head, piece) = (index / pieces, index % pieces);
            let part = Part {
                sequence: head / self.sizes.heads,
                head: head % self.sizes.heads,
                first: self.sizes.queries * piece / pieces,
                last: self.sizes.queries * (piece + 1) / pieces,
            };
            if part.first < part.last {
                compute(part);
            }
        });
    }

    /// Keys of a sequence that are seen.
    fn seen(&self, sequence: usize) -> Vec<usize> {
        let keys = self.sizes.keys;
        if let Some(mask) = self.mask {
            let mask = &mask[sequence * keys..][..keys];
            if mask.iter().any(|&is_seen| is_seen > 0) {
                return (0..keys).filter(|&key| mask[key] > 0).collect();
            }
        }
        (0..keys).collect()
    }
}

/// A part whose queries, keys and values are rows of numbers of all heads.
struct Rows<'a> {
    job: &'a Job<'a>,
    part: Part,
    /// Keys that are seen.
    seen: Vec<usize>,
}

impl Work for Rows<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self) {
        // SAFETY: the caller's.
        unsafe { attend::<V>(self) }
    }
}

impl Head for Rows<'_> {
    fn size(&self) -> usize {
        self.job.sizes.head_size
    }

    fn value_size(&self) -> usize {
        self.job.sizes.value_size
    }

    fn queries(&self) -> usize {
        self.part.last - self.part.first
    }

    fn keys(&self) -> usize {
        self.seen.len()
    }

    fn seen(&self, _: usize) -> usize {
        self.seen.len()
    }

    #[inline(always)]
    unsafe fn write_query<V: Vector>(&self, query: usize, to: *mut f32) {
        let sizes = &self.job.sizes;
        let row = self.part.sequence * sizes.queries + self.part.first + query;
        let from = &self.job.query[(row * sizes.heads + self.part.head) * sizes.head_size..];
        for (d, &x) in from[..sizes.head_size].iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { *to.add(d) = x * self.job.scale };
        }
    }

    #[inline(always)]
    fn key(&self, index: usize) -> *const f32 {
        let sizes = &self.job.sizes;
        let row = self.part.sequence * sizes.keys + self.seen[index];
        self.job.key[(row * sizes.heads + self.part.head) * sizes.head_size..].as_ptr()
    }

    #[inline(always)]
    fn value(&self, index: usize) -> *const f32 {
        let sizes = &self.job.sizes;
        let row = self.part.sequence * sizes.keys + self.seen[index];
        self.job.value[(row * sizes.heads + self.part.head) * sizes.value_size..].as_ptr()
    }

    /// The keys that are seen may have any others between them.
    fn value_stride(&self) -> Option<usize> {
        None
    }

    fn output(&self, query: usize) -> *mut f32 {
        let sizes = &self.job.sizes;
        let row = self.part.sequence * sizes.queries + self.part.first + query;
        let at = (row * sizes.heads + self.part.head) * sizes.value_size;
        self.job.output.get().wrapping_add(at)
    }
}
