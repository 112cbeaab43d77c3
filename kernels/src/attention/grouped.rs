//! Attention of a decoder: several heads of queries share keys and values, which are in a cache.

use super::{Head, WORTH_A_PIECE, attend};
use crate::{
    Instructions, Threads,
    pack::Shared,
    vector::{self, Vector, Work},
};

/// New numbers of keys from which on threads share the work of a step.
const SHARED: usize = 1 << 11;

/// Causal attention in groups, as ONNX Runtime's `GroupQueryAttention` computes it: query head `h` sees the
/// keys of head `h * kv_heads / heads`, up to that of its own token.
/// (Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", 2023.)
///
/// A token's output does not depend on how many tokens or sequences are computed together, where values are
/// finite.
#[derive(Debug, Clone, Copy)]
pub struct GroupedAttention<'a> {
    /// Sequences.
    pub batch: usize,
    /// New tokens of each.
    pub tokens: usize,
    /// Heads of queries, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_size: usize,
    /// Tokens that the cache has room for.
    pub capacity: usize,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Norms of the heads of queries and keys, before they are rotated.
    pub norms: Option<HeadNorms<'a>>,
    /// How queries and keys are rotated.
    pub rotary: Option<Rotary<'a>>,
}

/// Root-mean-square norms of heads.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// \[head_size\], of queries.
    pub query: &'a [f32],
    /// \[head_size\], of keys.
    pub key: &'a [f32],
    /// What is added to the mean of squares.
    pub epsilon: f32,
}

/// Rotary embedding: halves of a head are rotated against each other.
/// (Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.)
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// [positions, head_size / 2].
    pub cos: &'a [f32],
    /// [positions, head_size / 2].
    pub sin: &'a [f32],
    /// [batch, tokens]: which of the positions each new token has.
    pub rows: &'a [usize],
}

impl GroupedAttention<'_> {
    /// Writes new keys and values behind the `past` tokens of each sequence, and the outputs of new tokens.
    ///
    /// `query` and `output` are [batch, tokens, heads * head_size], `key` and `value`
    /// [batch, tokens, kv_heads * head_size]; the caches `keys` and `values` are
    /// [batch, kv_heads, capacity, head_size]. What is behind the new tokens is not read.
    ///
    /// # Panics
    /// Where the lengths do not fit, or the processor does not have the instructions.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        instructions: Instructions,
        [query, key, value]: [&[f32]; 3],
        past: &[usize],
        keys: &mut [f32],
        values: &mut [f32],
        output: &mut [f32],
        threads: &dyn Threads,
    ) {
        let &GroupedAttention { batch, tokens, heads, kv_heads, head_size, capacity, .. } = self;
        let is_size = |len: usize, sizes: [usize; 4]| {
            let product = sizes.into_iter().try_fold(1usize, usize::checked_mul);
            product == Some(len)
        };
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "whole groups of heads");
        assert!(is_size(query.len(), [batch, tokens, heads, head_size]), "queries");
        assert!(is_size(output.len(), [batch, tokens, heads, head_size]), "outputs");
        for rows in [key, value] {
            assert!(is_size(rows.len(), [batch, tokens, kv_heads, head_size]), "keys and values");
        }
        for cache in [&*keys, &*values] {
            assert!(is_size(cache.len(), [batch, kv_heads, capacity, head_size]), "caches");
        }
        assert_eq!(past.len(), batch, "a past of each sequence");
        let has_room = |&past: &usize| past <= capacity && tokens <= capacity - past;
        assert!(past.iter().all(has_room), "room for new tokens");
        if let Some(norms) = self.norms {
            assert_eq!([norms.query.len(), norms.key.len()], [head_size; 2], "weights of norms");
        }
        if let Some(rotary) = self.rotary {
            let half = head_size / 2;
            assert!(half > 0 && head_size.is_multiple_of(2), "two halves");
            assert_eq!(rotary.rows.len(), batch * tokens, "a position of each token");
            let positions = rotary.cos.len().min(rotary.sin.len()) / half;
            assert!(rotary.rows.iter().all(|&row| row < positions), "positions in the tables");
        }
        assert!(instructions.are_available(), "this processor has no {instructions}");
        if output.is_empty() {
            return;
        }
        let job = Job {
            sizes: self,
            query,
            key,
            value,
            past,
            keys: Shared(keys.as_mut_ptr()),
            values: Shared(values.as_mut_ptr()),
            output: Shared(output.as_mut_ptr()),
        };
        let units = batch * kv_heads;
        let unit = |index: usize, [first, last]: [usize; 2]| Unit {
            job: &job,
            sequence: index / kv_heads,
            head: index % kv_heads,
            first,
            last,
        };
        let group = heads / kv_heads;
        let wanted = (4 * threads.count()).div_ceil(units);
        let pieces = wanted.clamp(1, (tokens * group).div_ceil(WORTH_A_PIECE));
        if pieces == 1 {
            let is_shared =
                past.iter().sum::<usize>() * kv_heads * head_size >= SHARED || key.len() >= SHARED;
            let parts = if is_shared { units } else { 1 };
            return threads.run(parts, &|part| {
                for index in units * part / parts..units * (part + 1) / parts {
                    let unit = unit(index, [0, tokens]);
                    // SAFETY: the instructions and lengths were checked; each unit writes parts of the
                    // caches and outputs of its own, and reads no others.
                    unsafe {
                        vector::run(instructions, &Append(&unit));
                        vector::run(instructions, &unit);
                    }
                }
            });
        }
        threads.run(units, &|index| {
            // SAFETY: as above.
            unsafe { vector::run(instructions, &Append(&unit(index, [0, tokens]))) };
        });
        threads.run(units * pieces, &|part| {
            let (index, piece) = (part / pieces, part % pieces);
            let of_tokens = [tokens * piece / pieces, tokens * (piece + 1) / pieces];
            if of_tokens[0] < of_tokens[1] {
                // SAFETY: as above; nothing is written to the caches any more.
                unsafe { vector::run(instructions, &unit(index, of_tokens)) };
            }
        });
    }
}

