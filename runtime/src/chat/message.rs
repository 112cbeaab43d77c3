//! Messages of a conversation, in the JSON form that Hugging Face templates know.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{ChatError, large_numbers};

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions. OpenAI's `developer` is the same.
    #[serde(alias = "developer")]
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
    /// An image by its URL, as OpenAI's clients give it: `{"type": "image_url", "image_url": {"url": ...}}`.
    /// For the template it is [`Part::Image`]; [`Conversation::push_loaded`](crate::Conversation::push_loaded)
    /// loads it.
    ImageUrl(String),
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
            (Some("image_url"), _) => {
                // Older clients give the URL itself.
                let url = &value["image_url"];
                match url["url"].as_str().or(url.as_str()).map(str::to_owned) {
                    Some(url) => Part::ImageUrl(url),
                    None => Part::Other(value),
                }
            }
            _ => Part::Other(value),
        }
    }
}

impl From<Part> for Value {
    fn from(part: Part) -> Self {
        match part {
            Part::Image => json!({"type": "image"}),
            Part::ImageUrl(url) => json!({"type": "image_url", "image_url": {"url": url}}),
            Part::Text(text) => json!({"type": "text", "text": text}),
            Part::Other(value) => value,
        }
    }
}

#[cfg(feature = "onnxruntime")]
impl Part {
    fn text_bytes(&self) -> usize {
        match self {
            Part::Image => 0,
            Part::ImageUrl(text) | Part::Text(text) => text.len(),
            Part::Other(value) => text_bytes(value),
        }
    }
}

/// Bytes of all text in a JSON value.
#[cfg(feature = "onnxruntime")]
pub(crate) fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + text_bytes(value)).sum(),
        _ => 0,
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
            Some(Content::Parts(parts)) => {
                let is_image = |part: &&Part| matches!(part, Part::Image | Part::ImageUrl(_));
                parts.iter().filter(is_image).count()
            }
            _ => 0,
        }
    }

    /// The URLs of its images that have one.
    pub fn image_urls(&self) -> impl Iterator<Item = &str> {
        let parts = match &self.content {
            Some(Content::Parts(parts)) => &parts[..],
            _ => &[],
        };
        parts.iter().filter_map(|part| match part {
            Part::ImageUrl(url) => Some(url.as_str()),
            _ => None,
        })
    }

    /// The message once its images are loaded: their URLs, which may be as long as they, are not needed.
    pub(crate) fn without_urls(mut self) -> Self {
        if let Some(Content::Parts(parts)) = &mut self.content {
            for part in parts {
                if matches!(part, Part::ImageUrl(_)) {
                    *part = Part::Image;
                }
            }
        }
        self
    }

    /// Bytes of all its text.
    #[cfg(feature = "onnxruntime")]
    pub(crate) fn text_bytes(&self) -> usize {
        let content = match &self.content {
            None => 0,
            Some(Content::Text(text)) => text.len(),
            Some(Content::Parts(parts)) => parts.iter().map(Part::text_bytes).sum(),
        };
        content + self.other.iter().map(|(key, value)| key.len() + text_bytes(value)).sum::<usize>()
    }

    /// The message in the form that templates know, where it has OpenAI's: images without their URLs, the
    /// arguments of tool calls as objects, and reasoning by all its names.
    ///
    /// # Errors
    /// [`ChatError::Arguments`] when the arguments of a call are a text that is no JSON object.
    pub(crate) fn for_template(self) -> Result<Self, ChatError> {
        let mut message = self.without_urls();
        let calls = message.other.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            read_arguments(call)?;
        }
        message.alias_reasoning();
        Ok(message)
    }

    /// Gives the model's reasoning the names that templates know it by, as transformers does.
    fn alias_reasoning(&mut self) {
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

/// Arguments that are a text, as OpenAI has them, as the object that this is; and an empty one where there are
/// none.
fn read_arguments(call: &mut Value) -> Result<(), ChatError> {
    let function = match call.get("function") {
        Some(Value::Object(_)) => &mut call["function"],
        _ => call,
    };
    let text = match function.get("arguments") {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) => text.trim(),
        Some(_) => return Ok(()),
    };
    if !function.is_object() {
        return Ok(());
    }
    let arguments = match text {
        "" => Ok(Map::new()),
        text => large_numbers::from_str::<Map<String, Value>>(text),
    };
    let arguments = arguments.map_err(|error| {
        let name = function["name"].as_str().unwrap_or_default().to_owned();
        ChatError::Arguments { name, message: error.to_string() }
    })?;
    function["arguments"] = arguments.into();
    Ok(())
}
