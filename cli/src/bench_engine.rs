//! `lfm2vl bench-engine`: how answers get on beside each other.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lfm2vl::{Answer, Conversation, Engine, GenerationOptions, Metrics, chat::Message};
use serde_json::{Value, json};

use crate::{
    arguments::{ImageArguments, LoadArguments},
    bench::{filler, median},
    print,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that lfm2vl-export wrote.
    folder: PathBuf,
    /// A photo to be answered beside a stream.
    #[arg(long, value_name = "FILE|URL")]
    image: Option<String>,
    /// Text tokens of the prompt that is answered beside a stream, about.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    prompt_tokens: usize,
    /// Runs to take the medians of.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Prompt tokens between two steps; by default what takes a tenth of a second.
    #[arg(long, value_name = "N")]
    prompt_tokens_per_step: Option<usize>,
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    images: ImageArguments,
}

/// Rows that join and leave.
const ROWS: [usize; 3] = [8, 16, 32];
/// How long streams are counted.
const COUNTED: Duration = Duration::from_secs(8);

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let engine = arguments.load.load_with(&arguments.folder, &arguments.images, |builder| {
        let builder = builder.image_cache(0).slots(32);
        match arguments.prompt_tokens_per_step {
            Some(tokens) => builder.prompt_tokens_per_step(tokens),
            None => builder,
        }
    })?;
    let mut report = serde_json::Map::new();
    let prompt = filler(&engine, arguments.prompt_tokens)?;
    let text = || {
        let mut conversation = Conversation::new();
        conversation.push(Message::user(&*prompt));
        Ok(conversation)
    };
    report.insert("long_prompt".into(), beside_a_stream(&engine, arguments.repeat, &text)?);
    report.insert("long_prompt_cancelled".into(), cancelled(&engine, arguments.repeat, &text)?);
    if let Some(image) = &arguments.image {
        let photo = || {
            let images = arguments.images.load(std::slice::from_ref(image))?;
            let mut conversation = Conversation::new();
            conversation.push_with_images(Message::user("What is this?"), images)?;
            Ok(conversation)
        };
        report.insert("photo".into(), beside_a_stream(&engine, arguments.repeat, &photo)?);
        report.insert("photo_cancelled".into(), cancelled(&engine, arguments.repeat, &photo)?);
    }
    report.insert("eight_streams".into(), eight_streams(&engine)?);
    let rows = ROWS.map(|count| rows(&engine, count));
    report.insert("rows".into(), rows.into_iter().collect::<Result<Vec<_>>>()?.into());
    print(&format!("{:#}\n", Value::Object(report)))
}

type Ask<'a> = dyn Fn() -> Result<Conversation> + 'a;

/// An answer that does not end.
fn stream(engine: &Engine) -> Result<Answer> {
    let mut conversation = Conversation::new();
    conversation.push(Message::user("Tell me a story."));
    Ok(engine.generate(&mut conversation, &endless())?)
}

fn endless() -> GenerationOptions {
    GenerationOptions { max_new_tokens: 20_000, ignore_eos: true, ..GenerationOptions::default() }
}

/// Gaps between the tokens of a stream while a prompt is prepared, and how much longer that takes.
fn beside_a_stream(engine: &Engine, repeat: usize, ask: &Ask<'_>) -> Result<Value> {
    let (mut alone, mut beside, mut medians, mut largest) = (vec![], vec![], vec![], vec![]);
    let mut prompt_tokens = 0;
    for _ in 0..repeat.max(1) {
        let start = Instant::now();
        let mut answer = engine.generate(&mut ask()?, &endless())?;
        answer.next().transpose()?;
        alone.push(start.elapsed().as_secs_f64());
        prompt_tokens = answer.completion()?.prompt_tokens;
        drop(answer);

        let mut stream = stream(engine)?;
        for event in stream.by_ref().take(20) {
            event?;
        }
        let handle = stream.cancel_handle();
        let reader = thread::spawn(move || -> Vec<Instant> {
            stream.map_while(Result::ok).map(|_| Instant::now()).collect()
        });
        let start = Instant::now();
        let mut answer = engine.generate(&mut ask()?, &endless())?;
        answer.next().transpose()?;
        let end = Instant::now();
        beside.push((end - start).as_secs_f64());
        drop(answer);
        handle.cancel();
        let times = reader.join().ok().context("the reader stopped")?;
        let during = times.windows(2).filter(|pair| pair[1] > start && pair[0] < end);
        let gaps: Vec<f64> = during.map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        ensure!(!gaps.is_empty(), "the prompt was too short to see a gap; raise --prompt-tokens");
        largest.push(gaps.iter().copied().fold(0.0, f64::max));
        medians.push(median(gaps));
    }
    let (alone, beside) = (median(alone), median(beside));
    Ok(json!({
        "prompt_tokens": prompt_tokens,
        "first_token_alone_ms": 1e3 * alone,
        "first_token_beside_a_stream_ms": 1e3 * beside,
        "times_as_long": beside / alone,
        "gap_median_ms": 1e3 * median(medians),
        "gap_largest_ms": 1e3 * largest.into_iter().fold(0.0, f64::max),
    }))
}

