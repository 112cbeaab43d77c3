//! `cargo xtask bench-server`: `lfm2vl serve` under load beside llama.cpp's `llama-server`, on the same weights
//! and threads, in turns; and what more requests than it can answer do to it.

mod client;
mod model;

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::setup;
use client::{Outcome, Question, Times};

/// How it is run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Clients that ask at a time, one request after the other.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Requests of each client.
    #[arg(long, default_value_t = 3)]
    requests: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    /// Rounds to take the medians of.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Ask four times as much as there is room for, for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    overload: u64,
}

/// Answers at a time.
const SLOTS: usize = 8;

/// Tokens of a prompt and its answer.
const CONTEXT: usize = 2048;

const QUESTIONS: [(&str, Option<(u32, u32)>); 3] = [
    ("text", None),
    ("photos of 512x512", Some((512, 512))),
    ("photos of 1280x720", Some((1280, 720))),
];

/// A server that runs until this is dropped.
struct Server {
    child: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server that gets its port from `command`, and waits until it answers.
    fn start(command: impl FnOnce(u16) -> Result<Command>) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = command(port)?;
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {command:?}"))?;
        let mut server = Server { child, url: format!("http://127.0.0.1:{port}") };
        let start = Instant::now();
        while ureq::get(format!("{}/v1/models", server.url)).call().is_err()
            || ureq::get(format!("{}/metrics", server.url)).call().is_err()
        {
            ensure!(server.child.try_wait()?.is_none(), "{command:?} ended");
            ensure!(start.elapsed() < Duration::from_secs(120), "{command:?} does not answer");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    /// Steps of decoding, and seconds in them, in masks, and waiting for masks.
    fn figures(&self) -> Result<[f64; 4]> {
        let text =
            ureq::get(format!("{}/metrics", self.url)).call()?.body_mut().read_to_string()?;
        let names = ["decode_steps", "decode_seconds", "mask_seconds", "mask_wait_seconds"];
        let figure = |name: &str| {
            let name = format!("lfm2vl_{name}_total ");
            text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
        };
        Ok(names.map(|name| figure(name).unwrap_or(f64::NAN)))
    }

    /// A line of `/proc/PID/status` in megabytes; 0 where there is none.
    fn memory(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
        let kilobytes = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kilobytes.unwrap_or(0) * 1024 / 1_000_000
    }
}

/// A server by its name, and what starts it.
struct Contender {
    name: &'static str,
    command: Box<dyn Fn(u16) -> Result<Command>>,
}

/// What a round gave.
#[derive(Clone, Copy)]
struct Figures {
    tokens_per_second: f64,
    first_token: [f64; 2],
    gap: [f64; 2],
    memory: f64,
}

impl Figures {
    fn all(&self) -> [f64; 6] {
        let [p50, p99] = self.first_token;
        [self.tokens_per_second, p50, p99, self.gap[0], self.gap[1], self.memory]
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let contenders = contenders()?;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    println!(
        "{} clients with {} requests each, {} new tokens, {SLOTS} slots, {threads} threads, medians of {} rounds in turns\n",
        arguments.clients, arguments.requests, arguments.new_tokens, arguments.repeat
    );
    println!(
        "| | server | tokens/s of all | first token, ms, p50 | p99 | gap, ms, p50 | p99 | peak memory, MB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (what, photo) in QUESTIONS {
        let question = Question { photo, new_tokens: arguments.new_tokens, has_schema: false };
        let mut rounds: Vec<Vec<Figures>> = contenders.iter().map(|_| Vec::new()).collect();
        for _ in 0..arguments.repeat {
            for (contender, rounds) in contenders.iter().zip(&mut rounds) {
                rounds.push(round(contender, question, arguments)?);
            }
        }
        for (contender, rounds) in contenders.iter().zip(&rounds) {
            let columns = (0..6).map(|column| {
                let mut values: Vec<f64> = rounds.iter().map(|r| r.all()[column]).collect();
                values.sort_by(f64::total_cmp);
                format!("{:.0}", values[values.len() / 2])
            });
            let columns: Vec<String> = columns.collect();
            println!("| {what} | {} | {} |", contender.name, columns.join(" | "));
        }
    }
    masks(&contenders[0], arguments)?;
    if arguments.overload > 0 {
        overload(&contenders[0], Duration::from_secs(arguments.overload), arguments.new_tokens)?;
    }
    Ok(())
}

/// Our server, and llama.cpp's where it is built.
fn contenders() -> Result<Vec<Contender>> {
    let programs = setup::Programs::build()?;
    setup::kernels()?;
    let checkpoint = model::checkpoint()?;
    let model = model::ours(&programs, &checkpoint)?;
    let ours = move |port: u16| {
        let mut command = programs.command("lfm2vl")?;
        command.arg("serve").arg(&model).args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--slots", &SLOTS.to_string(), "--queue", &SLOTS.to_string()]);
        command.args(["--capacity", &CONTEXT.to_string()]).env("RUST_LOG", "warn");
        Ok(command)
    };
    let mut contenders = vec![Contender { name: "`lfm2vl serve`", command: Box::new(ours) }];
    let Some(llama) = model::llama_cpp(&checkpoint)? else { return Ok(contenders) };
    let theirs = move |port: u16| {
        let mut command = Command::new(&llama.server);
        command.arg("-m").arg(llama.models.join("text-q4_0.gguf"));
        command.arg("--mmproj").arg(llama.models.join("vision-q8_0.gguf"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--metrics"]);
        command.args(["-np", &SLOTS.to_string(), "-c", &(SLOTS * CONTEXT).to_string()]);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        command.args(["-t", &threads.to_string()]);
        Ok(command)
    };
    contenders.push(Contender { name: "`llama-server`", command: Box::new(theirs) });
    Ok(contenders)
}

/// Numbers that no two requests share.
static NUMBER: AtomicU64 = AtomicU64::new(0);

fn next_number() -> u64 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn round(contender: &Contender, question: Question, arguments: &Arguments) -> Result<Figures> {
    let server = Server::start(&contender.command)?;
    // What is made with the first request is not measured.
    question.ask(&server.url, next_number())?;
    let start = Instant::now();
    let all = thread::scope(|scope| {
        let client = || -> Result<Vec<Times>> {
            let mut times = Vec::new();
            while times.len() < arguments.requests {
                match question.ask(&server.url, next_number())? {
                    Outcome::Answered(of_request) => times.push(of_request),
                    Outcome::Refused => thread::sleep(Duration::from_millis(100)),
                }
            }
            Ok(times)
        };
        let clients: Vec<_> = (0..arguments.clients).map(|_| scope.spawn(client)).collect();
        let times = clients.into_iter().map(|c| c.join().expect("a client ends"));
        times.collect::<Result<Vec<_>>>()
    })?;
    let took = start.elapsed();
    let times: Vec<Times> = all.into_iter().flatten().collect();
    let tokens: u64 = times.iter().map(|t| t.tokens).sum();
    Ok(Figures {
        tokens_per_second: tokens as f64 / took.as_secs_f64(),
        first_token: percentiles(times.iter().map(|t| t.first_token)),
        gap: percentiles(times.iter().flat_map(|t| t.gaps.iter().copied())),
        memory: server.memory("VmHWM") as f64,
    })
}

/// What a schema costs: a client alone, and all of them.
fn masks(contender: &Contender, arguments: &Arguments) -> Result<()> {
    println!("\nanswers that keep to a JSON Schema:");
    let server = Server::start(&contender.command)?;
    let question = Question { photo: None, new_tokens: 256, has_schema: true };
    question.ask(&server.url, next_number())?;
    for clients in [1, arguments.clients] {
        let before = server.figures()?;
        thread::scope(|scope| {
            let client = || question.ask(&server.url, next_number()).map(drop);
            let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
            clients.into_iter().try_for_each(|client| client.join().expect("a client ends"))
        })?;
        let spent = server.figures()?;
        let [steps, decode, making, waiting] = [0, 1, 2, 3].map(|i| spent[i] - before[i]);
        println!(
            "{clients} at a time: masks take {:.0} us a step beside it; steps of {:.1} ms wait {:.0} us for them, {:.2} % of their time",
            1e6 * making / steps,
            1e3 * decode / steps,
            1e6 * waiting / steps,
            100.0 * waiting / decode
        );
    }
    Ok(())
}

/// The 50th and the 99th percentile in milliseconds.
fn percentiles(times: impl Iterator<Item = Duration>) -> [f64; 2] {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    [50, 99].map(|percent| {
        let place = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(place).map_or(f64::NAN, |time| 1e3 * time.as_secs_f64())
    })
}

/// Asks four times as much as there is room for, and compares a single stream before and after.
fn overload(contender: &Contender, long: Duration, new_tokens: usize) -> Result<()> {
    let server = Server::start(&contender.command)?;
    let photo = Question { photo: Some((512, 512)), new_tokens, has_schema: false };
    let alone = |what: &str| -> Result<()> {
        let mut rates = Vec::new();
        for _ in 0..5 {
            let question = Question { photo: None, new_tokens: 128, has_schema: false };
            if let Outcome::Answered(times) = question.ask(&server.url, next_number())? {
                let decode = times.took - times.first_token;
                rates.push((times.tokens - 1) as f64 / decode.as_secs_f64());
            }
        }
        rates.sort_by(f64::total_cmp);
        println!("a single stream {what}: {:.1} tokens/s (median of 5)", rates[rates.len() / 2]);
        Ok(())
    };
    println!("\nfour times as many clients as there is room for, {} s:", long.as_secs());
    alone("before")?;
    let (answered, refused, most) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + long;
    let lost = thread::scope(|scope| {
        let client = || -> Result<()> {
            while Instant::now() < end {
                match photo.ask(&server.url, next_number())? {
                    Outcome::Answered(_) => answered.fetch_add(1, Ordering::Relaxed),
                    Outcome::Refused => {
                        thread::sleep(Duration::from_millis(200));
                        refused.fetch_add(1, Ordering::Relaxed)
                    }
                };
                most.fetch_max(server.memory("VmRSS"), Ordering::Relaxed);
            }
            Ok(())
        };
        // As many as have slots and may wait, four times.
        let clients: Vec<_> = (0..4 * 2 * SLOTS).map(|_| scope.spawn(client)).collect();
        let ends = clients.into_iter().map(|client| client.join().expect("a client ends"));
        ends.filter_map(Result::err).map(|error| error.to_string()).collect::<Vec<_>>()
    });
    println!(
        "{} answered, {} told to come later (429), {} lost; largest memory {} MB",
        answered.into_inner(),
        refused.into_inner(),
        lost.len(),
        most.into_inner()
    );
    for error in lost.iter().take(3) {
        println!("lost: {error}");
    }
    alone("after")
}
