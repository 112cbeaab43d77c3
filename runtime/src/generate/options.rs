//! Settings of generation, with the names and meanings of transformers' `GenerationConfig`.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value};

use super::{Constraint, lookup::MAX_DRAFT};
use crate::Error;

/// How an answer is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only the most likely so many tokens; all when not given.
    pub top_k: Option<usize>,
    /// Only the fewest tokens whose probabilities add up to this; all when not given.
    pub top_p: Option<f32>,
    /// Only tokens at least this likely relative to the most likely one; all when not given.
    pub min_p: Option<f32>,
    /// Makes tokens of the prompt and the answer so far less likely; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of each token that the answer has already; from -2 to 2, 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken from the logit of a token as often as the answer has it already; from -2 to 2.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens, by their ids.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Tokens that are never chosen.
    pub suppress_tokens: Vec<u32>,
    /// Sequences of tokens whose last one is not chosen where the others have just come.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Tokens of the answer before which the model does not end it.
    pub min_new_tokens: usize,
    /// Seed of the random choice; a different one each time when not given.
    pub seed: Option<u64>,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Goes on after the model's own end, for measurements.
    pub ignore_eos: bool,
    /// Drafts so many tokens at most where the last ones have come before, and checks them in one
    /// run: faster on text that repeats its prompt, and the same tokens (but where all inputs of a
    /// product share a scale, as with `activations: tensor`). From 1 to 64; needs an engine with
    /// [`speculation`](crate::EngineBuilder::speculation).
    pub prompt_lookup_num_tokens: Option<usize>,
    /// Tells log probabilities of each token, and of so many of the most likely ones in its place (20 at
    /// most). They are the model's own, before any other setting here.
    pub logprobs: Option<usize>,
    /// What the answer must be, such as JSON of a schema.
    pub constraint: Option<Constraint>,
    /// Ends the answer with [`Error::TimedOut`] when it has not ended so long after it was asked for,
    /// also while it waits, in images and in the prompt.
    pub timeout: Option<Duration>,
}

/// Logits that are divided by less may not be finite.
const LEAST_TEMPERATURE: f32 = 1e-4;

/// Most tokens whose log probabilities are told in one place.
const MAX_LOGPROBS: usize = 20;

impl Default for GenerationOptions {
    /// Greedy, at most 512 tokens.
    fn default() -> Self {
        GenerationOptions {
            max_new_tokens: 512,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            suppress_tokens: Vec::new(),
            bad_words_ids: Vec::new(),
            min_new_tokens: 0,
            seed: None,
            stop: Vec::new(),
            ignore_eos: false,
            prompt_lookup_num_tokens: None,
            logprobs: None,
            constraint: None,
            timeout: None,
        }
    }
}

/// transformers' default when sampling.
const DEFAULT_TOP_K: usize = 50;

