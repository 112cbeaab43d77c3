//! Requests. Field names and meanings are those of OpenAI's reference of `/v1/chat/completions`, unless a field
//! is said to be an addition.

use std::collections::BTreeMap;

use lfm2vl::{Constraint, image::Overrides};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Asks for answers to a conversation. `metadata`, `store`, `user`, `safety_identifier`, `prompt_cache_key` and
/// `service_tier` may be there and change nothing: nothing is stored, and all requests are served alike. Any other
/// field is refused.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct ChatCompletionRequest {
    /// Name of the model, as `/v1/models` lists it.
    pub(crate) model: Option<String>,
    /// The conversation: roles `system` (or `developer`), `user`, `assistant` and `tool`; contents are a text,
    /// or a list of parts of type `text` and `image_url`.
    #[schema(value_type = Vec<Object>, min_items = 1)]
    pub(crate) messages: Vec<Value>,
    /// Whether the answer comes as server-sent events.
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    /// Most tokens of an answer; the older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    pub(crate) max_tokens: Option<usize>,
    /// Most tokens of an answer.
    #[schema(minimum = 1)]
    pub(crate) max_completion_tokens: Option<usize>,
    /// 0 always takes the most likely token.
    #[schema(minimum = 0, maximum = 2)]
    pub(crate) temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) top_p: Option<f32>,
    /// Addition: only the most likely so many tokens; 0 or -1 for all.
    pub(crate) top_k: Option<i64>,
    /// Addition: only tokens at least this likely relative to the most likely one.
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) min_p: Option<f32>,
    /// Addition: makes tokens of the prompt and the answer less likely.
    pub(crate) repetition_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    pub(crate) presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Added to the logits of tokens, by their ids; from -100 to 100.
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed gives the same answer to the same request. The choices of one request have this seed and
    /// the numbers after it.
    pub(crate) seed: Option<i64>,
    pub(crate) stop: Option<Stop>,
    /// How many answers are made.
    #[schema(minimum = 1)]
    pub(crate) n: Option<usize>,
    /// Whether log probabilities of the tokens are told.
    pub(crate) logprobs: Option<bool>,
    /// How many of the most likely tokens are told in each place.
    #[schema(minimum = 0, maximum = 20)]
    pub(crate) top_logprobs: Option<usize>,
    /// Functions that the model may call.
    pub(crate) tools: Option<Vec<FunctionTool>>,
    pub(crate) tool_choice: Option<ToolChoice>,
    /// Whether the model may call several functions at once; it may unless this is false.
    pub(crate) parallel_tool_calls: Option<bool>,
    pub(crate) response_format: Option<ResponseFormat>,
    /// Addition: other forms of an answer.
    pub(crate) structured_outputs: Option<StructuredOutputs>,
    /// Addition: how the images of the request are processed.
    pub(crate) image_settings: Option<ImageSettings>,
    /// Addition: variables of the model's chat template.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// Addition: goes on after the model's own end, for measurements.
    pub(crate) ignore_eos: Option<bool>,
    /// Only `["text"]`.
    pub(crate) modalities: Option<Vec<String>>,
    /// Whatever else there is: it is refused, but for [`UNUSED`].
    #[serde(flatten)]
    #[schema(ignore)]
    pub(crate) unknown: Map<String, Value>,
}

/// Fields that OpenAI's clients may send, and that change nothing here.
pub(crate) const UNUSED: [&str; 6] =
    ["metadata", "store", "user", "safety_identifier", "prompt_cache_key", "service_tier"];

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether a last event without choices has the usage.
    pub(crate) include_usage: Option<bool>,
}

/// Texts that end the answer and are not part of it.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Stop {
    One(String),
    Several(Vec<String>),
}

/// Most functions of a request, as OpenAI has it.
pub(crate) const MAX_TOOLS: usize = 128;

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct FunctionTool {
    /// `function`.
    pub(crate) r#type: String,
    pub(crate) function: Function,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct Function {
    /// Letters, digits, `_`, `-` and `.`; 64 at most.
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON Schema of the arguments; none without it. Calls always keep to it, also without `strict`.
    #[schema(value_type = Option<Object>)]
    pub(crate) parameters: Option<Value>,
}

/// Whether the model calls functions.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// One function: `{"type": "function", "function": {"name": ...}}`.
    Function {
        /// `function`.
        r#type: String,
        function: FunctionName,
    },
    /// Some of the functions: `{"type": "allowed_tools", "allowed_tools": ...}`.
    Allowed {
        /// `allowed_tools`.
        r#type: String,
        allowed_tools: AllowedToolChoice,
    },
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct FunctionName {
    pub(crate) name: String,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct AllowedToolChoice {
    /// `auto` or `required`.
    pub(crate) mode: String,
    #[schema(value_type = Vec<Object>)]
    pub(crate) tools: Vec<Value>,
}

/// The form of the answer.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON of a schema. Answers always keep to it, also without `strict`.
    JsonSchema { json_schema: JsonSchemaFormat },
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(crate) struct JsonSchemaFormat {
    #[schema(value_type = Object)]
    pub(crate) schema: Option<Value>,
}

/// A form of the answer: exactly one of these.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StructuredOutputs {
    /// JSON of this schema.
    #[schema(value_type = Option<Object>)]
    pub(crate) json: Option<Value>,
    /// Text that this regular expression matches.
    pub(crate) regex: Option<String>,
    /// Text of this Lark grammar.
    pub(crate) grammar: Option<String>,
    /// One of these texts.
    pub(crate) choice: Option<Vec<String>>,
}

impl StructuredOutputs {
    /// What is asked for; `None` where that is not one thing.
    pub(crate) fn constraint(self) -> Option<Constraint> {
        let forms = [
            self.json.map(Constraint::JsonSchema),
            self.regex.map(Constraint::Regex),
            self.grammar.map(Constraint::Lark),
            self.choice.map(Constraint::Choice),
        ];
        let mut forms = forms.into_iter().flatten();
        forms.next().filter(|_| forms.next().is_none())
    }
}

/// The dial between speed and detail. What is not given is as the model's processor has it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageSettings {
    /// Smaller images are enlarged to this many image tokens.
    pub(crate) min_image_tokens: Option<usize>,
    /// Larger images are shrunk to this many, or split into tiles.
    pub(crate) max_image_tokens: Option<usize>,
    /// Fewest tiles of an image that is split.
    pub(crate) min_tiles: Option<usize>,
    /// Most tiles of an image that is split.
    pub(crate) max_tiles: Option<usize>,
    /// Whether large images are split at all.
    pub(crate) do_image_splitting: Option<bool>,
    /// Whether a small copy of a split image comes after its tiles.
    pub(crate) use_thumbnail: Option<bool>,
}

impl ImageSettings {
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            min_image_tokens: self.min_image_tokens,
            max_image_tokens: self.max_image_tokens,
            min_tiles: self.min_tiles,
            max_tiles: self.max_tiles,
            do_image_splitting: self.do_image_splitting,
            use_thumbnail: self.use_thumbnail,
            ..Overrides::default()
        }
    }
}
