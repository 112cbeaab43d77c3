//! `lfm2vl serve`: the model behind OpenAI's interface.

use std::{fs, io::IsTerminal, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use lfm2vl_server::{Service, Settings, serve};
use tokio::{net::TcpListener, runtime};
use tracing_subscriber::EnvFilter;

use crate::arguments::{ImageArguments, LoadArguments, SlotArguments};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that lfm2vl-export wrote.
    folder: PathBuf,
    /// Address to listen on. By default only programs of this machine can ask.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    slots: SlotArguments,
    #[command(flatten)]
    images: ImageArguments,
    #[command(flatten)]
    limits: LimitArguments,
    /// Answers that may wait for a slot; more are refused with 429. By default four for each slot.
    #[arg(long, value_name = "N")]
    queue: Option<usize>,
    /// Let only requests with one of these keys ask: a file with a key on each line.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Let web pages of this origin ask, such as https://example.com; may be given several times.
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// When told to stop, say so to whoever asks for so long at least before ending.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    linger: u64,
    /// How the log is written, on the standard error. What is written is set by the variable RUST_LOG.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Let no request go on from the state of another one that begins with the same messages: slower, but nobody can
    /// learn from the time of an answer what others have sent.
    #[arg(long)]
    no_shared_prefixes: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// What clients may ask.
#[derive(Args)]
pub(crate) struct LimitArguments {
    /// Name of the model for clients; by default the folder's.
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Refuse bodies of more bytes.
    #[arg(long, value_name = "N", default_value_t = 32 << 20)]
    max_body_bytes: usize,
    /// Refuse requests with more bytes of text.
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) max_text_bytes: usize,
    /// Refuse requests with more images.
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_images: usize,
    /// Refuse requests whose images have more image tokens together.
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    max_image_tokens_per_request: usize,
    /// Let answers have so many tokens at most; by default as many as the context has room for.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// End answers that take longer.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// Let strings such as <|im_end|> mean special tokens in system messages, which here are the clients'.
    #[arg(long)]
    special_tokens_in_system: bool,
}

impl LimitArguments {
    pub(crate) fn settings(&self, images: &ImageArguments) -> Settings {
        let default = Settings::default();
        Settings {
            model_name: self.model_name.clone(),
            max_body_bytes: self.max_body_bytes,
            max_images: self.max_images,
            max_image_tokens: self.max_image_tokens_per_request,
            max_tokens: self.max_tokens,
            timeout: Duration::from_secs(self.timeout),
            images: images.limits_or(default.images),
            special_tokens_in_system: self.special_tokens_in_system,
            ..default
        }
    }
}

/// Lets the threads that read requests share their memory: of glibc's, each would keep what its largest request took.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn share_memory() {
    const ARENAS: i32 = 2;
    // SAFETY: the call only sets a number of the allocator's, and may come at any time. If it is refused, nothing
    // is lost.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn share_memory() {}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    share_memory();
    log_to_stderr(arguments.log_format)?;
    let keys = arguments.api_key_file.as_ref().map(read_keys).transpose()?.unwrap_or_default();
    let slots = arguments.slots.slots();
    let waiting = arguments.queue.unwrap_or(4 * slots);
    let settings = Settings {
        api_keys: keys,
        cors_origins: arguments.cors_origin.clone(),
        max_requests: slots + waiting,
        ..arguments.limits.settings(&arguments.images)
    };
    // Requests may have several answers; the requests themselves are counted before.
    let queue = settings.max_requests * settings.max_choices;
    let engine = arguments.load.load_with(&arguments.folder, &arguments.images, |builder| {
        let builder = arguments.slots.apply(builder).queue(queue);
        let builder = builder.share_prefixes(!arguments.no_shared_prefixes);
        builder.max_text_bytes(arguments.limits.max_text_bytes)
    })?;
    let service = Service::new(engine, settings)?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(arguments.listen).await.with_context(|| {
            format!("cannot listen on {}; choose another address", arguments.listen)
        })?;
        let address = listener.local_addr()?;
        eprintln!("{} listens on http://{address}", service.model_name());
        let stop = stop_signal()?;
        serve(listener, service, stop, Duration::from_secs(arguments.linger)).await;
        Ok(())
    })
}

fn read_keys(path: &PathBuf) -> Result<Vec<String>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read {}; check the path", path.display()))?;
    let keys = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Vec<String> = keys.map(str::to_owned).collect();
    ensure!(!keys.is_empty(), "{} has no key; write one on each line", path.display());
    Ok(keys)
}

fn log_to_stderr(format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("the log cannot be written: {error}"))
}

/// Ends with the first signal to stop; the second one ends the program.
#[cfg(unix)]
fn stop_signal() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(async move {
        next().await;
        tokio::spawn(async move {
            next().await;
            eprintln!("stopped at once");
            std::process::exit(130);
        });
    })
}

#[cfg(not(unix))]
fn stop_signal() -> Result<impl Future<Output = ()>> {
    Ok(async move {
        // Without the handler, the signal ends the program by itself.
        let _ = tokio::signal::ctrl_c().await;
        tokio::spawn(async move {
            let _ = tokio::signal::ctrl_c().await;
            std::process::exit(130);
        });
    })
}
