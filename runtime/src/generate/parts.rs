//! Which part of an answer its text belongs to, while it is made.

use std::collections::VecDeque;

use super::Part;

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";
const CALL: &str = "<|tool_call_start|>";
const END_CALL: &str = "<|tool_call_end|>";

/// Follows the text of an answer from part to part. Tags of thinking may be special tokens, which are
/// not in the text, or text; those of tool calls are special tokens, or else no tags.
pub(super) struct Parts {
    current: Part,
    /// Bytes of text so far.
    length: usize,
    /// Where the text goes on as another part: its beginning, and the part.
    changes: VecDeque<(usize, Part)>,
    /// The last bytes of thinking, in which an end tag may have begun.
    tail: String,
    /// The first text, as long as it may become a tag.
    held: Option<String>,
}

impl Parts {
    /// The parts of the answer to a prompt, which may begin the thinking itself.
    pub(super) fn new(prompt: &str) -> Self {
        let thinks = prompt.trim_end().ends_with(THINK);
        let current = if thinks { Part::Thinking } else { Part::Text };
        Parts {
            current,
            length: 0,
            changes: VecDeque::from([(0, current)]),
            tail: String::new(),
            held: (!thinks).then(String::new),
        }
    }

    /// The part that the next text belongs to, as far as it is known.
    pub(super) fn current(&self) -> Part {
        self.current
    }

    /// Takes in a special token.
    pub(super) fn special(&mut self, token: &str) {
        match token {
            THINK => self.change(self.length, Part::Thinking),
            CALL => self.change(self.length, Part::ToolCall),
            END_THINK | END_CALL => self.change(self.length, Part::Text),
            _ => {}
        }
    }

    /// Takes in text. Gives what is certain to belong where it is.
    pub(super) fn text(&mut self, text: &str) -> String {
        let Some(mut held) = self.held.take() else {
            self.follow(text);
            return text.to_owned();
        };
        held.push_str(text);
        let begun = held.trim_start();
        if begun.starts_with(THINK) {
            self.change(self.length, Part::Thinking);
        } else if THINK.starts_with(begun) {
            self.held = Some(held);
            return String::new();
        }
        self.follow(&held);
        held
    }

    /// The text still held back, at the end.
    pub(super) fn finish(&mut self) -> String {
        let held = self.held.take().unwrap_or_default();
        self.follow(&held);
        held
    }

    /// Cuts text that begins at byte `start` of the answer into its parts.
    pub(super) fn cut(&mut self, start: usize, text: &str) -> Vec<(Part, String)> {
        let mut pieces = Vec::new();
        let (mut at, end) = (start, start + text.len());
        while at < end {
            while self.changes.get(1).is_some_and(|&(begin, _)| begin <= at) {
                self.changes.pop_front();
            }
            let part = self.changes.front().map_or(self.current, |&(_, part)| part);
            let until = self.changes.get(1).map_or(end, |&(begin, _)| begin.min(end));
            pieces.push((part, text[at - start..until - start].to_owned()));
            at = until;
        }
        pieces
    }

    fn follow(&mut self, text: &str) {
        let start = self.length;
        self.length += text.len();
        if self.current != Part::Thinking {
            return;
        }
        let before = self.tail.len();
        self.tail.push_str(text);
        if let Some(found) = self.tail.find(END_THINK) {
            let end = start + found + END_THINK.len() - before;
            self.tail.clear();
            return self.change(end, Part::Text);
        }
        let mut keep = self.tail.len().saturating_sub(END_THINK.len() - 1);
        while !self.tail.is_char_boundary(keep) {
            keep += 1;
        }
        self.tail.drain(..keep);
    }

    fn change(&mut self, at: usize, part: Part) {
        if part != self.current {
            self.current = part;
            self.changes.push_back((at, part));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(prompt: &str, pieces: &[&str]) -> Vec<(Part, String)> {
        let mut parts = Parts::new(prompt);
        let mut cut: Vec<(Part, String)> = Vec::new();
        let mut length = 0;
        let mut give = |parts: &mut Parts, text: &str| {
            for (part, text) in parts.cut(length, text) {
                match cut.last_mut() {
                    Some((last, all)) if *last == part => all.push_str(&text),
                    _ => cut.push((part, text)),
                }
            }
            length += text.len();
        };
        for piece in pieces {
            if piece.starts_with("<|") {
                parts.special(piece)
            } else {
                let text = parts.text(piece);
                give(&mut parts, &text);
            }
        }
        let rest = parts.finish();
        give(&mut parts, &rest);
        cut
    }

    #[test]
    fn parts_are_told_wherever_the_text_is_cut() {
        let (thinking, text, call) = (Part::Thinking, Part::Text, Part::ToolCall);
        let all = |parts: &[(Part, &str)]| -> Vec<(Part, String)> {
            parts.iter().map(|&(part, text)| (part, text.to_owned())).collect()
        };
        assert_eq!(run("", &["Hel", "lo"]), all(&[(text, "Hello")]));
        let expected = all(&[(thinking, "<think>é?</think>"), (text, "Yes")]);
        assert_eq!(run("", &["<think>é?</think>Yes"]), expected);
        assert_eq!(run("", &["<th", "ink", ">é?<", "/think", ">Y", "es"]), expected);
        let expected = all(&[(thinking, "Hm</think>"), (text, "Yes")]);
        assert_eq!(run("x<think>\n", &["Hm<", "/think>Yes"]), expected);
        assert_eq!(run("", &["<t", "hat"]), all(&[(text, "<that")]));
        assert_eq!(run("", &["<thin"]), all(&[(text, "<thin")]));
        let pieces = ["A", "<|tool_call_start|>", "[f()]", "<|tool_call_end|>", "B"];
        assert_eq!(run("", &pieces), all(&[(text, "A"), (call, "[f()]"), (text, "B")]));
    }
}
