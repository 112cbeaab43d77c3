//! The files beside the graphs: configs, tokenizer and chat template, copied or made from the
//! checkpoint's equivalents.

use std::{fs, path::Path};

use lfm2vl::image::{ImageSettings, Overrides, Resample, image_processor_json};
use serde_json::{Map, Value, json};

use crate::{
    checkpoint::Config,
    error::ExportError,
    onnx::{WrittenFile, write_file},
};

/// Copied as they are, where the checkpoint has them.
const COPIED: [&str; 4] =
    ["processor_config.json", "special_tokens_map.json", "added_tokens.json", "LICENSE"];

/// Writes the client files of the checkpoint in `source` to `out`; `external` is what Transformers.js
/// is told of data files.
pub(super) fn write_client_files(
    source: &Path,
    config: &Config,
    external: Option<Value>,
    out: &Path,
) -> Result<Vec<WrittenFile>, ExportError> {
    let mut files = Vec::new();
    for name in COPIED {
        if let Some(content) = read_optional(&source.join(name))? {
            files.push(write_file(out, name, &content)?);
        }
    }
    if let Some(content) = tokenizer(source)? {
        files.push(write_file(out, "tokenizer.json", &content)?);
    }
    let mut model = read_settings(source, "config.json")?;
    // Transformers.js has no default for this.
    model.insert("image_token_id".into(), config.image_token_id.into());
    if let Some(external) = external {
        let settings = json!({"use_external_data_format": external});
        model.insert("transformers.js_config".into(), settings);
    }
    let model = Value::Object(model);
    files.push(write_json(out, "config.json", &model)?);
    let mut generation = read_settings(source, "generation_config.json")?;
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) =
            [&model["text_config"][key], &model[key]].into_iter().find(|id| !id.is_null())
        {
            generation.entry(key).or_insert_with(|| id.clone());
        }
    }
    files.push(write_json(out, "generation_config.json", &Value::Object(generation))?);
    let images = Value::Object(image_settings(source)?);
    files.push(write_json(out, "preprocessor_config.json", &images)?);
    let template = chat_template(source)?;
    files.push(write_file(out, "chat_template.jinja", template.as_bytes())?);
    // Transformers.js looks for the template here.
    let mut tokenizer = read_settings(source, "tokenizer_config.json")?;
    tokenizer.insert("chat_template".into(), template.into());
    files.push(write_json(out, "tokenizer_config.json", &Value::Object(tokenizer))?);
    Ok(files)
}

/// The image processor's settings in the file that most clients read, complete: clients differ in
/// their defaults. These are those of `Lfm2VlImageProcessor`.
fn image_settings(source: &Path) -> Result<Map<String, Value>, ExportError> {
    let own = image_processor_json(source)?;
    let own = own.ok_or_else(|| ExportError::NoImageSettings(source.to_owned()))?;
    let mut all = Map::new();
    all.insert("processor_class".into(), json!("Lfm2VlProcessor"));
    all.insert("image_processor_type".into(), json!("Lfm2VlImageProcessorFast"));
    all.extend(ImageSettings::default().to_json());
    // A limit of our own, which others would not know.
    all.remove("max_view_patches");
    // Other clients know the numbers only, where there is one.
    let resample = resample(&own)?;
    all.extend(own);
    all.extend(resample.map(|resample| ("resample".into(), resample.to_json())));
    // transformers ignores this flag, and Transformers.js squeezes every image to one tile if set.
    all.insert("do_resize".into(), json!(false));
    Ok(all)
}

/// How images are resized, by the processor's settings; the others may be wrong.
pub(super) fn resample(settings: &Map<String, Value>) -> Result<Option<Resample>, ExportError> {
    let alone = json!({"resample": settings.get("resample")});
    Ok(Overrides::from_json(&alone)?.resample)
}

/// The chat template, from its own file, from that of older processors, or from the tokenizer's config.
fn chat_template(source: &Path) -> Result<String, ExportError> {
    if let Some(content) = read_optional(&source.join("chat_template.jinja"))? {
        return Ok(String::from_utf8_lossy(&content).into_owned());
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let config = read_settings(source, name)?;
        if let Some(Value::String(template)) = config.get("chat_template") {
            return Ok(template.clone());
        }
    }
    Err(ExportError::NoChatTemplate(source.to_owned()))
}

/// The tokenizer without the padding and truncation of some earlier call, which clients would apply to
/// every prompt.
fn tokenizer(source: &Path) -> Result<Option<Vec<u8>>, ExportError> {
    let path = source.join("tokenizer.json");
    let Some(content) = read_optional(&path)? else { return Ok(None) };
    let json_error = |source| ExportError::Json { path: path.clone(), source };
    let mut tokenizer: Map<String, Value> = serde_json::from_slice(&content).map_err(json_error)?;
    let is_set = |name: &str| tokenizer.get(name).is_some_and(|value| !value.is_null());
    if !(is_set("padding") || is_set("truncation")) {
        return Ok(Some(content));
    }
    tokenizer.insert("padding".into(), Value::Null);
    tokenizer.insert("truncation".into(), Value::Null);
    Ok(Some(Value::Object(tokenizer).to_string().into_bytes()))
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, ExportError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ExportError::Read { path: path.to_owned(), source }),
    }
}

fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, ExportError> {
    read_optional(path)?
        .map(|content| {
            serde_json::from_slice(&content)
                .map_err(|source| ExportError::Json { path: path.to_owned(), source })
        })
        .transpose()
}

/// A JSON object in a file of a folder; empty where there is no such file.
pub(super) fn read_settings(folder: &Path, name: &str) -> Result<Map<String, Value>, ExportError> {
    Ok(read_json(&folder.join(name))?.unwrap_or_default())
}

pub(super) fn write_json(
    out: &Path,
    name: &str,
    value: &Value,
) -> Result<WrittenFile, ExportError> {
    write_file(out, name, format!("{value:#}\n").as_bytes())
}
