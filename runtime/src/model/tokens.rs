//! What a run of the decoder is over.

use ort::value::DynTensor;

/// What a run is over.
pub(crate) enum Tokens<'t> {
    /// Embeddings [slots, tokens, hidden].
    Embeddings(DynTensor),
    /// The next tokens of each slot, where the graph looks them up.
    Ids(&'t [u32]),
    /// The same, with the embeddings of what is no token, which is negative.
    Mixed(&'t [i64], DynTensor),
    /// Those that the step before has told.
    MostLikely,
}
