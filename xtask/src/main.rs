//! Project tasks: `cargo xtask setup | demo | test | bench-images | make-checkpoint | ...`.

mod bench;
mod bench_images;
mod bench_server;
mod demo;
mod gpu_check;
mod install;
mod make_checkpoint;
mod measure_blocks;
mod measure_export;
mod measure_quantization;
mod measure_settings;
mod peak;
mod setup;
mod test;
mod wheel;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::LazyLock,
};

use clap::{Parser, Subcommand};

/// Project tasks of lfm2vl.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch the ONNX Runtime library into `.onnxruntime`, build the project's own kernels beside it, and
    /// fetch an execution provider that is a library of its own into `.providers`.
    Setup {
        /// That provider: ggml, openvino, tensorrt-rtx or webgpu.
        #[arg(long, value_name = "NAME")]
        provider: Option<String>,
    },
    /// Install the programs, and the project's own kernels beside them.
    Install {
        /// Folder whose `bin` they go to, if not cargo's own.
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
    },
    /// Export the sample checkpoint, check it, and ask it questions about the sample images.
    Demo,
    /// Set up and run all tests.
    Test,
    /// Time a random 450M model on the CPU beside each peer that is installed, and print, write and
    /// draw it.
    Bench {
        /// Rounds to take the medians of.
        #[arg(long, default_value_t = 3)]
        repeat: usize,
        /// Only these: cold, prefill, decode, long, tile, small, photo, batch, drafts.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// Time image processing beside transformers' (installs it), and print both.
    BenchImages {
        /// Runs to take the medians of.
        #[arg(long, default_value_t = 15)]
        repeat: usize,
    },
    /// Put load on `lfm2vl serve` beside llama.cpp's server, if that is built, and print both.
    BenchServer(bench_server::Arguments),
    /// Make a folder that checks and times the model on a machine with an NVIDIA GPU (Linux), where it
    /// needs python3 only.
    GpuCheck {
        /// Folder to write.
        #[arg(long, value_name = "DIR", default_value = "demo/gpu-check")]
        out: PathBuf,
    },
    /// Pack the project's own kernels as the Python package onnxruntime-ep-lfm2vl.
    Wheel {
        /// Folder to write it to.
        #[arg(long, value_name = "DIR", default_value = "demo/wheel")]
        out: PathBuf,
    },
    /// Write a random bf16 checkpoint of any shape, for measurements.
    MakeCheckpoint {
        /// The model's config.json.
        #[arg(long, value_name = "FILE.json")]
        config: PathBuf,
        /// Folder to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Seed of the random weights.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Time an export beside a copy of the bytes it writes, and print its peak memory (Linux).
    MeasureExport {
        /// The checkpoint to export.
        checkpoint: PathBuf,
        /// Its precision.
        #[arg(long, default_value = "fp32")]
        precision: String,
        /// Runs to take the medians of.
        #[arg(long, default_value_t = 5)]
        repeat: usize,
    },
    /// Print what blocks of each size lose at the 450M shape (half an hour, most of it GPTQ).
    MeasureBlocks,
    /// Print what quantization loses and costs, beside onnxruntime-genai's model builder (installs
    /// it).
    MeasureQuantization {
        /// Leave out what it loses.
        #[arg(long)]
        only_speed: bool,
        /// Runs to take the medians of.
        #[arg(long, default_value_t = 3)]
        repeat: usize,
    },
    /// Print what the settings of images cost, and what is lost with them.
    MeasureSettings {
        /// Runs to take the medians of.
        #[arg(long, default_value_t = 3)]
        repeat: usize,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup { provider } => set_up(provider.as_deref()),
        Task::Install { root } => install::run(root.as_deref()),
        Task::Demo => demo::run(),
        Task::Test => test::run(),
        Task::Bench { repeat, only } => bench::run(repeat, &only),
        Task::BenchImages { repeat } => bench_images::run(repeat),
        Task::BenchServer(arguments) => bench_server::run(&arguments),
        Task::GpuCheck { out } => gpu_check::run(&out),
        Task::Wheel { out } => wheel::run(&out).map(|wheel| println!("{}", wheel.display())),
        Task::MakeCheckpoint { config, out, seed } => make_checkpoint::run(&config, &out, seed),
        Task::MeasureExport { checkpoint, precision, repeat } => {
            measure_export::run(&checkpoint, &precision, repeat)
        }
        Task::MeasureBlocks => measure_blocks::run(),
        Task::MeasureQuantization { only_speed, repeat } => {
            measure_quantization::run(repeat, only_speed)
        }
        Task::MeasureSettings { repeat } => measure_settings::run(repeat),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn set_up(provider: Option<&str>) -> anyhow::Result<()> {
    eprintln!("{}", setup::onnxruntime()?.display());
    eprintln!("{}", setup::kernels()?.display());
    if let Some(name) = provider {
        eprintln!("use it with --provider plugin:{}", setup::plugin(name)?.display());
    }
    Ok(())
}

/// The project's root folder: where cargo runs this, which with a shared target folder need not be
/// where it was built.
fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let xtask = std::env::var_os("CARGO_MANIFEST_DIR");
        let xtask = xtask.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        xtask.parent().map_or_else(|| xtask.clone(), Path::to_owned)
    });
    &ROOT
}
