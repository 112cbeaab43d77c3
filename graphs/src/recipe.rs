//! Typed form of `recipes/*.yaml`: how the graphs of a contract are built.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

use crate::YamlError;

/// Whether tower and projector are one graph or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VisionLayout {
    /// `vision_encoder.onnx`.
    Fused,
    /// `vision_tower.onnx` and `projector.onnx`.
    Split,
}

/// The operators that graphs are built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operators {
    /// ONNX Runtime's fused operators (domain `com.microsoft`) where they are faster.
    OnnxRuntime,
    /// Standard ONNX operators only.
    Standard,
}

/// The positions whose logits the decoder computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Logits {
    /// The last position of each row.
    Last,
    /// Every new position.
    All,
}

/// Precision of a graph's weights. The suffixes are those of Transformers.js.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit float.
    Fp32,
    /// 16-bit float.
    Fp16,
    /// 8-bit integers in blocks.
    Q8,
    /// 4-bit integers in blocks.
    Q4,
    /// 4-bit integers in blocks, the rest in 16-bit float.
    Q4F16,
}

impl Precision {
    /// Every precision, the most exact first.
    pub const ALL: [Precision; 5] =
        [Precision::Fp32, Precision::Fp16, Precision::Q8, Precision::Q4, Precision::Q4F16];

    /// What is put between a graph's name and `.onnx`.
    pub fn suffix(self) -> &'static str {
        match self {
            Precision::Fp32 => "",
            Precision::Fp16 => "_fp16",
            Precision::Q8 => "_quantized",
            Precision::Q4 => "_q4",
            Precision::Q4F16 => "_q4f16",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Q8 => "q8",
            Precision::Q4 => "q4",
            Precision::Q4F16 => "q4f16",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Precision::ALL
            .into_iter()
            .find(|p| p.to_string() == s)
            .ok_or_else(|| format!("'{s}' is not a precision; use fp32, fp16, q8, q4 or q4f16"))
    }
}

/// How a folder of graphs is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the recipe.
    #[serde(rename = "recipe")]
    pub name: String,
    /// The contract that its graphs keep.
    pub contract: String,
    /// One or two vision graphs.
    pub vision: VisionLayout,
    /// Which operators.
    pub operators: Operators,
    /// Which logits.
    pub logits: Logits,
    /// Whether the decoder also gives its last hidden state, after the final norm.
    pub last_hidden_state: bool,
}

impl Recipe {
    /// Names of the recipes built into this crate.
    pub const BUILTIN: [&'static str; 4] = ["default", "portable", "split", "features"];

    /// The recipe built into this crate under `name`.
    ///
    /// # Errors
    /// [`YamlError::Unknown`] when there is none of that name.
    pub fn builtin(name: &str) -> Result<Self, YamlError> {
        let text = match name {
            "default" => include_str!("../recipes/default.yaml"),
            "portable" => include_str!("../recipes/portable.yaml"),
            "split" => include_str!("../recipes/split.yaml"),
            "features" => include_str!("../recipes/features.yaml"),
            _ => {
                return Err(YamlError::Unknown {
                    kind: "recipe",
                    name: name.into(),
                    known: Self::BUILTIN.join(", "),
                });
            }
        };
        Self::parse(text, format!("the built-in recipe '{name}'"))
    }

    /// A built-in recipe by its name, or one of the user's own by the path of a YAML file.
    ///
    /// # Errors
    /// [`YamlError`] when the name is unknown, or the file cannot be read or is not a recipe.
    pub fn load(name_or_path: &str) -> Result<Self, YamlError> {
        let path = Path::new(name_or_path);
        if !path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            return Self::builtin(name_or_path);
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| YamlError::Io { path: path.into(), source })?;
        Self::parse(&text, format!("recipe {name_or_path}"))
    }

    fn parse(text: &str, what: String) -> Result<Self, YamlError> {
        serde_yaml::from_str(text).map_err(|source| YamlError::Invalid { what, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_key_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.yaml");
        std::fs::write(&file, "recipe: mine\nflavour: sweet\n").unwrap();
        let error = Recipe::load(file.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("flavour") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn unknown_name_lists_the_known_ones() {
        let error = Recipe::load("fast").unwrap_err().to_string();
        assert!(error.contains("default, portable, split, features"), "{error}");
    }

    #[test]
    fn precision_round_trips() {
        for p in Precision::ALL {
            assert_eq!(p.to_string().parse(), Ok(p));
        }
        assert!("int3".parse::<Precision>().is_err());
    }
}
