//! `config.json`, typed. Keys, defaults and quirks are those of `Lfm2VlConfig`, `Lfm2Config` and
//! `Siglip2VisionConfig` in transformers 5.24.

use lfm2vl_graphs::{LayerKind, ModelDims, Module};
use serde_json::Value;

use super::CheckpointError;

/// Everything about the model that its graphs depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The language model.
    pub text: TextConfig,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The projector.
    pub projector: ProjectorConfig,
    /// Id of the token that stands for one image feature.
    pub image_token_id: u32,
    /// Whether the output head is the token embedding, unless the checkpoint has its own.
    pub tie_word_embeddings: bool,
}

/// LFM2.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Width.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Inner width of the feed-forward layers, after adjustment.
    pub feed_forward_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context.
    pub max_position_embeddings: usize,
    /// Width of the short convolution, and columns of its state.
    pub conv_l_cache: usize,
    /// Whether the convolution and its projections have biases.
    pub conv_bias: bool,
    /// Epsilon of the RMS norms.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Kind of each layer.
    pub layer_types: Vec<LayerKind>,
}

/// SigLIP2 NaFlex.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Inner width of the MLPs.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the position table; its square is `num_patches`.
    pub position_grid: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f32,
}

/// Pixel-unshuffle and two linear layers.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectorConfig {
    /// Inner width.
    pub hidden_size: usize,
    /// Whether the linear layers have biases.
    pub bias: bool,
    /// Whether a layer norm comes first.
    pub use_layernorm: bool,
    /// Side of the block of patches that becomes one token.
    pub downsample_factor: usize,
}

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError::Config`] names the key that is missing, wrong or not supported.
    pub fn from_json(json: &Value) -> Result<Self, CheckpointError> {
        let root = Section { name: "", json };
        root.expect_text("model_type", &["lfm2_vl"], None)?;
        if root.get("quantization_config").is_some() {
            return Err(CheckpointError::Quantized);
        }
        root.expect_text("projector_hidden_act", &["gelu"], Some("gelu"))?;
        let tie_word_embeddings = root.flag("tie_word_embeddings", true)?;
        Ok(Config {
            text: TextConfig::from_json(&root.section("text_config"))?,
            vision: VisionConfig::from_json(&root.section("vision_config"))?,
            projector: ProjectorConfig {
                hidden_size: root.size("projector_hidden_size", 2560)?,
                bias: root.flag("projector_bias", true)?,
                use_layernorm: root.flag("projector_use_layernorm", true)?,
                downsample_factor: root.count("downsample_factor", 2)?,
            },
            // The first configs say image_token_index.
            image_token_id: root.size("image_token_id", root.size("image_token_index", 396)?)?
                as u32,
            tie_word_embeddings: root.flag("tie_embedding", tie_word_embeddings)?,
        })
    }

    /// A module by its canonical name, for the patterns of recipes.
    pub fn module(&self, name: &str) -> Module {
        let layers = if name.starts_with("vision_tower") {
            self.vision.num_hidden_layers
        } else {
            self.text.layer_types.len()
        };
        Module::new(name, layers)
    }

    /// The modules that can be quantized: linear layers, the token embedding, the output head.
    pub fn quantizable_modules(&self) -> Vec<Module> {
        let tensors = super::model_tensors(self).into_iter();
        let weights = tensors.filter_map(|(name, shape)| {
            let module = name.strip_suffix(".weight")?;
            (shape.len() == 2 && !module.ends_with("position_embedding")).then(|| module.to_owned())
        });
        weights.chain(["lm_head".to_owned()]).map(|name| self.module(&name)).collect()
    }

    /// The sizes that contracts name.
    pub fn dims(&self) -> ModelDims {
        ModelDims {
            hidden_size: self.text.hidden_size,
            vocab_size: self.text.vocab_size,
            num_key_value_heads: self.text.num_key_value_heads,
            head_dim: self.text.head_dim,
            conv_l_cache: self.text.conv_l_cache,
            vision_hidden_size: self.vision.hidden_size,
            downsample_factor: self.projector.downsample_factor,
            patch_values: 3 * self.vision.patch_size.pow(2),
            layer_types: self.text.layer_types.clone(),
        }
    }
}

impl TextConfig {
    fn from_json(section: &Section<'_>) -> Result<Self, CheckpointError> {
        section.expect_text("model_type", &["lfm2"], Some("lfm2"))?;
        let hidden_size = section.size("hidden_size", 2560)?;
        let num_attention_heads = section.size("num_attention_heads", 32)?;
        let num_hidden_layers = section.count("num_hidden_layers", 32)?;
        let num_key_value_heads = section.size("num_key_value_heads", 8)?;
        if num_attention_heads % num_key_value_heads != 0 {
            let heads = format!("it must divide the {num_attention_heads} attention heads");
            return Err(section.unsupported("num_key_value_heads", &heads));
        }
        let head_dim = section.size("head_dim", hidden_size / num_attention_heads)?;
        if head_dim % 2 != 0 || head_dim == 0 {
            return Err(section.unsupported("head_dim", "rotary embedding needs an even head size"));
        }
        Ok(TextConfig {
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            feed_forward_size: feed_forward_size(section)?,
            vocab_size: section.size("vocab_size", 65536)?,
            max_position_embeddings: section.size("max_position_embeddings", 128_000)?,
            conv_l_cache: section.count("conv_L_cache", 3)?,
            conv_bias: section.flag("conv_bias", false)?,
            norm_eps: section.number("norm_eps", 1e-5)? as f32,
            rope_theta: rope_theta(section)?,
            layer_types: layer_types(section, num_hidden_layers)?,
        })
    }
}

/// Inner width of the feed-forward layers: `block_ff_dim` or `intermediate_size`, adjusted as
/// `Lfm2MLP` does it.
fn feed_forward_size(section: &Section<'_>) -> Result<usize, CheckpointError> {
    let size = section.size("block_ff_dim", section.size("intermediate_size", 12288)?)?;
    if !section.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(size);
    }
    let size = 2 * size / 3;
    if section.json.get("block_ffn_dim_multiplier").is_some_and(Value::is_null) {
        return Ok(size);
    }
    let multiplier = section.number("block_ffn_dim_multiplier", 1.0)?;
    let multiple_of = section.size("block_multiple_of", 256)?;
    let adjusted = multiplier * size as f64;
    if !(1.0..=LARGEST_SIZE as f64).contains(&adjusted) {
        let size = format!("it must give a size from 1 to {LARGEST_SIZE}");
        return Err(section.unsupported("block_ffn_dim_multiplier", &size));
    }
    Ok((adjusted as usize).next_multiple_of(multiple_of))
}

fn rope_theta(section: &Section<'_>) -> Result<f64, CheckpointError> {
    let (rope, scaling) = (section.section("rope_parameters"), section.section("rope_scaling"));
    for section in [&rope, &scaling] {
        // transformers takes the older name, too.
        for key in ["rope_type", "type"] {
            section.expect_text(key, &["default"], Some("default"))?;
        }
    }
    let theta = section.number("rope_theta", 1_000_000.0)?;
    let theta = rope.number("rope_theta", scaling.number("rope_theta", theta)?)?;
    if theta > 0.0 {
        Ok(theta)
    } else {
        Err(section.unsupported("rope_theta", "it must be positive"))
    }
}

/// `layer_types`, or else `full_attn_idxs`, or else attention everywhere.
fn layer_types(section: &Section<'_>, layers: usize) -> Result<Vec<LayerKind>, CheckpointError> {
    let named = section.json.get("layer_types").filter(|v| !v.is_null());
    let kinds: Vec<LayerKind> = if let Some(named) = named {
        serde_json::from_value(named.clone()).map_err(|_| {
            section.unsupported("layer_types", "only 'conv' and 'full_attention' are supported")
        })?
    } else if let Some(indices) = section.json.get("full_attn_idxs").filter(|v| !v.is_null()) {
        let indices: Vec<usize> = serde_json::from_value(indices.clone())
            .map_err(|_| section.unsupported("full_attn_idxs", "it must be a list of layers"))?;
        let kind =
            |i| if indices.contains(&i) { LayerKind::FullAttention } else { LayerKind::Conv };
        (0..layers).map(kind).collect()
    } else {
        vec![LayerKind::FullAttention; layers]
    };
    if kinds.len() != layers {
        let count = format!("it must name each of the {layers} layers");
        return Err(section.unsupported("layer_types", &count));
    }
    if !kinds.contains(&LayerKind::FullAttention) {
        return Err(section.unsupported("layer_types", "a decoder without attention is not LFM2"));
    }
    Ok(kinds)
}

impl VisionConfig {
    fn from_json(section: &Section<'_>) -> Result<Self, CheckpointError> {
        let types = ["siglip2_vision_model"];
        section.expect_text("model_type", &types, Some(types[0]))?;
        section.expect_text("hidden_act", &["gelu_pytorch_tanh"], Some("gelu_pytorch_tanh"))?;
        let hidden_size = section.size("hidden_size", 768)?;
        let num_attention_heads = section.size("num_attention_heads", 12)?;
        if hidden_size % num_attention_heads != 0 {
            let size = format!("it must divide the hidden size {hidden_size}");
            return Err(section.unsupported("num_attention_heads", &size));
        }
        if section.size("num_channels", 3)? != 3 {
            return Err(section.unsupported("num_channels", "only 3 channels are supported"));
        }
        let num_patches = section.size("num_patches", 256)?;
        let position_grid = num_patches.isqrt();
        if position_grid * position_grid != num_patches {
            return Err(section.unsupported("num_patches", "it must be a square number"));
        }
        Ok(VisionConfig {
            hidden_size,
            intermediate_size: section.size("intermediate_size", 3072)?,
            num_hidden_layers: section.count("num_hidden_layers", 12)?,
            num_attention_heads,
            patch_size: section.count("patch_size", 16)?,
            position_grid,
            layer_norm_eps: section.number("layer_norm_eps", 1e-6)? as f32,
        })
    }
}

/// An object of the config, and its name for messages. A null counts as missing.
struct Section<'a> {
    name: &'static str,
    json: &'a Value,
}

/// Sizes above this are taken for damage, so that products of a few cannot overflow.
const LARGEST_SIZE: u64 = 1 << 24;
/// The same for what is counted or squared: layers, patch sides, conv widths.
const LARGEST_COUNT: u64 = 1 << 12;

impl<'a> Section<'a> {
    fn section(&self, name: &'static str) -> Section<'a> {
        Section { name, json: self.json.get(name).unwrap_or(&Value::Null) }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn unsupported(&self, key: &str, supported: &str) -> CheckpointError {
        let prefix = if self.name.is_empty() { "" } else { "." };
        CheckpointError::Config {
            key: format!("{}{prefix}{key}", self.name),
            value: self.json.get(key).map_or("missing".into(), Value::to_string),
            supported: supported.to_owned(),
        }
    }

    fn size(&self, key: &str, default: usize) -> Result<usize, CheckpointError> {
        self.whole_number(key, default, LARGEST_SIZE)
    }

    fn count(&self, key: &str, default: usize) -> Result<usize, CheckpointError> {
        self.whole_number(key, default, LARGEST_COUNT)
    }

    fn whole_number(
        &self,
        key: &str,
        default: usize,
        largest: u64,
    ) -> Result<usize, CheckpointError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .filter(|number| (1..=largest).contains(number))
                .map(|number| number as usize)
                .ok_or_else(|| {
                    let range = format!("it must be a whole number from 1 to {largest}");
                    self.unsupported(key, &range)
                }),
        }
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, CheckpointError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_f64().ok_or_else(|| self.unsupported(key, "it must be a number"))
            }
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.unsupported(key, "it must be true or false"))
            }
        }
    }

    /// Refuses any text but those that are supported; `default` is what a missing key means.
    fn expect_text(
        &self,
        key: &str,
        supported: &[&str],
        default: Option<&str>,
    ) -> Result<(), CheckpointError> {
        let value = self.get(key).map_or(default, Value::as_str);
        if value.is_some_and(|value| supported.contains(&value)) {
            Ok(())
        } else {
            let names = supported.join("' or '");
            Err(self.unsupported(key, &format!("only '{names}' is supported")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(json: Value) -> Result<TextConfig, CheckpointError> {
        TextConfig::from_json(&Section { name: "text_config", json: &json })
    }

    #[test]
    fn feed_forward_sizes_of_released_models() {
        // 450M: 6656 -> 4437 -> 4608; 1.6B: 12288 -> 8192.
        for (ff_dim, expected) in [(6656, 4608), (12288, 8192)] {
            let config = text(json!({"block_ff_dim": ff_dim, "intermediate_size": 1})).unwrap();
            assert_eq!(config.feed_forward_size, expected);
        }
        let plain = json!({"intermediate_size": 100, "block_auto_adjust_ff_dim": false});
        assert_eq!(text(plain).unwrap().feed_forward_size, 100);
    }

    #[test]
    fn layer_types_win_over_indices() {
        let config = text(json!({
            "num_hidden_layers": 2,
            "layer_types": ["conv", "full_attention"],
            "full_attn_idxs": [0],
        }));
        assert_eq!(config.unwrap().layer_types, [LayerKind::Conv, LayerKind::FullAttention]);
    }

    #[test]
    fn messages_name_the_key() {
        let cases = [
            (json!({"rope_parameters": {"rope_type": "yarn"}}), "rope_parameters.rope_type"),
            (json!({"rope_scaling": {"rope_type": "linear"}}), "rope_scaling.rope_type"),
            (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "rope_scaling.type"),
            (json!({"rope_parameters": {"type": "yarn"}}), "rope_parameters.type"),
            (json!({"hidden_size": 0}), "text_config.hidden_size"),
            (json!({"hidden_size": "wide"}), "text_config.hidden_size"),
            (json!({"num_hidden_layers": 1, "layer_types": ["mamba"]}), "layer_types"),
            (json!({"num_attention_heads": 6, "num_key_value_heads": 4}), "num_key_value_heads"),
            (json!({"vocab_size": u64::MAX}), "vocab_size"),
            (json!({"num_hidden_layers": 10_000_000}), "num_hidden_layers"),
            (json!({"block_ffn_dim_multiplier": 1e300}), "block_ffn_dim_multiplier"),
            (json!({"block_ffn_dim_multiplier": -1.0}), "block_ffn_dim_multiplier"),
        ];
        for (json, key) in cases {
            let error = text(json).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn the_base_of_rotary_factors_may_stand_in_three_places() {
        let theta = |json: Value| text(json).unwrap().rope_theta;
        assert_eq!(theta(json!({"rope_theta": 3000.0})), 3000.0);
        let scaling = json!({"rope_type": "default", "rope_theta": 5000});
        assert_eq!(theta(json!({"rope_theta": 3000.0, "rope_scaling": scaling})), 5000.0);
        let parameters = json!({"type": "default", "rope_theta": 7000});
        assert_eq!(theta(json!({"rope_parameters": parameters, "rope_scaling": scaling})), 7000.0);
    }

    #[test]
    fn other_models_are_refused() {
        for json in [json!({"model_type": "llava"}), json!({}), json!([])] {
            let error = Config::from_json(&json).unwrap_err().to_string();
            assert!(error.contains("model_type") && error.contains("lfm2_vl"), "{error}");
        }
    }

    #[test]
    fn top_level_tying_decides() {
        let tied = |json: Value| Config::from_json(&json).unwrap().tie_word_embeddings;
        let text = json!({"tie_word_embeddings": false});
        assert!(tied(json!({"model_type": "lfm2_vl", "text_config": text})));
        assert!(!tied(json!({"model_type": "lfm2_vl", "tie_embedding": false})));
    }
}
