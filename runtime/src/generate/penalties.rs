//! Settings that make single tokens more or less likely.

use std::collections::BTreeMap;

use super::{GenerationOptions, History};

/// The penalties of an answer, and its logit bias.
#[derive(Debug, Clone)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    bias: BTreeMap<u32, f32>,
    suppressed: Vec<u32>,
    bad_words: Vec<Vec<u32>>,
    min_new_tokens: usize,
    eos_token_ids: Vec<u32>,
}

impl Penalties {
    pub(super) fn new(options: &GenerationOptions) -> Self {
        Penalties {
            repetition: options.repetition_penalty,
            presence: options.presence_penalty,
            frequency: options.frequency_penalty,
            bias: options.logit_bias.clone(),
            suppressed: options.suppress_tokens.clone(),
            bad_words: options.bad_words_ids.clone(),
            min_new_tokens: options.min_new_tokens,
            eos_token_ids: Vec::new(),
        }
    }

    /// Tells which tokens end an answer.
    pub(super) fn set_eos_token_ids(&mut self, ids: &[u32]) {
        self.eos_token_ids = ids.to_vec();
        // As in transformers: the end is no bad word.
        self.bad_words.retain(|words| !matches!(words[..], [id] if ids.contains(&id)));
    }

    /// Tokens that must not follow.
    fn banned(&self, history: &History) -> impl Iterator<Item = u32> {
        let is_early = history.answer().len() < self.min_new_tokens;
        let ends = self.eos_token_ids.iter().filter(move |_| is_early);
        let bad = self.bad_words.iter().filter_map(|words| words.split_last());
        let bad = bad.filter(|(_, before)| history.tokens().ends_with(before)).map(|(id, _)| id);
        self.suppressed.iter().chain(ends).chain(bad).copied()
    }

    fn bans_nothing(&self) -> bool {
        self.suppressed.is_empty() && self.bad_words.is_empty() && self.min_new_tokens == 0
    }

    /// Whether they change nothing.
    pub(super) fn is_neutral(&self) -> bool {
        let has_no_penalty = self.repetition == 1.0 && self.counts_nothing();
        has_no_penalty && self.bias.is_empty() && self.bans_nothing()
    }

    fn counts_nothing(&self) -> bool {
        self.presence == 0.0 && self.frequency == 0.0
    }

    /// Whether they make no token more likely.
    pub(super) fn only_lower(&self) -> bool {
        let biases = self.bias.values();
        self.repetition >= 1.0
            && self.presence >= 0.0
            && self.frequency >= 0.0
            && biases.into_iter().all(|&bias| bias <= 0.0)
    }

    /// What the logit of a token becomes.
    pub(super) fn applied(&self, id: u32, logit: f32, history: &History) -> f32 {
        if !self.bans_nothing() && self.banned(history).any(|banned| banned == id) {
            return f32::NEG_INFINITY;
        }
        let mut logit = logit;
        if self.repetition != 1.0 && history.has(id) {
            logit = if logit < 0.0 { logit * self.repetition } else { logit / self.repetition };
        }
        if !self.counts_nothing() {
            let count = history.count_in_answer(id);
            if count > 0 {
                logit -= self.presence + self.frequency * count as f32;
            }
        }
        logit + self.bias.get(&id).copied().unwrap_or_default()
    }

    /// Changes the logits of all tokens that they are about.
    pub(super) fn apply(&self, logits: &mut [f32], history: &History) {
        let written = history.distinct().filter(|id| !self.bias.contains_key(id));
        for id in written.chain(self.bias.keys().copied()) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = self.applied(id, *logit, history);
            }
        }
        for id in self.banned(history) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_banned_cannot_follow() {
        let options = GenerationOptions {
            suppress_tokens: vec![0],
            bad_words_ids: vec![vec![1], vec![5, 2], vec![6, 3], vec![4]],
            min_new_tokens: 1,
            ..GenerationOptions::default()
        };
        let mut penalties = Penalties::new(&options);
        penalties.set_eos_token_ids(&[4]);
        let mut history = History::new(vec![9, 5]);
        let left = |history: &History| {
            let mut logits = [1.0; 8];
            penalties.apply(&mut logits, history);
            for (id, logit) in (0..).zip(logits) {
                assert_eq!(penalties.applied(id, 1.0, history), logit);
            }
            (0..8).filter(|&id| logits[id].is_finite()).collect::<Vec<_>>()
        };
        assert_eq!(left(&history), [3, 5, 6, 7]);
        history.push(6);
        assert_eq!(left(&history), [2, 4, 5, 6, 7]);
    }

    #[test]
    fn presence_and_frequency_count_the_answer_only() {
        let options = GenerationOptions {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: [(3, 2.0)].into(),
            ..GenerationOptions::default()
        };
        let penalties = Penalties::new(&options);
        let mut history = History::new(vec![0, 1]);
        [1, 1, 2].into_iter().for_each(|id| history.push(id));
        let mut logits = [1.0; 5];
        penalties.apply(&mut logits, &history);
        assert_eq!(logits, [1.0, 0.0, 0.25, 3.0, 1.0]);
        assert!(!penalties.only_lower());
    }
}
