//! What onnxruntime-genai reads: `genai_config.json`, and its own description of image processing.
//! Keys are those of version 0.18, which refuses any that it does not know.

use std::path::Path;

use lfm2vl::image::Resample;
use lfm2vl_graphs::{Bundle, Graph, LayerKind};
use serde_json::{Map, Value, json};

use super::files::{read_settings, resample, write_json};
use crate::{checkpoint::Config, error::ExportError, onnx::WrittenFile};

const CONFIG: &str = "genai_config.json";
const IMAGE_PROCESSOR: &str = "genai_image_processor.json";

/// Writes both files to `out`, whose other client files are there already; the config names the
/// graphs of `bundle`.
pub(super) fn write(
    config: &Config,
    bundle: &Bundle,
    out: &Path,
) -> Result<Vec<WrittenFile>, ExportError> {
    let generation = read_settings(out, "generation_config.json")?;
    let images = read_settings(out, "preprocessor_config.json")?;
    Ok(vec![
        write_json(out, CONFIG, &genai_config(config, bundle, &generation))?,
        write_json(out, IMAGE_PROCESSOR, &image_processor(&images)?)?,
    ])
}

fn genai_config(config: &Config, bundle: &Bundle, generation: &Map<String, Value>) -> Value {
    let text = &config.text;
    let file = |graph: Graph| format!("onnx/{graph}{}.onnx", bundle.precision(graph).suffix());
    let layer_types: Vec<&str> = text
        .layer_types
        .iter()
        .map(|kind| match kind {
            LayerKind::Conv => "conv",
            LayerKind::FullAttention => "full_attention",
        })
        .collect();
    let mut model = json!({
        "type": "lfm2_vl",
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "decoder": {
            "filename": file(Graph::GenaiDecoder),
            "hidden_size": text.hidden_size,
            "head_size": text.head_dim,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "num_hidden_layers": text.layer_types.len(),
            "layer_types": layer_types,
            "conv_cache_size": text.conv_l_cache,
            "inputs": {
                "inputs_embeds": "inputs_embeds",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
                "past_conv_names": "past_conv.%d",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
                "present_conv_names": "present_conv.%d",
            },
            "session_options": {"provider_options": []},
        },
        "embedding": {
            "filename": file(Graph::GenaiEmbeddings),
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        },
        "vision": {
            "filename": file(Graph::VisionEncoder),
            "config_filename": IMAGE_PROCESSOR,
            "patch_size": config.vision.patch_size,
            "spatial_merge_size": config.projector.downsample_factor,
            // Nothing is padded.
            "max_num_patches": 0,
            "inputs": {
                "pixel_values": "pixel_values",
                "attention_mask": "pixel_attention_mask",
                "image_sizes": "spatial_shapes",
            },
            "outputs": {"image_features": "image_features"},
        },
    });
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) = generation.get(key) {
            model[key] = id.clone();
        }
    }
    let mut search = json!({
        "do_sample": generation.get("do_sample").and_then(Value::as_bool).unwrap_or_default(),
        "max_length": text.max_position_embeddings,
        "past_present_share_buffer": false,
    });
    for key in ["temperature", "top_k", "top_p", "repetition_penalty"] {
        if let Some(value) = generation.get(key) {
            search[key] = value.clone();
        }
    }
    json!({"model": model, "search": search})
}

/// One view at the size that keeps the image tokens within their limits: genai does not tile.
fn image_processor(images: &Map<String, Value>) -> Result<Value, ExportError> {
    let number = |key: &str| images.get(key).and_then(Value::as_u64).unwrap_or_default();
    let (patch, factor, tile) =
        (number("encoder_patch_size"), number("downsample_factor"), number("tile_size"));
    let pixels = |tokens: &str| number(tokens) * (patch * factor).pow(2);
    let interpolation = match resample(images)? {
        Some(Resample::NearestExact | Resample::Nearest) => "NEAREST",
        Some(Resample::Lanczos) => "LANCZOS",
        Some(Resample::Bilinear) | None => "LINEAR",
        Some(Resample::Bicubic) => "CUBIC",
    };
    let operation = |name: &str, kind: &str, attributes: Value| {
        let mut operation = json!({"name": name, "type": kind});
        if attributes.as_object().is_some_and(|attributes| !attributes.is_empty()) {
            operation["attrs"] = attributes;
        }
        json!({"operation": operation})
    };
    Ok(json!({"processor": {"name": "lfm2_vl", "transforms": [
        operation("decode", "DecodeImage", json!({"color_space": "RGB"})),
        operation("resize", "Resize", json!({
            "height": tile,
            "width": tile,
            "interpolation": interpolation,
            "smart_resize": 1,
            "min_pixels": pixels("min_image_tokens"),
            "max_pixels": pixels("max_image_tokens"),
            "patch_size": patch,
            "merge_size": factor,
        })),
        operation("rescale", "Rescale", json!({"rescale_factor": images.get("rescale_factor")})),
        operation("normalize", "Normalize", json!({
            "mean": images.get("image_mean"),
            "std": images.get("image_std"),
        })),
        operation("permute", "Permute3D", json!({"dims": [2, 0, 1]})),
        operation("sizes", "PixtralImageSizes", json!({})),
    ]}}))
}
