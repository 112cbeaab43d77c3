//! Answers that keep to a form.

use lfm2vl::{
    Constraint, Conversation, Engine, Error, ErrorKind, FinishReason, GenerationOptions, History,
    LogitsProcessor, chat::Message,
};
use lfm2vl_tests::{copy_folder, tiny_shapes};
use serde_json::{Value, json};

fn engine() -> Engine {
    Engine::builder(tiny_shapes("default")).build().unwrap()
}

fn ask(engine: &Engine, prompt: &str, options: &GenerationOptions) -> lfm2vl::Completion {
    let mut conversation = Conversation::new();
    conversation.push(Message::user(prompt));
    engine.answer(&mut conversation, options).unwrap()
}

fn bound_by(constraint: Constraint, seed: u64) -> GenerationOptions {
    GenerationOptions {
        constraint: Some(constraint),
        temperature: 1.5,
        seed: Some(seed),
        max_new_tokens: 400,
        ..GenerationOptions::default()
    }
}

#[test]
fn answers_keep_to_their_form() {
    let engine = engine();
    let prompt = "Describe a shape.";
    let free = ask(&engine, prompt, &GenerationOptions::default()).text;
    let schema = json!({
        "type": "object",
        "properties": {
            "shape": {"enum": ["circle", "triangle"]},
            "sides": {"type": "integer", "minimum": 0, "maximum": 9},
            "name": {"type": "string", "maxLength": 5, "pattern": "^[a-z\u{e9}]+$"},
            "round": {"type": "boolean"},
        },
        "required": ["shape", "sides", "name", "round"],
        "additionalProperties": false,
    });
    for seed in 0..8 {
        let answer = |constraint| {
            let completion = ask(&engine, prompt, &bound_by(constraint, seed));
            assert_eq!(completion.finish_reason, Some(FinishReason::Stop), "{}", completion.text);
            completion.text
        };
        let json = answer(Constraint::JsonSchema(schema.clone()));
        let value: Value = serde_json::from_str(&json).unwrap();
        assert!(matches!(value["shape"].as_str(), Some("circle" | "triangle")), "{json}");
        assert!(matches!(value["sides"].as_u64(), Some(0..=9)), "{json}");
        assert!(matches!(value["name"].as_str().map(|n| n.chars().count()), Some(1..=5)), "{json}");
        assert!(value["round"].is_boolean(), "{json}");
        assert!(!json.contains('\n'));

        let choice = answer(Constraint::Choice(vec!["yes".into(), "\"no\"\n".into()]));
        assert!(choice == "yes" || choice == "\"no\"\n", "{choice:?}");

        let date = answer(Constraint::Regex("[0-9]{4}-[0-9]{2}".into()));
        assert_eq!(date.len(), 7, "{date}");
        assert!(date.char_indices().all(|(i, c)| if i == 4 {
            c == '-'
        } else {
            c.is_ascii_digit()
        }));
    }
    // One that everything matches changes nothing.
    let anything = Constraint::Regex("(?s:.*)".into());
    let options = GenerationOptions { constraint: Some(anything), ..GenerationOptions::default() };
    assert_eq!(ask(&engine, prompt, &options).text, free);
    let metrics = engine.metrics();
    assert!(metrics.mask_time > std::time::Duration::ZERO, "{metrics:?}");
}

/// Special tokens of a grammar are these tokens, and no text that looks so.
#[test]
fn grammars_know_special_tokens() {
    let engine = engine();
    let grammar =
        r#"start: <|tool_call_start|> "[f(a=" %json {"enum": [1, true]} ")]" <|tool_call_end|>"#;
    let completion = ask(&engine, "Hello", &bound_by(Constraint::Lark(grammar.to_owned()), 3));
    let call = &completion.reply.tool_calls[0];
    assert_eq!(call.name, "f");
    assert!(call.arguments["a"] == 1 || call.arguments["a"] == true);
    assert!(completion.reply.text.is_empty() && completion.reply.malformed.is_empty());
}

