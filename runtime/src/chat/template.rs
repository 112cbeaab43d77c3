//! The checkpoint's own chat template, executed as transformers executes it.

use std::{io, path::Path, thread};

use minijinja::{
    Environment, Error, ErrorKind, Output, State,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, Value, ValueKind},
};
use serde_json::Map;

use super::{ChatError, Message, json, methods, python};
use crate::files;

/// What to render besides the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// Whether to end with the start of the model's answer.
    pub add_generation_prompt: bool,
    /// Whether to leave the last message open, for the model to go on with.
    pub continue_final_message: bool,
    /// JSON schemas of the tools that the model may call ([`Tool::to_json`](super::Tool)).
    pub tools: Option<serde_json::Value>,
    /// Variables of this template, such as `keep_past_thinking` or `enable_thinking`.
    pub variables: Map<String, serde_json::Value>,
}

/// A chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and the like, from `tokenizer_config.json`.
    special_tokens: Map<String, serde_json::Value>,
}

const NAME: &str = "chat_template";
/// Steps of the engine that a template may take, and a step for each 64 bytes that it writes: a tenth of a second.
const FUEL: u64 = 1_000_000;
/// And so many more for each byte of the messages and tools.
const FUEL_OF_BYTE: u64 = 50;
/// Bytes of stack, of which memory is taken as they are used. A list in a list, and so on, is dropped by as many
/// calls, and each costs a template a few steps.
const STACK: usize = 256 << 20;
/// Put after text that is to be continued, to find its end in the rendered prompt.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

impl ChatTemplate {
    /// The template of the model in `folder`: `chat_template.jinja`, or else the one inside
    /// `chat_template.json` or `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`ChatError`] when there is none, or it cannot be read or is not a valid template.
    pub fn from_folder(folder: &Path) -> Result<Self, ChatError> {
        let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let path = folder.join("chat_template.jinja");
        let source = files::read(&path).map_err(|error| file_error(&path, &error))?;
        let source = match source.map(String::from_utf8) {
            Some(Ok(source)) => source,
            Some(Err(error)) => return Err(file_error(&path, &io::Error::other(error))),
            None => {
                let of_processor = read_json(&folder.join("chat_template.json"))?;
                [of_processor.as_ref(), Some(&config)]
                    .into_iter()
                    .flatten()
                    .find_map(|config| config.get("chat_template")?.as_str().map(str::to_owned))
                    .ok_or_else(|| ChatError::NoTemplate(folder.to_owned()))?
            }
        };
        Self::new(&source, &config)
    }

    /// A template from its source and the content of `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`ChatError::Template`] when it is not valid.
    pub fn new(
        source: &str,
        tokenizer_config: &Map<String, serde_json::Value>,
    ) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| template_error(&error))?);
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(print);
        environment.add_filter("tojson", to_json);
        environment.add_filter("string", |value: Value| python::str(&value));
        environment.add_test("sequence", |value: Value| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
        });
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, without_generation_blocks(source))
            .map_err(|error| template_error(&error))?;
        let text_of = |value: &serde_json::Value| match value {
            // Older files keep the token as an object.
            serde_json::Value::Object(token) => token.get("content").cloned(),
            other => Some(other.clone()),
        };
        let special_tokens = tokenizer_config
            .iter()
            .filter(|(name, _)| name.ends_with("_token"))
            .filter_map(|(name, value)| Some((name.clone(), text_of(value)?)))
            .filter(|(_, value)| value.is_string())
            .collect();
        Ok(ChatTemplate { environment, special_tokens })
    }

    /// The prompt of a conversation, with one `<image>` for each image.
    ///
    /// # Errors
    /// [`ChatError::Template`] when the template fails or refuses the messages;
    /// [`ChatError::NothingToContinue`]; [`ChatError::Arguments`].
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String, ChatError> {
        let messages = messages.iter().cloned().map(Message::for_template);
        let mut messages = messages.collect::<Result<Vec<_>, _>>()?;
        if options.continue_final_message && options.add_generation_prompt {
            return Err(ChatError::TwoEnds);
        }
        if options.continue_final_message {
            let text = messages.last_mut().and_then(Message::last_text_mut);
            text.ok_or(ChatError::NothingToContinue)?.push_str(CONTINUE_MARK);
        }
        let mut context = self.special_tokens.clone();
        context.insert(
            "messages".into(),
            serde_json::to_value(messages).map_err(|e| template_error(&e))?,
        );
        context.insert("tools".into(), options.tools.clone().unwrap_or_default());
        context.insert("documents".into(), serde_json::Value::Null);
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        context.extend(options.variables.clone());
        let mut prompt = self.run(context)?;

        if options.continue_final_message {
            // The template may have trimmed the space at the mark's end.
            let found = prompt.rfind(CONTINUE_MARK.trim_end());
            let end = found.ok_or(ChatError::NothingToContinue)?;
            let whole = prompt[end..].starts_with(CONTINUE_MARK);
            prompt.truncate(end);
            if !whole {
                prompt.truncate(prompt.trim_end().len());
            }
        }
        Ok(prompt)
    }
}

impl ChatTemplate {
    /// Runs the template within its limits.
    fn run(&self, context: Map<String, serde_json::Value>) -> Result<String, ChatError> {
        let bytes = serde_json::to_vec(&context).map_err(|error| template_error(&error))?.len();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_OF_BYTE * bytes as u64));
        // An error may hold values, too, and so ends where they may be deep.
        let render = || {
            let template =
                environment.get_template(NAME).map_err(|error| template_error(&error))?;
            template.render(Value::from(Serde(context))).map_err(|error| match error.kind() {
                ErrorKind::OutOfFuel => ChatError::EndlessTemplate,
                _ => template_error(&error),
            })
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("chat-template".into()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, render);
            let thread = thread.map_err(|error| template_error(&error))?;
            thread.join().unwrap_or_else(|_| Err(template_error(&"the engine panicked")))
        })
    }
}

