//! Arguments that several commands share.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lfm2vl::{
    Constraint, Engine, EngineBuilder, GenerationOptions, Precision, PromptOptions,
    chat::Message,
    image::{Limits, Overrides, RgbImage, load_all},
};
use serde_json::{Map, Value};

use crate::providers::ProviderArguments;

/// How the model is loaded.
#[derive(Args)]
pub(crate) struct LoadArguments {
    /// Precision of all graphs, or a bundle of the folder's manifest; by default the bundle that the
    /// folder recommends.
    #[arg(long, value_name = "fp32|fp16|q8|q4|q4f16|BUNDLE")]
    precision: Option<String>,
    #[command(flatten)]
    providers: ProviderArguments,
    /// Threads of the CPU; by default one for each core.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Draft up to N tokens where the text repeats itself, and check them in one run: faster when
    /// transcribing or filling in forms, and the same answers.
    #[arg(long, value_name = "N")]
    pub(crate) prompt_lookup: Option<usize>,
    /// Wait for each token before the next step begins; by default, on a device and with the recipe cuda, that
    /// begins with the likeliest token meanwhile.
    #[arg(long)]
    no_run_ahead: bool,
}

impl LoadArguments {
    pub(crate) fn load(&self, folder: &Path, images: &ImageArguments) -> Result<Engine> {
        self.load_with(folder, images, |builder| builder)
    }

    /// Loads with settings that are no arguments.
    pub(crate) fn load_with(
        &self,
        folder: &Path,
        images: &ImageArguments,
        set: impl FnOnce(EngineBuilder) -> EngineBuilder,
    ) -> Result<Engine> {
        let precision: Option<Precision> = self.precision.as_ref().and_then(|p| p.parse().ok());
        let bundle = self.precision.clone().filter(|_| precision.is_none());
        let builder = Engine::builder(folder)
            .precision(precision)
            .bundle(bundle)
            .threads(self.threads)
            .speculation(self.prompt_lookup.is_some())
            .image_overrides(images.overrides()?);
        let builder = if self.no_run_ahead { builder.run_ahead(false) } else { builder };
        let engine = set(self.providers.apply(builder)?).build()?;
        warn_of_skipped(&engine);
        Ok(engine)
    }
}

/// How many answers are made at a time.
#[derive(Args)]
pub(crate) struct SlotArguments {
    /// Make so many answers at a time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    slots: usize,
    /// Let a prompt and its answer have so many tokens at most; by default as many as the model's context.
    #[arg(long, value_name = "TOKENS")]
    capacity: Option<usize>,
    /// Let the state of all answers take so many bytes at most.
    #[arg(long, value_name = "BYTES")]
    kv_cache_memory: Option<usize>,
}

impl SlotArguments {
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    pub(crate) fn apply(&self, builder: EngineBuilder) -> EngineBuilder {
        let builder = builder.slots(self.slots);
        let builder = match self.capacity {
            Some(tokens) => builder.capacity(tokens),
            None => builder,
        };
        match self.kv_cache_memory {
            Some(bytes) => builder.kv_cache_memory(bytes),
            None => builder,
        }
    }
}

/// Says which providers could not be used, and what runs the graphs instead.
fn warn_of_skipped(engine: &Engine) {
    let graphs = engine.graphs();
    let reasons: BTreeSet<(&str, &str)> = graphs
        .iter()
        .flat_map(|graph| &graph.skipped)
        .map(|skipped| (skipped.provider.as_str(), skipped.reason.as_str()))
        .collect();
    for (provider, reason) in &reasons {
        eprintln!("warning: the provider {provider} cannot be used: {reason}");
    }
    for graph in graphs.iter().filter(|graph| !graph.skipped.is_empty()) {
        eprintln!("warning: {} runs on {}", graph.graph, graph.provider);
    }
}

/// How images are loaded and processed: the dial between speed and detail.
#[derive(Args)]
pub(crate) struct ImageArguments {
    /// Enlarge smaller images to this many image tokens.
    #[arg(long, value_name = "N")]
    min_image_tokens: Option<usize>,
    /// Shrink or split images that would take more image tokens.
    #[arg(long, value_name = "N")]
    max_image_tokens: Option<usize>,
    /// Split large images into at least so many tiles.
    #[arg(long, value_name = "N")]
    min_tiles: Option<usize>,
    /// Split large images into at most so many tiles.
    #[arg(long, value_name = "N")]
    max_tiles: Option<usize>,
    /// Shrink large images instead of splitting them into tiles.
    #[arg(long)]
    no_splitting: bool,
    /// Leave out the small copy of an image that is split.
    #[arg(long)]
    no_thumbnail: bool,
    /// Replace any setting of processor_config.json, such as resample=3; may be given several
    /// times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
    image_setting: Vec<(String, Value)>,
    /// Refuse images of more bytes.
    #[arg(long, value_name = "N")]
    max_image_bytes: Option<u64>,
    /// Refuse images of more pixels.
    #[arg(long, value_name = "N")]
    max_image_pixels: Option<u64>,
    /// Give up on an image after this time.
    #[arg(long, value_name = "SECONDS")]
    image_timeout: Option<u64>,
    /// Let URLs lead to addresses that are not public.
    #[arg(long)]
    allow_private_addresses: bool,
}

fn parse_setting(argument: &str) -> Result<(String, Value), String> {
    let (name, value) = argument.split_once('=').ok_or("write NAME=VALUE")?;
    // A word is a text.
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((name.to_owned(), value))
}

