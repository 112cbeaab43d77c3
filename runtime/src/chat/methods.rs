//! Methods of Python's strings and lists that templates call and `minijinja_contrib`'s own layer
//! lacks.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{ValueKind, from_args},
};
use minijinja_contrib::pycompat;

/// Calls a method that minijinja itself does not know.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let result = match (value.as_str(), value.kind()) {
        (Some(text), _) => of_string(text, method, arguments)?,
        (None, ValueKind::Seq) => of_list(value, method, arguments)?,
        _ => None,
    };
    match result {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

fn of_list(list: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    if method != "index" {
        return Ok(None);
    }
    let (wanted,): (Value,) = from_args(arguments)?;
    list.try_iter()?.position(|item| item == wanted).map(Value::from).map(Some).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("{wanted} is not in the list"))
    })
}

fn of_string<'a>(
    text: &'a str,
    method: &str,
    arguments: &'a [Value],
) -> Result<Option<Value>, Error> {
    let none = || from_args::<()>(arguments);
    let one = || from_args::<(&str,)>(arguments).map(|(argument,)| argument);
    let result = match method {
        "casefold" => none().map(|()| text.to_lowercase().into())?,
        "swapcase" => none().map(|()| swap_case(text).into())?,
        "removeprefix" => text.strip_prefix(one()?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(one()?).unwrap_or(text).into(),
        "partition" => match text.split_once(one()?) {
            Some((before, after)) => Value::from_iter([before, one()?, after]),
            None => Value::from_iter([text, "", ""]),
        },
        "rpartition" => match text.rsplit_once(one()?) {
            Some((before, after)) => Value::from_iter([before, one()?, after]),
            None => Value::from_iter(["", "", text]),
        },
        "index" => place(text, one()?, text.find(one()?))?,
        "rindex" => place(text, one()?, text.rfind(one()?))?,
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(arguments)?;
            let pieces = most
                .and_then(|most| usize::try_from(most).ok())
                .map_or(usize::MAX, |n| n.saturating_add(1));
            let parts: Vec<&str> = match separator {
                Some(separator) => text.rsplitn(pieces, separator).collect(),
                None => rsplit_spaces(text, pieces),
            };
            Value::from_iter(parts.into_iter().rev())
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (usize, Option<char>) = from_args(arguments)?;
            pad(text, width, fill.unwrap_or(' '), method)?.into()
        }
        "zfill" => {
            let (width,): (usize,) = from_args(arguments)?;
            let signs = usize::from(text.starts_with(['-', '+']));
            let (sign, digits) = text.split_at(signs);
            (sign.to_owned() + &pad(digits, width.saturating_sub(signs), '0', "rjust")?).into()
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// Where a part is, in characters.
fn place(text: &str, part: &str, found: Option<usize>) -> Result<Value, Error> {
    let missing =
        || Error::new(ErrorKind::InvalidOperation, format!("'{part}' is not in the text"));
    found.map(|at| Value::from(text[..at].chars().count())).ok_or_else(missing)
}

fn swap_case(text: &str) -> String {
    let swap = |c: char| {
        if c.is_uppercase() {
            c.to_lowercase().collect::<String>()
        } else {
            c.to_uppercase().collect()
        }
    };
    text.chars().map(swap).collect()
}

/// At most so many pieces, the last first; the first is what is left.
fn rsplit_spaces(text: &str, pieces: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let space = rest.rfind(char::is_whitespace).filter(|_| parts.len() + 1 < pieces);
        let Some(space) = space else {
            parts.push(rest);
            break;
        };
        parts.push(rest[space..].trim_start());
        rest = rest[..space].trim_end();
    }
    parts
}

/// Widest text that padding makes: more than any prompt has use for.
const WIDEST: usize = 1 << 16;

fn pad(text: &str, width: usize, fill: char, method: &str) -> Result<String, Error> {
    if width > WIDEST {
        return Err(Error::new(ErrorKind::InvalidOperation, "the text would be too wide"));
    }
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Of an odd number, Python puts the larger half on the left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let spaces = |count| std::iter::repeat_n(fill, count);
    Ok(spaces(left).chain(text.chars()).chain(spaces(missing - left)).collect())
}
