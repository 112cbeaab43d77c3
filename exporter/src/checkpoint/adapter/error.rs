//! Why an adapter cannot be merged.

use std::path::PathBuf;

/// Why an adapter cannot be merged; found before anything is written.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A folder that was given as an adapter's is none.
    #[error("{0} has no adapter_config.json; give a folder that peft saved an adapter to")]
    NotAnAdapter(PathBuf),
    /// A folder with an adapter and without the model.
    #[error(
        "{folder} holds an adapter and no model; export {} with --adapter {folder}",
        base_model(base.as_deref())
    )]
    Alone {
        /// The folder.
        folder: PathBuf,
        /// What the adapter was made for.
        base: Option<String>,
    },
    /// Two adapters for one model.
    #[error(
        "{given} is given as adapter, and {beside} has one of its own; move adapter_config.json out of {beside}, or leave --adapter out"
    )]
    Two {
        /// The folder of the one that was given.
        given: PathBuf,
        /// The checkpoint.
        beside: PathBuf,
    },
    /// No weights in a form that can be read.
    #[error(
        "{0} has an adapter_config.json and no adapter_model.safetensors; save the adapter again as safetensors, or remove adapter_config.json to export the model without it"
    )]
    NoWeights(PathBuf),
    /// Nothing to merge.
    #[error("the adapter in {0} holds no tensors for this model; save it again")]
    Empty(PathBuf),
    /// A way of tuning that cannot be merged here.
    #[error(
        "the adapter is of the type {0}, and only LORA is merged; where peft can merge it, save what merge_and_unload gives and export that"
    )]
    Method(String),
    /// A key of `adapter_config.json` has a value that is not supported.
    #[error("adapter_config.json: '{key}' is {value}, and {remedy}")]
    Config {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is supported, and what to do.
        remedy: String,
    },
    /// An expression that is not one, or takes too long.
    #[error("adapter_config.json: '{key}' has the expression {pattern:?} ({reason}); correct it")]
    Pattern {
        /// The key.
        key: String,
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that is for no part of the model.
    #[error(
        "the adapter's tensor {0} is for no part of this model; give the model that it was trained on"
    )]
    UnknownTensor(String),
    /// Two tensors of the same meaning.
    #[error("the adapter's tensors {first} and {second} mean the same; remove one of them")]
    Twice {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// One factor of two.
    #[error("the adapter holds {0} without its counterpart; save the adapter again")]
    Half(String),
    /// A tensor of another size than the model's.
    #[error(
        "the adapter's tensor {tensor} has shape {found:?}, and the model asks for {expected:?}; give the model that it was trained on"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows from the model and the adapter's config.
        expected: Vec<usize>,
    },
    /// A layer that peft does not merge either.
    #[error(
        "the adapter's tensor {0} is for a layer that is neither linear nor an embedding, which cannot be merged; train without this layer"
    )]
    Layer(String),
    /// A magnitude of an embedding.
    #[error(
        "the adapter's tensor {0} scales an embedding, which is not merged here; save what peft's merge_and_unload gives, and export that"
    )]
    EmbeddingMagnitude(String),
    /// Something that needs a setting that is off, or lacks what a setting asks for.
    #[error(
        "the adapter's {tensor} does not go with '{setting}': {is_on} in adapter_config.json; save both again"
    )]
    Disagrees {
        /// The tensor that there should not be, or one of the module that lacks another.
        tensor: String,
        /// The key.
        setting: &'static str,
        /// Its value.
        is_on: bool,
    },
    /// Tensors of a module that the config leaves out.
    #[error(
        "the adapter holds tensors for {0}, which the modules that adapter_config.json names do not include; save both again"
    )]
    NotTargeted(String),
    /// A module that the config names, without tensors.
    #[error(
        "adapter_config.json names {0}, and the adapter holds no tensors for it; save both again"
    )]
    NoTensors(String),
    /// A bias for a layer that has none.
    #[error(
        "the adapter's tensor {0} is for a layer without bias, so peft cannot merge it either; train without lora_bias"
    )]
    NoBias(String),
}

fn base_model(base: Option<&str>) -> String {
    match base {
        Some(base) => format!("its base model, {base},"),
        None => "its base model".to_owned(),
    }
}
