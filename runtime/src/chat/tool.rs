//! Tools that the model may call, and the calls it writes.

use serde_json::{Map, Value, json};

use super::large_numbers;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does, for the model to know when to call it.
    pub description: String,
    /// JSON Schema of its arguments: an object.
    pub parameters: Value,
}

impl Tool {
    /// The tool as chat templates know it: OpenAI's `{"type": "function", "function": ...}`.
    pub fn to_json(&self) -> Value {
        json!({
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        })
    }
}

/// A call that the model wants to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Name of the function.
    pub name: String,
    /// Its arguments by name, in the order in which the model wrote them.
    pub arguments: Map<String, Value>,
}

impl ToolCall {
    /// The call as chat templates know it, for a message's `tool_calls`.
    pub fn to_json(&self) -> Value {
        json!({
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        })
    }

    /// Reads calls as LFM2 writes them between `<|tool_call_start|>` and `<|tool_call_end|>`: a
    /// Python list of calls with keyword arguments, such as `[f(a="x", b=3)]`; or, where the
    /// system prompt asks for it, JSON with `name` and `arguments` (or `parameters`).
    ///
    /// Values are Python literals; `true`, `false`, `null` and line breaks in strings are taken
    /// too, as templates write them. Numbers of JSON beyond the largest double become that.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let text = text.trim();
        let is_json = text.starts_with('{')
            || text.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('{'));
        if is_json {
            return from_json(text);
        }
        let mut reader = Reader { text, position: 0, depth: 0 };
        let calls = reader.calls()?;
        match reader.peek() {
            None => Ok(calls),
            Some(_) => Err(reader.wrong("the end")),
        }
    }
}

fn from_json(text: &str) -> Result<Vec<ToolCall>, String> {
    let value: Value = large_numbers::from_str(text).map_err(|error| error.to_string())?;
    let calls = match value {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let call = |value: &Value| {
        let name = value.get("name").and_then(Value::as_str).ok_or("a call has no name")?;
        // As `parameters`, where the model follows Llama's prompt.
        let arguments = value.get("arguments").or_else(|| value.get("parameters"));
        let arguments = match arguments {
            Some(Value::Object(arguments)) => arguments.clone(),
            None | Some(Value::Null) => Map::new(),
            Some(_) => return Err(format!("the arguments of {name} are no object")),
        };
        Ok(ToolCall { name: name.to_owned(), arguments })
    };
    calls.iter().map(call).collect()
}

/// Lists in lists that are read at most.
const MAX_DEPTH: usize = 64;

/// Reads Python calls and literals, front to back.
struct Reader<'t> {
    text: &'t str,
    position: usize,
    depth: usize,
}