/// How long the process goes on computing after a prompt is cancelled half a second into it.
fn cancelled(engine: &Engine, repeat: usize, ask: &Ask<'_>) -> Result<Value> {
    let mut until_idle = Vec::new();
    for _ in 0..repeat.max(1) {
        let answer = engine.generate(&mut ask()?, &endless())?;
        thread::sleep(Duration::from_millis(500));
        ensure!(engine.metrics().in_prompt == 1, "the prompt took less than half a second");
        answer.cancel();
        let start = Instant::now();
        let mut last_busy = Duration::ZERO;
        let mut before = cpu_time()?;
        while start.elapsed() < Duration::from_millis(1500) {
            thread::sleep(Duration::from_millis(20));
            let now = cpu_time()?;
            // Of 20 ms, a tick of the clock that counts them is 10.
            if now - before > Duration::from_millis(10) {
                last_busy = start.elapsed();
            }
            before = now;
        }
        until_idle.push(last_busy.as_secs_f64());
    }
    Ok(json!({"idle_after_ms": 1e3 * median(until_idle)}))
}

/// Time that this process has computed, on Linux.
fn cpu_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").context("CPU time is told on Linux only")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    // The 14th and 15th fields, in hundredths of a second; the name is the second.
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(10 * ticks))
}

/// Tokens of eight answers that are made at a time.
fn eight_streams(engine: &Engine) -> Result<Value> {
    let streams = (0..8).map(|_| stream(engine)).collect::<Result<Vec<_>>>()?;
    thread::sleep(COUNTED);
    let tokens = streams.iter().map(|stream| Ok(stream.completion()?.token_ids.len()));
    let tokens = tokens.collect::<Result<Vec<_>>>()?;
    let (fewest, most) = (tokens.iter().min(), tokens.iter().max());
    Ok(json!({"fewest_tokens": fewest, "most_tokens": most}))
}

/// How long rows take to come and go, and what is copied for that.
fn rows(engine: &Engine, count: usize) -> Result<Value> {
    let ended = |metrics: &Metrics| metrics.finished + metrics.failed;
    let before = ended(&engine.metrics());
    let wait = |active: usize| loop {
        let metrics = engine.metrics();
        ensure!(ended(&metrics) == before, "a stream has ended; take a model of a longer context");
        if (metrics.active, metrics.in_prompt, metrics.waiting) == (active, 0, 0) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    };
    wait(0)?;
    let start = Instant::now();
    let mut answers = (0..count).map(|_| stream(engine)).collect::<Result<Vec<_>>>()?;
    wait(count)?;
    let joined = start.elapsed();
    let before = engine.metrics();
    let start = Instant::now();
    while !answers.is_empty() {
        drop(answers.remove(answers.len() / 2));
        wait(answers.len())?;
    }
    let left = start.elapsed();
    let after = engine.metrics();
    let steps = (after.decode_time - before.decode_time).as_secs_f64();
    let copied = after.copied_bytes - before.copied_bytes;
    Ok(json!({
        "rows": count,
        "all_in_ms": 1e3 * joined.as_secs_f64(),
        "all_out_one_by_one_ms": 1e3 * left.as_secs_f64(),
        "of_which_steps_ms": 1e3 * steps,
        "copied_bytes_a_row": copied / count as u64,
    }))
}
