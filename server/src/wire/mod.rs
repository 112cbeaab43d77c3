//! What goes over the wire: OpenAI's chat completions, and what this server adds.

mod request;
mod response;

pub(crate) use request::{
    ChatCompletionRequest, FunctionTool, ImageSettings, MAX_TOOLS, ResponseFormat, Stop,
    ToolChoice, UNUSED,
};
pub(crate) use response::{
    ChatCompletion, ChatCompletionChunk, Choice, ChunkChoice, CompletionTokensDetails, Delta,
    FinishReason, FunctionCall, Logprobs, Message, Model, ModelList, PromptTokensDetails,
    StreamEvent, TokenLogprob, ToolCall, ToolCallDelta, TopLogprob, Usage,
};
