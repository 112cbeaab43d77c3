//! The model's tokenizer.

use std::path::Path;

use super::ChatError;

/// A tokenizer read from `tokenizer.json`.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// The tokenizer of the model in `folder`.
    ///
    /// # Errors
    /// [`ChatError::File`] when `tokenizer.json` is missing or not valid.
    pub fn from_folder(folder: &Path) -> Result<Self, ChatError> {
        let path = folder.join("tokenizer.json");
        tokenizers::Tokenizer::from_file(&path)
            .map(Tokenizer)
            .map_err(|error| ChatError::File { path, message: error.to_string() })
    }

    /// Ids of a text. Nothing is added: the chat template writes the start token itself.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ChatError> {
        let encoding =
            self.0.encode(text, false).map_err(|e| ChatError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, ChatError> {
        self.0
            .decode(ids, skip_special_tokens)
            .map_err(|error| ChatError::Tokenizer(error.to_string()))
    }

    /// Id of a token.
    ///
    /// # Errors
    /// [`ChatError::NoSuchToken`].
    pub fn token_id(&self, token: &str) -> Result<u32, ChatError> {
        self.0.token_to_id(token).ok_or_else(|| ChatError::NoSuchToken(token.to_owned()))
    }

    /// The text of a token, special ones included.
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }
}
