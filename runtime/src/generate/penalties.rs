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
}

impl Penalties {
    pub(super) fn new(options: &GenerationOptions) -> Self {
        Penalties {
            repetition: options.repetition_penalty,
            presence: options.presence_penalty,
            frequency: options.frequency_penalty,
            bias: options.logit_bias.clone(),
        }
    }

    /// Whether they change nothing.
    pub(super) fn is_neutral(&self) -> bool {
        self.repetition == 1.0 && self.counts_nothing() && self.bias.is_empty()
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