pub(super) fn read_json(path: &Path) -> Result<Option<Map<String, serde_json::Value>>, ChatError> {
    files::read_json(path).map_err(|error| file_error(path, &error))
}

fn file_error(path: &Path, error: &io::Error) -> ChatError {
    ChatError::File { path: path.to_owned(), message: error.to_string() }
}

/// What the engine says, on one line: it quotes the template, which may have several.
fn template_error(error: &dyn std::fmt::Display) -> ChatError {
    ChatError::Template(error.to_string().replace(char::is_control, " "))
}

/// `{% generation %}` marks what the model says, for training; rendering it changes nothing. The
/// tag becomes an `if` that is always taken, which keeps the whitespace control as it is.
fn without_generation_blocks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let tag = &rest[start + 2..][..length];
        let end = start + 2 + length + 2;
        let inner = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
        result.push_str(&rest[..start]);
        let replacement = match inner.trim() {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replacement {
            Some(new) => {
                result.push_str("{%");
                result.push_str(&tag.replacen(inner.trim(), new, 1));
                result.push_str("%}");
            }
            None => result.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    result + rest
}

/// Prints a value as Python does; nothing is escaped.
fn print(output: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    output.write_str(&python::str(value)?).map_err(Error::from)
}

/// `tojson` as transformers defines it: `json.dumps` without HTML escapes and, unless it is asked
/// for, with Unicode as it is.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let style = json::Style {
        indent: options.get("indent")?,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        separators: match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
            Some([item, key]) => Some((item.clone(), key.clone())),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two")),
            None => None,
        },
    };
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let failed =
        |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let text = match sort_keys {
        Some(true) => {
            let mut value = serde_json::to_value(&value).map_err(failed)?;
            value.sort_all_objects();
            json::dumps(&value, &style)
        }
        _ => json::dumps(&value, &style),
    };
    text.map(Value::from_safe_string).map_err(failed)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time, formatted as `strftime` does.
fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("'{format}' is not a date format"))
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, ChatError> {
        ChatTemplate::new(source, &Map::new())?
            .render(&[Message::user("Hi")], &RenderOptions::default())
    }

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let text = render(
            "a {%- generation -%} b {%- endgeneration -%} c {% generation %}d{% endgeneration %}",
        );
        assert_eq!(text.unwrap(), "abc d");
    }

    #[test]
    fn exceptions_of_the_template_are_told() {
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(error.to_string().contains("roles must alternate"), "{error}");
        let error = render("{% if %}").unwrap_err();
        assert!(matches!(error, ChatError::Template(_)));
    }

    #[test]
    fn templates_that_are_cut_off_do_not_panic() {
        let source = "{%- for m in messages -%}{% generation %}{{ m['content'] | trim }}{#- x -#}{% endgeneration %}\
                      {%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% endfor %}{%}{{}}";
        for start in 0..source.len() {
            for end in start..=source.len() {
                // Text is valid, too; what counts is that nothing panics.
                let _ = render(&source[start..end]);
            }
        }
        assert!(render("{%}").is_err());
    }

    #[test]
    fn endless_templates_end() {
        for endless in [
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
            "{% set n = namespace(s='long') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "{% set n = namespace(l=[]) %}{% for i in range(90000) %}{% for j in range(90000) %}{% set n.l = [n.l] %}{% endfor %}{% endfor %}",
            "{{ 'x' * 1000000000000 }}",
            "{{ 'x' | indent(1000000000000) }}",
        ] {
            let error = render(endless).unwrap_err();
            let expected = matches!(error, ChatError::EndlessTemplate);
            assert!(expected || endless.contains("macro"), "{endless}: {error}");
        }
        let nested = "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}";
        let deep = "{% set n = namespace(l=[1]) %}{% for i in range(90000) %}{% set n.l = [n.l] %}{% endfor %}";
        for too_long in [
            format!("{nested}{{{{ n.l }}}}"),
            format!("{nested}{{{{ (n.l | tojson) | length }}}}"),
            format!("{nested}{{{{ (n.l | string) | length }}}}"),
            format!("{deep}{{{{ n.l }}}}"),
            format!("{deep}{{{{ n.l | tojson }}}}"),
            "{{ [[1]] | tojson(indent=9223372036854775807) }}".to_owned(),
        ] {
            assert!(matches!(render(&too_long), Err(ChatError::Template(_))), "{too_long}");
        }
        assert_eq!(render(&format!("{deep}x")).unwrap(), "x");
        assert!(render("{{ [1] | tojson(indent=100000) }}").unwrap().len() > 100_000);
        // A long conversation is not endless.
        let messages: Vec<Message> =
            (0..2000).map(|_| Message::user("word ".repeat(100))).collect();
        let source = "{% set n = namespace(s='') %}{% for m in messages %}{% set n.s = n.s ~ m.content %}\
                      {{ m.content }}{% endfor %}";
        let template = ChatTemplate::new(source, &Map::new()).unwrap();
        let text = template.render(&messages, &RenderOptions::default()).unwrap();
        assert_eq!(text.len(), 2000 * 500);
    }

    #[test]
    fn a_bad_date_format_is_an_error() {
        assert!(render("{{ strftime_now('%!') }}").is_err());
    }
}
