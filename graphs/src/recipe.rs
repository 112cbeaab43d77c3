//! Typed form of `recipes/*.yaml`: how the graphs of a contract are built.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    Activations, Bits, Dtype, Method, Module, Quantization, YamlError,
    contract::{CUDA, STATIC},
};

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

/// How the GELU activation is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GeluForm {
    /// As the operator `Gelu`, which is faster on a CPU.
    #[default]
    Operator,
    /// As the operators that it stands for, for providers that lack it.
    Formula,
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

    /// Whether floats have 16 bits inside the graph.
    pub fn is_half(self) -> bool {
        matches!(self, Precision::Fp16 | Precision::Q4F16)
    }

    /// Element type of the decoder's state.
    pub fn state_dtype(self) -> Dtype {
        if self.is_half() { Dtype::Float16 } else { Dtype::Float32 }
    }

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

/// Sizes that the contract `static` fixes, for providers that want to know all shapes beforehand. Each
/// is named as the dimension that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedSizes {
    /// Views that go through the vision encoder at a time; any number when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<usize>,
    /// Patches of a view, padding included; those of a tile of 512x512 pixels are 1024. Given with
    /// `views`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patches: Option<usize>,
    /// Tokens that the buffers of keys and values have place for.
    pub past_sequence: usize,
    /// Tokens of a prompt that go through the decoder at a time, padding included.
    pub sequence: usize,
}

/// Who writes new keys and values into buffers of a fixed length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheUpdate {
    /// The decoder, which gives the whole buffers.
    #[default]
    Graph,
    /// The client, to whom the decoder gives the new tokens' keys and values only: for providers
    /// without `ScatterND`.
    Client,
}

/// Whose kernels the fused operators suit, where they are ONNX Runtime's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fusion {
    /// The CPU's: biases belong to the products.
    #[default]
    Cpu,
    /// CUDA's: products have no bias there (`Gemm` first copies it to each row of the result, a third of the
    /// time of eight tiles on an H200); the operator that follows adds it.
    Cuda,
}

/// How the decoder's conv states lie in memory, in the contract `static`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConvState {
    /// As columns [1, hidden_size, conv_L_cache].
    #[default]
    Columns,
    /// As rows [1, conv_L_cache - 1, hidden_size], as ONNX Runtime's convolution has them.
    Rows,
}

/// Where a weight is stored that is both the token embedding and the output head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TiedWeights {
    /// In the data files of both graphs, as Transformers.js wants it.
    #[default]
    Separate,
    /// Once, in the decoder's data file; where both graphs have it in the same form.
    Shared,
}

/// How a folder of graphs is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Name of the recipe.
    #[serde(rename = "recipe")]
    pub name: String,
    /// What it is for, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// The contract that its graphs keep.
    pub contract: String,
    /// One or two vision graphs.
    pub vision: VisionLayout,
    /// Which operators.
    pub operators: Operators,
    /// Whose kernels the fused operators suit.
    #[serde(default)]
    pub fusion: Fusion,
    /// How the GELU activation is written.
    #[serde(default)]
    pub gelu: GeluForm,
    /// Which logits.
    pub logits: Logits,
    /// Whether the decoder also gives its last hidden state, after the final norm.
    pub last_hidden_state: bool,
    /// Whether to write what onnxruntime-genai needs: two graphs and two configs more. It reads a
    /// fused vision encoder only.
    #[serde(default)]
    pub genai: bool,
    /// Whether to write a decoder that can check drafted tokens: one graph more, on the same
    /// weights.
    #[serde(default)]
    pub speculation: bool,
    /// Most likely tokens that decoders name besides giving all logits, so that a sampler on another
    /// device seldom needs these; none if 0.
    #[serde(default)]
    pub candidates: usize,
    /// Whether the decoder looks tokens up itself (`input_ids`), and gives the inputs of its next step (`next_ids`,
    /// `next_seqlens_k`), in the contract `cuda`: then a step can follow another one without the host.
    #[serde(default)]
    pub feedback: bool,
    /// Whether the decoders' attention is given queries, keys and values side by side and norms them itself, in the
    /// contract `cuda`. Only CUDA's and WebGPU's does that, so nothing else runs such a decoder.
    #[serde(default)]
    pub packed_qkv: bool,
    /// Where a weight is stored that two graphs use.
    #[serde(default)]
    pub tied_weights: TiedWeights,
    /// The sizes that are fixed, in the contract `static`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<FixedSizes>,
    /// Who writes new keys and values, in the contract `static`.
    #[serde(default)]
    pub cache_update: CacheUpdate,
    /// How conv states lie in memory, in the contract `static`.
    #[serde(default)]
    pub conv_state: ConvState,
    /// Precisions to build where the user names none.
    #[serde(default = "only_fp32")]
    pub precisions: Vec<Precision>,
    /// How each quantized precision is made. A recipe need only have those that differ from
    /// [`Quantization::builtin`]; here are all.
    #[serde(default)]
    pub quantization: BTreeMap<Precision, Quantization>,
}

