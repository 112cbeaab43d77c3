//! Two slots that change places.

use ort::value::DynTensor;

use super::{Slots, heads};
use crate::{
    backend::{Copies, Piece, swap_within, unwritten},
    kv_cache::layout::StateTensor,
};

/// Bytes of a device that a swap takes for what it saves, or those of one cache.
const SAVED_AT_A_TIME: usize = 32 << 20;

impl Slots {
    /// On a device, memory for as many tokens of some of the caches, where a swap saves them; nothing on the
    /// host, which swaps in place.
    pub(super) fn room_to_swap(&self, tokens: usize) -> ort::Result<Vec<DynTensor>> {
        let Some(memory) = self.memory.clone() else { return Ok(Vec::new()) };
        let caches = self.layout.tensors.iter().filter(|tensor| !tensor.kind.is_conv());
        let elements = |tensor: &StateTensor| tensor.kind.elements(tokens.max(1));
        let largest = caches.clone().map(elements).max().unwrap_or(0).max(1);
        let count = (SAVED_AT_A_TIME / (largest * self.layout.element_bytes())).max(1);
        let new = |tensor: &StateTensor| unwritten(tensor.dtype, &[largest], Some(&memory));
        caches.take(count).map(new).collect()
    }

    /// Swaps keys and values of two slots, of which the first has `most` tokens and the other one `least`; how
    /// many elements were copied.
    pub(super) fn swap_caches(
        &mut self,
        [longer, shorter]: [usize; 2],
        [most, least]: [usize; 2],
        mut saved: Vec<DynTensor>,
    ) -> ort::Result<usize> {
        let capacity = self.capacity;
        // From the longer one to the shorter one, for each head: the first `count` tokens of these from `start` on.
        let pieces = |[heads_, head_dim]: [usize; 2], start: usize, count: usize| {
            let starts = heads(longer, capacity, heads_, head_dim);
            let starts = starts.zip(heads(shorter, capacity, heads_, head_dim));
            let (start, length) = (start * head_dim, count * head_dim);
            starts.map(move |(from, into)| Piece::at(from + start, into + start, length))
        };
        let both = |sizes| pieces(sizes, 0, least);
        let rest = |sizes| pieces(sizes, least, most - least);
        let (mut caches, mut copied) = (0, 0);
        for (_, [count, head_dim]) in self.caches() {
            caches += 1;
            copied += (most + least) * count * head_dim;
        }
        if saved.is_empty() {
            for (cache, sizes) in self.caches() {
                swap_within(cache, both(sizes))?;
                let mut copies = Copies::default();
                copies.add_within(cache, rest(sizes))?;
                copies.make()?;
            }
            return Ok(copied);
        }
        // A device is waited for three times for so many caches, and not for each piece.
        let at_a_time = saved.len();
        for first in (0..caches).step_by(at_a_time) {
            let mut copies = Copies::default();
            for ((cache, sizes), saved) in self.caches().skip(first).zip(&mut saved) {
                let pieces = both(sizes).enumerate();
                let pieces =
                    pieces.map(|(head, piece)| Piece { into: head * piece.length, ..piece });
                copies.add_pieces(cache, saved, pieces)?;
            }
            copies.make()?;
            let mut copies = Copies::default();
            for (cache, sizes) in self.caches().skip(first).take(at_a_time) {
                let back = both(sizes).map(|piece| Piece::at(piece.into, piece.from, piece.length));
                copies.add_within(cache, back.chain(rest(sizes)))?;
            }
            copies.make()?;
            let mut copies = Copies::default();
            for ((cache, sizes), saved) in self.caches().skip(first).zip(&saved) {
                let pieces = both(sizes).enumerate();
                let pieces =
                    pieces.map(|(head, piece)| Piece { from: head * piece.length, ..piece });
                copies.add_pieces(saved, cache, pieces)?;
            }
            copies.make()?;
        }
        Ok(copied)
    }
}

#[cfg(test)]
mod tests {
    use lfm2vl_onnxruntime::environment;
    use ort::value::TensorElementType;

    use super::{super::*, *};

    const SLOTS: usize = 3;
    const TOKENS: [usize; SLOTS] = [5, 0, 9];

