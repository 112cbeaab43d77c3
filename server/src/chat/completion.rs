//! Whole answers.

use futures_util::StreamExt;
use lfm2vl::{Answer, AnswerStream, Engine, FinishReason};

use super::{answers::Choice, start::Started};
use crate::{
    error::ApiError,
    service::Service,
    wire::{self, ChatCompletion, ChunkChoice, Logprobs, Message, ToolCall, Usage},
};

/// Waits for all answers.
pub(crate) async fn complete(
    service: &Service,
    started: Started,
) -> Result<ChatCompletion, ApiError> {
    let Started { id, created, answers, .. } = started;
    let mut usage = Usage::default();
    let mut choices = Vec::new();
    for (index, answer) in answers.into_iter().enumerate() {
        choices.push(choice(service.engine(), index, answer.into_stream(), &mut usage).await?);
    }
    Ok(ChatCompletion {
        id,
        object: "chat.completion",
        created,
        model: service.model_name().to_owned(),
        choices,
        usage,
        system_fingerprint: service.fingerprint().to_owned(),
    })
}

async fn choice(
    engine: &Engine,
    index: usize,
    mut answer: AnswerStream,
    usage: &mut Usage,
) -> Result<wire::Choice, ApiError> {
    let mut choice = Choice::new(index);
    let mut whole = Whole::default();
    while let Some(event) = answer.next().await {
        choice.push(&event?, engine.processor().tokenizer()).into_iter().for_each(|c| whole.add(c));
    }
    choice.finish(finish_reason(answer.answer())?).into_iter().for_each(|c| whole.add(c));
    usage.add_choice(&choice.usage(answer.answer())?);
    Ok(whole.choice(index))
}

/// Why an ended answer has ended.
pub(super) fn finish_reason(answer: &Answer) -> Result<FinishReason, ApiError> {
    let reason = answer.completion()?.finish_reason;
    reason.ok_or_else(|| ApiError::internal(&"an answer ended without a reason"))
}

/// What the pieces of an answer are together.
#[derive(Default)]
struct Whole {
    content: Option<String>,
    reasoning: Option<String>,
    calls: Vec<ToolCall>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<wire::FinishReason>,
}

impl Whole {
    fn add(&mut self, chunk: ChunkChoice) {
        let add = |to: &mut Option<String>, text: Option<String>| {
            if let Some(text) = text {
                to.get_or_insert_default().push_str(&text);
            }
        };
        add(&mut self.content, chunk.delta.content);
        add(&mut self.reasoning, chunk.delta.reasoning_content);
        let calls = chunk.delta.tool_calls.into_iter();
        self.calls.extend(calls.map(|c| ToolCall {
            id: c.id,
            r#type: c.r#type,
            function: c.function,
        }));
        if let Some(logprobs) = chunk.logprobs {
            self.logprobs.get_or_insert_default().content.extend(logprobs.content);
        }
        self.finish_reason = self.finish_reason.or(chunk.finish_reason);
    }

    fn choice(self, index: usize) -> wire::Choice {
        let content = match self.content {
            // An answer that says nothing says the empty text.
            None if self.calls.is_empty() => Some(String::new()),
            other => other,
        };
        wire::Choice {
            index,
            message: Message {
                role: "assistant",
                content,
                refusal: None,
                reasoning_content: self.reasoning,
                tool_calls: self.calls,
            },
            logprobs: self.logprobs,
            finish_reason: self.finish_reason.unwrap_or(wire::FinishReason::Stop),
        }
    }
}
