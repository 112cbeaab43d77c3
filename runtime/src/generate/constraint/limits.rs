//! What a constraint may cost to be made into a grammar. llguidance bounds most of it by fuel; what is here grows
//! faster than that sees.

use serde_json::{Map, Value};

use super::{
    Constraint,
    lark::{self, Piece},
};

/// Bytes of a constraint's text.
const MOST_BYTES: usize = 64 << 10;

/// Bytes of a regular expression: what it costs grows with their square.
const LONGEST_REGEX: usize = 4 << 10;

/// Patterns of names in one object: each is compared with each.
const MOST_PATTERN_PROPERTIES: usize = 16;

/// Digits of `multipleOf` without the zeros around them, as a number, and the product of those that hold for
/// one value: an automaton has as many states.
const LARGEST_MULTIPLE: u64 = 1000;

/// From here on, whole numbers are not told apart by readers of JSON whose numbers are floats.
const TOO_LARGE: f64 = 9_007_199_254_740_992.0;

/// Intersections of regular expressions in a grammar: each may multiply the states of an automaton.
const MOST_INTERSECTIONS: usize = 4;

/// Checks what can be told before a grammar is made.
pub(super) fn check(constraint: &Constraint) -> Result<(), String> {
    let bytes = match constraint {
        Constraint::JsonSchema(schema) => schema.to_string().len(),
        Constraint::Regex(text) | Constraint::Lark(text) => text.len(),
        Constraint::Choice(choices) => choices.iter().map(String::len).sum(),
    };
    if bytes > MOST_BYTES {
        return Err(format!("it has {bytes} bytes, more than the limit of {MOST_BYTES}"));
    }
    match constraint {
        Constraint::JsonSchema(schema) => check_schema(schema),
        Constraint::Regex(regex) => check_regex(regex),
        Constraint::Lark(grammar) => check_lark(grammar),
        Constraint::Choice(_) => Ok(()),
    }
}

fn check_regex(regex: &str) -> Result<(), String> {
    if regex.len() > LONGEST_REGEX {
        Err(format!(
            "a regular expression has {} bytes, more than the limit of {LONGEST_REGEX}",
            regex.len()
        ))
    } else {
        Ok(())
    }
}

/// Checks the schemas in a grammar, and its lines that may have a regular expression.
fn check_lark(grammar: &str) -> Result<(), String> {
    let mut rest = String::new();
    for piece in lark::pieces(grammar) {
        match piece {
            Piece::Text(text) => rest.push_str(text),
            Piece::Schema(schema) => check_schema(&schema)?,
        }
    }
    let (intersections, longest_regex) = scan(&rest);
    if intersections > MOST_INTERSECTIONS {
        return Err(format!(
            "it has {intersections} intersections (&), more than the limit of {MOST_INTERSECTIONS}"
        ));
    }
    check_regex(longest_regex)
}

/// How many intersections a grammar has, and its longest regular expression. In strings, regular expressions and
/// comments, `&` is a character as any other.
fn scan(grammar: &str) -> (usize, &str) {
    let (mut intersections, mut longest) = (0, "");
    let mut rest = grammar;
    while let Some(at) = rest.find(['"', '/', '&']) {
        let (mark, after) = (rest.as_bytes()[at], &rest[at + 1..]);
        let length = match mark {
            b'&' => {
                intersections += 1;
                0
            }
            b'/' if after.starts_with('/') => after.find('\n').unwrap_or(after.len()),
            quote => {
                let mut is_escaped = false;
                let end = after.bytes().position(|byte| {
                    let ends = byte == quote && !is_escaped;
                    is_escaped = byte == b'\\' && !is_escaped;
                    ends
                });
                let end = end.unwrap_or(after.len());
                if quote == b'/' && end > longest.len() {
                    longest = &after[..end];
                }
                (end + 1).min(after.len())
            }
        };
        rest = &after[length..];
    }
    (intersections, longest)
}

