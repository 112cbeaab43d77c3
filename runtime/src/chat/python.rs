//! Values as Python's `str` and `repr` write them: what Jinja prints and templates rely on.

use super::Cover;
use minijinja::{
    Error, ErrorKind,
    value::{Value, ValueKind},
};
use unicode_general_category::{GeneralCategory, get_general_category};

/// Most bytes of a value as text: more than any prompt has use for. A value that holds another one several times
/// takes little memory itself, and its text as much as there is.
pub(super) const MOST_BYTES: usize = 16 << 20;

/// Most values inside each other: Python itself goes no deeper.
pub(super) const DEEPEST: usize = 1000;

/// `str(value)`.
///
/// # Errors
/// For a value that is too long or too deep.
pub(super) fn str(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.to_string()),
        ValueKind::Undefined => Ok(String::new()),
        _ => {
            let mut text = String::new();
            repr(value, 0, &mut text)?;
            Ok(text)
        }
    }
}

fn repr(value: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
    if depth > DEEPEST || text.len() > MOST_BYTES {
        let message = "a value is too long or too deep to be written";
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    match value.kind() {
        ValueKind::None => text.push_str("None"),
        ValueKind::Bool => text.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => text.push_str(&quote(&value.to_string())),
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[');
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                repr(&item, depth + 1, text)?;
            }
            text.push(']');
        }
        ValueKind::Map => {
            text.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                repr(&key, depth + 1, text)?;
                text.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), depth + 1, text)?;
            }
            text.push('}');
        }
        ValueKind::Number if !value.is_integer() => {
            let number = f64::try_from(value.clone());
            text.push_str(&number.map_or_else(|_| value.to_string(), float));
        }
        _ => text.push_str(&value.to_string()),
    }
    Ok(())
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
        let text = str(&Value::from(minijinja::value::Serde(json))).unwrap();
        assert_eq!(text, r#"[None, True, 1, 2.5, "it's", '"\'', {'k': [False, '\n']}]"#);
    }
}
