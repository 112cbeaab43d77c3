//! What the attention of one head is over.

use crate::vector::Vector;

/// The queries of one head, the keys and values that they see, and where their outputs go.
pub(super) trait Head {
    /// Numbers of a query and of a key.
    fn size(&self) -> usize;

    /// Numbers of a value.
    fn value_size(&self) -> usize;

    /// How many queries there are, at least one.
    fn queries(&self) -> usize;

    /// How many keys there are, at least one.
    fn keys(&self) -> usize;

    /// How many of the keys a query sees: the first ones, at least one, and all that earlier queries see.
    fn seen(&self, query: usize) -> usize;

    /// Writes a query, times the scale of scores.
    ///
    /// # Safety
    /// The processor has the instructions of the vector, and there is room for the query.
    unsafe fn write_query<V: Vector>(&self, query: usize, to: *mut f32);

    /// Where a key is.
    fn key(&self, index: usize) -> *const f32;

    /// Where the value of a key is.
    fn value(&self, index: usize) -> *const f32;

    /// From value to value, where that is the same everywhere.
    fn value_stride(&self) -> Option<usize>;

    /// Where the output of a query goes.
    fn output(&self, query: usize) -> *mut f32;
}