/// The module of the token embedding.
const EMBEDDING: &str = "language_model.embed_tokens";

fn only_fp32() -> Vec<Precision> {
    vec![Precision::Fp32]
}

impl Recipe {
    /// Names of the recipes built into this crate.
    pub const BUILTIN: [&'static str; 9] = [
        "default",
        "portable",
        "split",
        "features",
        "cuda",
        "cuda-graph",
        "tensorrt",
        "coreml",
        "directml",
    ];

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
            "cuda" => include_str!("../recipes/cuda.yaml"),
            "cuda-graph" => include_str!("../recipes/cuda-graph.yaml"),
            "tensorrt" => include_str!("../recipes/tensorrt.yaml"),
            "coreml" => include_str!("../recipes/coreml.yaml"),
            "directml" => include_str!("../recipes/directml.yaml"),
            _ => {
                return Err(YamlError::Unknown {
                    kind: "recipe",
                    name: name.into(),
                    known: Self::BUILTIN.join(", "),
                });
            }
        };
        Ok(RecipeSource::parse(text.to_owned(), format!("the built-in recipe '{name}'"))?.recipe)
    }

    /// A built-in recipe by its name, or one of the user's own by the path of a YAML file.
    ///
    /// # Errors
    /// [`YamlError`] when the name is unknown, or the file cannot be read or is not a recipe.
    pub fn load(name_or_path: &str) -> Result<Self, YamlError> {
        Ok(RecipeSource::load(name_or_path)?.recipe)
    }

    /// A key that does not go with the contract, and why.
    fn unlike_its_contract(&self) -> Option<(&'static str, &'static str)> {
        if self.contract == CUDA && self.fusion != Fusion::Cuda {
            return Some(("contract", "the contract 'cuda' needs 'fusion: cuda'"));
        }
        let gives_candidates = self.candidates > 0 && self.logits == Logits::Last;
        if self.feedback && !(self.contract == CUDA && gives_candidates) {
            let message = "'feedback' needs 'contract: cuda', 'logits: last' and 'candidates'";
            return Some(("feedback", message));
        }
        if self.packed_qkv && self.contract != CUDA {
            return Some(("packed_qkv", "'packed_qkv' needs 'contract: cuda'"));
        }
        if self.conv_state == ConvState::Rows {
            if self.contract != STATIC {
                return Some(("conv_state", "'conv_state: rows' needs 'contract: static'"));
            }
            if self.operators == Operators::Standard {
                return Some(("conv_state", "'conv_state: rows' needs 'operators: onnxruntime'"));
            }
        }
        if self.contract != STATIC {
            return self.sizes.map(|_| ("sizes", "'sizes' need 'contract: static'"));
        }
        let Some(FixedSizes { views, patches, past_sequence, sequence }) = self.sizes else {
            return Some(("contract", "the contract 'static' needs 'sizes'"));
        };
        if [views, patches, Some(past_sequence), Some(sequence)].contains(&Some(0)) {
            return Some(("sizes", "'sizes' are at least 1"));
        }
        if views.is_some() != patches.is_some() {
            return Some(("sizes", "'views' and 'patches' go together"));
        }
        if sequence >= past_sequence {
            return Some(("sizes", "'sequence' must be less than 'past_sequence'"));
        }
        if self.operators == Operators::OnnxRuntime && self.cache_update == CacheUpdate::Client {
            return Some(("cache_update", "'cache_update: client' needs 'operators: standard'"));
        }
        let has_more = self.vision == VisionLayout::Split
            || self.genai
            || self.speculation
            || self.last_hidden_state
            || self.logits == Logits::All;
        has_more.then_some((
            "contract",
            "the contract 'static' has one vision graph and decoders that give the last logits; leave \
             out split vision, genai, speculation, last_hidden_state and all logits",
        ))
    }
}

