//! What an engine has done and is doing, for whoever watches a service.

use std::time::Duration;

/// Figures of an engine. Those that are not said to be of the moment only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Answers that are being made, at the moment.
    pub active: usize,
    /// Those of them whose images or prompt are not done, at the moment.
    pub in_prompt: usize,
    /// Requests that wait for a slot, at the moment.
    pub waiting: usize,
    /// Slots that there are.
    pub slots: usize,
    /// Slots that keep the state of an ended answer, at the moment.
    pub cached_slots: usize,
    /// Tokens of these, at the moment.
    pub cached_tokens: usize,
    /// Bytes of the buffers of keys, values and conv states, at the moment. On a host, what was never
    /// written takes no memory.
    pub state_bytes: usize,
    /// Bytes of the features of images that are kept, at the moment.
    pub image_cache_bytes: usize,
    /// Requests that were taken.
    pub requests: u64,
    /// Requests that found no room to wait.
    pub refused: u64,
    /// Answers that ended as they should.
    pub finished: u64,
    /// Answers that were cancelled or late.
    pub cancelled: u64,
    /// Answers that failed.
    pub failed: u64,
    /// Tokens of prompts that went through the decoder.
    pub prompt_tokens: u64,
    /// Tokens of prompts whose state was there already.
    pub reused_tokens: u64,
    /// Tokens of answers.
    pub answer_tokens: u64,
    /// Images that went through the vision graphs.
    pub images: u64,
    /// Images whose features were there already.
    pub image_cache_hits: u64,
    /// Steps of decoding, each over all answers that decode.
    pub steps: u64,
    /// Those of them that began before the tokens of the step before had been looked at
    /// ([`run_ahead`](crate::EngineBuilder::run_ahead)).
    pub steps_ahead: u64,
    /// Bytes that were copied from slot to slot, or to larger buffers, where all slots share them.
    pub copied_bytes: u64,
    /// Time in the vision graphs.
    pub vision_time: Duration,
    /// Time in prompts.
    pub prefill_time: Duration,
    /// Time in steps.
    pub decode_time: Duration,
    /// Time in which masks of constraints were made, beside the steps.
    pub mask_time: Duration,
    /// Time that steps waited for these.
    pub mask_wait: Duration,
}
