//! The functions that a request lets the model call.

use std::collections::BTreeSet;

use lfm2vl::{Constraint, chat::Tokenizer};
use serde_json::{Value, json};

use super::grammar;
use crate::{
    error::ApiError,
    wire::{ChatCompletionRequest, FunctionTool, MAX_TOOLS, ToolChoice},
};

/// The token with which a call begins.
pub(super) const CALL: &str = "<|tool_call_start|>";

/// Functions that may be called.
pub(super) struct Tools {
    tools: Vec<FunctionTool>,
    /// Those of them that may be called now.
    callable: BTreeSet<String>,
    /// Whether one has to be called.
    is_required: bool,
    /// Whether several may be called.
    is_parallel: bool,
}

impl Tools {
    /// The tools of a request, and what it says of their use.
    pub(super) fn new(request: &mut ChatCompletionRequest) -> Result<Self, ApiError> {
        let tools = request.tools.take().unwrap_or_default();
        check(&tools)?;
        let names: BTreeSet<String> = tools.iter().map(|t| t.function.name.clone()).collect();
        // Whoever names a function wants one call of it.
        let is_named = matches!(request.tool_choice, Some(ToolChoice::Function { .. }));
        let (callable, is_required) = match request.tool_choice.take() {
            None => (names.clone(), false),
            Some(choice) => chosen(choice, &names)?,
        };
        let is_parallel = request.parallel_tool_calls.unwrap_or(true) && !is_named;
        Ok(Tools { tools, callable, is_required, is_parallel })
    }

    /// Whether any may be called.
    pub(super) fn is_callable(&self) -> bool {
        !self.callable.is_empty()
    }

    /// The tools as the chat template takes them.
    pub(super) fn for_template(&self) -> Option<Value> {
        let tool = |tool: &FunctionTool| {
            let function = &tool.function;
            let mut json = json!({"name": function.name});
            if let Some(description) = &function.description {
                json["description"] = description.as_str().into();
            }
            json["parameters"] = parameters(tool);
            json!({"type": "function", "function": json})
        };
        let tools: Vec<Value> = self.tools.iter().map(tool).collect();
        (!tools.is_empty()).then_some(tools.into())
    }

    /// The token that begins a call, where there must be none.
    pub(super) fn suppressed_token(&self, tokenizer: &Tokenizer) -> Result<Option<u32>, ApiError> {
        let token = tokenizer.token_id(CALL).ok();
        if self.is_callable() && token.is_none() {
            return Err(ApiError::of_param("tools", "this model cannot call functions"));
        }
        Ok(token.filter(|_| !self.is_callable()))
    }

    /// The grammar of an answer that may call functions, and whose text has another form; `None` where no
    /// function may be called.
    pub(super) fn grammar(&self, text: Option<&Constraint>) -> Result<Option<String>, ApiError> {
        if self.callable.is_empty() {
            return Ok(None);
        }
        let callable = self.tools.iter().filter(|t| self.callable.contains(&t.function.name));
        let functions: Vec<(&str, Value)> =
            callable.map(|tool| (&*tool.function.name, parameters(tool))).collect();
        let calls = grammar::Calls { functions: &functions, is_parallel: self.is_parallel };
        let text = match (self.is_required, text) {
            (true, _) => grammar::Text::None,
            (false, None) => grammar::Text::Any,
            (false, Some(Constraint::JsonSchema(schema))) => grammar::Text::Json(schema),
            (false, Some(_)) => {
                let message = "with tools, only JSON is supported; set tool_choice to 'none'";
                return Err(ApiError::of_param("structured_outputs", message));
            }
        };
        Ok(Some(grammar::of(&calls, &text)))
    }
}

/// JSON Schema of a function's arguments.
fn parameters(tool: &FunctionTool) -> Value {
    let none = || json!({"type": "object", "properties": {}});
    tool.function.parameters.clone().filter(|p| !p.is_null()).unwrap_or_else(none)
}

fn check(tools: &[FunctionTool]) -> Result<(), ApiError> {
    if tools.len() > MAX_TOOLS {
        return Err(ApiError::of_param("tools", format!("at most {MAX_TOOLS} are allowed")));
    }
    let mut names = BTreeSet::new();
    for (index, tool) in tools.iter().enumerate() {
        let wrong = |field: &str, message: &str| {
            Err(ApiError::of_param(format!("tools[{index}].{field}"), message))
        };
        let name = &tool.function.name;
        let belongs = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if tool.r#type != "function" {
            return wrong("type", "only tools of type 'function' are supported");
        }
        if !begins || name.len() > 64 || !name.chars().all(belongs) {
            let message = "a name begins with a letter, a digit or _ and has at most 64 letters, digits, _, - and .";
            return wrong("function.name", message);
        }
        if !names.insert(name) {
            return wrong("function.name", "two functions have this name");
        }
        if tool.function.parameters.as_ref().is_some_and(|p| !p.is_object() && !p.is_null()) {
            return wrong("function.parameters", "the parameters are a JSON Schema, an object");
        }
    }
    Ok(())
}

/// The functions that may be called, and whether one must be.
fn chosen(
    choice: ToolChoice,
    names: &BTreeSet<String>,
) -> Result<(BTreeSet<String>, bool), ApiError> {
    let wrong = |message: &str| ApiError::of_param("tool_choice", message);
    let mode = |mode: &str, names: BTreeSet<String>| match mode {
        "none" => Ok((BTreeSet::new(), false)),
        "auto" => Ok((names, false)),
        "required" if names.is_empty() => Err(wrong("there is no function to call; send tools")),
        "required" => Ok((names, true)),
        _ => Err(wrong("it must be none, auto, required or a function")),
    };
    let known = |name: &str| {
        if names.contains(name) {
            Ok(name.to_owned())
        } else {
            Err(wrong(&format!("there is no function '{name}' in tools")))
        }
    };
    match choice {
        ToolChoice::Mode(wanted) => mode(&wanted, names.clone()),
        ToolChoice::Function { r#type, function } if r#type == "function" => {
            Ok((BTreeSet::from([known(&function.name)?]), true))
        }
        ToolChoice::Allowed { r#type, allowed_tools } if r#type == "allowed_tools" => {
            let allowed = allowed_tools.tools.iter();
            let allowed =
                allowed.map(|t| known(t["function"]["name"].as_str().unwrap_or_default()));
            mode(&allowed_tools.mode, allowed.collect::<Result<_, _>>()?)
        }
        ToolChoice::Function { r#type, .. } | ToolChoice::Allowed { r#type, .. } => {
            Err(wrong(&format!("a choice of type '{type}' is not supported")))
        }
    }
}