struct Job<'a> {
    sizes: &'a GroupedAttention<'a>,
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    past: &'a [usize],
    keys: Shared<f32>,
    values: Shared<f32>,
    output: Shared<f32>,
}

/// Some new tokens of one sequence, and one head of keys and values.
struct Unit<'a> {
    job: &'a Job<'a>,
    sequence: usize,
    head: usize,
    first: usize,
    last: usize,
}

impl Job<'_> {
    /// Norms and rotates a head of a new token, and multiplies it with `scale`.
    #[inline(always)]
    unsafe fn prepare<V: Vector>(
        &self,
        norm: Option<&[f32]>,
        token: usize,
        from: &[f32],
        to: *mut f32,
        scale: f32,
    ) {
        let size = self.sizes.head_size;
        let whole = size / V::LANES * V::LANES;
        // SAFETY: the caller's; all is within the head and its weights.
        unsafe {
            let from = from.as_ptr();
            let factor = match self.sizes.norms {
                None => scale,
                Some(norms) => {
                    let mut squares = V::splat(0.0);
                    for at in (0..whole).step_by(V::LANES) {
                        let x = V::load(from.add(at));
                        squares = x.mul_add(x, squares);
                    }
                    let mut total = squares.sum();
                    for at in whole..size {
                        total += *from.add(at) * *from.add(at);
                    }
                    scale / (total / size as f32 + norms.epsilon).sqrt()
                }
            };
            for at in (0..whole).step_by(V::LANES) {
                let mut x = V::load(from.add(at)).mul(V::splat(factor));
                if let Some(weight) = norm {
                    x = x.mul(V::load(weight.as_ptr().add(at)));
                }
                x.store(to.add(at));
            }
            for at in whole..size {
                *to.add(at) = *from.add(at) * factor * norm.map_or(1.0, |weight| weight[at]);
            }
            let Some(rotary) = self.sizes.rotary else { return };
            let half = size / 2;
            let row = rotary.rows[token] * half;
            let (cos, sin) = (rotary.cos.as_ptr().add(row), rotary.sin.as_ptr().add(row));
            let (first, second) = (to, to.add(half));
            let whole = half / V::LANES * V::LANES;
            for at in (0..whole).step_by(V::LANES) {
                let (a, b) = (V::load(first.add(at)), V::load(second.add(at)));
                let (cos, sin) = (V::load(cos.add(at)), V::load(sin.add(at)));
                a.mul_add(cos, b.mul(sin).mul(V::splat(-1.0))).store(first.add(at));
                b.mul_add(cos, a.mul(sin)).store(second.add(at));
            }
            for at in whole..half {
                let (a, b, cos, sin) =
                    (*first.add(at), *second.add(at), *cos.add(at), *sin.add(at));
                *first.add(at) = a * cos - b * sin;
                *second.add(at) = b * cos + a * sin;
            }
        }
    }
}

