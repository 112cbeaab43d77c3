//! The tokens so far, and how often each has come.

use std::collections::HashMap;

/// A prompt and its answer so far.
#[derive(Debug, Clone, Default)]
pub struct History {
    tokens: Vec<u32>,
    prompt: usize,
    counts: HashMap<u32, usize>,
    answer_counts: HashMap<u32, usize>,
}

impl History {
    /// The history of an answer to a prompt of these tokens.
    pub fn new(prompt: Vec<u32>) -> Self {
        let mut counts = HashMap::new();
        for &id in &prompt {
            *counts.entry(id).or_default() += 1;
        }
        let answer_counts = HashMap::new();
        History { prompt: prompt.len(), tokens: prompt, counts, answer_counts }
    }

    /// Adds a token of the answer.
    pub fn push(&mut self, id: u32) {
        self.tokens.push(id);
        *self.counts.entry(id).or_default() += 1;
        *self.answer_counts.entry(id).or_default() += 1;
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Those of the answer.
    pub fn answer(&self) -> &[u32] {
        &self.tokens[self.prompt..]
    }

    /// Each token of prompt and answer once.
    pub(super) fn distinct(&self) -> impl Iterator<Item = u32> + '_ {
        self.counts.keys().copied()
    }

    /// Whether a token is in prompt or answer.
    pub(super) fn has(&self, id: u32) -> bool {
        self.counts.contains_key(&id)
    }

    /// How often a token is in the answer.
    pub(super) fn count_in_answer(&self, id: u32) -> usize {
        self.answer_counts.get(&id).copied().unwrap_or_default()
    }

    /// The tokens, without the counts.
    pub(crate) fn into_tokens(self) -> Vec<u32> {
        self.tokens
    }
}
