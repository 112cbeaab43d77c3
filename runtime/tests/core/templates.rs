//! What chat templates use, one thing at a time, and tool calls, against Python.

use lfm2vl::chat::{ChatTemplate, RenderOptions, Tool, ToolCall};
use serde_json::{Map, Value, json};

use crate::common;

/// Templates that render otherwise than in the reference, and why that is left so.
const OTHERWISE: [(&str, &str); 3] = [
    ("{{ (1, 'a') }}", "a tuple is a list to minijinja, and is printed as one"),
    ("{{ '%s is %d' %", "minijinja has no % on strings; format and ~ are there"),
    ("{% macro kw(", "minijinja's macros take named arguments only"),
];

#[test]
fn templates_render_as_the_reference_renders_them() {
    let goldens = common::json("prompts/templates.json");
    let variables = goldens["variables"].as_object().unwrap();
    let options = RenderOptions { variables: variables.clone(), ..RenderOptions::default() };
    let mut wrong = Vec::new();
    let rows = goldens["rows"].as_array().unwrap();
    assert!(rows.len() > 70);
    for row in rows {
        let source = row["template"].as_str().unwrap();
        let text = ChatTemplate::new(source, &Map::new())
            .and_then(|template| template.render(&[], &options));
        let expected = row["text"].as_str();
        let same = match (&text, expected) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(_), None) => true,
            _ => false,
        };
        let excused = OTHERWISE.iter().any(|(start, _)| source.starts_with(start));
        if same == excused {
            wrong.push(format!("{source}\nours {text:?}\nwant {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn calls_are_read_as_python_reads_them() {
    let goldens = common::json("prompts/tool-calls.json");
    let goldens = goldens.as_array().unwrap();
    assert!(goldens.len() > 80);
    for golden in goldens {
        let text = golden["text"].as_str().unwrap();
        let calls = ToolCall::parse_all(text);
        match golden["calls"].as_array() {
            Some(expected) => {
                let calls: Vec<Value> = calls
                    .unwrap_or_else(|error| panic!("{text}: {error}"))
                    .iter()
                    .map(|call| json!({"name": call.name, "arguments": call.arguments}))
                    .collect();
                assert_eq!(calls, *expected, "{text}");
            }
            None => assert!(calls.is_err(), "{text}: {calls:?}"),
        }
    }
}

#[test]
fn calls_that_python_would_refuse_but_models_write() {
    let arguments = |text: &str| ToolCall::parse_all(text).unwrap()[0].arguments.clone();
    assert_eq!(Value::from(arguments("[f(a=true, b=null)]")), json!({"a": true, "b": null}));
    assert_eq!(arguments("[f(a=\"one\ntwo\")]")["a"], "one\ntwo");
    assert_eq!(
        ToolCall::parse_all("[my-server.look-up(a=1)]").unwrap()[0].name,
        "my-server.look-up"
    );
    let calls = ToolCall::parse_all(r#"[{"name": "f", "arguments": {"a": [1]}}, {"name": "g"}]"#);
    let calls = calls.unwrap();
    assert_eq!((calls[0].arguments["a"][0].clone(), &*calls[1].name), (json!(1), "g"));
    for text in ["[{}]", "{\"name\": \"f\", \"arguments\": 3}", "[{\"name\": 1}]", "{"] {
        assert!(ToolCall::parse_all(text).is_err(), "{text}");
    }
    assert!(ToolCall::parse_all(&format!("[f(a={})]", "9".repeat(400))).is_err());
    assert!(ToolCall::parse_all(r"[f(a='\x+f')]").is_err());
    let deep = format!("[f(a={}{})]", "[".repeat(100_000), "]".repeat(100_000));
    assert!(ToolCall::parse_all(&deep).unwrap_err().contains("nested too deeply"));
}

#[test]
fn tools_and_calls_have_the_form_that_templates_know() {
    let tool = Tool {
        name: "f".into(),
        description: "Does it.".into(),
        parameters: json!({"type": "object", "properties": {"a": {"type": "string"}}}),
    };
    assert_eq!(tool.to_json()["type"], "function");
    assert_eq!(tool.to_json()["function"]["parameters"]["properties"]["a"]["type"], "string");
    let call = ToolCall::parse_all("[f(a='x')]").unwrap().remove(0);
    assert_eq!(
        call.to_json(),
        json!({"type": "function", "function": {"name": "f", "arguments": {"a": "x"}}})
    );
}

proptest::proptest! {
    /// Whatever a model writes, reading it ends without a panic.
    #[test]
    fn any_text_is_read_or_refused(text in "[\\[\\](){}=,:'\"\\\\a-f0-9xu._ +-]{0,60}") {
        let _ = ToolCall::parse_all(&text);
    }
}