/// A recipe with the text it was read from, so that what is wrong can be pointed at.
#[derive(Debug, Clone)]
pub struct RecipeSource {
    recipe: Recipe,
    text: String,
    what: String,
}

impl RecipeSource {
    /// As [`Recipe::load`].
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn load(name_or_path: &str) -> Result<Self, YamlError> {
        let path = Path::new(name_or_path);
        if !path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            let recipe = Recipe::builtin(name_or_path)?;
            return Ok(RecipeSource { recipe, text: String::new(), what: name_or_path.into() });
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| YamlError::Io { path: path.into(), source })?;
        let what = format!("recipe {name_or_path}");
        Self::parse(text, what)
    }

    /// Unlike the recipe in a manifest, which newer versions may have written, one that is read here has no
    /// unknown keys.
    fn parse(text: String, what: String) -> Result<Self, YamlError> {
        let invalid = |source| YamlError::Invalid { what: what.clone(), source };
        let mut unknown = None;
        let mut note = |path: serde_ignored::Path<'_>| {
            unknown.get_or_insert(path.to_string());
        };
        let yaml = serde_yaml::Deserializer::from_str(&text);
        let recipe = serde_ignored::deserialize(yaml, &mut note);
        // A misspelled key may be the one that is missing.
        if let Some(path) = unknown {
            // Optional values have a step of their own in the path.
            let keys: Vec<&str> = path.split('.').filter(|key| *key != "?").collect();
            let key = keys.last().copied().unwrap_or_default();
            let message = format!("a recipe has no key '{}'", keys.join("."));
            // Below that line keys are looked for first.
            let end = text.find("\nquantization:").filter(|_| keys[0] != "quantization");
            return Err(mismatch(&text[..end.unwrap_or(text.len())], what, key, message));
        }
        let mut recipe: Recipe = recipe.map_err(invalid)?;
        for (precision, quantization) in Quantization::builtin().map_err(invalid)? {
            recipe.quantization.entry(precision).or_insert(quantization);
        }
        Ok(RecipeSource { recipe, text, what })
    }

    /// The recipe, if it makes sense for a model with these `modules`.
    ///
    /// # Errors
    /// [`YamlError::Mismatch`] for a pattern that matches no module, a key for a precision that has
    /// no integers, or numbers that do not go together.
    pub fn check(self, modules: &[Module]) -> Result<Recipe, YamlError> {
        if self.recipe.genai && self.recipe.vision == VisionLayout::Split {
            let message = "onnxruntime-genai needs 'vision: fused'".to_owned();
            return Err(self.mismatch("genai", message));
        }
        if let Some((key, message)) = self.recipe.unlike_its_contract() {
            return Err(self.mismatch(key, message.to_owned()));
        }
        if self.recipe.fusion == Fusion::Cuda && self.recipe.operators == Operators::Standard {
            let message = "'fusion: cuda' needs 'operators: onnxruntime'".to_owned();
            return Err(self.mismatch("fusion", message));
        }
        if self.recipe.precisions.is_empty() {
            return Err(self.mismatch("precisions", "'precisions' names none".to_owned()));
        }
        for (precision, quantization) in &self.recipe.quantization {
            if matches!(precision, Precision::Fp32 | Precision::Fp16) {
                let message = format!("{precision} has no quantization");
                return Err(self.mismatch(&format!("{precision}:"), message));
            }
            if let Some(pattern) = quantization.unmatched(modules) {
                let message = format!("the pattern '{pattern}' matches no module of this model");
                return Err(self.mismatch(pattern, message));
            }
            let is_table = |module: &&Module| module.name() == EMBEDDING;
            let table =
                modules.iter().find(is_table).and_then(|table| quantization.format_of(table));
            if self.recipe.feedback && table.is_some() {
                let message = format!(
                    "'feedback' needs floats in {EMBEDDING}: give {precision} an exception for it"
                );
                return Err(self.mismatch("feedback", message));
            }
            if self.recipe.packed_qkv
                && let Some(attention) = quantization.keeps_projections_apart(modules)
            {
                let message = format!(
                    "'packed_qkv' needs q_proj, k_proj and v_proj of {attention} in one form, and not with activations 'tensor'; give {precision} such a one for all three"
                );
                return Err(self.mismatch("packed_qkv", message));
            }
            let formats = modules.iter().filter_map(|module| quantization.format_of(module));
            for format in formats.filter(|f| f.activations == Activations::Tensor) {
                let message = match (format, self.recipe.operators) {
                    (_, Operators::Standard) => {
                        "activations 'tensor' need 'operators: onnxruntime'"
                    }
                    (f, _) if f.bits != Bits::EIGHT || !f.symmetric => {
                        "activations 'tensor' need 8 bits and symmetric weights"
                    }
                    (f, _) if f.method == Method::Gptq => {
                        "activations 'tensor' have no calibrated method"
                    }
                    _ => continue,
                };
                return Err(self.mismatch("tensor", message.to_owned()));
            }
        }
        Ok(self.recipe)
    }

    fn mismatch(&self, value: &str, message: String) -> YamlError {
        mismatch(&self.text, self.what.clone(), value, message)
    }
}

