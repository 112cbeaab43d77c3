//! The model's tokenizer.

use std::{collections::BTreeSet, path::Path, sync::OnceLock};

use super::{ChatError, Cover, token_bytes::token_bytes};

/// A tokenizer read from `tokenizer.json`.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    special: BTreeSet<u32>,
    /// The same, except that it takes the strings of special tokens for text.
    plain: OnceLock<tokenizers::Tokenizer>,
    bytes: OnceLock<Option<Vec<Vec<u8>>>>,
}

impl Tokenizer {
    /// The tokenizer of the model in `folder`.
    ///
    /// # Errors
    /// [`ChatError::File`] when `tokenizer.json` is missing or not valid.
    pub fn from_folder(folder: &Path) -> Result<Self, ChatError> {
        let path = folder.join("tokenizer.json");
        let broken = |error: tokenizers::Error| ChatError::File {
            path: path.clone(),
            message: error.to_string(),
        };
        let mut tokenizer = tokenizers::Tokenizer::from_file(&path).map_err(broken)?;
        // Which a processor once called with padding or truncation leaves in its files. transformers sets
        // both anew for each call, to none by default.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(broken)?;
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        Ok(Tokenizer { tokenizer, special, plain: OnceLock::new(), bytes: OnceLock::new() })
    }

    /// The strings of the special tokens.
    pub fn special_tokens(&self) -> impl Iterator<Item = String> {
        self.special.iter().filter_map(|&id| self.token(id))
    }

    /// Whether an id is that of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Ids of a text. Nothing is added: the chat template writes the start token itself.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ChatError> {
        Ok(ids(&self.tokenizer, text)?.get_ids().to_vec())
    }

    /// Ids of a text in which the strings of special tokens are text as any other.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, ChatError> {
        let plain = self.plain.get_or_init(|| {
            let mut plain = self.tokenizer.clone();
            plain.set_encode_special_tokens(true);
            plain
        });
        Ok(ids(plain, text)?.get_ids().to_vec())
    }

    /// Ids of a text in which `cover` has covered what is not to be a special token.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`].
    pub(crate) fn encode_covered(&self, text: &str, cover: &Cover) -> Result<Vec<u32>, ChatError> {
        if !cover.is_covered(text) {
            return self.encode(text);
        }
        // The special tokens that are not covered split the text as they split any other.
        let encoding = ids(&self.tokenizer, text)?;
        let mut tokens = Vec::new();
        let mut start = 0;
        let plain = |start: usize, end: usize| {
            if start == end {
                return Ok(Vec::new());
            }
            let part = text.get(start..end).ok_or_else(|| {
                ChatError::Tokenizer("its offsets are inside of characters".into())
            })?;
            self.encode_plain(&cover.remove(part))
        };
        for (&id, &(from, to)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            if self.is_special(id) {
                tokens.extend(plain(start, from)?);
                tokens.push(id);
                start = to;
            }
        }
        tokens.extend(plain(start, text.len())?);
        Ok(tokens)
    }

    /// Text of ids; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, ChatError> {
        self.tokenizer
            .decode(ids, skip_special_tokens)
            .map_err(|error| ChatError::Tokenizer(error.to_string()))
    }

    /// The bytes of a token, which may be a part of a character; empty for an id without a token, `None` where
    /// the tokenizer's decoder is of another kind than byte-level or byte-fallback.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        Some(self.all_token_bytes()?.get(id as usize).map_or(&[], Vec::as_slice))
    }

    /// The bytes of each token by its id.
    pub(crate) fn all_token_bytes(&self) -> Option<&[Vec<u8>]> {
        self.bytes.get_or_init(|| token_bytes(&self.tokenizer)).as_deref()
    }

    /// Id of a token.
    ///
    /// # Errors
    /// [`ChatError::NoSuchToken`].
    pub fn token_id(&self, token: &str) -> Result<u32, ChatError> {
        self.tokenizer.token_to_id(token).ok_or_else(|| ChatError::NoSuchToken(token.to_owned()))
    }

    /// The text of a token, special ones included.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<tokenizers::Encoding, ChatError> {
    tokenizer.encode(text, false).map_err(|error| ChatError::Tokenizer(error.to_string()))
}
