//! Names of an adapter's tensors, as peft's `get_peft_model_state_dict` (`utils/save_and_load.py`, 0.21.2)
//! writes them, and as they are with the adapter's own name left in.

use super::super::names::{canonical, released};

/// What a tensor of an adapter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// The first factor of a linear layer, [rank, inputs].
    A,
    /// The second factor of a linear layer, [outputs, rank].
    B,
    /// The bias of the second factor, [outputs].
    BiasOfB,
    /// The first factor of an embedding, [rank, rows].
    EmbeddingA,
    /// The second factor of an embedding, [columns, rank].
    EmbeddingB,
    /// Magnitudes of a weight's rows, [outputs].
    Magnitude,
    /// A whole tensor of the model.
    Whole,
}

/// A name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AdapterName {
    pub(super) role: Role,
    /// Canonical name: of the module, or for [`Role::Whole`] of the tensor.
    pub(super) canonical: String,
    /// The same as it was when the adapter was trained.
    pub(super) trained: String,
}

/// Understands the name of an adapter's tensor, if it is of a known form.
pub(super) fn parse(stored: &str) -> Option<AdapterName> {
    let trained = stored.strip_prefix("base_model.model.").unwrap_or(stored);
    let parts: Vec<&str> = trained.split('.').collect();
    let Some(at) = parts.iter().position(|part| part.starts_with("lora_")) else {
        let trained = whole(&parts);
        let canonical = canonical_of(&trained);
        return Some(AdapterName { role: Role::Whole, canonical, trained });
    };
    let role = match (parts[at], &parts[at + 1..]) {
        ("lora_A", ["weight"] | [_, "weight"]) => Role::A,
        ("lora_B", ["weight"] | [_, "weight"]) => Role::B,
        ("lora_B", ["bias"] | [_, "bias"]) => Role::BiasOfB,
        ("lora_embedding_A", [] | [_]) => Role::EmbeddingA,
        ("lora_embedding_B", [] | [_]) => Role::EmbeddingB,
        ("lora_magnitude_vector", [] | [_] | [_, "weight"]) => Role::Magnitude,
        _ => return None,
    };
    let trained = parts[..at].join(".");
    Some(AdapterName { role, canonical: canonical_of(&trained), trained })
}

/// The name without what peft's wrappers put into it.
fn whole(parts: &[&str]) -> String {
    let mut name: Vec<&str> = Vec::new();
    let mut parts = parts.iter().peekable();
    while let Some(&part) = parts.next() {
        match part {
            "base_layer" => {}
            "modules_to_save" => {
                parts.next_if(|next| **next == "default");
            }
            _ => name.push(part),
        }
    }
    name.join(".")
}

/// The canonical name. transformers before 4.52 had the language model's output head inside of it.
fn canonical_of(trained: &str) -> String {
    let name = canonical(trained);
    match name.strip_prefix("language_model.") {
        Some(inner) if inner == "lm_head" || inner.starts_with("lm_head.") => inner.to_owned(),
        Some(inner) => match inner.strip_prefix("model.") {
            Some(inner) => format!("language_model.{inner}"),
            None => name,
        },
        None => name,
    }
}

/// What releases of transformers call a module, the newest first.
pub(super) fn spellings(canonical: &str) -> Vec<String> {
    if canonical == "lm_head" {
        return vec![canonical.to_owned()];
    }
    let (newest, released) = (format!("model.{canonical}"), released(canonical));
    if newest == released { vec![newest] } else { vec![newest, released] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(stored: &str) -> (Role, String) {
        let name = parse(stored).unwrap();
        (name.role, name.canonical)
    }

    #[test]
    fn layouts_of_all_times() {
        let module = "language_model.layers.1.self_attn.q_proj";
        for prefix in ["base_model.model.model.", "base_model.model.", "model.", ""] {
            for adapter in ["", ".default", ".mine"] {
                let name = format!("{prefix}{module}.lora_A{adapter}.weight");
                assert_eq!(parsed(&name), (Role::A, module.to_owned()));
            }
        }
        let old = "base_model.model.language_model.model.layers.1.self_attn.q_proj.lora_B.weight";
        assert_eq!(parsed(old), (Role::B, module.to_owned()));
        let old = "base_model.model.language_model.lm_head.lora_B.weight";
        assert_eq!(parsed(old), (Role::B, "lm_head".to_owned()));
        let vision = "vision_tower.encoder.layers.0.mlp.fc1";
        for tower in ["vision_tower", "vision_tower.vision_model"] {
            let name = format!("base_model.model.model.{tower}.encoder.layers.0.mlp.fc1");
            let magnitude = (Role::Magnitude, vision.to_owned());
            for end in ["", ".default", ".default.weight"] {
                assert_eq!(parsed(&format!("{name}.lora_magnitude_vector{end}")), magnitude);
            }
        }
    }

    #[test]
    fn whole_tensors_have_no_wrappers() {
        let names = [
            ("base_model.model.lm_head.weight", "lm_head.weight"),
            ("base_model.model.lm_head.modules_to_save.weight", "lm_head.weight"),
            ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
            (
                "base_model.model.model.multi_modal_projector.modules_to_save.default.linear_1.bias",
                "multi_modal_projector.linear_1.bias",
            ),
            (
                "base_model.model.model.language_model.embed_tokens.base_layer.weight",
                "language_model.embed_tokens.weight",
            ),
        ];
        for (stored, canonical) in names {
            assert_eq!(parsed(stored), (Role::Whole, canonical.to_owned()));
        }
        assert_eq!(parse("a.lora_diag.weight"), None);
        assert_eq!(parse("a.lora_A"), None);
    }
}
