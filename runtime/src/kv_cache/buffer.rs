//! Buffers of the state that runs write to.

use ort::value::DynTensor;

use crate::backend::bytes;

/// The buffer of a tensor of the state.
pub(super) enum Buffer {
    /// Keys or values, written in place.
    Cache(DynTensor),
    /// Conv states, which go from one buffer to the other and back.
    Conv([DynTensor; 2]),
}

impl Buffer {
    /// What a run in this turn takes.
    pub(super) fn past(&mut self, turn: usize) -> &mut DynTensor {
        match self {
            Buffer::Cache(cache) => cache,
            Buffer::Conv(pair) => &mut pair[turn],
        }
    }

    /// What it writes.
    pub(super) fn present(&mut self, turn: usize) -> &mut DynTensor {
        match self {
            Buffer::Cache(cache) => cache,
            Buffer::Conv(pair) => &mut pair[1 - turn],
        }
    }

    /// Bytes in all.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Buffer::Cache(cache) => bytes(cache),
            Buffer::Conv(pair) => pair.iter().map(bytes).sum(),
        }
    }
}
