//! Names of tensors. Checkpoints differ in prefixes; a canonical name has none of them.

use lfm2vl_graphs::LayerKind;

use super::Config;

/// The name without the prefixes that only some checkpoints have: a leading `model.`, and the
/// `vision_model.` inside the vision tower.
pub(super) fn canonical(stored: &str) -> String {
    let name = stored.strip_prefix("model.").unwrap_or(stored);
    match name.strip_prefix("vision_tower.vision_model.") {
        Some(rest) => format!("vision_tower.{rest}"),
        None => name.to_owned(),
    }
}

/// The released name of a canonical one.
pub fn released(canonical: &str) -> String {
    match canonical.strip_prefix("vision_tower.") {
        Some(rest) => format!("model.vision_tower.vision_model.{rest}"),
        None if canonical.starts_with("lm_head.") => canonical.to_owned(),
        None => format!("model.{canonical}"),
    }
}

/// The output head, which tied checkpoints may leave out.
pub(super) const LM_HEAD: &str = "lm_head.weight";
/// The token embedding.
pub(super) const EMBEDDING: &str = "language_model.embed_tokens.weight";

/// Whether a module is an embedding, not a linear layer.
pub(super) fn is_embedding(module: &str) -> bool {
    module == "language_model.embed_tokens" || module.ends_with(".position_embedding")
}

/// Whether the reference has no use for a tensor of this canonical name, of whatever type: the pooling head
/// of SigLIP2, which `Siglip2VisionConfig` asks for by default and `get_image_features` never runs, and
/// buffers that older releases saved (`_adjust_missing_and_unexpected_keys` in transformers 5.24).
pub(super) fn is_ignored(canonical: &str) -> bool {
    canonical.starts_with("vision_tower.head.")
        || canonical.contains("rotary_emb.inv_freq")
        || canonical == "position_ids"
        || canonical.ends_with(".position_ids")
}

/// Canonical name and shape of every tensor of a model, the output head aside, in the order in
/// which a checkpoint is written.
pub fn tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let mut list = List::default();
    list.language_model(config);
    list.vision_tower(config);
    list.projector(config);
    list.0
}

#[derive(Default)]
struct List(Vec<(String, Vec<usize>)>);

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), shape.to_vec()));
    }

    /// A linear layer's weight [outputs, inputs] and bias [outputs].
    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, bias: bool) {
        self.add(format!("{name}.weight"), &[outputs, inputs]);
        if bias {
            self.add(format!("{name}.bias"), &[outputs]);
        }
    }

    fn layer_norm(&mut self, name: &str, size: usize) {
        self.add(format!("{name}.weight"), &[size]);
        self.add(format!("{name}.bias"), &[size]);
    }

    fn language_model(&mut self, config: &Config) {
        let text = &config.text;
        let size = text.hidden_size;
        self.add(EMBEDDING, &[text.vocab_size, size]);
        for (i, kind) in text.layer_types.iter().enumerate() {
            let layer = format!("language_model.layers.{i}");
            match kind {
                LayerKind::Conv => {
                    let conv = format!("{layer}.conv.conv");
                    self.add(format!("{conv}.weight"), &[size, 1, text.conv_l_cache]);
                    if text.conv_bias {
                        self.add(format!("{conv}.bias"), &[size]);
                    }
                    self.linear(&format!("{layer}.conv.in_proj"), 3 * size, size, text.conv_bias);
                    self.linear(&format!("{layer}.conv.out_proj"), size, size, text.conv_bias);
                }
                LayerKind::FullAttention => {
                    let query = text.num_attention_heads * text.head_dim;
                    let key = text.num_key_value_heads * text.head_dim;
                    let attention = format!("{layer}.self_attn");
                    self.linear(&format!("{attention}.q_proj"), query, size, false);
                    self.linear(&format!("{attention}.k_proj"), key, size, false);
                    self.linear(&format!("{attention}.v_proj"), key, size, false);
                    self.linear(&format!("{attention}.out_proj"), size, query, false);
                    for norm in ["q_layernorm", "k_layernorm"] {
                        self.add(format!("{attention}.{norm}.weight"), &[text.head_dim]);
                    }
                }
            }
            let inner = text.feed_forward_size;
            self.linear(&format!("{layer}.feed_forward.w1"), inner, size, false);
            self.linear(&format!("{layer}.feed_forward.w3"), inner, size, false);
            self.linear(&format!("{layer}.feed_forward.w2"), size, inner, false);
            for norm in ["operator_norm", "ffn_norm"] {
                self.add(format!("{layer}.{norm}.weight"), &[size]);
            }
        }
        self.add("language_model.embedding_norm.weight", &[size]);
    }

    fn vision_tower(&mut self, config: &Config) {
        let vision = &config.vision;
        let size = vision.hidden_size;
        let embeddings = "vision_tower.embeddings";
        let values = config.dims().patch_values;
        self.linear(&format!("{embeddings}.patch_embedding"), size, values, true);
        let cells = vision.position_grid.pow(2);
        self.add(format!("{embeddings}.position_embedding.weight"), &[cells, size]);
        for i in 0..vision.num_hidden_layers {
            let layer = format!("vision_tower.encoder.layers.{i}");
            self.layer_norm(&format!("{layer}.layer_norm1"), size);
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.linear(&format!("{layer}.self_attn.{projection}"), size, size, true);
            }
            self.layer_norm(&format!("{layer}.layer_norm2"), size);
            self.linear(&format!("{layer}.mlp.fc1"), vision.intermediate_size, size, true);
            self.linear(&format!("{layer}.mlp.fc2"), size, vision.intermediate_size, true);
        }
        self.layer_norm("vision_tower.post_layernorm", size);
    }

    fn projector(&mut self, config: &Config) {
        let projector = &config.projector;
        let name = "multi_modal_projector";
        let inputs = config.vision.hidden_size * projector.downsample_factor.pow(2);
        if projector.use_layernorm {
            self.layer_norm(&format!("{name}.layer_norm"), inputs);
        }
        let (inner, outputs) = (projector.hidden_size, config.text.hidden_size);
        self.linear(&format!("{name}.linear_1"), inner, inputs, projector.bias);
        self.linear(&format!("{name}.linear_2"), outputs, inner, projector.bias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_reference_ignores_and_nothing_else() {
        for name in [
            "model.vision_tower.vision_model.head.probe",
            "model.vision_tower.head.attention.in_proj_weight",
            "vision_tower.vision_model.embeddings.position_ids",
            "model.language_model.rotary_emb.inv_freq",
            "model.language_model.layers.3.self_attn.rotary_emb.inv_freq",
        ] {
            assert!(is_ignored(&canonical(name)), "{name}");
        }
        for name in [
            "model.vision_tower.vision_model.header.weight",
            "lm_head.weight",
            "custom_text_proj.weight",
            "model.language_model.layers.3.inv_freq",
            "model.my_position_ids",
        ] {
            assert!(!is_ignored(&canonical(name)), "{name}");
        }
    }
}
