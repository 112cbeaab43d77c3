//! Variants of LoRA in peft 0.21.2 (`tuners/lora/config.py`) whose merge is no sum of products: each is
//! refused by the key that asks for it.

use serde_json::Value;

use super::{AdapterError, refused};

const MERGE_THERE: &str =
    "that is not merged here; save what peft's merge_and_unload gives, and export that";

/// Initialisations that take their first product out of the base model's weights.
const CHANGE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Keys of variants that have no telling form.
const VARIANTS: [&str; 3] = ["layer_replication", "target_parameters", "trainable_token_indices"];

/// Keys of the form of variants that do not change how an adapter is merged, or are read elsewhere.
const HARMLESS: [&str; 7] = [
    "use_dora",
    "use_rslora",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "loftq_config",
    "runtime_config",
];

/// Refuses a config that asks for one.
pub(super) fn refuse(json: &Value) -> Result<(), AdapterError> {
    let init = &json["init_lora_weights"];
    let name = init.as_str().unwrap_or_default().to_lowercase();
    if CHANGE_BASE.iter().any(|start| name.starts_with(start)) {
        let remedy = "it changes the base model's weights; save the adapter with \
                      path_initial_model_for_weight_conversion, or export what peft's \
                      merge_and_unload gives";
        return Err(refused("init_lora_weights", init, remedy));
    }
    let tokens = &json["alora_invocation_tokens"];
    if !tokens.is_null() {
        let remedy = "such an adapter applies to some tokens only, so it cannot be merged; export \
                      the model without it";
        return Err(refused("alora_invocation_tokens", tokens, remedy));
    }
    for (key, value) in json.as_object().into_iter().flatten() {
        // Newer variants have keys of this form, too.
        let has_form = key.starts_with("use_") || key.ends_with("_config");
        let is_variant =
            VARIANTS.contains(&key.as_str()) || has_form && !HARMLESS.contains(&key.as_str());
        if is_variant && is_set(value) {
            return Err(refused(key, value, MERGE_THERE));
        }
    }
    Ok(())
}

/// Whether Python takes it for true.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}
