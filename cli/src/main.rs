//! `lfm2vl`: runs, inspects and measures exported models.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod arguments;
mod batch;
mod bench;
mod bench_engine;
mod chat;
mod completions;
mod inspect;
mod man;
mod preprocess;
mod providers;
mod run;
mod serve;

use std::{io, process::ExitCode};

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Run LFM2-VL models that lfm2vl-export wrote.
#[derive(Parser)]
#[command(name = "lfm2vl", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer one question, about images if you like.
    Run(run::Arguments),
    /// Talk with the model; images are attached with a command.
    Chat(chat::Arguments),
    /// Serve the model over HTTP, as OpenAI's chat completions.
    Serve(Box<serve::Arguments>),
    /// Answer all requests of a file; goes on where it was stopped.
    Batch(Box<batch::Arguments>),
    /// Show the tokens and patches of a prompt, without running the model.
    Preprocess(preprocess::Arguments),
    /// Show the graphs of a folder, their inputs and outputs, and what runs them.
    Inspect(inspect::Arguments),
    /// Measure loading, image processing, vision, prefill and decoding.
    Bench(bench::Arguments),
    /// Measure how answers get on beside each other: gaps in a stream, prompts, cancelling.
    BenchEngine(bench_engine::Arguments),
    /// Print what a shell needs to complete the arguments of this program.
    Completions(completions::Arguments),
    /// Write the manual pages of this program.
    Man(man::Arguments),
}

fn main() -> ExitCode {
    // It is the user's, who runs this by hand.
    std::env::current_dir().into_iter().for_each(lfm2vl::search_library_above);
    let result = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Batch(arguments) => batch::run(&arguments),
        Command::Preprocess(arguments) => preprocess::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::BenchEngine(arguments) => bench_engine::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments, Arguments::command()),
        Command::Man(arguments) => man::run(&arguments, Arguments::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each of them once: the text of most errors names its cause already.
fn describe(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| match cause.to_string() {
        cause if text.contains(&cause) => text,
        cause if text.is_empty() => cause,
        cause => format!("{text}: {cause}"),
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes to the standard output at once.
fn print(text: &str) -> Result<()> {
    use io::Write;
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
