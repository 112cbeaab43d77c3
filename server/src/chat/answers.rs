//! What comes of the answers of one request, event by event.

use lfm2vl::{Answer, Event, FinishReason, Part, chat::Tokenizer};

use super::{
    deltas::{Deltas, Piece},
    logprobs,
};
use crate::{
    error::ApiError,
    wire::{
        self, ChunkChoice, CompletionTokensDetails, Delta, Logprobs, PromptTokensDetails,
        ToolCallDelta, Usage,
    },
};

/// One answer as it goes to the client.
#[derive(Default)]
pub(super) struct Choice {
    index: usize,
    deltas: Deltas,
    calls: usize,
    reasoning_tokens: usize,
}

impl Choice {
    pub(super) fn new(index: usize) -> Self {
        Choice { index, ..Choice::default() }
    }

    /// The beginning: who speaks.
    pub(super) fn begin(&self) -> ChunkChoice {
        let content = Some(String::new());
        self.with_delta(Delta { role: Some("assistant"), content, ..Delta::default() }, None)
    }

    /// What an event gives: nothing, where its text is held back.
    pub(super) fn push(&mut self, event: &Event, tokenizer: &Tokenizer) -> Vec<ChunkChoice> {
        self.reasoning_tokens +=
            usize::from(event.token_id.is_some() && event.part == Part::Thinking);
        let pieces = self.deltas.push(event.part, &event.text);
        let mut logprobs = event.logprobs.as_ref().map(|of_token| Logprobs {
            content: vec![logprobs::of(tokenizer, of_token)],
            refusal: None,
        });
        let mut chunks: Vec<ChunkChoice> =
            pieces.into_iter().map(|piece| self.chunk(piece, logprobs.take())).collect();
        // Those of a token whose text comes later.
        if logprobs.is_some() {
            chunks.push(self.with_delta(Delta::default(), logprobs));
        }
        chunks
    }

    /// The end.
    pub(super) fn finish(&mut self, reason: FinishReason) -> Vec<ChunkChoice> {
        let left = self.deltas.finish();
        let mut chunks: Vec<ChunkChoice> =
            left.into_iter().map(|piece| self.chunk(piece, None)).collect();
        let reason = match reason {
            FinishReason::Length => wire::FinishReason::Length,
            _ if self.calls > 0 => wire::FinishReason::ToolCalls,
            _ => wire::FinishReason::Stop,
        };
        let last = self.with_delta(Delta::default(), None);
        chunks.push(ChunkChoice { finish_reason: Some(reason), ..last });
        chunks
    }

    fn chunk(&mut self, piece: Piece, logprobs: Option<Logprobs>) -> ChunkChoice {
        let mut delta = Delta::default();
        match piece {
            Piece::Reasoning(text) => delta.reasoning_content = Some(text),
            Piece::Content(text) => delta.content = Some(text),
            Piece::Call(call) => {
                let index = self.calls;
                self.calls += 1;
                let wire::ToolCall { id, r#type, function } = call;
                delta.tool_calls = vec![ToolCallDelta { index, id, r#type, function }];
            }
        }
        self.with_delta(delta, logprobs)
    }

    fn with_delta(&self, delta: Delta, logprobs: Option<Logprobs>) -> ChunkChoice {
        ChunkChoice { index: self.index, delta, logprobs, finish_reason: None }
    }

    /// What an ended answer has cost.
    pub(super) fn usage(&self, answer: &Answer) -> Result<Usage, ApiError> {
        let completion = answer.completion()?;
        let completion_tokens = completion.token_ids.len();
        Ok(Usage {
            prompt_tokens: completion.prompt_tokens,
            completion_tokens,
            total_tokens: completion.prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: completion.reused_tokens,
                image_tokens: completion.image_tokens,
            },
            completion_tokens_details: CompletionTokensDetails {
                reasoning_tokens: self.reasoning_tokens,
            },
        })
    }
}
