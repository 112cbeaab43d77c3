//! `lfm2vl batch`: answers all requests of a file.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, IsTerminal, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lfm2vl_server::{Service, Settings, line_id};
use serde_json::Value;
use tokio::runtime;

use crate::{
    arguments::{ImageArguments, LoadArguments, SlotArguments},
    serve::LimitArguments,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that lfm2vl-export wrote.
    folder: PathBuf,
    /// Requests, one on each line: the bodies of chat completions, or OpenAI's batch format.
    input: PathBuf,
    /// File for the answers, one on each line in the order of the requests. Answers that are there already are not
    /// made again.
    #[arg(short, long, value_name = "OUT.jsonl")]
    output: PathBuf,
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    slots: SlotArguments,
    #[command(flatten)]
    images: ImageArguments,
    #[command(flatten)]
    limits: LimitArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let total = lines(&arguments.input)?.count();
    let (mut output, answered) = Output::open(&arguments.output, &arguments.input)?;
    let done = answered.len();
    let same = lines(&arguments.input)?.zip(&answered).map(|(line, id)| Ok(line_id(&line?) == *id));
    let same = same.collect::<Result<Vec<bool>>>()?;
    ensure!(
        done <= total && same.iter().all(|same| *same),
        "{} has answers to other requests; it belongs to another input, so give another file",
        arguments.output.display()
    );
    output.go_on()?;
    if done == total {
        eprintln!("all {total} requests have answers already");
        return Ok(());
    }
    let slots = arguments.slots.slots();
    let engine = arguments.load.load_with(&arguments.folder, &arguments.images, |builder| {
        let builder = arguments.slots.apply(builder).share_prefixes(true);
        builder
            .queue(2 * slots * Settings::default().max_choices)
            .max_text_bytes(arguments.limits.max_text_bytes)
    })?;
    let service = Service::new(engine, arguments.limits.settings(&arguments.images))?;
    let progress = Progress::new(total, done);
    let requests = lines(&arguments.input)?.enumerate().skip(done);
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let failed = runtime.block_on(async {
        // While all slots are busy, the next prompts are made.
        let mut answers = stream::iter(requests)
            .map(|(index, line)| {
                let service = &service;
                async move { Ok::<_, anyhow::Error>(service.answer_line(&line?, index + 1).await) }
            })
            .buffered(2 * slots);
        let mut failed = 0;
        while let Some(answer) = answers.next().await {
            let (answer, is_fine) = answer?;
            output.write(&answer)?;
            failed += usize::from(!is_fine);
            progress.answered(&answer, failed);
        }
        Ok::<usize, anyhow::Error>(failed)
    })?;
    progress.finish(failed);
    Ok(())
}

/// The lines of a file that have something on them.
fn lines(path: &Path) -> Result<impl Iterator<Item = Result<String>>> {
    let file = File::open(path)
        .with_context(|| format!("cannot read {}; check the path", path.display()))?;
    let name = path.to_owned();
    let lines = BufReader::new(file).lines().map(move |line| {
        line.with_context(|| format!("cannot read {}; it must be text in UTF-8", name.display()))
    });
    Ok(lines.filter(|line| line.as_ref().map_or(true, |line| !line.trim().is_empty())))
}

/// The file of answers.
struct Output {
    file: File,
    path: PathBuf,
    /// Where its whole lines end.
    end: u64,
}

impl Output {
    /// Opens the file, new or with the answers of a run that was stopped. Gives what the requests of these are
    /// known by.
    fn open(path: &Path, input: &Path) -> Result<(Self, Vec<String>)> {
        if let (Ok(output), Ok(input)) = (path.canonicalize(), input.canonicalize())
            && output == input
        {
            bail!("{} is the input; give another file for the answers", path.display());
        }
        let cannot = || format!("cannot write {}; check the path", path.display());
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.with_context(cannot)?;
        let mut reader = BufReader::new(&mut file);
        let (mut done, mut end) = (Vec::new(), 0);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).with_context(cannot)?;
            // One that was being written when the program ended is written again.
            if length == 0 || !line.ends_with(b"\n") {
                break;
            }
            let answer: Option<Value> = serde_json::from_slice(&line).ok();
            let id = answer.and_then(|a| a["response"]["request_id"].as_str().map(str::to_owned));
            let number = done.len() + 1;
            done.push(id.with_context(|| {
                let path = path.display();
                format!("line {number} of {path} is no answer; give another file for the answers")
            })?);
            end += length as u64;
        }
        drop(reader);
        Ok((Output { file, path: path.to_owned(), end }, done))
    }

    /// Goes on behind the last whole line.
    fn go_on(&mut self) -> Result<()> {
        let end = self.end;
        let cut = self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::Start(end)));
        cut.map(drop)
            .with_context(|| format!("cannot write {}; check the path", self.path.display()))
    }

    fn write(&mut self, answer: &Value) -> Result<()> {
        let line = format!("{answer}\n");
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush());
        written.with_context(|| format!("cannot write {}; free some space", self.path.display()))
    }
}

/// Tells how far it is.
struct Progress {
    bar: ProgressBar,
    start: Instant,
    tokens: std::cell::Cell<u64>,
}

impl Progress {
    fn new(total: usize, done: usize) -> Self {
        let bar = ProgressBar::new(total as u64).with_position(done as u64);
        bar.reset_eta();
        // The template is right, or the default one serves.
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} eta {eta}") {
            bar.set_style(style);
        }
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if done > 0 {
            eprintln!("{done} of {total} requests have answers already");
        }
        Progress { bar, start: Instant::now(), tokens: std::cell::Cell::new(0) }
    }

    fn answered(&self, answer: &Value, failed: usize) {
        let tokens = answer["response"]["body"]["usage"]["completion_tokens"].as_u64();
        self.tokens.set(self.tokens.get() + tokens.unwrap_or(0));
        let rate = self.tokens.get() as f64 / self.start.elapsed().as_secs_f64();
        self.bar.set_message(format!("{failed} failed, {rate:.0} tokens/s"));
        self.bar.inc(1);
        // Where no bar is drawn, a line now and then.
        let position = self.bar.position();
        if self.bar.is_hidden() && position.is_multiple_of(100) {
            let total = self.bar.length().unwrap_or_default();
            eprintln!("{position}/{total}, {failed} failed, {rate:.0} tokens/s");
        }
    }

    fn finish(&self, failed: usize) {
        self.bar.finish_and_clear();
        let (total, seconds) = (self.bar.length().unwrap_or_default(), self.start.elapsed());
        eprintln!(
            "{total} requests, {failed} failed, {} tokens in {:.1} s",
            self.tokens.get(),
            seconds.as_secs_f64()
        );
    }
}