/// Several answers at a time have their own masks, and those without have none.
#[test]
fn constraints_are_of_single_answers() {
    let engine = engine();
    let free = GenerationOptions { max_new_tokens: 24, ..GenerationOptions::default() };
    let alone = ask(&engine, "Tell me a story.", &free).token_ids;
    let answers: Vec<_> = (0..6)
        .map(|seed| {
            let mut conversation = Conversation::new();
            conversation.push(Message::user("Tell me a story."));
            let digits = Constraint::Regex(format!("[0-9]{{{}}}", 5 + seed));
            let options = if seed == 3 { free.clone() } else { bound_by(digits, seed) };
            engine.generate(&mut conversation, &options).unwrap()
        })
        .collect();
    for (seed, answer) in answers.into_iter().enumerate() {
        let completion = answer.finish().unwrap();
        match seed {
            3 => assert_eq!(completion.token_ids, alone),
            _ => {
                assert_eq!(completion.text.len(), 5 + seed, "{}", completion.text);
                assert!(completion.text.chars().all(|c| c.is_ascii_digit()));
            }
        }
    }
}

/// Drafts of tokens are checked one by one, under their own masks.
#[test]
fn constraints_go_with_drafts() {
    let engine = Engine::builder(tiny_shapes("default")).speculation(true).build();
    let engine = engine.unwrap();
    let constraint = Some(Constraint::Regex("(one, ){12}two".into()));
    let plain = GenerationOptions { constraint, ..GenerationOptions::default() };
    let drafting = GenerationOptions { prompt_lookup_num_tokens: Some(8), ..plain.clone() };
    let prompt = "one, one, one, one, one, one,";
    let (plain, drafted) = (ask(&engine, prompt, &plain), ask(&engine, prompt, &drafting));
    assert_eq!(plain.text, "one, ".repeat(12) + "two");
    assert_eq!(drafted.token_ids, plain.token_ids);
    assert!(drafted.accepted_tokens > 0);
}

#[test]
fn constraints_that_cannot_be_kept_are_the_callers_fault() {
    let engine = engine();
    for (wrong, text) in [
        (Constraint::Choice(Vec::new()), "no choice"),
        (Constraint::Regex("(".into()), "regex"),
        (Constraint::Lark("start: nothing".into()), "nothing"),
        (Constraint::JsonSchema(json!({"type": "animal"})), "animal"),
        (Constraint::JsonSchema(json!({"$ref": "https://example.com/s.json"})), "example.com"),
        (Constraint::JsonSchema(json!(false)), "allows nothing"),
    ] {
        let mut conversation = Conversation::new();
        conversation.push(Message::user("Hi"));
        let options = bound_by(wrong.clone(), 0);
        let error = engine.generate(&mut conversation, &options).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{wrong:?}");
        assert!(error.to_string().contains(text), "{wrong:?}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        assert!(matches!(error, Error::Constraint { .. }));
    }
    // It goes on for others.
    assert!(!ask(&engine, "Hi", &GenerationOptions::default()).token_ids.is_empty());
}

/// What the model thinks before it answers is free.
#[test]
fn thinking_is_free() {
    /// Makes the model write these tokens first.
    struct Script(Vec<u32>);
    impl LogitsProcessor for Script {
        fn process(&mut self, history: &History, logits: &mut [f32]) {
            if let Some(&next) = self.0.get(history.answer().len()) {
                logits[next as usize] += 1e4;
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&tiny_shapes("default"), folder.path());
    let template = folder.path().join("chat_template.jinja");
    let thinking = std::fs::read_to_string(&template).unwrap() + "{{ '<think>' }}";
    std::fs::write(template, thinking).unwrap();
    let engine = Engine::builder(folder.path()).build().unwrap();
    let thoughts = engine.processor().tokenizer().encode("Is it 3 or 5?</think>").unwrap();
    let options = bound_by(Constraint::Choice(vec!["3".into(), "4".into()]), 1);
    let mut conversation = Conversation::new();
    conversation.push(Message::user("Hi"));
    let script = Box::new(Script(thoughts));
    let answer = engine.generate_with(&mut conversation, &options, vec![script]).unwrap();
    let reply = answer.finish().unwrap().reply;
    assert_eq!(reply.thinking.as_deref(), Some("Is it 3 or 5?"));
    assert!(reply.text == "3" || reply.text == "4", "{reply:?}");
}
