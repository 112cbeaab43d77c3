//! Token embedding.

use super::Model;
use crate::onnx::Value;

/// Canonical name of the token embedding.
pub(super) const EMBEDDING: &str = "language_model.embed_tokens.weight";

impl<'g> Model<'g> {
    /// Token ids [batch, sequence] -> embeddings [batch, sequence, hidden].
    pub(super) fn embed_tokens(self, input_ids: Value<'g>) -> Value<'g> {
        let text = &self.config.text;
        let _scope = self.g.enter("language_model.embed_tokens");
        self.g.stored(EMBEDDING, &[text.vocab_size, text.hidden_size]).gather(input_ids, 0)
    }
}
