//! Messages of a conversation, in the JSON form that Hugging Face templates know.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Value", into = "Value")]
pub enum Part {
    /// An image; the images themselves are given beside the messages, in the same order.
    Image,
    /// Text.
    Text(String),
    /// Anything else that the template may know.
    Other(Value),
}

impl From<Value> for Part {
    fn from(value: Value) -> Self {
        match (value["type"].as_str(), value["text"].as_str()) {
            (Some("image"), _) => Part::Image,
            (Some("text"), Some(text)) => Part::Text(text.to_owned()),
            _ => Part::Other(value),
        }
    }
}

impl From<Part> for Value {
    fn from(part: Part) -> Self {
        match part {
            Part::Image => json!({"type": "image"}),
            Part::Text(text) => json!({"type": "text", "text": text}),
            Part::Other(value) => value,
        }
    }
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Text alone.
    Text(String),
    /// Images and texts in order.
    Parts(Vec<Part>),
}

/// One message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What it says; a message of tool calls may have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// Anything else that the template may know, such as `tool_calls`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Message {
    /// A message of text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Message { role, content: Some(Content::Text(text.into())), other: Map::new() }
    }

    /// Instructions for the model.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, text)
    }

    /// What the person says.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, text)
    }

    /// What the model said.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, text)
    }

    /// The message with `count` images before what it says.
    #[must_use]
    pub fn with_images(mut self, count: usize) -> Self {
        if count > 0 {
            let parts = match self.content.take() {
                Some(Content::Text(text)) => vec![Part::Text(text)],
                Some(Content::Parts(parts)) => parts,
                None => Vec::new(),
            };
            let images = std::iter::repeat_n(Part::Image, count);
            self.content = Some(Content::Parts(images.chain(parts).collect()));
        }
        self
    }

    /// How many images it has.
    pub fn images(&self) -> usize {
        match &self.content {
            Some(Content::Parts(parts)) => parts.iter().filter(|&p| *p == Part::Image).count(),
            _ => 0,
        }
    }

    /// Gives the model's reasoning the names that templates know it by, as transformers does.
    pub(super) fn alias_reasoning(&mut self) {
        let names = ["reasoning_content", "thinking", "reasoning"];
        let found = names.iter().find_map(|&name| self.other.get(name).filter(|r| !r.is_null()));
        if let Some(reasoning) = found.cloned() {
            self.other.insert("reasoning_content".into(), reasoning.clone());
            self.other.entry("thinking").or_insert(reasoning);
        }
    }

    /// Its last text, if any.
    pub(super) fn last_text_mut(&mut self) -> Option<&mut String> {
        match self.content.as_mut()? {
            Content::Text(text) => Some(text),
            Content::Parts(parts) => parts.iter_mut().rev().find_map(|part| match part {
                Part::Text(text) => Some(text),
                _ => None,
            }),
        }
    }
}
