//! `lfm2vl bench`: where the time goes.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lfm2vl::{Answer, Conversation, Engine, GenerationOptions, Metrics, chat::Message};
use serde::Deserialize;
use serde_json::json;

use crate::{
    arguments::{ImageArguments, LoadArguments},
    print,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that lfm2vl-export wrote.
    folder: PathBuf,
    #[command(flatten)]
    scenario: Scenario,
    /// Measure each of these instead, and print a line of JSON for each: a JSON list of objects with image,
    /// prompt_tokens, new_tokens and batch.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "prompt_tokens", "new_tokens", "batch", "json"])]
    scenarios: Option<PathBuf>,
    /// Runs to take the medians of.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
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

/// What is measured.
#[derive(Args, Deserialize, Clone)]
#[serde(default, deny_unknown_fields)]
struct Scenario {
    /// An image to put before the prompt.
    #[arg(long, value_name = "FILE|URL")]
    image: Option<String>,
    /// Text tokens of the prompt, about.
    #[arg(long, value_name = "N", default_value_t = Scenario::default().prompt_tokens)]
    prompt_tokens: usize,
    /// Tokens to generate; the model's own end is ignored.
    #[arg(long, value_name = "N", default_value_t = Scenario::default().new_tokens)]
    new_tokens: usize,
    /// Conversations about the prompt alone, without the image, whose decoding together is timed.
    #[arg(long, value_name = "N", default_value_t = Scenario::default().batch)]
    batch: usize,
}

impl Default for Scenario {
    fn default() -> Self {
        Scenario { image: None, prompt_tokens: 512, new_tokens: 64, batch: 1 }
    }
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

/// What is printed of a scenario.
struct Report {
    scenario: Scenario,
    load: f64,
    runs: Vec<Run>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Some(file) = &arguments.scenarios else {
        let scenario = arguments.scenario.clone();
        let report = Report::measure(&load(arguments, &scenario)?, arguments, scenario)?;
        return print(&if arguments.json {
            format!("{:#}\n", report.json())
        } else {
            report.text(arguments.load.prompt_lookup.is_some())
        });
    };
    let mut engine: Option<(usize, Engine)> = None;
    for (index, scenario) in read_scenarios(file)?.into_iter().enumerate() {
        let loaded = match engine.take() {
            Some((batch, engine)) if batch == scenario.batch => engine,
            other => {
                // Its memory is free before the next one's is taken.
                drop(other);
                load(arguments, &scenario)?
            }
        };
        let (_, loaded) = engine.insert((scenario.batch, loaded));
        let report = Report::measure(loaded, arguments, scenario);
        let report = report.with_context(|| format!("scenario {}", index + 1))?;
        print(&format!("{}\n", report.json()))?;
    }
    Ok(())
}

fn read_scenarios(file: &Path) -> Result<Vec<Scenario>> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let scenarios: Vec<Scenario> = serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is no JSON list of objects with image, prompt_tokens, new_tokens and batch",
            file.display()
        )
    })?;
    ensure!(!scenarios.is_empty(), "{} lists no scenario; add one", file.display());
    Ok(scenarios)
}

/// An engine for a scenario, in which each run encodes the image anew.
fn load(arguments: &Arguments, scenario: &Scenario) -> Result<Engine> {
    let engine = arguments.load.load_with(&arguments.folder, &arguments.images, |builder| {
        builder.image_cache(0).slots(scenario.batch.max(1))
    })?;
    if !arguments.cold {
        warm_up(&engine)?;
    }
    Ok(engine)
}

impl Report {
    fn measure(engine: &Engine, arguments: &Arguments, scenario: Scenario) -> Result<Self> {
        let prompt = filler(engine, scenario.prompt_tokens)?;
        let runs = (0..arguments.repeat.max(1))
            .map(|_| measure(engine, arguments, &scenario, &prompt))
            .collect::<Result<Vec<_>>>()?;
        Ok(Report { scenario, load: engine.load_time().as_secs_f64(), runs })
    }

    /// The median of a figure.
    fn of(&self, figure: fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(figure).collect())
    }

    fn prompt_tokens(&self) -> usize {
        self.runs[0].prompt_tokens
    }

    fn second_question_ms(&self) -> Option<f64> {
        let seconds: Option<Vec<f64>> =
            self.runs.iter().map(|run| run.second_first_token).collect();
        Some(1e3 * median(seconds?))
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "load_ms": 1e3 * self.load,
            "preprocess_ms": 1e3 * self.of(|r| r.preprocess),
            "vision_ms": 1e3 * self.of(|r| r.vision),
            "prompt_tokens": self.prompt_tokens(),
            "prefill_ms": 1e3 * self.of(|r| r.prefill),
            "prefill_tokens_per_second": self.prompt_tokens() as f64 / self.of(|r| r.prefill),
            "time_to_first_token_ms": 1e3 * self.of(|r| r.first_token),
            "decode_tokens_per_second": self.of(|r| r.decode_speed),
            "tokens_per_run": self.of(|r| r.tokens_per_run),
            "total_ms": 1e3 * self.of(|r| r.total),
            "second_question_ms": self.second_question_ms(),
            "repeat": self.runs.len(),
        })
    }

    fn text(&self, drafts: bool) -> String {
        let (prefill, decode_speed) = (self.of(|r| r.prefill), self.of(|r| r.decode_speed));
        let mut text = format!("load                  {:>9.1} ms\n", 1e3 * self.load);
        if self.scenario.image.is_some() {
            text += &format!("image processing      {:>9.1} ms\n", 1e3 * self.of(|r| r.preprocess));
            text += &format!("vision                {:>9.1} ms\n", 1e3 * self.of(|r| r.vision));
        }
        text += &format!(
            "prefill               {:>9.1} ms   {} tokens, {:.0} a second\n",
            1e3 * prefill,
            self.prompt_tokens(),
            self.prompt_tokens() as f64 / prefill
        );
        text += &format!("time to first token   {:>9.1} ms\n", 1e3 * self.of(|r| r.first_token));
        text += &format!(
            "decode                {:>9.2} ms   a token, {decode_speed:.1} a second\n",
            1e3 / decode_speed,
        );
        if drafts {
            text += &format!("tokens of a run       {:>9.2}\n", self.of(|r| r.tokens_per_run));
        }
        text += &format!("in all                {:>9.1} ms\n", 1e3 * self.of(|r| r.total));
        if let Some(ms) = self.second_question_ms() {
            text += &format!("a second question     {ms:>9.1} ms   to its first token\n");
        }
        text + &format!("medians of {} runs\n", self.runs.len())
    }
}