    /// Slots whose states are all different numbers, with some of them in the other turn.
    fn filled(memory: Option<DeviceMemory>) -> Slots {
        let tensor = |kind| StateTensor {
            past: String::new(),
            present: String::new(),
            kind,
            dtype: TensorElementType::Float32,
        };
        let kinds = [
            Kind::KeyValue { heads: 2, head_dim: 4 },
            Kind::Conv { hidden: 6, inputs: 2, axis: 1 },
            Kind::KeyValue { heads: 2, head_dim: 4 },
            Kind::Conv { hidden: 6, inputs: 2, axis: 1 },
        ];
        let layout = Layout {
            tensors: kinds.map(tensor).into(),
            fixed_capacity: None,
            gives_rows: false,
            gives_history: false,
        };
        let limits = Limits {
            slots: SLOTS,
            tokens: 4096,
            at_once: false,
            keeps_steps: false,
            records: false,
        };
        let mut slots = Slots::new(layout, memory, limits).unwrap();
        slots.reserve(12).unwrap();
        let mut number = 0.0_f32;
        for buffer in &mut slots.buffers {
            let tensors = match buffer {
                Buffer::Cache(cache) => std::slice::from_mut(cache),
                Buffer::Conv(pair) => &mut pair[..],
            };
            for value in tensors.iter_mut().flat_map(|t| t.try_extract_tensor_mut().unwrap().1) {
                number += 1.0;
                *value = number;
            }
        }
        slots.tokens = TOKENS.to_vec();
        slots.turns = vec![0, 1, 1];
        slots
    }

    /// All numbers of a slot's state.
    fn state(slots: &mut Slots, slot: usize) -> Vec<f32> {
        let (capacity, tokens, turn) = (slots.capacity, slots.tokens[slot], slots.turns[slot]);
        let mut state = Vec::new();
        for (cache, [count, head_dim]) in slots.caches() {
            let numbers = cache.try_extract_tensor::<f32>().unwrap().1;
            for start in heads(slot, capacity, count, head_dim) {
                state.extend_from_slice(&numbers[start..][..tokens * head_dim]);
            }
        }
        for (kind, pair) in slots.convs() {
            let length = kind.elements(0);
            let numbers = pair[turn].try_extract_tensor::<f32>().unwrap().1;
            state.extend_from_slice(&numbers[slot * length..][..length]);
        }
        state
    }

    /// As on the host, so in memory that is treated as a device's.
    #[test]
    fn states_stay_what_they_are_wherever_they_go() {
        environment().unwrap();
        for memory in [None, Some(DeviceMemory::of_host())] {
            let mut slots = filled(memory);
            assert_eq!(
                slots.room_to_swap(9).unwrap().len(),
                if slots.memory.is_some() { 2 } else { 0 }
            );
            // Of these, one has place at a time.
            assert!(slots.room_to_swap(1 << 20).unwrap().len() < 2);
            let before = [0, 1, 2].map(|slot| state(&mut slots, slot));
            for [a, b] in [[0, 2], [2, 1], [1, 0]] {
                slots.swap(a, b).unwrap();
            }
            // 0 went to 2 and 1, and then to 0; 2 to 0 and 1; 1 to 2.
            assert_eq!([0, 1, 2].map(|slot| slots.tokens(slot)), [TOKENS[0], TOKENS[2], TOKENS[1]]);
            assert_eq!(
                [0, 1, 2].map(|slot| state(&mut slots, slot)),
                [0, 2, 1].map(|slot| before[slot].clone())
            );

            // There and back, with place for one cache at a time.
            let states = |slots: &mut Slots| [0, 1, 2].map(|slot| state(slots, slot));
            let (here, [longer, shorter]) = (states(&mut slots), [1, 0]);
            for back in [false, true] {
                let mut saved = slots.room_to_swap(TOKENS[0]).unwrap();
                saved.truncate(1);
                let tokens = [TOKENS[2], TOKENS[0]];
                slots.swap_caches([longer, shorter], tokens, saved).unwrap();
                assert_eq!(states(&mut slots) == here, back);
            }

            slots.reserve(2000).unwrap();
            assert!(slots.capacity >= 2000);
            assert_eq!(
                [0, 1, 2].map(|slot| state(&mut slots, slot)),
                [0, 2, 1].map(|slot| before[slot].clone())
            );

            let snapshot = slots.snapshot(1).unwrap();
            slots.copy(1, 2, &snapshot).unwrap();
            assert_eq!(state(&mut slots, 2), before[2]);
            assert_eq!(slots.tokens(2), TOKENS[2]);

            slots.bring_together([0, 1, 2]).unwrap();
            assert!(slots.turns.iter().all(|turn| *turn == slots.turns[0]));
            assert_eq!(
                [0, 1, 2].map(|slot| state(&mut slots, slot)),
                [0, 2, 2].map(|slot| before[slot].clone())
            );
        }
    }
}
