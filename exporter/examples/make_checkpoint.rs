//! Writes a random bf16 checkpoint of any shape, for measurements:
//! `make_checkpoint CONFIG.json OUT SEED TOKENIZER_FOLDER [DEVIATION]`.
//!
//! DEVIATION is that of the weights in the language model's layers. With a small one, what goes in
//! comes out: the model says its last token again and again.
//!
//! Weights are named as in released checkpoints and the output head is left out, as it is tied.
//! Tokenizer and template are those of TOKENIZER_FOLDER; the image settings are those of the
//! released models.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};
use half::bf16;
use lfm2vl_exporter::checkpoint::{Config, model_tensors, released_name};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::{Map, Value, json};

/// Standard deviation of all weights; norms are around 1 with the same.
const DEVIATION: f32 = 0.02;
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some([config, out, seed, tokenizer]), 4..=5) = (arguments.first_chunk(), arguments.len())
    else {
        bail!("usage: make_checkpoint CONFIG.json OUT SEED TOKENIZER_FOLDER [DEVIATION]");
    };
    let layers: f32 = match arguments.get(4) {
        Some(deviation) => deviation.parse().context("the deviation is no number")?,
        None => DEVIATION,
    };
    let (out, tokenizer) = (Path::new(out), Path::new(tokenizer));
    let text = fs::read_to_string(config).with_context(|| format!("cannot read {config}"))?;
    let mut config: Value =
        serde_json::from_str(&text).with_context(|| format!("{config} is no JSON"))?;
    let tensors = model_tensors(&Config::from_json(&config)?);
    let object = config.as_object_mut().context("the config is no JSON object")?;
    object.insert("tie_word_embeddings".into(), json!(true));

    fs::create_dir_all(out)?;
    for file in TOKENIZER_FILES {
        fs::copy(tokenizer.join(file), out.join(file))
            .with_context(|| format!("cannot copy {file} of {}", tokenizer.display()))?;
    }
    fs::write(out.join("config.json"), format!("{config:#}\n"))?;
    fs::write(out.join("preprocessor_config.json"), format!("{:#}\n", image_settings()))?;

    let mut file = BufWriter::with_capacity(1 << 20, File::create(out.join("model.safetensors"))?);
    write_header(&mut file, &tensors)?;
    let mut random = SmallRng::seed_from_u64(seed.parse().context("the seed is no number")?);
    let mut bytes = Vec::new();
    for (name, shape) in &tensors {
        let is_norm = name.contains("norm") && name.ends_with(".weight");
        let mean = if is_norm { 1.0 } else { 0.0 };
        let is_layer = name.starts_with("language_model.layers.") && !is_norm;
        let deviation = if is_layer { layers } else { DEVIATION };
        let mut left: usize = shape.iter().product();
        while left > 0 {
            let count = left.min(1 << 18);
            bytes.clear();
            for _ in 0..count {
                let value = bf16::from_f32(mean + deviation * normal(&mut random));
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            file.write_all(&bytes)?;
            left -= count;
        }
    }
    Ok(file.flush()?)
}

/// The settings of the released models: tiles of 512, 64 to 256 tokens.
fn image_settings() -> Value {
    json!({
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "do_image_splitting": true,
        "downsample_factor": 2,
        "encoder_patch_size": 16,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_tokens": 256,
        "max_pixels_tolerance": 2.0,
        "max_tiles": 10,
        "min_image_tokens": 64,
        "min_tiles": 2,
        "resample": 2,
        "tile_size": 512,
        "use_thumbnail": true,
    })
}

/// The safetensors header: names, types, shapes and places of all tensors in order.
fn write_header(file: &mut impl Write, tensors: &[(String, Vec<usize>)]) -> Result<()> {
    let mut header = Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * size_of::<bf16>();
        header.insert(
            released_name(name),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    Ok(file.write_all(text.as_bytes())?)
}

/// About normal with deviation 1: four uniform numbers, added.
fn normal(random: &mut SmallRng) -> f32 {
    let bits: u64 = random.random();
    let sum: f32 = (0..4).map(|i| (bits >> (16 * i)) as u16 as f32 / 65536.0 - 0.5).sum();
    sum * 3.0_f32.sqrt()
}
