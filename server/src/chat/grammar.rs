//! Grammars of tool calls, in llguidance's variant of Lark: `[f(city="Paris", days=3)]` between special tokens,
//! as LFM2 writes them, or JSON where a schema is more than a list of arguments.

use std::fmt::Write;

use lfm2vl::Constraint;
use serde_json::{Map, Value};

/// The functions that may be called: names, and JSON Schemas of their arguments.
pub(super) struct Calls<'a> {
    pub(super) functions: &'a [(&'a str, Value)],
    /// Whether several may be called.
    pub(super) is_parallel: bool,
}

/// What may be said besides.
pub(super) enum Text<'a> {
    None,
    Any,
    /// JSON of this schema, instead of a call.
    Json(&'a Value),
}

/// Most calls of one list: a small model may not find its end.
const MOST_CALLS: usize = 16;

/// The grammar of an answer.
pub(super) fn of(calls: &Calls<'_>, text: &Text<'_>) -> String {
    let start = match text {
        Text::None => "calls".to_owned(),
        Text::Any => "TEXT? (calls TEXT?)*".to_owned(),
        Text::Json(schema) => format!("calls | {}", Constraint::lark_json(schema)),
    };
    let list = if calls.is_parallel {
        format!("\"[\" call (\", \" call){{0,{}}} \"]\"", MOST_CALLS - 1)
    } else {
        "\"[\" call \"]\"".to_owned()
    };
    let mut grammar = format!(
        "start: {start}\ncalls: <|tool_call_start|> {list} <|tool_call_end|>\nTEXT: /(?s:.+)/\n"
    );
    let rules: Vec<String> = (0..calls.functions.len()).map(|f| format!("call_{f}")).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(grammar, "call: {}", rules.join(" | "));
    // A list is of one kind, so one schema decides for all.
    let arguments = calls.functions.iter().map(|(name, schema)| {
        let is_name = !name.starts_with(|c: char| c.is_ascii_digit());
        is_name.then(|| Arguments::of(schema)).flatten()
    });
    let arguments: Option<Vec<Arguments<'_>>> = arguments.collect();
    for (index, (name, schema)) in calls.functions.iter().enumerate() {
        match &arguments {
            Some(arguments) => arguments[index].write(&mut grammar, index, name),
            None => {
                let begin =
                    Constraint::lark_string(&format!("{{\"name\": \"{name}\", \"arguments\": "));
                let _ = writeln!(
                    grammar,
                    "call_{index}: {begin} {} \"}}\"",
                    Constraint::lark_json(schema)
                );
            }
        }
    }
    grammar
}

/// The arguments of a function that are written as Python's keyword arguments.
struct Arguments<'a> {
    required: Vec<(&'a str, String)>,
    optional: Vec<(&'a str, String)>,
}

/// Keys of a schema of arguments beside which there may be no others, for it to be a list of arguments.
const PLAIN: [&str; 9] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "title",
    "description",
    "$schema",
    "$defs",
    "definitions",
];

impl<'a> Arguments<'a> {
    fn of(schema: &'a Value) -> Option<Self> {
        let refers_elsewhere = refers_elsewhere(schema);
        let schema = schema.as_object()?;
        let is_plain = !refers_elsewhere
            && schema.keys().all(|key| PLAIN.contains(&key.as_str()))
            && schema.get("additionalProperties").is_none_or(Value::is_boolean);
        let properties = match schema.get("properties") {
            None => None,
            Some(properties) => Some(properties.as_object()?),
        };
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        let required: Vec<&str> = required.filter_map(Value::as_str).collect();
        let is_known = |name: &&str| properties.is_some_and(|p| p.contains_key(*name));
        let names = properties.into_iter().flatten().map(|(name, _)| name.as_str());
        if !is_plain || !required.iter().all(is_known) || !{ names }.all(is_identifier) {
            return None;
        }
        // A value that nothing can be is one of JSON Schema.
        if properties.is_some_and(|p| p.values().any(|value| *value == false)) {
            return None;
        }
        let all = properties.into_iter().flatten();
        let all = all.map(|(name, value)| (name.as_str(), value_of(value, schema)));
        let (required, optional) = all.partition(|(name, _)| required.contains(name));
        Some(Arguments { required, optional })
    }