fn check_schema(schema: &Value) -> Result<(), String> {
    match schema {
        Value::Array(items) => items.iter().try_for_each(check_schema),
        Value::Object(keys) => {
            let patterns = keys.get("patternProperties").and_then(Value::as_object);
            let of_names = patterns.into_iter().flatten().map(|(name, _)| name.as_str());
            let of_text = keys.get("pattern").and_then(Value::as_str);
            of_names.chain(of_text).try_for_each(check_regex)?;
            let patterns = patterns.map_or(0, Map::len);
            let together = together(keys);
            if together > MOST_INTERSECTIONS {
                return Err(format!(
                    "{together} patterns or formats of one text, more than the limit of {MOST_INTERSECTIONS}"
                ));
            }
            if patterns > MOST_PATTERN_PROPERTIES {
                return Err(format!(
                    "patternProperties has {patterns} patterns, more than the limit of {MOST_PATTERN_PROPERTIES}"
                ));
            }
            if multiple(keys) > LARGEST_MULTIPLE {
                return Err(format!(
                    "multipleOf has too many digits: without zeros around them, {LARGEST_MULTIPLE} is the limit"
                ));
            }
            keys.values().try_for_each(check_schema)
        }
        Value::Number(number) if number.as_f64().is_none_or(|n| n.abs() >= TOO_LARGE) => {
            Err(format!("the number {number} is 2^53 or more"))
        }
        _ => Ok(()),
    }
}

/// How many patterns and formats hold for one text, as far as that can be told without following references.
fn together(schema: &Map<String, Value>) -> usize {
    let own = ["pattern", "format"].iter().filter(|key| schema.contains_key(**key)).count();
    let all_of = schema.get("allOf").and_then(Value::as_array).into_iter().flatten();
    own + all_of.filter_map(Value::as_object).map(together).sum::<usize>()
}

/// The product of all `multipleOf` that hold for one value, as far as that can be told without following
/// references.
fn multiple(schema: &Map<String, Value>) -> u64 {
    let own = schema.get("multipleOf").map_or(1, significand);
    let all_of = schema.get("allOf").and_then(Value::as_array).into_iter().flatten();
    let all_of = all_of.filter_map(Value::as_object).map(multiple);
    all_of.fold(own, u64::saturating_mul)
}

/// The digits of a number without the zeros around them: 25 of 0.0025 and of 2500.
fn significand(number: &Value) -> u64 {
    let text = number.to_string();
    let digits = text.split(['e', 'E']).next().unwrap_or_default().replace(['.', '-'], "");
    let digits = digits.trim_start_matches('0').trim_end_matches('0');
    if digits.is_empty() { 1 } else { digits.parse().unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_cost_too_much_is_refused() {
        let schema = |schema: Value| check(&Constraint::JsonSchema(schema));
        assert!(schema(json!({"multipleOf": 0.025})).is_ok());
        assert!(schema(json!({"multipleOf": 65537})).is_err());
        assert!(schema(json!({"multipleOf": 1e-300})).is_ok());
        assert!(
            schema(json!({"properties": {"a": {"multipleOf": 97}, "b": {"multipleOf": 89}}}))
                .is_ok()
        );
        assert!(schema(json!({"allOf": [{"multipleOf": 97}, {"multipleOf": 89}]})).is_err());
        let patterns: Map<String, Value> = (0..17).map(|i| (format!("^{i}$"), json!({}))).collect();
        assert!(schema(json!({"items": {"patternProperties": patterns}})).is_err());
        let long = "x".repeat(MOST_BYTES + 1);
        assert!(check(&Constraint::Regex(long.clone())).is_err());
        assert!(check(&Constraint::Choice(vec![long])).is_err());
        let regex = "a?".repeat(LONGEST_REGEX);
        assert!(check(&Constraint::Lark(format!("start: /{regex}/"))).is_err());
        assert!(schema(json!({"pattern": regex})).is_err());
        assert!(check(&Constraint::Regex(regex)).is_err());
        assert!(schema(json!({"const": i64::MIN})).is_err());
        assert!(schema(json!({"minimum": -9_007_199_254_740_991_i64})).is_ok());
        let terms = vec!["/.*a.{2}b.*/"; 38].join(" & ");
        assert!(check(&Constraint::Lark(format!("start: A\nA: {terms}"))).is_err());
        // A quote in a regular expression hides nothing.
        assert!(check(&Constraint::Lark(format!("start: A\nA: /\"/ & {terms}"))).is_err());
        let long = format!("start: /\"{}\n{}/", "a?".repeat(1500), "a?".repeat(1500));
        assert!(check(&Constraint::Lark(long)).is_err());
        assert!(check(&Constraint::Lark("// & & & & & &\nstart: /&&&&&&\\/&/".into())).is_ok());
        let patterns = vec![json!({"pattern": "a"}); 9];
        assert!(schema(json!({"allOf": patterns})).is_err());
        assert!(check(&Constraint::Lark("start: \"&&&&&&\\\"&\" | \"&\"".into())).is_ok());
        let lark = "start: \"a\" %json {\"multipleOf\": 65537} \"b\"";
        assert!(check(&Constraint::Lark(lark.into())).is_err());
    }
}
