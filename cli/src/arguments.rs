//! Arguments that several commands share.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use lfm2vl::{Engine, GenerationOptions, Precision, Provider, image::Overrides};

/// How the model is loaded.
#[derive(Args)]
pub(crate) struct LoadArguments {
    /// Precision of the graphs; by default what the folder recommends.
    #[arg(long, value_name = "fp32|fp16|q8|q4|q4f16")]
    precision: Option<Precision>,
    /// What runs the graphs: cpu, cuda, tensorrt, coreml or directml.
    #[arg(long, default_value_t)]
    provider: Provider,
    /// Threads of the CPU; by default one for each core.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl LoadArguments {
    pub(crate) fn load(&self, folder: &Path, images: &ImageArguments) -> Result<Engine> {
        let builder = Engine::builder(folder)
            .precision(self.precision)
            .provider(self.provider)
            .threads(self.threads)
            .image_overrides(images.overrides());
        Ok(builder.build()?)
    }
}

/// How images are processed: the dial between speed and detail.
#[derive(Args)]
pub(crate) struct ImageArguments {
    /// Enlarge smaller images to this many image tokens.
    #[arg(long, value_name = "N")]
    min_image_tokens: Option<usize>,
    /// Shrink or split images that would take more image tokens.
    #[arg(long, value_name = "N")]
    max_image_tokens: Option<usize>,
    /// Split large images into at most so many tiles.
    #[arg(long, value_name = "N")]
    max_tiles: Option<usize>,
    /// Shrink large images instead of splitting them into tiles.
    #[arg(long)]
    no_splitting: bool,
    /// Leave out the small copy of an image that is split.
    #[arg(long)]
    no_thumbnail: bool,
}

impl ImageArguments {
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            min_image_tokens: self.min_image_tokens,
            max_image_tokens: self.max_image_tokens,
            max_tiles: self.max_tiles,
            do_image_splitting: self.no_splitting.then_some(false),
            use_thumbnail: self.no_thumbnail.then_some(false),
            ..Overrides::default()
        }
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
}

impl GenerationArguments {
    pub(crate) fn options(&self, engine: &Engine) -> Result<GenerationOptions> {
        let model = engine.generation_options()?;
        let options = GenerationOptions {
            max_new_tokens: self.max_new_tokens.unwrap_or(model.max_new_tokens),
            temperature: self.temperature.unwrap_or(model.temperature),
            top_k: self.top_k.or(model.top_k),
            top_p: self.top_p.or(model.top_p),
            min_p: self.min_p.or(model.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(model.repetition_penalty),
            seed: self.seed,
            stop: self.stop.clone(),
            ignore_eos: false,
        };
        Ok(options.validated()?)
    }
}

/// The prompt of one turn.
#[derive(Args)]
pub(crate) struct PromptArguments {
    /// An image; may be given several times. Images come before the prompt.
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,
    /// What to ask.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// Instructions for the model.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
}