    /// Writes the rules of the call: the required arguments, then any of the others, in order.
    fn write(&self, grammar: &mut String, function: usize, name: &str) {
        let argument = |(name, value): &(&str, String)| format!("\"{name}=\" {value}");
        let required: Vec<String> = self.required.iter().map(argument).collect();
        let mut call = Constraint::lark_string(&format!("{name}("));
        if !required.is_empty() {
            let _ = write!(call, " {}", required.join(" \", \" "));
        }
        let rest = |n: usize| format!("rest_{function}_{n}");
        if !self.optional.is_empty() {
            // With nothing before it, the first has no comma.
            let first = if required.is_empty() { format!("first_{function}_0?") } else { rest(0) };
            let _ = write!(call, " {first}");
        }
        let _ = writeln!(grammar, "call_{function}: {call} \")\"");
        for (index, optional) in self.optional.iter().enumerate() {
            let next =
                if index + 1 < self.optional.len() { rest(index + 1) } else { "\"\"".into() };
            let argument = argument(optional);
            let _ = writeln!(grammar, "rest_{function}_{index}: (\", \" {argument})? {next}");
            if required.is_empty() {
                let later = if index + 1 < self.optional.len() {
                    format!(" | first_{function}_{}", index + 1)
                } else {
                    String::new()
                };
                let _ = writeln!(grammar, "first_{function}_{index}: {argument} {next}{later}");
            }
        }
    }
}

/// Whether a schema has references to other parts of it than definitions, which a part alone has not.
fn refers_elsewhere(schema: &Value) -> bool {
    match schema {
        Value::Array(items) => items.iter().any(refers_elsewhere),
        Value::Object(keys) => keys.iter().any(|(key, value)| match value {
            Value::String(to) if key == "$ref" => {
                !to.starts_with("#/$defs/") && !to.starts_with("#/definitions/")
            }
            value => refers_elsewhere(value),
        }),
        _ => false,
    }
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The values of one argument: Python's names of what JSON writes otherwise, and else JSON, which Python reads
/// as well.
fn value_of(schema: &Value, root: &Map<String, Value>) -> String {
    let python = |value: &Value| match value {
        Value::Null => Some("\"None\"".to_owned()),
        Value::Bool(true) => Some("\"True\"".to_owned()),
        Value::Bool(false) => Some("\"False\"".to_owned()),
        Value::String(text) => {
            Some(Constraint::lark_string(&Value::from(text.as_str()).to_string()))
        }
        Value::Number(number) => Some(Constraint::lark_string(&number.to_string())),
        Value::Array(_) | Value::Object(_) => None,
    };
    let is_alone = |key: &str| {
        let known = [key, "type", "title", "description", "default"];
        schema.as_object().is_some_and(|s| s.keys().all(|k| known.contains(&k.as_str())))
    };
    let values = match schema {
        _ if !schema["enum"].is_null() && is_alone("enum") && schema.get("type").is_none() => {
            schema["enum"].as_array().cloned()
        }
        _ if schema.get("const").is_some() && is_alone("const") && schema.get("type").is_none() => {
            Some(vec![schema["const"].clone()])
        }
        _ if schema["type"] == "boolean" && is_alone("type") => {
            Some(vec![true.into(), false.into()])
        }
        _ if schema["type"] == "null" && is_alone("type") => Some(vec![Value::Null]),
        _ => None,
    };
    let values: Option<Vec<String>> =
        values.filter(|values| !values.is_empty()).and_then(|v| v.iter().map(python).collect());
    if let Some(values) = values {
        return format!("({})", values.join(" | "));
    }
    if !schema.to_string().contains("\"$ref\"") {
        return Constraint::lark_json(schema);
    }
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    for definitions in ["$defs", "definitions"] {
        if let Some(known) = root.get(definitions) {
            schema.entry(definitions).or_insert_with(|| known.clone());
        }
    }
    Constraint::lark_json(&schema.into())
}
