//! What has to be known of llguidance's variant of Lark: how it writes strings, and where it has JSON Schemas.

use serde_json::Value;

/// A piece of a grammar.
pub(super) enum Piece<'a> {
    Text(&'a str),
    /// The JSON Schema behind a `%json`, with that.
    Schema(Value),
}

/// The pieces of a grammar. What should be a schema and is no JSON is text.
pub(super) fn pieces(grammar: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut text, mut rest) = (Vec::new(), 0, 0);
    while let Some(found) = grammar[rest..].find(JSON) {
        let at = rest + found;
        rest = at + JSON.len();
        let mut values = serde_json::Deserializer::from_str(&grammar[rest..]).into_iter::<Value>();
        if let Some(Ok(schema)) = values.next() {
            rest += values.byte_offset();
            pieces.extend([Piece::Text(&grammar[text..at]), Piece::Schema(schema)]);
            text = rest;
        }
    }
    pieces.push(Piece::Text(&grammar[text..]));
    pieces
}

pub(super) const JSON: &str = "%json";

/// A text as a string of a grammar: as JSON has it, but that U+007F has to be escaped.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
