//! How much of a prompt runs between two steps of those who read their answers.

use std::time::Duration;

/// The time that a chunk of a prompt may take, where others wait for their next token.
const PATIENCE: Duration = Duration::from_millis(100);

/// Fewest tokens of a chunk: fewer cost nearly as much.
const LEAST: usize = 16;

/// The part of a prompt's time that others get for their steps: an image's view may take a second.
const OTHERS_SHARE: u32 = 8;

/// Prompt tokens of a run.
pub(super) struct Budget {
    setting: Option<usize>,
    /// Most tokens of a chunk.
    most: usize,
    /// What a token of a chunk has cost, the last chunks counting most.
    seconds_per_token: Option<f64>,
    /// Time that steps are to get before the next chunk.
    owed: Duration,
}

impl Budget {
    /// With a number of tokens that is always the same, or one that adapts to what they cost, up to `most`.
    pub(super) fn new(setting: Option<usize>, most: usize) -> Self {
        Budget { setting, most, seconds_per_token: None, owed: Duration::ZERO }
    }

    /// Most tokens of the next chunk, while others wait or not.
    pub(super) fn tokens(&self, others_wait: bool) -> usize {
        match (others_wait, self.setting, self.seconds_per_token) {
            (false, _, _) => self.most,
            (true, Some(tokens), _) => tokens.max(1),
            (true, None, None) => 2 * LEAST,
            (true, None, Some(seconds)) => {
                let tokens = (PATIENCE.as_secs_f64() / seconds.max(1e-9)) as usize;
                // Kernels like whole blocks of rows.
                (tokens.clamp(LEAST, self.most.max(LEAST)) / LEAST) * LEAST
            }
        }
    }

    /// Whether a prompt may go on.
    pub(super) fn is_prompts_turn(&self) -> bool {
        self.owed.is_zero()
    }

    /// Takes in what a chunk cost.
    pub(super) fn ran_chunk(&mut self, tokens: usize, took: Duration) {
        let seconds = took.as_secs_f64() / tokens.max(1) as f64;
        // Short chunks say little.
        if tokens >= LEAST {
            let known = self.seconds_per_token.unwrap_or(seconds);
            self.seconds_per_token = Some(0.7 * known + 0.3 * seconds);
        }
        self.ran_for_prompt(took);
    }

    /// Takes in time that went into a prompt's images or tokens.
    pub(super) fn ran_for_prompt(&mut self, took: Duration) {
        self.owed = took / OTHERS_SHARE;
    }

    /// Takes in the time of a step, or that there is nobody to wait for.
    pub(super) fn ran_step(&mut self, took: Duration) {
        self.owed = self.owed.saturating_sub(took);
    }

    /// Nobody waits for a step.
    pub(super) fn forgive(&mut self) {
        self.owed = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_take_as_long_as_others_can_wait() {
        let mut budget = Budget::new(None, 256);
        assert_eq!(budget.tokens(false), 256);
        for _ in 0..20 {
            budget.ran_chunk(64, Duration::from_millis(64 * 3));
        }
        assert_eq!(budget.tokens(true), 32);
        for _ in 0..20 {
            budget.ran_chunk(32, Duration::from_millis(320));
        }
        assert_eq!(budget.tokens(true), LEAST);
        for _ in 0..40 {
            budget.ran_chunk(256, Duration::from_micros(256));
        }
        assert_eq!(budget.tokens(true), 256);
        assert_eq!(Budget::new(Some(7), 256).tokens(true), 7);
    }

    #[test]
    fn steps_get_their_share_of_a_long_run() {
        let mut budget = Budget::new(None, 256);
        budget.ran_for_prompt(Duration::from_millis(800));
        for _ in 0..9 {
            assert!(!budget.is_prompts_turn());
            budget.ran_step(Duration::from_millis(11));
        }
        budget.ran_step(Duration::from_millis(11));
        assert!(budget.is_prompts_turn());
    }
}