impl GenerationOptions {
    /// The settings in `generation_config.json`. Without `do_sample` they are greedy, whatever
    /// else the file says, as in transformers.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value that makes no sense.
    pub fn from_config(config: &Map<String, Value>) -> Result<Self, Error> {
        let number = |name: &'static str| match config.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(|n| Some(n as f32)).ok_or_else(|| Error::Setting {
                name,
                value: value.to_string(),
                expected: "it must be a number",
            }),
        };
        let mut options = GenerationOptions::default();
        if let Some(tokens) = number("max_new_tokens")? {
            options.max_new_tokens = tokens as usize;
        }
        if let Some(penalty) = number("repetition_penalty")? {
            options.repetition_penalty = penalty;
        }
        if let Some(tokens) = number("min_new_tokens")? {
            options.min_new_tokens = tokens as usize;
        }
        options.suppress_tokens = list(config, "suppress_tokens", "it must be a list of ids")?;
        options.bad_words_ids = list(config, "bad_words_ids", "it must be a list of lists of ids")?;
        options.stop = match config.get("stop_strings") {
            Some(Value::String(text)) => vec![text.clone()],
            _ => list(config, "stop_strings", "it must be a text or a list of texts")?,
        };
        if config.get("do_sample").and_then(Value::as_bool) == Some(true) {
            options.temperature = number("temperature")?.unwrap_or(1.0);
            let top_k = number("top_k")?.map_or(DEFAULT_TOP_K, |k| k as usize);
            options.top_k = Some(top_k).filter(|&k| k > 0);
            options.top_p = number("top_p")?;
            options.min_p = number("min_p")?;
        }
        options.validated()
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value that makes no sense.
    pub fn validated(self) -> Result<Self, Error> {
        let check = |name, ok: bool, value: &dyn ToString, expected| {
            let error = || Error::Setting { name, value: value.to_string(), expected };
            ok.then_some(()).ok_or_else(error)
        };
        let is_share = |value: Option<f32>| value.is_none_or(|v| (0.0..=1.0).contains(&v));
        let share = "it must be between 0 and 1";
        check(
            "max_new_tokens",
            self.max_new_tokens > 0,
            &self.max_new_tokens,
            "it must be at least 1",
        )?;
        let temperature = self.temperature == 0.0 || self.temperature >= LEAST_TEMPERATURE;
        let temperature = temperature && self.temperature.is_finite();
        check("temperature", temperature, &self.temperature, "it must be 0, or 0.0001 or more")?;
        check("top_k", self.top_k != Some(0), &0, "it must be at least 1")?;
        check("top_p", is_share(self.top_p), &self.top_p.unwrap_or_default(), share)?;
        check("min_p", is_share(self.min_p), &self.min_p.unwrap_or_default(), share)?;
        let penalty = self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite();
        check("repetition_penalty", penalty, &self.repetition_penalty, "it must be positive")?;
        for (name, penalty) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            let ok = (-2.0..=2.0).contains(&penalty);
            check(name, ok, &penalty, "it must be between -2 and 2")?;
        }
        let finite = self.logit_bias.values().all(|bias| bias.is_finite());
        check("logit_bias", finite, &"not finite", "it must be a number for each token")?;
        let logprobs = self.logprobs.unwrap_or_default();
        check("logprobs", logprobs <= MAX_LOGPROBS, &logprobs, "it must be 20 or less")?;
        let draft = self.prompt_lookup_num_tokens.unwrap_or(1);
        check(
            "prompt_lookup_num_tokens",
            (1..=MAX_DRAFT).contains(&draft),
            &draft,
            "it must be between 1 and 64",
        )?;
        let bad_words = self.bad_words_ids.iter().all(|words| !words.is_empty());
        check("bad_words_ids", bad_words, &"empty", "it must have at least one token each")?;
        let stop = self.stop.iter().all(|text| !text.is_empty());
        check("stop", stop, &"empty", "it must have at least one character")?;
        Ok(self)
    }
}

/// A list of the config; empty where there is none.
fn list<T: serde::de::DeserializeOwned>(
    config: &Map<String, Value>,
    name: &'static str,
    expected: &'static str,
) -> Result<Vec<T>, Error> {
    let value = config.get(name).filter(|value| !value.is_null());
    let list = value.map(|value| {
        let error = |_| Error::Setting { name, value: value.to_string(), expected };
        serde_json::from_value(value.clone()).map_err(error)
    });
    Ok(list.transpose()?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(config: Value) -> Result<GenerationOptions, Error> {
        GenerationOptions::from_config(config.as_object().unwrap())
    }

    #[test]
    fn sampling_settings_count_only_with_do_sample() {
        let greedy = options(json!({"temperature": 0.7, "top_p": 0.9})).unwrap();
        assert_eq!(greedy, GenerationOptions::default());
        let config = json!({"do_sample": true, "temperature": 0.1, "min_p": 0.15});
        let sampling = options(config).unwrap();
        assert_eq!(
            (sampling.temperature, sampling.min_p, sampling.top_k),
            (0.1, Some(0.15), Some(50))
        );
    }

    #[test]
    fn what_is_not_to_be_written_is_taken_from_the_config() {
        let config = json!({
            "suppress_tokens": [3, 4], "bad_words_ids": [[5], [6, 7]], "min_new_tokens": 9,
            "stop_strings": "END",
        });
        let options = options(config).unwrap();
        assert_eq!(options.suppress_tokens, [3, 4]);
        assert_eq!(options.bad_words_ids, [vec![5], vec![6, 7]]);
        assert_eq!((options.min_new_tokens, &options.stop[..]), (9, &["END".to_owned()][..]));
    }

    #[test]
    fn settings_that_make_no_sense_are_named() {
        let cases = [
            json!({"do_sample": true, "temperature": -1}),
            json!({"do_sample": true, "top_p": 2}),
            json!({"do_sample": true, "min_p": "low"}),
            json!({"repetition_penalty": 0}),
            json!({"max_new_tokens": 0}),
            json!({"suppress_tokens": "all"}),
            json!({"bad_words_ids": [[]]}),
            json!({"stop_strings": 3}),
        ];
        for (config, name) in cases.into_iter().zip([
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "max_new_tokens",
            "suppress_tokens",
            "bad_words_ids",
            "stop_strings",
        ]) {
            let message = options(config).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