impl ImageArguments {
    pub(crate) fn overrides(&self) -> Result<Overrides> {
        let settings: Map<String, Value> = self.image_setting.iter().cloned().collect();
        for name in settings.keys() {
            ensure!(
                Overrides::NAMES.contains(&name.as_str()),
                "there is no image setting '{name}'; the settings are {}",
                Overrides::NAMES.join(", ")
            );
        }
        let any = Overrides::from_json(&settings.into())?;
        Ok(Overrides {
            min_image_tokens: self.min_image_tokens.or(any.min_image_tokens),
            max_image_tokens: self.max_image_tokens.or(any.max_image_tokens),
            min_tiles: self.min_tiles.or(any.min_tiles),
            max_tiles: self.max_tiles.or(any.max_tiles),
            do_image_splitting: self.no_splitting.then_some(false).or(any.do_image_splitting),
            use_thumbnail: self.no_thumbnail.then_some(false).or(any.use_thumbnail),
            ..any
        })
    }

    fn limits(&self) -> Limits {
        self.limits_or(Limits::default())
    }

    /// The limits, with others for those that are not given.
    pub(crate) fn limits_or(&self, default: Limits) -> Limits {
        Limits {
            max_bytes: self.max_image_bytes.unwrap_or(default.max_bytes),
            max_pixels: self.max_image_pixels.unwrap_or(default.max_pixels),
            max_time: self.image_timeout.map_or(default.max_time, Duration::from_secs),
            allow_private_addresses: self.allow_private_addresses,
            ..default
        }
    }

    pub(crate) fn load(&self, sources: &[String]) -> Result<Vec<RgbImage>> {
        Ok(load_all(sources, &self.limits())?)
    }
}

/// How answers are generated. What is not given is as the model's generation_config.json says.
#[derive(Args)]
pub(crate) struct GenerationArguments {
    /// Most tokens of an answer.
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Randomness; 0 always takes the most likely token.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Take only the most likely N tokens.
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Take only the fewest tokens whose probabilities add up to P.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Take only tokens at least P times as likely as the most likely one.
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Make repeated tokens less likely; 1 changes nothing.
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f32>,
    /// Seed of the random choices, for the same answer each time.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End the answer before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Answer with JSON that this JSON Schema allows.
    #[arg(long, value_name = "FILE.json", conflicts_with = "choice")]
    json_schema: Option<PathBuf>,
    /// Answer with one of these texts.
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    choice: Vec<String>,
}

impl GenerationArguments {
    pub(crate) fn options(
        &self,
        engine: &Engine,
        load: &LoadArguments,
    ) -> Result<GenerationOptions> {
        let model = engine.generation_options()?;
        let options = GenerationOptions {
            max_new_tokens: self.max_new_tokens.unwrap_or(model.max_new_tokens),
            temperature: self.temperature.unwrap_or(model.temperature),
            top_k: self.top_k.or(model.top_k),
            top_p: self.top_p.or(model.top_p),
            min_p: self.min_p.or(model.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(model.repetition_penalty),
            seed: self.seed,
            stop: [&model.stop[..], &self.stop[..]].concat(),
            prompt_lookup_num_tokens: load.prompt_lookup,
            constraint: self.constraint()?,
            ..model
        };
        Ok(options.validated()?)
    }
}

impl GenerationArguments {
    fn constraint(&self) -> Result<Option<Constraint>> {
        if let Some(path) = &self.json_schema {
            return Ok(Some(Constraint::JsonSchema(read_json(path, "JSON")?)));
        }
        Ok(Some(self.choice.clone()).filter(|choices| !choices.is_empty()).map(Constraint::Choice))
    }
}

/// What a file has, which is to be of this kind of JSON.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path, kind: &str) -> Result<T> {
    let content = fs::read(path)
        .with_context(|| format!("cannot read {}; check the path", path.display()))?;
    serde_json::from_slice(&content)
        .with_context(|| format!("{} is no {kind}; correct it", path.display()))
}

/// The prompt of one turn.
#[derive(Args)]
pub(crate) struct PromptArguments {
    /// An image: a file, a URL or a data URI; may be given several times. Images come before the
    /// prompt.
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) image: Vec<String>,
    /// What to ask.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    #[command(flatten)]
    pub(crate) chat: ChatArguments,
}

impl PromptArguments {
    pub(crate) fn message(&self) -> Message {
        Message::user(&self.prompt)
    }
}

/// What is around the messages.
#[derive(Args)]
pub(crate) struct ChatArguments {
    /// Instructions for the model.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tools that the model may call: a file with a JSON list of
    /// {"type": "function", "function": {"name", "description", "parameters"}}.
    #[arg(long, value_name = "FILE.json")]
    tools: Option<PathBuf>,
    /// Let strings such as <|im_end|> in a prompt mean the special tokens.
    #[arg(long)]
    special_tokens_in_text: bool,
}

impl ChatArguments {
    pub(crate) fn system_message(&self) -> Option<Message> {
        self.system.as_ref().map(Message::system)
    }

    pub(crate) fn options(&self) -> Result<PromptOptions> {
        let mut options = PromptOptions {
            special_tokens_in_text: self.special_tokens_in_text,
            ..PromptOptions::default()
        };
        if let Some(path) = &self.tools {
            let tools: Vec<Value> = read_json(path, "JSON list")?;
            options.render.tools = Some(tools.into());
        }
        Ok(options)
    }
}
