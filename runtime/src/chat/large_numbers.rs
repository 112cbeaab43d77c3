//! JSON whose numbers may be beyond those of a double, as a model that may write any number writes them.

use serde::de::DeserializeOwned;

/// Reads JSON. Numbers beyond the largest double become the largest one.
///
/// # Errors
/// The text is no such JSON.
pub(super) fn from_str<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text).or_else(|error| match with_doubles(text) {
        Some(text) => serde_json::from_str(&text),
        None => Err(error),
    })
}

/// The text with its too large numbers replaced; `None` where it has none.
fn with_doubles(text: &str) -> Option<String> {
    let (mut replaced, mut done) = (String::new(), 0);
    let (mut position, mut in_string) = (0, false);
    while let Some(&byte) = text.as_bytes().get(position) {
        let is_number = |byte: u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
        let mut length = 1;
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => length = 2,
            b'-' | b'0'..=b'9' if !in_string => {
                let bytes = text[position..].bytes();
                length = bytes.take_while(|&byte| is_number(byte)).count();
                let number: f64 = text[position..position + length].parse().unwrap_or_default();
                if number.is_infinite() {
                    replaced.push_str(&text[done..position]);
                    replaced.push_str(&format!("{:e}", f64::MAX.copysign(number)));
                    done = position + length;
                }
            }
            _ => {}
        }
        position += length;
    }
    (done > 0).then(|| replaced + &text[done..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn numbers_beyond_a_double_become_the_largest() {
        let text = r#"{"a\"1e999": "é\\1e999", "b": [1e999, -2.5E+400,3e-999], "c": 1}"#;
        let expected = json!({"a\"1e999": "é\\1e999", "b": [f64::MAX, f64::MIN, 0.0], "c": 1});
        assert_eq!(from_str::<Value>(text).unwrap(), expected);
        for wrong in ["{", "[1e999", "1e999e", "\"\\", "[1e999 2]", "\\é"] {
            assert!(from_str::<Value>(wrong).is_err(), "{wrong}");
        }
    }
}
