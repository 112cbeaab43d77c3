//! Whether `tokenizer.json` and the model belong together.

use std::path::Path;

use lfm2vl::chat::ImageTokens;
use serde_json::{Map, Value};

use super::files::read_settings;
use crate::{checkpoint::Config, error::ExportError};

/// Checks that every token has an embedding, and that both have the same token for images.
pub(super) fn check(source: &Path, config: &Config) -> Result<(), ExportError> {
    let tokenizer = read_settings(source, "tokenizer.json")?;
    let rows = config.text.vocab_size;
    if let Some(largest) = largest_id(&tokenizer).filter(|&id| id >= rows as u64) {
        return Err(ExportError::TokenizerSize { largest, rows });
    }
    let tokens = ImageTokens::from_folder(source)?;
    match id_of(&tokenizer, &tokens.image) {
        Some(id) if id != i64::from(config.image_token_id) => {
            Err(ExportError::ImageTokenId { tokenizer: id, config: config.image_token_id })
        }
        _ => Ok(()),
    }
}

/// The id of a token that `tokenizer.json` reads as one.
pub(super) fn id_of(tokenizer: &Map<String, Value>, token: &str) -> Option<i64> {
    let added = tokenizer.get("added_tokens")?.as_array()?;
    added.iter().find(|added| added["content"] == token)?["id"].as_i64()
}

/// The largest id of a token, of the vocabulary or added to it.
fn largest_id(tokenizer: &Map<String, Value>) -> Option<u64> {
    let vocabulary = tokenizer.get("model").and_then(|model| model["vocab"].as_object());
    let vocabulary = vocabulary.into_iter().flat_map(Map::values).filter_map(Value::as_u64);
    let added = tokenizer.get("added_tokens").and_then(Value::as_array);
    let added = added.into_iter().flatten().filter_map(|added| added["id"].as_u64());
    vocabulary.chain(added).max()
}
