//! Token embedding.

use lfm2vl_graphs::{Method, Operators};

use super::Model;
use crate::{
    onnx::Value,
    quantize::{BlockFormat, Packing},
};

/// Canonical name of the token embedding.
pub(super) const EMBEDDING: &str = "language_model.embed_tokens.weight";

impl<'g> Model<'g> {
    /// Token ids [batch, sequence] -> embeddings [batch, sequence, hidden], in the graph's floats.
    pub(super) fn embed_tokens(self, input_ids: Value<'g>) -> Value<'g> {
        let text = &self.config.text;
        let _scope = self.g.enter("language_model.embed_tokens");
        let shape = [text.vocab_size, text.hidden_size];
        let Some(mut format) = self.format_of("language_model.embed_tokens") else {
            return self.g.stored(EMBEDDING, &shape).gather(input_ids, 0);
        };
        if format.method == Method::Gptq {
            // Nothing goes into a table, so there is nothing to calibrate on.
            format.method = Method::Search;
        }
        let blocks = |packing| BlockFormat::new(format, self.g.is_half(), packing);
        match self.operators {
            Operators::OnnxRuntime => {
                let packing = Packing::gather(shape[1], format.block_size.get());
                input_ids.gather_from_blocks(EMBEDDING, shape, blocks(packing))
            }
            Operators::Standard => {
                let table =
                    self.g.dequantized(EMBEDDING.into(), shape, blocks(Packing::DEQUANTIZE));
                table.gather(input_ids, 0)
            }
        }
    }
}
