//! How the weights of a precision become small integers: the `quantization` part of a recipe.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::Precision;

const BUILTIN: &str = include_str!("../recipes/quantization.yaml");

/// How the integers of a block are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The range of the block, and each value to the nearest integer.
    Nearest,
    /// The scale and zero point of least squared error, found by trying ranges and refining each.
    Search,
    /// Half-quadratic quantization (Badri and Shaji, 2023): the zero point that minimises a norm
    /// below 1 of the error, which forgives outliers.
    Hqq,
    /// GPTQ (Frantar et al., 2022): each column's error is made up for by the columns after it,
    /// as the inputs seen in calibration allow.
    Gptq,
}

/// What the inputs of a quantized layer are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// As the graph has them.
    Float,
    /// 8-bit integers where the provider has such a kernel, each block with a scale of its own
    /// (accuracy level 4 of `MatMulNBits`).
    Int8,
    /// 8-bit integers with one scale for the whole input (`DynamicQuantizeMatMul`); weights have 8
    /// bits and one scale for each output.
    Tensor,
}

/// Bits of a weight: 4 or 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Bits(u8);

/// Weights of a row that share a scale: a power of 2 from 16 to 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct BlockSize(u16);

impl Bits {
    /// 4 bits.
    pub const FOUR: Bits = Bits(4);
    /// 8 bits.
    pub const EIGHT: Bits = Bits(8);

    /// As a number.
    pub fn get(self) -> u32 {
        self.0.into()
    }
}

impl BlockSize {
    /// As a number.
    pub fn get(self) -> usize {
        self.0.into()
    }
}

/// Deserializes a number that `check` accepts; the error carries the number's own line and column.
fn number<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    check: fn(u64) -> Option<T>,
    expected: &'static str,
) -> Result<T, D::Error> {
    struct Visitor<T>(fn(u64) -> Option<T>, &'static str);

    impl<T> de::Visitor<'_> for Visitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.1)
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
            (self.0)(value)
                .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self.1))
        }
    }
    deserializer.deserialize_u64(Visitor(check, expected))
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let check = |n| [4, 8].into_iter().find(|&bits| u64::from(bits) == n).map(Bits);
        number(deserializer, check, "4 or 8 bits")
    }
}

impl<'de> Deserialize<'de> for BlockSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let check =
            |n| [16, 32, 64, 128, 256].into_iter().find(|&s| u64::from(s) == n).map(BlockSize);
        number(deserializer, check, "a block size of 16, 32, 64, 128 or 256")
    }
}

/// How one weight is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightFormat {
    /// Bits of a weight.
    pub bits: Bits,
    /// Weights of a row that share a scale.
    pub block_size: BlockSize,
    /// Whether zero is in the middle of the integers; else each block has a zero point.
    pub symmetric: bool,
    /// How the integers are found.
    pub method: Method,
    /// What the layer's inputs are computed in.
    pub activations: Activations,
}

/// How the weights of one precision are quantized, with exceptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantization {
    /// Bits of a weight.
    pub bits: Bits,
    /// Weights of a row that share a scale.
    pub block_size: BlockSize,
    /// Whether zero is in the middle of the integers; else each block has a zero point.
    pub symmetric: bool,
    /// How the integers are found.
    pub method: Method,
    /// What the inputs of quantized layers are computed in.
    pub activations: Activations,
    /// Modules that differ; of several that match, each replaces what those before it say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Exception>,
}

/// Modules that are quantized otherwise, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Which modules: a name such as `language_model.layers.0.feed_forward.w1`, in which `*` stands
    /// for anything, and a negative layer counts from the end (`language_model.layers.-1.*`).
    pub modules: String,
    /// Whether the weights stay floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub float: Option<bool>,
    /// Replaces [`Quantization::bits`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<Bits>,
    /// Replaces [`Quantization::block_size`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<BlockSize>,
    /// Replaces [`Quantization::symmetric`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// Replaces [`Quantization::method`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Replaces [`Quantization::activations`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<Activations>,
}

impl Quantization {
    /// How each quantized precision is made where a recipe does not say.
    ///
    /// # Errors
    /// When the YAML inside this crate is wrong, which a test rules out.
    pub fn builtin() -> Result<BTreeMap<Precision, Quantization>, serde_yaml::Error> {
        serde_yaml::from_str(BUILTIN)
    }

