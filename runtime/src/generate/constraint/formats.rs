//! Formats of JSON Schema that llguidance takes too widely: it lets February have 29 days in any year, and a minute
//! 61 seconds. As patterns, they allow only dates and times that there are.

use serde_json::{Map, Value};

use super::lark::{self, JSON, Piece};

/// From year 1000 on; of February 28 days.
const DATE: &str = "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|\
    (?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))";
const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?\
    (?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";

/// A schema with patterns in the place of these formats.
pub(super) fn as_patterns(schema: &Value) -> Value {
    match schema {
        Value::Array(items) => items.iter().map(as_patterns).collect(),
        Value::Object(keys) => {
            let mut keys: Map<String, Value> = keys
                .iter()
                .map(|(key, value)| match key.as_str() {
                    // These are values, not schemas.
                    "const" | "enum" | "default" | "examples" => (key.clone(), value.clone()),
                    _ => (key.clone(), as_patterns(value)),
                })
                .collect();
            let pattern = match keys.get("format").and_then(Value::as_str) {
                Some("date") => Some(format!("^{DATE}$")),
                Some("time") => Some(format!("^{TIME}$")),
                Some("date-time") => Some(format!("^{DATE}T{TIME}$")),
                _ => None,
            };
            if let Some(pattern) = pattern.filter(|_| !keys.contains_key("pattern")) {
                keys.remove("format");
                keys.insert("pattern".into(), pattern.into());
            }
            keys.into()
        }
        other => other.clone(),
    }
}

/// A Lark grammar with the same done to its schemas.
pub(super) fn as_patterns_in(grammar: &str) -> String {
    let written = lark::pieces(grammar).into_iter().map(|piece| match piece {
        Piece::Text(text) => text.to_owned(),
        Piece::Schema(schema) => format!("{JSON} {}", as_patterns(&schema)),
    });
    written.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formats_become_patterns_where_they_are_formats() {
        let schema =
            json!({"properties": {"format": {"format": "date"}}, "enum": [{"format": "date"}]});
        let changed = as_patterns(&schema);
        assert!(changed["properties"]["format"]["pattern"].as_str().unwrap().starts_with("^[1-9]"));
        assert_eq!(changed["enum"], schema["enum"]);
        let grammar = "start: \"a\" %json {\"format\": \"time\"} \"b\"";
        assert!(as_patterns_in(grammar).contains("\"pattern\":\"^(?:[01]"));
        assert!(as_patterns_in(grammar).ends_with(" \"b\""));
    }
}
