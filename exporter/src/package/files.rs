//! The files beside the graphs: configs, tokenizer and chat template, copied or made from the
//! checkpoint's equivalents.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

use crate::{
    error::ExportError,
    onnx::{WrittenFile, write_file},
};

/// Copied as they are, where the checkpoint has them.
const COPIED: [&str; 7] = [
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "LICENSE",
];

/// Writes the client files of the checkpoint in `source` to `out`.
pub(super) fn write_client_files(
    source: &Path,
    out: &Path,
) -> Result<Vec<WrittenFile>, ExportError> {
    let mut files = Vec::new();
    for name in COPIED {
        if let Some(content) = read_optional(&source.join(name))? {
            files.push(write_file(out, name, &content)?);
        }
    }
    let mut config = read_json(&source.join("config.json"))?.unwrap_or_default();
    config.insert("transformers.js_config".into(), transformers_js_config());
    files.push(write_json(out, "config.json", config)?);

    files.push(write_json(out, "preprocessor_config.json", preprocessor(source)?)?);
    files.push(write_file(out, "chat_template.jinja", chat_template(source)?.as_bytes())?);
    Ok(files)
}

/// Tells Transformers.js that every graph has its weights in one file beside it.
fn transformers_js_config() -> Value {
    json!({ "use_external_data_format": 1 })
}

/// The image processor's settings in the file that most clients read.
fn preprocessor(source: &Path) -> Result<Map<String, Value>, ExportError> {
    let mut settings = match read_json(&source.join("preprocessor_config.json"))? {
        Some(settings) => settings,
        // Newer checkpoints have them inside the processor's file.
        None => match read_json(&source.join("processor_config.json"))?
            .and_then(|mut processor| processor.remove("image_processor"))
        {
            Some(Value::Object(settings)) => settings,
            _ => return Err(ExportError::NoImageSettings(source.to_owned())),
        },
    };
    // transformers ignores this flag, and Transformers.js squeezes every image to one tile if set.
    settings.insert("do_resize".into(), json!(false));
    Ok(settings)
}

/// The chat template, from its own file or from the tokenizer's config.
fn chat_template(source: &Path) -> Result<String, ExportError> {
    if let Some(content) = read_optional(&source.join("chat_template.jinja"))? {
        return Ok(String::from_utf8_lossy(&content).into_owned());
    }
    let config = read_json(&source.join("tokenizer_config.json"))?.unwrap_or_default();
    match config.get("chat_template") {
        Some(Value::String(template)) => Ok(template.clone()),
        _ => Err(ExportError::NoChatTemplate(source.to_owned())),
    }
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

fn write_json(
    out: &Path,
    name: &str,
    value: Map<String, Value>,
) -> Result<WrittenFile, ExportError> {
    let text = format!("{:#}\n", Value::Object(value));
    write_file(out, name, text.as_bytes())
}