    /// How the weight of a module of `layers` is quantized; `None` where it stays float.
    pub fn format_of(&self, module: &Module) -> Option<WeightFormat> {
        let mut float = false;
        let mut format = WeightFormat {
            bits: self.bits,
            block_size: self.block_size,
            symmetric: self.symmetric,
            method: self.method,
            activations: self.activations,
        };
        for exception in self.exceptions.iter().filter(|e| module.matches(&e.modules)) {
            float = exception.float.unwrap_or(float);
            format.bits = exception.bits.unwrap_or(format.bits);
            format.block_size = exception.block_size.unwrap_or(format.block_size);
            format.symmetric = exception.symmetric.unwrap_or(format.symmetric);
            format.method = exception.method.unwrap_or(format.method);
            format.activations = exception.activations.unwrap_or(format.activations);
        }
        (!float).then_some(format)
    }

    /// An attention of the language model whose projections have weights that cannot follow each other: they differ
    /// in form, or their rows are columns.
    pub fn keeps_projections_apart<'m>(&self, modules: &'m [Module]) -> Option<&'m str> {
        let names = modules.iter().map(Module::name).filter(|n| n.starts_with("language_model."));
        let mut attentions = names.filter_map(|name| name.strip_suffix(".q_proj"));
        let form = |attention: &str, projection: &str| {
            let name = format!("{attention}.{projection}");
            self.format_of(modules.iter().find(|module| module.name() == name)?)
        };
        attentions.find(|attention| {
            let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| form(attention, name));
            q != k || q != v || q.is_some_and(|form| form.activations == Activations::Tensor)
        })
    }

    /// The first pattern that none of `modules` matches.
    pub fn unmatched(&self, modules: &[Module]) -> Option<&str> {
        let patterns = self.exceptions.iter().map(|exception| exception.modules.as_str());
        patterns.into_iter().find(|pattern| !modules.iter().any(|module| module.matches(pattern)))
    }
}

/// A module whose weight can be quantized.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Module {
    name: String,
    /// The name with its layer counted from the end.
    from_end: Option<String>,
}

impl Module {
    /// The module `name`; `layers` is how many layers the list has that its name counts in.
    pub fn new(name: &str, layers: usize) -> Self {
        let from_end = name.split_once("layers.").and_then(|(before, rest)| {
            let (layer, after) = rest.split_once('.')?;
            let layer: i64 = layer.parse().ok()?;
            Some(format!("{before}layers.{}.{after}", layer - layers as i64))
        });
        Module { name: name.to_owned(), from_end }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a pattern is its name; `*` stands for any run of characters.
    pub fn matches(&self, pattern: &str) -> bool {
        [Some(&self.name), self.from_end.as_ref()]
            .into_iter()
            .flatten()
            .any(|name| is_match(pattern, name))
    }
}

fn is_match(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    // The earliest place of each part leaves the most for those after it.
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_and_layers_from_the_end() {
        let module = Module::new("language_model.layers.15.feed_forward.w1", 16);
        for pattern in [
            "*",
            "language_model.layers.15.feed_forward.w1",
            "language_model.layers.-1.*",
            "*.w1",
            "language_model.*.w*",
            &"*".repeat(60),
        ] {
            assert!(module.matches(pattern), "{pattern}");
        }
        for pattern in [
            "",
            "lm_head",
            "*.w2",
            "*layers*layers*",
            &("*".repeat(60) + "x"),
            "language_model.layers.1.*",
            "language_model",
        ] {
            assert!(!module.matches(pattern), "{pattern}");
        }
    }

    #[test]
    fn later_exceptions_win() {
        let mut quantization = Quantization::builtin().unwrap().remove(&Precision::Q4).unwrap();
        let exceptions = "
            - {modules: '*.layers.*', bits: 8}
            - {modules: '*.w1', float: true}
            - {modules: '*.layers.0.*', block_size: 16, float: false}";
        quantization.exceptions = serde_yaml::from_str(exceptions).unwrap();
        let format = |name| quantization.format_of(&Module::new(name, 2));
        assert_eq!(format("a.layers.0.w1").unwrap().bits, Bits::EIGHT);
        assert_eq!(format("a.layers.0.w1").unwrap().block_size, BlockSize(16));
        assert_eq!(format("a.layers.1.w1"), None);
        assert_eq!(format("lm_head").unwrap().bits, Bits::FOUR);
        let modules = [Module::new("a.layers.0.w1", 2)];
        assert_eq!(quantization.unmatched(&modules), None);
        assert_eq!(quantization.unmatched(&[Module::new("b.layers.0.w2", 2)]), Some("*.w1"));
    }

    #[test]
    fn impossible_numbers_are_refused_where_they_stand() {
        let text = "q4:\n  bits: 4\n  block_size: 48\n  symmetric: true\n  method: search\n  activations: int8\n";
        let error = serde_yaml::from_str::<BTreeMap<Precision, Quantization>>(text).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("48") && error.contains("line 3 column 15"), "{error}");
    }
}