/// An error that points at the first place of `value` outside comments, below the line `quantization:` if it
/// is there.
fn mismatch(text: &str, what: String, value: &str, message: String) -> YamlError {
    let lines: Vec<&str> = text
        .lines()
        .map(|line| match line.split_once(" #") {
            Some((code, _)) => code,
            None if line.trim_start().starts_with('#') => "",
            None => line,
        })
        .collect();
    let start = lines.iter().position(|line| line.starts_with("quantization:")).unwrap_or(0);
    // A pattern may be part of another word; as a whole value it ends where a value ends.
    let whole = |code: &str| {
        code.match_indices(value).map(|(at, _)| at).find(|&at| {
            let is_end = |c: Option<char>| c.is_none_or(|c| " :,}]'\"".contains(c));
            let before = code[..at].chars().next_back();
            is_end(code[at + value.len()..].chars().next())
                && before.is_none_or(|c| " {['\"".contains(c))
        })
    };
    let below = lines.iter().enumerate().skip(start);
    let all = below.chain(lines.iter().enumerate());
    let found = all.filter_map(|(line, code)| Some((line, whole(code)?))).next();
    let (line, column) = found.map_or((1, 1), |(line, at)| (line + 1, at + 1));
    YamlError::Mismatch { what, message, line, column }
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
        let text =
            "recipe: mine\nbits: 4\nsizes: {seqence: 1}\nquantization:\n  q4: {bits: 4, bit: 5}\n";
        let error = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Recipe::load(file.to_str().unwrap()).unwrap_err().to_string()
        };
        assert!(error(text).contains("no key 'bits' at line 2"), "{}", error(text));
        let text = text.replace("bits: 4\ns", "s");
        assert!(error(&text).contains("'sizes.seqence' at line 2 column 9"), "{}", error(&text));
        let text = text.replace("sizes: {seqence: 1}\n", "");
        assert!(error(&text).contains("'quantization.q4.bit' at line 3"), "{}", error(&text));
    }

    #[test]
    fn unknown_name_lists_the_known_ones() {
        let error = Recipe::load("fast").unwrap_err().to_string();
        assert!(error.contains("default, portable, split, features"), "{error}");
    }

    #[test]
    fn what_does_not_fit_the_model_is_pointed_at() {
        let modules = [Module::new("lm_head", 0)];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.yaml");
        let start = "recipe: mine\ncontract: community\nvision: fused\noperators: onnxruntime\nlogits: last\nlast_hidden_state: false\nquantization:\n";
        let q8 = "bits: 8, block_size: 32, symmetric: true, method: nearest";
        for (rest, expected) in [
            (
                format!("  q8: {{{q8}, activations: int8, exceptions: [{{modules: lm_tail}}]}}\n"),
                "'lm_tail' matches no module of this model at line 8 column",
            ),
            (
                "  # lm_head\n  fp16: {".to_owned() + q8 + ", activations: int8}\n",
                "line 9 column 3",
            ),
            (
                format!(
                    "  q4: {{{q8}, activations: tensor, exceptions: [{{modules: '*', bits: 4}}]}}\n"
                ),
                "need 8 bits",
            ),
        ] {
            std::fs::write(&file, start.to_owned() + &rest).unwrap();
            let source = RecipeSource::load(file.to_str().unwrap()).unwrap();
            let error = source.check(&modules).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_the_contract_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.yaml");
        let start = "recipe: mine\nvision: fused\nlogits: last\nlast_hidden_state: false\n";
        let fixed = "contract: static\noperators: standard\nsizes:";
        for (rest, expected) in [
            ("contract: static\noperators: standard\n".to_owned(), "needs 'sizes' at line 5"),
            (
                "contract: community\noperators: standard\nsizes: {past_sequence: 9, sequence: 2}\n".to_owned(),
                "'sizes' need 'contract: static' at line 7",
            ),
            (
                "contract: community\noperators: onnxruntime\ncandidates: 4\nfeedback: true\n".to_owned(),
                "'feedback' needs 'contract: cuda', 'logits: last' and 'candidates' at line 8",
            ),
            (
                "contract: community\noperators: onnxruntime\nfusion: cuda\npacked_qkv: true\n".to_owned(),
                "'packed_qkv' needs 'contract: cuda' at line 8",
            ),
            (format!("{fixed} {{past_sequence: 9, sequence: 9}}\n"), "less than 'past_sequence'"),
            (format!("{fixed} {{past_sequence: 9, sequence: 0}}\n"), "'sizes' are at least 1"),
            (format!("{fixed} {{views: 1, past_sequence: 9, sequence: 2}}\n"), "go together"),
            (
                format!("{fixed} {{past_sequence: 9, sequence: 2}}\ngenai: true\n"),
                "leave out split vision, genai",
            ),
            (
                "contract: static\noperators: onnxruntime\nsizes: {past_sequence: 9, sequence: 2}\ncache_update: client\n"
                    .to_owned(),
                "'cache_update: client' needs 'operators: standard' at line 8",
            ),
        ] {
            std::fs::write(&file, start.to_owned() + &rest).unwrap();
            let source = RecipeSource::load(file.to_str().unwrap()).unwrap();
            let error = source.check(&[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_looks_tokens_up_in_a_decoder_has_floats() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.yaml");
        let text = include_str!("../recipes/cuda.yaml");
        let modules = [EMBEDDING, "vision_tower.x", "multi_modal_projector.x"];
        let modules = modules.map(|name| Module::new(name, 6));
        let check = |text: &str| {
            std::fs::write(&file, text).unwrap();
            RecipeSource::load(file.to_str().unwrap()).unwrap().check(&modules)
        };
        check(text).unwrap();
        let error = check(&text.replace("      - *embedding\n", "")).unwrap_err().to_string();
        assert!(error.contains("give q4 an exception for it at line 15"), "{error}");
    }

    #[test]
    fn what_is_packed_has_one_form() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mine.yaml");
        let text = "packed_qkv: true\n".to_owned() + include_str!("../recipes/cuda.yaml");
        let attention = "language_model.layers.2.self_attn";
        let projections = ["q_proj", "k_proj", "v_proj"].map(|name| format!("{attention}.{name}"));
        let others = [
            EMBEDDING,
            "vision_tower.encoder.layers.0.self_attn.q_proj",
            "multi_modal_projector.x",
        ];
        let names = others.into_iter().chain(projections.iter().map(String::as_str));
        let modules: Vec<Module> = names.map(|name| Module::new(name, 6)).collect();
        let error = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let source = RecipeSource::load(file.to_str().unwrap()).unwrap();
            source.check(&modules).map(drop).map_err(|error| error.to_string())
        };
        error(&text).unwrap();
        let exception = "      - &embedding {modules: language_model.embed_tokens, float: true}\n";
        let another = format!("{exception}      - {{modules: '*.k_proj', block_size: 64}}\n");
        let message = error(&text.replace(exception, &another)).unwrap_err();
        assert!(message.contains(attention) && message.contains("give q8 such a one"), "{message}");
        let columns = text.replacen("activations: int8", "activations: tensor", 1);
        let message = error(&columns).unwrap_err();
        assert!(message.contains(attention) && message.contains("give q8 such a one"), "{message}");
    }

    #[test]
    fn every_builtin_recipe_has_a_purpose_and_every_quantization() {
        for name in Recipe::BUILTIN {
            let recipe = Recipe::builtin(name).unwrap();
            let precisions: Vec<_> = recipe.quantization.keys().copied().collect();
            assert_eq!(precisions, [Precision::Q8, Precision::Q4, Precision::Q4F16], "{name}");
            let purpose = recipe.purpose.unwrap();
            assert!(purpose.len() < 100 && purpose.ends_with('.'), "{name}: {purpose}");
        }
    }

    #[test]
    fn precision_round_trips() {
        for p in Precision::ALL {
            assert_eq!(p.to_string().parse(), Ok(p));
        }
        assert!("int3".parse::<Precision>().is_err());
    }
}
