//! Typed form of `providers/*.yaml`: which operators ONNX Runtime's execution providers take.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::YamlError;

/// What an execution provider takes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderTable {
    /// Its name, as the runtime takes it.
    pub provider: String,
    /// ONNX Runtime's name of it.
    pub name: String,
    /// The release that the table is of.
    pub onnxruntime: String,
    /// Where the table was taken from.
    pub source: String,
    /// Whether it takes a graph whole or not at all.
    #[serde(default)]
    pub whole_graphs: bool,
    /// What it takes of each operator; one that is not here it does not take. Names outside the
    /// standard domain begin with `DOMAIN:`.
    pub operators: BTreeMap<String, OperatorSupport>,
}

/// What a provider takes of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorSupport {
    /// Element types of the operator's main input.
    pub types: Vec<String>,
    /// Inputs that must be constants, by their places.
    #[serde(default)]
    pub constant: Vec<usize>,
    /// Inputs that must not be given, by their places.
    #[serde(default)]
    pub without: Vec<usize>,
    /// Whether the sizes of the main input must all be known beforehand.
    #[serde(default)]
    pub static_input: bool,
    /// The largest rank of inputs and outputs.
    pub max_rank: Option<usize>,
    /// A limit that the other keys cannot say.
    pub note: Option<String>,
}

impl ProviderTable {
    /// Names of the tables built into this crate.
    pub const BUILTIN: [&'static str; 8] =
        ["cpu", "cuda", "tensorrt", "coreml", "directml", "openvino", "webgpu", "ggml"];

    /// The table built into this crate under `name`.
    ///
    /// # Errors
    /// [`YamlError::Unknown`] when there is none of that name.
    pub fn builtin(name: &str) -> Result<Self, YamlError> {
        let text = match name {
            "cpu" => include_str!("../providers/cpu.yaml"),
            "cuda" => include_str!("../providers/cuda.yaml"),
            "tensorrt" => include_str!("../providers/tensorrt.yaml"),
            "coreml" => include_str!("../providers/coreml.yaml"),
            "directml" => include_str!("../providers/directml.yaml"),
            "openvino" => include_str!("../providers/openvino.yaml"),
            "webgpu" => include_str!("../providers/webgpu.yaml"),
            "ggml" => include_str!("../providers/ggml.yaml"),
            _ => {
                return Err(YamlError::Unknown {
                    kind: "provider table",
                    name: name.into(),
                    known: Self::BUILTIN.join(", "),
                });
            }
        };
        serde_yaml::from_str(text).map_err(|source| YamlError::Invalid {
            what: format!("the built-in provider table '{name}'"),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_read_under_its_name() {
        for name in ProviderTable::BUILTIN {
            let table = ProviderTable::builtin(name).unwrap();
            assert_eq!(table.provider, name);
            assert!(table.operators.contains_key("MatMul"), "{name}");
        }
    }
}