/// Writes keys and values of new tokens to the caches.
struct Append<'a>(&'a Unit<'a>);

impl Work for Append<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self) {
        let &Unit { job, sequence, head, first, last } = self.0;
        let size = job.sizes.head_size;
        let norm = job.sizes.norms.map(|norms| norms.key);
        for token in first..last {
            let row = sequence * job.sizes.tokens + token;
            let from = (row * job.sizes.kv_heads + head) * size;
            let to = self.0.cached(job.past[sequence] + token);
            // SAFETY: the caller's; the caches have room for these tokens.
            unsafe {
                let key = job.keys.get().add(to);
                job.prepare::<V>(norm, row, &job.key[from..][..size], key, 1.0);
                let value = job.value[from..][..size].as_ptr();
                job.values.get().add(to).copy_from_nonoverlapping(value, size);
            }
        }
    }
}

impl Work for Unit<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self) {
        // SAFETY: the caller's.
        unsafe { attend::<V>(self) }
    }
}

impl Unit<'_> {
    fn group(&self) -> usize {
        self.job.sizes.heads / self.job.sizes.kv_heads
    }

    /// Where the caches have a token.
    fn cached(&self, token: usize) -> usize {
        let sizes = self.job.sizes;
        let head = self.sequence * sizes.kv_heads + self.head;
        (head * sizes.capacity + token) * sizes.head_size
    }

    /// Which row of all new tokens a query is of, and where its numbers are.
    fn place(&self, query: usize) -> (usize, usize) {
        let (sizes, group) = (self.job.sizes, self.group());
        let row = self.sequence * sizes.tokens + self.first + query / group;
        let head = self.head * group + query % group;
        (row, (row * sizes.heads + head) * sizes.head_size)
    }
}

/// Queries of one token after the other.
impl Head for Unit<'_> {
    fn size(&self) -> usize {
        self.job.sizes.head_size
    }

    fn value_size(&self) -> usize {
        self.job.sizes.head_size
    }

    fn queries(&self) -> usize {
        (self.last - self.first) * self.group()
    }

    fn keys(&self) -> usize {
        self.job.past[self.sequence] + self.last
    }

    fn seen(&self, query: usize) -> usize {
        self.job.past[self.sequence] + self.first + query / self.group() + 1
    }

    #[inline(always)]
    unsafe fn write_query<V: Vector>(&self, query: usize, to: *mut f32) {
        let (row, at) = self.place(query);
        let norm = self.job.sizes.norms.map(|norms| norms.query);
        let from = &self.job.query[at..][..self.job.sizes.head_size];
        // SAFETY: the caller's.
        unsafe { self.job.prepare::<V>(norm, row, from, to, self.job.sizes.scale) }
    }

    fn key(&self, index: usize) -> *const f32 {
        self.job.keys.get().wrapping_add(self.cached(index))
    }

    fn value(&self, index: usize) -> *const f32 {
        self.job.values.get().wrapping_add(self.cached(index))
    }

    fn value_stride(&self) -> Option<usize> {
        Some(self.job.sizes.head_size)
    }

    fn output(&self, query: usize) -> *mut f32 {
        self.job.output.get().wrapping_add(self.place(query).1)
    }
}
