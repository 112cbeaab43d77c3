//! What an answer consists of while it is made.

use super::TokenLogprobs;

/// The parts of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// What the model thinks before it answers, with the tags around it where they are text.
    Thinking,
    /// What it says.
    #[default]
    Text,
    /// Calls of tools, as it writes them.
    ToolCall,
}

/// A token of an answer, or a piece of its text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// The token; none where more text of an earlier one is given out.
    pub token_id: Option<u32>,
    /// The text that is certain now: empty while a character is incomplete or a stop string may begin.
    /// Without special tokens. Texts of all events are the text of the answer.
    pub text: String,
    /// What the text is a part of.
    pub part: Part,
    /// Log probabilities, if they were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended it, or a stop string came.
    Stop,
    /// It reached the most new tokens, or the context was full.
    Length,
}
