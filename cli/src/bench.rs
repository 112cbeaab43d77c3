//! `lfm2vl bench`: where the time goes.

use std::{path::PathBuf, time::Instant};

use anyhow::Result;
use clap::Args;
use lfm2vl::{Engine, Error, GenerationOptions, chat::Message};
use serde_json::json;

use crate::{
    arguments::{ImageArguments, LoadArguments},
    print,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that lfm2vl-export wrote.
    folder: PathBuf,
    /// An image to put before the prompt.
    #[arg(long, value_name = "FILE|URL")]
    image: Option<String>,
    /// Text tokens of the prompt, about.
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens to generate; the model's own end is ignored.
    #[arg(long, value_name = "N", default_value_t = 64)]
    new_tokens: usize,
    /// Runs to take the medians of.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Conversations about the prompt alone, without the image, whose decoding together is timed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Without a short run before the first one.
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    images: ImageArguments,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

const SECOND_QUESTION: &str = "And how many of them are red?";

/// Figures of one run.
struct Run {
    preprocess: f64,
    vision: f64,
    prefill: f64,
    prompt_tokens: usize,
    first_token: f64,
    /// Tokens of all answers a second.
    decode_speed: f64,
    /// Tokens that came out of a run, on average: more than one where drafts were right.
    tokens_per_run: f64,
    total: f64,
    /// Time to the first token of another question in the same conversation, if one is asked.
    second_first_token: Option<f64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let engine = arguments.load.load(&arguments.folder, &arguments.images)?;
    let prompt = filler(&engine, arguments.prompt_tokens)?;
    if !arguments.cold {
        warm_up(&engine)?;
    }
    let runs = (0..arguments.repeat.max(1))
        .map(|_| measure(&engine, arguments, &prompt))
        .collect::<Result<Vec<_>>>()?;
    let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
    let prompt_tokens = runs[0].prompt_tokens;
    let seconds: Option<Vec<f64>> = runs.iter().map(|run| run.second_first_token).collect();
    let second_question_ms = seconds.map(|seconds| 1e3 * median(seconds));
    let (prefill, decode_speed) = (of(|r| r.prefill), of(|r| r.decode_speed));
    if arguments.json {
        let report = json!({
            "load_ms": 1e3 * engine.load_seconds(),
            "preprocess_ms": 1e3 * of(|r| r.preprocess),
            "vision_ms": 1e3 * of(|r| r.vision),
            "prompt_tokens": prompt_tokens,
            "prefill_ms": 1e3 * prefill,
            "prefill_tokens_per_second": prompt_tokens as f64 / prefill,
            "time_to_first_token_ms": 1e3 * of(|r| r.first_token),
            "decode_tokens_per_second": decode_speed,
            "tokens_per_run": of(|r| r.tokens_per_run),
            "total_ms": 1e3 * of(|r| r.total),
            "second_question_ms": second_question_ms,
            "repeat": runs.len(),
        });
        return print(&format!("{report:#}\n"));
    }
    let mut text = format!("load                  {:>9.1} ms\n", 1e3 * engine.load_seconds());
    if arguments.image.is_some() {
        text += &format!("image processing      {:>9.1} ms\n", 1e3 * of(|r| r.preprocess));
        text += &format!("vision                {:>9.1} ms\n", 1e3 * of(|r| r.vision));
    }
    text += &format!(
        "prefill               {:>9.1} ms   {prompt_tokens} tokens, {:.0} a second\n",
        1e3 * prefill,
        prompt_tokens as f64 / prefill
    );
    text += &format!("time to first token   {:>9.1} ms\n", 1e3 * of(|r| r.first_token));
    text += &format!(
        "decode                {:>9.2} ms   a token, {decode_speed:.1} a second\n",
        1e3 / decode_speed,
    );
    if arguments.load.prompt_lookup.is_some() {
        text += &format!("tokens of a run       {:>9.2}\n", of(|r| r.tokens_per_run));
    }
    text += &format!("in all                {:>9.1} ms\n", 1e3 * of(|r| r.total));
    if let Some(ms) = second_question_ms {
        text += &format!("a second question     {ms:>9.1} ms   to its first token\n");
    }
    text += &format!("medians of {} runs\n", runs.len());
    print(&text)
}

/// The first run of each graph makes its memory.
fn warm_up(engine: &Engine) -> Result<()> {
    let mut conversation = engine.conversation();
    conversation.push(Message::user("Hello"));
    let options = GenerationOptions { max_new_tokens: 2, ..GenerationOptions::default() };
    conversation.generate(&options)?.finish()?;
    Ok(())
}

fn measure(engine: &Engine, arguments: &Arguments, prompt: &str) -> Result<Run> {
    let mut conversation = engine.conversation();
    let start = Instant::now();
    let images = arguments.images.load(arguments.image.as_slice())?;
    conversation.push_with_images(Message::user(prompt), &images)?;
    let preprocess = start.elapsed().as_secs_f64();
    let options = GenerationOptions {
        max_new_tokens: arguments.new_tokens,
        ignore_eos: true,
        prompt_lookup_num_tokens: arguments.load.prompt_lookup,
        ..GenerationOptions::default()
    };
    let answer = conversation.generate(&options)?;
    let first_token = start.elapsed().as_secs_f64();
    let completion = answer.finish()?;
    let total = start.elapsed().as_secs_f64();

    let second_first_token = match arguments.cold {
        true => None,
        false => {
            let start = Instant::now();
            conversation.push(Message::user(SECOND_QUESTION));
            drop(conversation.generate(&options)?);
            Some(start.elapsed().as_secs_f64())
        }
    };
    let steps = completion.token_ids.len().saturating_sub(1).max(1);
    let decode_speed = match arguments.batch {
        0 | 1 => steps as f64 / completion.timings.decode,
        rows => batch_speed(engine, &options, prompt, rows)?,
    };
    Ok(Run {
        preprocess,
        vision: completion.timings.vision,
        prefill: completion.timings.prefill,
        prompt_tokens: completion.prompt_tokens,
        first_token,
        decode_speed,
        tokens_per_run: steps as f64
            / steps.saturating_sub(completion.accepted_tokens).max(1) as f64,
        total,
        second_first_token,
    })
}

/// Tokens a second of all answers, when so many conversations are answered together.
fn batch_speed(
    engine: &Engine,
    options: &GenerationOptions,
    prompt: &str,
    rows: usize,
) -> Result<f64> {
    let mut batch = engine.batch();
    for _ in 0..rows {
        let mut conversation = engine.conversation();
        conversation.push(Message::user(prompt));
        batch.join(conversation, options).map_err(Error::from)?;
    }
    let (start, mut tokens) = (Instant::now(), 0);
    // The first tokens come from the prompts' own runs and are not counted.
    batch.step()?;
    while !batch.is_empty() {
        tokens += batch.len();
        batch.step()?;
    }
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

/// Text of about so many tokens.
fn filler(engine: &Engine, tokens: usize) -> Result<String> {
    let words = "The image shows a red square and a blue circle. ";
    let tokenizer = engine.prompter().tokenizer();
    let per_repeat = tokenizer.encode(words)?.len().max(1);
    Ok(words.repeat(tokens.div_ceil(per_repeat)))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}
