//! An answer's events as what OpenAI's clients tell apart: thinking, text and calls of functions.

use lfm2vl::{Part, chat};
use serde_json::Value;

use crate::wire::{FunctionCall, ToolCall};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Reasoning(String),
    Content(String),
    /// A whole call.
    Call(ToolCall),
}

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";

/// Follows one answer.
#[derive(Default)]
pub(super) struct Deltas {
    part: Option<Part>,
    /// Thinking whose end may be a tag, or blanks that nothing follows.
    thinking: String,
    has_thought: bool,
    /// What was written of the present list of calls, and how many of them were given out.
    calls: String,
    given: usize,
    has_content: bool,
}

impl Deltas {
    /// Takes in an event's text, which may be empty.
    pub(super) fn push(&mut self, part: Part, text: &str) -> Vec<Piece> {
        let mut pieces = if self.part == Some(part) { Vec::new() } else { self.finish() };
        self.part = Some(part);
        match part {
            Part::Thinking => pieces.extend(self.think(text)),
            Part::ToolCall => {
                self.calls.push_str(text);
                pieces.extend(self.complete_calls());
            }
            _ => pieces.extend(self.say(text)),
        }
        pieces
    }

    /// What is left of the part that ends.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        match self.part.take() {
            Some(Part::Thinking) => {
                let left = std::mem::take(&mut self.thinking);
                let left = left.strip_suffix(END_THINK).unwrap_or(&left).trim_end();
                (!left.is_empty()).then(|| Piece::Reasoning(left.to_owned())).into_iter().collect()
            }
            Some(Part::ToolCall) => self.finish_calls(),
            _ => Vec::new(),
        }
    }

    /// Thinking, without the tags and blanks around it.
    fn think(&mut self, text: &str) -> Option<Piece> {
        self.thinking.push_str(text);
        if !self.has_thought {
            let begun = self.thinking.trim_start();
            if THINK.starts_with(begun) {
                return None;
            }
            self.thinking = begun.strip_prefix(THINK).unwrap_or(begun).trim_start().to_owned();
            self.has_thought = !self.thinking.is_empty();
        }
        let certain = self.thinking.char_indices().map(|(at, _)| at).find(|&at| {
            let tail = &self.thinking[at..];
            END_THINK.starts_with(tail.trim_start()) || tail.trim_start().starts_with(END_THINK)
        });
        let held = self.thinking.split_off(certain.unwrap_or(self.thinking.len()));
        let given = std::mem::replace(&mut self.thinking, held);
        (!given.is_empty()).then_some(Piece::Reasoning(given))
    }

    /// Text, without the blanks between it and thinking.
    fn say(&mut self, text: &str) -> Option<Piece> {
        let follows_thinking = self.has_thought && !self.has_content;
        let text = if follows_thinking { text.trim_start() } else { text };
        self.has_content |= !text.is_empty();
        (!text.is_empty()).then(|| Piece::Content(text.to_owned()))
    }

    /// The calls of the list that are complete and were not given out.
    fn complete_calls(&mut self) -> Vec<Piece> {
        let written = self.calls.trim_end();
        let whole = match written.chars().next_back() {
            Some(')' | '}') => format!("{written}]"),
            Some(']') => written.to_owned(),
            _ => return Vec::new(),
        };
        let calls = chat::ToolCall::parse_all(&whole).unwrap_or_default();
        let new: Vec<Piece> = calls.into_iter().skip(self.given).map(piece).collect();
        self.given += new.len();
        new
    }

    /// The end of a list of calls. One that cannot be read is text, as the model wrote it.
    fn finish_calls(&mut self) -> Vec<Piece> {
        let written = std::mem::take(&mut self.calls);
        let given = std::mem::take(&mut self.given);
        if given == 0 && written.trim().is_empty() {
            return Vec::new();
        }
        match chat::ToolCall::parse_all(&written) {
            Ok(calls) => calls.into_iter().skip(given).map(piece).collect(),
            Err(_) if given > 0 => Vec::new(),
            Err(reason) => {
                tracing::warn!(reason, "the model wrote calls that cannot be read");
                self.say(&written).into_iter().collect()
            }
        }
    }
}

fn piece(call: chat::ToolCall) -> Piece {
    Piece::Call(ToolCall {
        id: format!("call_{}", uuid::Uuid::new_v4().simple()),
        r#type: "function",
        function: FunctionCall {
            name: call.name,
            arguments: Value::from(call.arguments).to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the events give: thinking, text, and names and arguments of calls.
    fn all(events: &[(Part, &str)]) -> (String, String, Vec<String>) {
        let mut deltas = Deltas::default();
        let mut pieces: Vec<Piece> =
            events.iter().flat_map(|&(part, text)| deltas.push(part, text)).collect();
        pieces.extend(deltas.finish());
        let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => reasoning += &text,
                Piece::Content(text) => content += &text,
                Piece::Call(call) => {
                    calls.push(format!("{}{}", call.function.name, call.function.arguments));
                }
            }
        }
        (reasoning, content, calls)
    }

    #[test]
    fn thinking_has_no_tags_wherever_it_is_cut() {
        let (thinking, text) = (Part::Thinking, Part::Text);
        let whole = "<think>\nIs 1 < 2? </thin\n</think>";
        for cut in (0..=whole.len()).filter(|&cut| whole.is_char_boundary(cut)) {
            let events = [(thinking, &whole[..cut]), (thinking, &whole[cut..]), (text, "\n\nYes")];
            let (reasoning, content, _) = all(&events);
            assert_eq!((&*reasoning, &*content), ("Is 1 < 2? </thin", "Yes"), "{cut}");
        }
        let letters: Vec<(Part, &str)> =
            whole.split_inclusive(|_| true).map(|letter| (thinking, letter)).collect();
        assert_eq!(all(&letters).0, "Is 1 < 2? </thin");
        // Without tags, as where the prompt begins the thinking and it does not end.
        assert_eq!(all(&[(thinking, "Hm"), (thinking, " so")]).0, "Hm so");
        assert_eq!(
            all(&[(thinking, "<think></think>"), (text, "Yes")]),
            (String::new(), "Yes".into(), vec![])
        );
    }

    #[test]
    fn calls_are_given_when_they_are_complete() {
        let call = Part::ToolCall;
        let mut deltas = Deltas::default();
        assert!(deltas.push(call, "[f(a=\"x)").is_empty());
        assert_eq!(deltas.push(call, "\", b=[1])").len(), 1);
        assert!(deltas.push(call, ", g(").is_empty());
        assert_eq!(deltas.push(call, ")]").len(), 1);
        assert!(deltas.finish().is_empty());

        let text = Part::Text;
        let (_, content, calls) = all(&[
            (text, "Look: "),
            (call, "[f(a=1), g(b={\"c\": None})]"),
            (text, ""),
            (call, "[{\"name\": \"h\", \"arguments\": {}}]"),
            (text, "There."),
        ]);
        assert_eq!(content, "Look: There.");
        assert_eq!(calls, ["f{\"a\":1}", "g{\"b\":{\"c\":null}}", "h{}"]);
    }

    #[test]
    fn text_keeps_its_blanks() {
        assert_eq!(all(&[(Part::Text, "\n"), (Part::Text, " red ")]).1, "\n red ");
    }

    #[test]
    fn calls_that_cannot_be_read_are_text() {
        assert_eq!(all(&[(Part::ToolCall, "[f(1)]")]), (String::new(), "[f(1)]".into(), vec![]));
    }
}
