//! Answers.

use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ErrorBody;

/// Whole answers.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    pub(crate) id: String,
    /// `chat.completion`.
    pub(crate) object: &'static str,
    /// When the answers were begun, in seconds of Unix time.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<Choice>,
    pub(crate) usage: Usage,
    /// What answered: with the same one, the same seed gives the same answer.
    pub(crate) system_fingerprint: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Choice {
    pub(crate) index: usize,
    pub(crate) message: Message,
    #[schema(required)]
    pub(crate) logprobs: Option<Logprobs>,
    pub(crate) finish_reason: FinishReason,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Message {
    /// `assistant`.
    pub(crate) role: &'static str,
    /// What the model says; null where it only calls functions.
    #[schema(required)]
    pub(crate) content: Option<String>,
    /// Always null.
    #[schema(required)]
    pub(crate) refusal: Option<String>,
    /// Addition: what the model thought before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    /// `function`.
    pub(crate) r#type: &'static str,
    pub(crate) function: FunctionCall,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct FunctionCall {
    pub(crate) name: String,
    /// A JSON object, as text.
    pub(crate) arguments: String,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    /// The model ended it, or a stop text came, or its form is complete.
    Stop,
    /// It reached the most tokens, or the context was full.
    Length,
    /// It calls functions.
    ToolCalls,
}

/// Log probabilities: natural logarithms, of the model itself, before any setting of the request.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct Logprobs {
    pub(crate) content: Vec<TokenLogprob>,
    /// Always null.
    #[schema(required)]
    pub(crate) refusal: Option<Vec<TokenLogprob>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    /// Its text, with U+FFFD for an incomplete character.
    pub(crate) token: String,
    pub(crate) logprob: f32,
    #[schema(required)]
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) top_logprobs: Vec<TopLogprob>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct TopLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    #[schema(required)]
    pub(crate) bytes: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of the whole prompt, image tokens included.
    pub(crate) prompt_tokens: usize,
    /// Tokens of all choices.
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
    pub(crate) completion_tokens_details: CompletionTokensDetails,
}

impl Usage {
    /// Adds that of another choice. The prompt of all is the same; what of it was there already is told of the
    /// one that ends first.
    pub(crate) fn add_choice(&mut self, of: &Usage) {
        if self.prompt_tokens == 0 {
            *self = *of;
            return;
        }
        self.completion_tokens += of.completion_tokens;
        self.total_tokens += of.completion_tokens;
        self.completion_tokens_details.reasoning_tokens +=
            of.completion_tokens_details.reasoning_tokens;
    }
}

#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Tokens whose state was there already.
    pub(crate) cached_tokens: usize,
    /// Addition: image tokens.
    pub(crate) image_tokens: usize,
}

#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(crate) struct CompletionTokensDetails {
    /// Tokens of thinking.
    pub(crate) reasoning_tokens: usize,
}

/// The data of an event of a stream, but for the last, which is `[DONE]`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum StreamEvent {
    Chunk(Box<ChatCompletionChunk>),
    /// What ends a stream early.
    Error(ErrorBody),
}

/// A piece of the answers: one event of a stream.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ChatCompletionChunk {
    pub(crate) id: String,
    /// `chat.completion.chunk`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) system_fingerprint: String,
    pub(crate) choices: Vec<ChunkChoice>,
    /// With `include_usage`, null in all events but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub(crate) usage: Option<Option<Usage>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ChunkChoice {
    pub(crate) index: usize,
    pub(crate) delta: Delta,
    #[schema(required)]
    pub(crate) logprobs: Option<Logprobs>,
    #[schema(required)]
    pub(crate) finish_reason: Option<FinishReason>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    /// Addition: what the model thinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCallDelta>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ToolCallDelta {
    pub(crate) index: usize,
    pub(crate) id: String,
    /// `function`.
    pub(crate) r#type: &'static str,
    pub(crate) function: FunctionCall,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`.
    pub(crate) object: &'static str,
    pub(crate) data: Vec<Model>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Model {
    pub(crate) id: String,
    /// `model`.
    pub(crate) object: &'static str,
    /// When the server started, in seconds of Unix time.
    pub(crate) created: u64,
    pub(crate) owned_by: &'static str,
    /// Addition: most tokens of a prompt and its answer.
    pub(crate) context_length: usize,
}
