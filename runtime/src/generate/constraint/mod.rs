//! Answers that keep to a form: a JSON Schema, a regular expression, a grammar or a list of choices.

mod formats;
mod grammars;
mod lark;
mod limits;
mod mask;
mod vocabulary;

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

pub(crate) use grammars::Grammars;
pub(crate) use mask::{Mask, MaskTime, Masks};

/// What an answer must be. Where the prompt ends with the start of the model's thinking, it is what comes
/// after that.
///
/// ```
/// # use lfm2vl::{Constraint, GenerationOptions};
/// let schema = serde_json::json!({
///     "type": "object",
///     "properties": {"animal": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0}},
///     "required": ["animal", "count"],
///     "additionalProperties": false,
/// });
/// let options = GenerationOptions {
///     constraint: Some(Constraint::JsonSchema(schema)),
///     ..GenerationOptions::default()
/// };
/// ```
///
/// There are limits of what a constraint may cost to be made: 64 KiB, 4 KiB of a regular expression, 16
/// `patternProperties` of an object, three digits of `multipleOf`, numbers below 2^53, four patterns or
/// intersections that hold together, and llguidance's own.
///
/// An answer that ends because it is [too long](crate::FinishReason::Length) may be incomplete.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Constraint {
    /// JSON that this schema allows, on one line with a space after each comma and colon. What of JSON
    /// Schema is supported, and the key `x-guidance` that changes how JSON is written, are those of
    /// [llguidance](https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md); a schema with
    /// anything else is an error.
    JsonSchema(Value),
    /// Text that this regular expression matches as a whole, in the syntax of the crate `regex` without
    /// anchors and lookaround.
    Regex(String),
    /// Text of this grammar, in
    /// [llguidance's variant of Lark](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
    /// Names such as `<|tool_call_start|>` in it are special tokens.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl Constraint {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Constraint::JsonSchema(json!({"type": "object"}))
    }

    /// A text as a string of a [`Lark`](Self::Lark) grammar.
    pub fn lark_string(text: &str) -> String {
        lark::quoted(text)
    }

    /// JSON of a schema as a part of a [`Lark`](Self::Lark) grammar, written as that of
    /// [`JsonSchema`](Self::JsonSchema).
    pub fn lark_json(schema: &Value) -> String {
        format!("{} {}", lark::JSON, on_one_line(schema))
    }

    /// What is wrong with it before any grammar is made.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        match self {
            Constraint::Choice(choices) if choices.is_empty() => Err("there is no choice"),
            Constraint::Choice(choices) if choices.iter().any(String::is_empty) => {
                Err("a choice has no text")
            }
            Constraint::JsonSchema(Value::Bool(false)) => Err("the schema allows nothing"),
            Constraint::JsonSchema(schema) if !schema.is_object() && !schema.is_boolean() => {
                Err("a JSON Schema is an object")
            }
            _ => Ok(()),
        }
    }

    fn grammar(&self) -> TopLevelGrammar {
        match self {
            Constraint::JsonSchema(schema) => {
                TopLevelGrammar::from_json_schema(formats::as_patterns(&on_one_line(schema)))
            }
            Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Constraint::Lark(grammar) => {
                TopLevelGrammar::from_lark(formats::as_patterns_in(grammar))
            }
            Constraint::Choice(choices) => {
                let choices: Vec<String> = choices.iter().map(|c| lark::quoted(c)).collect();
                // One terminal: rules may not have so many alternatives.
                let choices = choices.join(" | ");
                TopLevelGrammar::from_lark(format!("start: CHOICE\nCHOICE: {choices}"))
            }
        }
    }
}

/// A schema whose JSON has no line breaks, unless it says otherwise: a model may write blanks for ever.
fn on_one_line(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(schema) => schema.clone(),
        _ => serde_json::Map::new(),
    };
    let style =
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    schema.entry("x-guidance").or_insert(style);
    schema.into()
}
