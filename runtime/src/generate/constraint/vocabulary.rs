//! The bytes of each token, for grammars.

use std::sync::Arc;

use llguidance::toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::chat::Tokenizer;

/// A tokenizer as llguidance sees it.
pub(super) struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl Vocabulary {
    /// The vocabulary of a tokenizer, and the tokens of it that end an answer.
    pub(super) fn new(tokenizer: Arc<Tokenizer>, eos_token_ids: &[u32]) -> Result<Self, String> {
        let words = tokenizer.all_token_bytes().ok_or("the tokenizer's decoder is not known")?;
        let mut words = words.to_vec();
        for (id, word) in (0..).zip(&mut words) {
            if tokenizer.is_special(id) {
                word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
        }
        let known = |id: &u32| (*id as usize) < words.len();
        let eos: Vec<TokenId> = eos_token_ids.iter().copied().filter(known).collect();
        let first = *eos.first().ok_or("the model has no token that ends an answer")?;
        let info = TokRxInfo::new(words.len() as u32, first);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&eos);
        Ok(Vocabulary { trie, tokenizer })
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| self.tokenizer.encode_plain(text).unwrap_or_default();
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }
}