/// The first run of each graph makes its memory.
fn warm_up(engine: &Engine) -> Result<()> {
    let mut conversation = Conversation::new();
    conversation.push(Message::user("Hello"));
    let options = GenerationOptions { max_new_tokens: 2, ..GenerationOptions::default() };
    engine.answer(&mut conversation, &options)?;
    Ok(())
}

fn measure(
    engine: &Engine,
    arguments: &Arguments,
    scenario: &Scenario,
    prompt: &str,
) -> Result<Run> {
    let mut conversation = Conversation::new();
    let start = Instant::now();
    let images = arguments.images.load(scenario.image.as_slice())?;
    let loading = start.elapsed();
    conversation.push_with_images(Message::user(prompt), images)?;
    let options = GenerationOptions {
        max_new_tokens: scenario.new_tokens,
        ignore_eos: true,
        prompt_lookup_num_tokens: arguments.load.prompt_lookup,
        ..GenerationOptions::default()
    };
    let mut answer = engine.generate(&mut conversation, &options)?;
    answer.next().transpose()?;
    let first_token = start.elapsed().as_secs_f64();
    // Waits for the others.
    answer.by_ref().try_for_each(|event| event.map(drop))?;
    let completion = answer.completion()?;
    let total = start.elapsed().as_secs_f64();
    conversation.push_answer(&completion);

    let second_first_token = if arguments.cold {
        None
    } else {
        let start = Instant::now();
        conversation.push(Message::user(SECOND_QUESTION));
        engine.generate(&mut conversation, &options)?.next().transpose()?;
        Some(start.elapsed().as_secs_f64())
    };
    let steps = completion.token_ids.len().saturating_sub(1).max(1);
    let decode_speed = match scenario.batch {
        0 | 1 => completion.tokens_per_second(),
        rows => batch_speed(engine, &options, prompt, rows)?,
    };
    Ok(Run {
        preprocess: (loading + completion.timings.preprocess).as_secs_f64(),
        vision: completion.timings.vision.as_secs_f64(),
        prefill: completion.timings.prefill.as_secs_f64(),
        prompt_tokens: completion.prompt_tokens,
        first_token,
        decode_speed,
        tokens_per_run: steps as f64
            / steps.saturating_sub(completion.accepted_tokens).max(1) as f64,
        total,
        second_first_token,
    })
}

/// Tokens a second of all answers, while so many conversations are answered together: from when the
/// last one has its first token to when the first one ends.
fn batch_speed(
    engine: &Engine,
    options: &GenerationOptions,
    prompt: &str,
    rows: usize,
) -> Result<f64> {
    let finished = engine.metrics().finished;
    let answers = (0..rows).map(|_| {
        let mut conversation = Conversation::new();
        conversation.push(Message::user(prompt));
        engine.generate(&mut conversation, options)
    });
    let answers = answers.collect::<Result<Vec<Answer>, _>>()?;
    let wait_until = |is_so: &dyn Fn(&Metrics) -> bool| loop {
        let metrics = engine.metrics();
        if is_so(&metrics) || metrics.finished > finished || metrics.failed > 0 {
            return (Instant::now(), metrics.answer_tokens);
        }
        thread::sleep(Duration::from_millis(5));
    };
    let (start, before) = wait_until(&|metrics| metrics.active == rows && metrics.in_prompt == 0);
    let (end, after) = wait_until(&|_| false);
    for mut answer in answers {
        answer.try_for_each(|event| event.map(drop))?;
    }
    ensure!(after > before, "a batch ended before it could be timed; generate more new tokens");
    Ok((after - before) as f64 / (end - start).as_secs_f64())
}

/// Text of about so many tokens.
pub(crate) fn filler(engine: &Engine, tokens: usize) -> Result<String> {
    let words = "The image shows a red square and a blue circle. ";
    let tokenizer = engine.processor().tokenizer();
    let per_repeat = tokenizer.encode(words)?.len().max(1);
    // More than any model takes, which it will say.
    Ok(words.repeat(tokens.min(1 << 24).div_ceil(per_repeat)))
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}
