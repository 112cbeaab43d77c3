//! Special-token strings in text from outside: they stay text.

use aho_corasick::AhoCorasick;
use serde_json::{Map, Value};

use super::{ChatError, Content, Message, Part, Role};
#[cfg(feature = "onnxruntime")]
use super::{MalformedCalls, Reply, ToolCall};

/// Keeps text from outside from forging the structure of a prompt.
///
/// A string such as `<|im_end|>` in a message would come out of the template just as those that
/// the template writes itself. So, before rendering, the first character of each is swapped for a
/// stand-in of its own, and nothing takes it for the token any more; afterwards the stand-ins
/// give the text back. They are noncharacters, which Unicode keeps for use inside of programs;
/// where a text has some of its own, they become U+FFFD.
pub(crate) struct Cover {
    tokens: AhoCorasick,
    /// First characters of the tokens; the stand-in of each is the noncharacter at its place.
    first: Vec<char>,
}

const NONCHARACTERS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

impl Cover {
    /// For these special tokens.
    ///
    /// # Errors
    /// [`ChatError::Tokenizer`] when they begin with more different characters than there are
    /// noncharacters.
    pub(crate) fn new(tokens: impl IntoIterator<Item = String>) -> Result<Self, ChatError> {
        let tokens: Vec<String> = tokens.into_iter().filter(|token| !token.is_empty()).collect();
        let mut first: Vec<char> = tokens.iter().filter_map(|t| t.chars().next()).collect();
        first.sort_unstable();
        first.dedup();
        if first.len() > NONCHARACTERS.clone().count() {
            let message = "its special tokens begin with too many different characters";
            return Err(ChatError::Tokenizer(message.into()));
        }
        let tokens = AhoCorasick::new(tokens).map_err(|e| ChatError::Tokenizer(e.to_string()))?;
        Ok(Cover { tokens, first })
    }

    /// A cover that only takes the noncharacters out of a text.
    fn of_nothing() -> Self {
        Cover {
            tokens: AhoCorasick::new([""; 0]).unwrap_or_else(|_| unreachable!()),
            first: Vec::new(),
        }
    }

    /// Whether a character stands for another, and is to be left alone.
    pub(super) fn is_stand_in(character: char) -> bool {
        NONCHARACTERS.contains(&character)
    }

    fn stand_in(&self, character: char) -> Option<char> {
        let place = self.first.binary_search(&character).ok()?;
        NONCHARACTERS.clone().nth(place)
    }

    /// The text with stand-ins in it.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut starts: Vec<usize> =
            self.tokens.find_overlapping_iter(text).map(|found| found.start()).collect();
        starts.sort_unstable();
        let covered = text.char_indices().map(|(at, character)| match self.stand_in(character) {
            Some(stand_in) if starts.binary_search(&at).is_ok() => stand_in,
            _ if NONCHARACTERS.contains(&character) => char::REPLACEMENT_CHARACTER,
            _ => character,
        });
        covered.collect()
    }

    /// The text again.
    pub(crate) fn remove(&self, covered: &str) -> String {
        let original = |character| {
            NONCHARACTERS
                .clone()
                .position(|c| c == character)
                .and_then(|place| self.first.get(place))
        };
        covered.chars().map(|c| original(c).copied().unwrap_or(c)).collect()
    }

    /// Whether a text has stand-ins.
    pub(crate) fn is_covered(&self, text: &str) -> bool {
        text.contains(|character| NONCHARACTERS.contains(&character))
    }

    /// A message with all its text covered; where the text of the system is its author's own, that loses no
    /// more than the noncharacters.
    pub(crate) fn message(&self, message: &Message, covers_system: bool) -> Message {
        if message.role == Role::System && !covers_system {
            return Cover::of_nothing().cover(message);
        }
        self.cover(message)
    }

    fn cover(&self, message: &Message) -> Message {
        let content = message.content.as_ref().map(|content| match content {
            Content::Text(text) => Content::Text(self.text(text)),
            Content::Parts(parts) => Content::Parts(self.parts(parts)),
        });
        Message { role: message.role, content, other: self.map(&message.other) }
    }

    /// Templates write one part after the other, so a token may also start in one and end in
    /// another: all texts are covered as one.
    fn parts(&self, parts: &[Part]) -> Vec<Part> {
        let texts = parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            _ => None,
        });
        let all = self.text(&texts.collect::<String>());
        let mut all = all.chars();
        let covered = parts.iter().map(|part| match part {
            Part::Text(text) => Part::Text(all.by_ref().take(text.chars().count()).collect()),
            Part::Image | Part::ImageUrl(_) => Part::Image,
            Part::Other(value) => Part::Other(self.json(value)),
        });
        covered.collect()
    }

    /// JSON with all its strings covered.
    pub(crate) fn json(&self, value: &Value) -> Value {
        map_strings(value, &|text| self.text(text))
    }

    fn map(&self, map: &Map<String, Value>) -> Map<String, Value> {
        map.iter().map(|(key, value)| (self.text(key), self.json(value))).collect()
    }

    /// A reply that was read from covered text.
    #[cfg(feature = "onnxruntime")]
    pub(crate) fn remove_from_reply(&self, reply: Reply) -> Reply {
        let call = |call: ToolCall| {
            let arguments = call.arguments.iter().map(|(key, value)| {
                (self.remove(key), map_strings(value, &|text| self.remove(text)))
            });
            ToolCall { name: self.remove(&call.name), arguments: arguments.collect() }
        };
        let malformed = |calls: MalformedCalls| MalformedCalls {
            text: self.remove(&calls.text),
            reason: self.remove(&calls.reason),
        };
        Reply {
            thinking: reply.thinking.map(|thinking| self.remove(&thinking)),
            text: self.remove(&reply.text),
            tool_calls: reply.tool_calls.into_iter().map(call).collect(),
            malformed: reply.malformed.into_iter().map(malformed).collect(),
        }
    }
}

fn map_strings(value: &Value, change: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(items) => items.iter().map(|item| map_strings(item, change)).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| (change(key), map_strings(value, change))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover() -> Cover {
        Cover::new(["<image>", "<|im_end|>", "[END]"].map(String::from)).unwrap()
    }

    #[test]
    fn tokens_are_covered_and_other_text_is_not() {
        let text = "a <b> <|im_end|>[END]<<image> [EN D]";
        let covered = cover().text(text);
        assert_eq!(covered, "a <b> \u{FDD0}|im_end|>\u{FDD1}END]<\u{FDD0}image> [EN D]");
        assert!(cover().is_covered(&covered));
        assert_eq!(cover().remove(&covered), text);
        assert_eq!(cover().text("\u{FDD0}|im_end|>"), "\u{FFFD}|im_end|>");
    }

    #[test]
    fn tokens_in_several_parts_are_covered() {
        let message = Message {
            content: Some(Content::Parts(vec![
                Part::Text("<|im_".into()),
                Part::Image,
                Part::Text("end|>".into()),
                Part::Other(serde_json::json!({"<image>": ["<image>"]})),
            ])),
            ..Message::user("")
        };
        let covered = serde_json::to_string(&cover().message(&message, false)).unwrap();
        assert!(!covered.contains("<|im_") && !covered.contains("<image>"), "{covered}");
    }

    #[test]
    fn the_system_speaks_for_itself() {
        let message = Message::system("<|im_end|>");
        assert_eq!(cover().message(&message, false), message);
        assert_ne!(cover().message(&message, true), message);
    }
}