type Read<T> = Result<T, String>;

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.position..]
    }

    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_start().len();
        self.rest().chars().next()
    }

    fn wrong(&self, expected: &str) -> String {
        let found: String = self.rest().chars().take(12).collect();
        if found.is_empty() {
            format!("{expected} expected at the end")
        } else {
            format!("{expected} expected at '{found}'")
        }
    }

    /// Takes `mark` if it comes next.
    fn take(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(mark);
        if found {
            self.position += mark.len_utf8();
        }
        found
    }

    fn expect(&mut self, mark: char) -> Read<()> {
        if self.take(mark) { Ok(()) } else { Err(self.wrong(&format!("'{mark}'"))) }
    }

    /// Takes what `belongs` from here on.
    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.position += end;
        &rest[..end]
    }

    /// Items up to `close`, with commas between them, and whether one comes last, as it may.
    fn items<T>(
        &mut self,
        close: char,
        item: impl Fn(&mut Self) -> Read<T>,
    ) -> Read<(Vec<T>, bool)> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("the values are nested too deeply".into());
        }
        let mut items = Vec::new();
        let mut comma = false;
        while !self.take(close) {
            items.push(item(self)?);
            comma = self.take(',');
            if !comma {
                self.expect(close)?;
                break;
            }
        }
        self.depth -= 1;
        Ok((items, comma))
    }

    fn calls(&mut self) -> Read<Vec<ToolCall>> {
        self.expect('[')?;
        Ok(self.items(']', Self::call)?.0)
    }

    fn name(&mut self, more: &[char]) -> Read<String> {
        let starts = |c: char| c.is_alphabetic() || c == '_';
        if !self.peek().is_some_and(starts) {
            return Err(self.wrong("a name"));
        }
        let belongs = |c: char| c.is_alphanumeric() || c == '_' || more.contains(&c);
        Ok(self.take_while(belongs).to_owned())
    }

    fn call(&mut self) -> Read<ToolCall> {
        // Names of tools on a server may have dots and dashes.
        let name = self.name(&['.', '-'])?;
        self.expect('(')?;
        let mut arguments = Map::new();
        for (key, value) in self.items(')', Self::argument)?.0 {
            if arguments.contains_key(&key) {
                return Err(format!("the argument {key} of {name} comes twice"));
            }
            arguments.insert(key, value);
        }
        Ok(ToolCall { name, arguments })
    }

    fn argument(&mut self) -> Read<(String, Value)> {
        let key = self.name(&[])?;
        self.expect('=')?;
        Ok((key, self.value()?))
    }

    fn value(&mut self) -> Read<Value> {
        match self.peek() {
            Some('"' | '\'') => Ok(Value::String(self.strings()?)),
            Some('[') => {
                self.expect('[')?;
                Ok(Value::Array(self.items(']', Self::value)?.0))
            }
            Some('(') => self.tuple(),
            Some('{') => {
                self.expect('{')?;
                Ok(Value::Object(self.items('}', Self::entry)?.0.into_iter().collect()))
            }
            Some('0'..='9' | '.' | '-' | '+') => self.number(),
            _ => {
                let start = self.position;
                match self.take_while(|c| c.is_alphanumeric() || c == '_') {
                    "True" | "true" => Ok(Value::Bool(true)),
                    "False" | "false" => Ok(Value::Bool(false)),
                    "None" | "null" => Ok(Value::Null),
                    _ => {
                        self.position = start;
                        Err(self.wrong("a value"))
                    }
                }
            }
        }
    }

    /// A tuple; with one value and no comma it is just that value in parentheses.
    fn tuple(&mut self) -> Read<Value> {
        self.expect('(')?;
        let (mut items, comma) = self.items(')', Self::value)?;
        Ok(if items.len() == 1 && !comma { items.remove(0) } else { Value::Array(items) })
    }

    fn entry(&mut self) -> Read<(String, Value)> {
        if !matches!(self.peek(), Some('"' | '\'')) {
            return Err(self.wrong("a key in quotes"));
        }
        let key = self.strings()?;
        self.expect(':')?;
        Ok((key, self.value()?))
    }

    fn number(&mut self) -> Read<Value> {
        let start = self.position;
        let sign = self.take_while(|c| c == '-' || c == '+');
        let mut previous = ' ';
        let rest = self.rest();
        let digits_end = rest.find(|c: char| {
            let belongs = c.is_ascii_alphanumeric()
                || matches!(c, '.' | '_')
                || (matches!(c, '-' | '+') && matches!(previous, 'e' | 'E'));
            previous = c;
            !belongs
        });
        let digits = &rest[..digits_end.unwrap_or(rest.len())];
        self.position += digits.len();
        let number = sign.len().le(&1).then(|| number(digits)).flatten();
        let negative = sign == "-";
        let number = number.and_then(|number| match (number, negative) {
            (number, false) => Some(number),
            (Value::Number(n), true) => match (n.as_u64(), n.as_f64()) {
                (Some(whole), real) => match i64::try_from(-i128::from(whole)) {
                    Ok(whole) => Some(Value::from(whole)),
                    Err(_) => real.map(|real| Value::from(-real)),
                },
                (None, real) => real.map(|real| Value::from(-real)),
            },
            _ => None,
        });
        number.ok_or_else(|| {
            self.position = start;
            self.wrong("a number")
        })
    }

    /// A string, or several one after the other.
    fn strings(&mut self) -> Read<String> {
        let mut text = String::new();
        while let Some(quote @ ('"' | '\'')) = self.peek() {
            self.string(quote, &mut text)?;
        }
        Ok(text)
    }

    fn string(&mut self, quote: char, text: &mut String) -> Read<()> {
        let start = self.position;
        let triple = String::from(quote).repeat(3);
        let end = if self.rest().starts_with(&triple) { triple } else { quote.to_string() };
        self.position += end.len();
        loop {
            if self.rest().starts_with(&end) {
                self.position += end.len();
                return Ok(());
            }
            match self.rest().chars().next() {
                Some('\\') => self.escape(text)?,
                Some(character) => {
                    text.push(character);
                    self.position += character.len_utf8();
                }
                None => {
                    self.position = start;
                    return Err(self.wrong("a string that ends"));
                }
            }
        }
    }

    /// An escape sequence of Python's strings.
    fn escape(&mut self, text: &mut String) -> Read<()> {
        let mut sequence = self.rest().chars().skip(1);
        let Some(kind) = sequence.next() else { return Err(self.wrong("a character after \\")) };
        let coded = |digits: usize, radix: u32| {
            let start = self.position + if radix == 16 { 2 } else { 1 };
            let digits = self.text.get(start..start + digits)?;
            let all_digits = digits.chars().all(|digit| digit.is_digit(radix));
            let digits = Some(digits).filter(|_| all_digits)?;
            char::from_u32(u32::from_str_radix(digits, radix).ok()?)
        };
        let octal = self.rest()[1..].chars().take(3).take_while(|c| c.is_digit(8)).count();
        let (character, length) = match kind {
            '\n' => (None, 2),
            'n' => (Some('\n'), 2),
            't' => (Some('\t'), 2),
            'r' => (Some('\r'), 2),
            'a' => (Some('\u{7}'), 2),
            'b' => (Some('\u{8}'), 2),
            'f' => (Some('\u{C}'), 2),
            'v' => (Some('\u{B}'), 2),
            '\\' | '\'' | '"' => (Some(kind), 2),
            'x' => {
                (Some(coded(2, 16).ok_or_else(|| self.wrong("the two digits of a character"))?), 4)
            }
            'u' => {
                (Some(coded(4, 16).ok_or_else(|| self.wrong("the four digits of a character"))?), 6)
            }
            'U' => (
                Some(coded(8, 16).ok_or_else(|| self.wrong("the eight digits of a character"))?),
                10,
            ),
            '0'..='7' => (coded(octal, 8), 1 + octal),
            // Others stand for themselves, with the backslash.
            _ => (Some('\\'), 1),
        };
        text.extend(character);
        self.position += length;
        Ok(())
    }
}

/// An unsigned Python number: decimal, hexadecimal, octal or binary, with underscores between
/// digits; a whole number beyond 64 bits becomes a float.
fn number(digits: &str) -> Option<Value> {
    let misplaced = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    if misplaced {
        return None;
    }
    let plain = digits.replace('_', "").to_ascii_lowercase();
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(rest) = plain.strip_prefix(prefix) {
            return u64::from_str_radix(rest, radix).ok().map(Value::from);
        }
    }
    if plain.bytes().all(|b| b.is_ascii_digit()) {
        let zeros = plain.len() > 1 && plain.starts_with('0') && plain.bytes().any(|b| b != b'0');
        if zeros {
            return None;
        }
        let whole = plain.parse::<u64>().map(Value::from);
        return whole.ok().or_else(|| finite(&plain));
    }
    let is_decimal = plain.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'-' | b'+'));
    let has_digit = plain.starts_with(|c: char| c.is_ascii_digit())
        || plain[1..].starts_with(|c: char| c.is_ascii_digit());
    (is_decimal && has_digit).then(|| finite(&plain))?
}

fn finite(number: &str) -> Option<Value> {
    number.parse().ok().filter(|number: &f64| number.is_finite()).map(Value::from)
}
