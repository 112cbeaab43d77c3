//! Values as Python's `str` and `repr` write them: what Jinja prints and templates rely on.

use super::Cover;
use minijinja::value::{Value, ValueKind};
use unicode_general_category::{GeneralCategory, get_general_category};

/// `str(value)`.
pub(super) fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.to_string(),
        ValueKind::Undefined => String::new(),
        _ => repr(value),
    }
}

fn repr(value: &Value) -> String {
    let list = |value: &Value| -> Vec<String> {
        value.try_iter().map(|items| items.map(|item| repr(&item)).collect()).unwrap_or_default()
    };
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::String => quote(&value.to_string()),
        ValueKind::Seq | ValueKind::Iterable => format!("[{}]", list(value).join(", ")),
        ValueKind::Map => {
            let entry = |key: Value| {
                let value = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key), repr(&value))
            };
            let entries: Vec<String> =
                value.try_iter().map(|keys| keys.map(entry).collect()).unwrap_or_default();
            format!("{{{}}}", entries.join(", "))
        }
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
        }
        _ => value.to_string(),
    }
}

/// `repr` of a float: the fewest digits that give it back, with an exponent for very large and
/// very small ones.
pub(super) fn float(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "nan".into() } else { format!("{value}") };
    }
    let scientific = format!("{value:e}");
    let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if (-4..16).contains(&exponent) || value == 0.0 {
        return format!("{value:?}");
    }
    let digits = scientific.split('e').next().unwrap_or_default();
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A string literal: single quotes, unless the text has these and no double ones.
fn quote(text: &str) -> String {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::from(mark);
    for c in text.chars() {
        match c {
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\\' => quoted.push_str("\\\\"),
            c if c == mark => quoted.extend(['\\', c]),
            c if !is_printable(c) => quoted.push_str(&match c as u32 {
                code @ ..0x100 => format!("\\x{code:02x}"),
                code @ ..0x10000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
            c => quoted.push(c),
        }
    }
    quoted.push(mark);
    quoted
}

/// Python's `str.isprintable`, for one character.
fn is_printable(character: char) -> bool {
    use GeneralCategory::*;
    character == ' '
        || Cover::is_stand_in(character)
        || !matches!(
            get_general_category(character),
            Control
                | Format
                | Surrogate
                | PrivateUse
                | Unassigned
                | LineSeparator
                | ParagraphSeparator
                | SpaceSeparator
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_prints_them() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.5e300, "-1.5e+300"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, expected) in cases {
            assert_eq!(float(value), expected);
        }
    }

    #[test]
    fn values_as_python_prints_them() {
        let json = serde_json::json!([null, true, 1, 2.5, "it's", "\"'", {"k": [false, "\n"]}]);
        let text = str(&Value::from(minijinja::value::Serde(json)));
        assert_eq!(text, r#"[None, True, 1, 2.5, "it's", '"\'', {'k': [False, '\n']}]"#);
    }
}
