//! Tokens to text, one at a time.

use std::ops::Deref;

use super::{ChatError, Tokenizer};

/// Turns ids into text as they come, without special tokens. The pieces together are the text of
/// all ids at once, and none ends inside a character: a token may hold a part of one.
pub struct TextStream<T> {
    tokenizer: T,
    /// Ids whose text does not end with a whole character yet.
    pending: Vec<u32>,
}

impl<T: Deref<Target = Tokenizer>> TextStream<T> {
    /// A stream at its start; the tokenizer is borrowed or shared.
    pub fn new(tokenizer: T) -> Self {
        TextStream { tokenizer, pending: Vec::new() }
    }

    /// The text that `id` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`].
    pub fn push(&mut self, id: u32) -> Result<String, ChatError> {
        self.pending.push(id);
        let text = self.tokenizer.decode(&self.pending, true)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.pending.clear();
        Ok(text)
    }

    /// The rest, in which bytes of an incomplete character become U+FFFD.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`].
    pub fn finish(&mut self) -> Result<String, ChatError> {
        let text = self.tokenizer.decode(&self.pending, true)?;
        self.pending.clear();
        Ok(text)
    }
}
