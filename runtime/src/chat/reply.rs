//! The parts of an answer: reasoning, text and tool calls.

use serde_json::{Map, Value};

use super::{Content, Message, Role, ToolCall};

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";
const CALL: &str = "<|tool_call_start|>";
const END_CALL: &str = "<|tool_call_end|>";

/// An answer of the model, taken apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// What it thought before it answered, if anything.
    pub thinking: Option<String>,
    /// What it says.
    pub text: String,
    /// The calls it wants to be made, in order.
    pub tool_calls: Vec<ToolCall>,
    /// Calls that could not be read.
    pub malformed: Vec<MalformedCalls>,
}

/// What the model wrote in the place of tool calls, where it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MalformedCalls {
    /// As it wrote it.
    pub text: String,
    /// What is wrong.
    pub reason: String,
}

impl Reply {
    /// Takes an answer apart, of which the special tokens are there as strings.
    ///
    /// Everything up to `</think>` is thinking, also where the prompt has the `<think>` before
    /// it; an answer that ends while it thinks has no text. Between `<|tool_call_start|>` and
    /// `<|tool_call_end|>`, or the end, are calls ([`ToolCall::parse_all`]).
    pub fn parse(answer: &str) -> Self {
        let (thinking, mut rest) = match answer.split_once(END_THINK) {
            Some((thinking, rest)) => (Some(thinking.trim_start()), rest),
            None => match answer.trim_start().strip_prefix(THINK) {
                Some(thinking) => (Some(thinking), ""),
                None => (None, answer),
            },
        };
        let thinking = thinking.map(|t| t.strip_prefix(THINK).unwrap_or(t).trim().to_owned());
        let mut reply = Reply { thinking, ..Reply::default() };
        while let Some((text, after)) = rest.split_once(CALL) {
            reply.text.push_str(text);
            let (calls, after) = match after.split_once(END_CALL) {
                Some((calls, after)) => (ToolCall::parse_all(calls).map_err(|e| (calls, e)), after),
                None => (Err((after, format!("{END_CALL} is missing"))), ""),
            };
            match calls {
                Ok(calls) => reply.tool_calls.extend(calls),
                Err((text, reason)) => {
                    reply.malformed.push(MalformedCalls { text: text.to_owned(), reason });
                }
            }
            rest = after;
        }
        reply.text.push_str(rest);
        reply.text = reply.text.trim().to_owned();
        reply
    }

    /// The reply as a message for a later prompt, its thinking and calls under the names that
    /// templates know.
    pub fn into_message(self) -> Message {
        let mut other = Map::new();
        if let Some(thinking) = self.thinking {
            other.insert("thinking".into(), thinking.into());
        }
        if !self.tool_calls.is_empty() {
            let calls: Vec<Value> = self.tool_calls.iter().map(ToolCall::to_json).collect();
            other.insert("tool_calls".into(), calls.into());
        }
        Message { role: Role::Assistant, content: Some(Content::Text(self.text)), other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_apart_from_the_text() {
        let cases = [
            ("Hello", None, "Hello"),
            ("<think>\nHm.\n</think>\n\nHello", Some("Hm."), "Hello"),
            ("Hm.</think>Hello", Some("Hm."), "Hello"),
            ("<think>Hm, and then", Some("Hm, and then"), ""),
            ("<think></think>Hello", Some(""), "Hello"),
        ];
        for (answer, thinking, text) in cases {
            let reply = Reply::parse(answer);
            assert_eq!((reply.thinking.as_deref(), &*reply.text), (thinking, text), "{answer}");
        }
    }

    #[test]
    fn calls_are_apart_from_the_text() {
        let answer = "<think>Weather.</think><|tool_call_start|>[weather(city=\"Paris\", days=3), \
                      now()]<|tool_call_end|>Let me look.";
        let reply = Reply::parse(answer);
        assert_eq!(reply.text, "Let me look.");
        let names: Vec<&str> = reply.tool_calls.iter().map(|call| &*call.name).collect();
        assert_eq!(names, ["weather", "now"]);
        assert_eq!(reply.tool_calls[0].arguments["city"], "Paris");
        assert_eq!(reply.tool_calls[0].arguments["days"], 3);
        let message = reply.into_message();
        assert_eq!(message.other["thinking"], "Weather.");
        assert_eq!(message.other["tool_calls"][1]["function"]["name"], "now");
    }

    #[test]
    fn json_calls_may_have_parameters_for_arguments() {
        let call = r#"<|tool_call_start|>[{"name": "f", "parameters": {"a": 1}}]<|tool_call_end|>"#;
        let reply = Reply::parse(call);
        assert_eq!(
            (&*reply.tool_calls[0].name, &reply.tool_calls[0].arguments["a"]),
            ("f", &1.into())
        );
    }

    #[test]
    fn malformed_calls_are_text_and_a_reason() {
        let cases = [
            ("<|tool_call_start|>[f(3)]<|tool_call_end|>", "[f(3)]", "a name expected"),
            ("<|tool_call_start|>[f(a=\"x", "[f(a=\"x", "is missing"),
            (
                "<|tool_call_start|>[f(a=b)]<|tool_call_end|>",
                "[f(a=b)]",
                "a value expected at 'b)]'",
            ),
            ("<|tool_call_start|>[f(a=1, a=2)]<|tool_call_end|>", "[f(a=1, a=2)]", "comes twice"),
        ];
        for (answer, text, reason) in cases {
            let reply = Reply::parse(answer);
            assert!(reply.tool_calls.is_empty(), "{answer}");
            assert_eq!(reply.malformed[0].text, text);
            assert!(reply.malformed[0].reason.contains(reason), "{}", reply.malformed[0].reason);
        }
    }
}
