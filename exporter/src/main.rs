//! `lfm2vl-export`: a checkpoint in, a folder of ONNX graphs out.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::{
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lfm2vl_exporter::{
    ExportError, ExportOptions, Left, LeftOut, Part, Partition, Report, Verification, Weights,
    checkpoint::Checkpoint,
    export,
    hub::{self, HubSettings},
    partitions,
    report::{self, ReportFiles},
    verify,
};
use lfm2vl_graphs::{Precision, ProviderTable, RecipeSource};
use lfm2vl_onnxruntime::search_library_above;

/// Build ONNX graphs of an LFM2-VL model from its safetensors checkpoint.
#[derive(Parser)]
#[command(name = "lfm2vl-export", version, after_help = EXAMPLES)]
struct Arguments {
    /// Folder of the checkpoint, or its id on the Hugging Face hub (LiquidAI/LFM2-VL-450M).
    checkpoint: String,
    /// Folder to write; it appears only when the export is complete.
    #[arg(short, long, value_name = "DIR", required_unless_present = "check_provider")]
    output: Option<PathBuf>,
    /// Folder of a LoRA adapter, as peft saves it, to merge into the weights. (One that lies in the
    /// checkpoint's folder is merged without being asked for.) Not an id on the hub: download it first. The
    /// tokenizer and the chat template remain the checkpoint's.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Precision of the weights; several make several sets of graphs. Without it, what the recipe
    /// says: fp32.
    #[arg(long, value_delimiter = ',', value_name = "fp32|fp16|q8|q4|q4f16")]
    precision: Vec<Precision>,
    /// How graphs are built: default, portable, split, features, cuda, cuda-graph, tensorrt, coreml,
    /// directml, or a YAML file.
    #[arg(long, value_name = "NAME|FILE.yaml", default_value = "default")]
    recipe: String,
    /// Build only these graphs.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,...")]
    graphs: Vec<Part>,
    /// Where the weights are: written beside the graphs, or left in the checkpoint's own files, to
    /// which the folder gets hard links.
    #[arg(long, value_enum, default_value_t)]
    weights: Weights,
    /// Let image_processor.onnx take settings for each image, as optional inputs (ONNX Runtime warns
    /// of each when it loads the graph).
    #[arg(long)]
    image_inputs: bool,
    /// Images and prompts to calibrate on: a folder with a samples.json, or just with images.
    #[arg(long, value_name = "DIR")]
    calibration: Option<PathBuf>,
    /// Run every graph and compare it with an independent implementation of the model.
    #[arg(long)]
    verify: bool,
    /// Write a page (and JSON beside it) on what each precision loses against float32.
    #[arg(long, value_name = "FILE.html", requires = "samples")]
    report: Option<PathBuf>,
    /// Images and prompts that the report runs, as for --calibration; better not the same ones.
    #[arg(long, value_name = "DIR", requires = "report")]
    samples: Option<PathBuf>,
    /// Tell which nodes of each graph an execution provider will take, and write nothing: cpu, cuda,
    /// tensorrt, coreml, directml, openvino, webgpu or ggml.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["output", "verify", "report"])]
    check_provider: Option<String>,
    /// Replace an earlier export.
    #[arg(long)]
    force: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  lfm2vl-export LiquidAI/LFM2-VL-450M -o lfm2-vl-450m --verify
  lfm2vl-export ./checkpoint -o ./exported --recipe portable --force";

fn main() -> ExitCode {
    // It is the user's, who runs this by hand.
    std::env::current_dir().into_iter().for_each(search_library_above);
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The messages tell their causes themselves.
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let recipe = RecipeSource::load(&arguments.recipe)?;

    // What is under way has files of its own, which are removed when it ends early.
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
    let mut go_on = || {
        if interrupted.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };

    let settings = HubSettings::from_environment(!arguments.json);
    let found = hub::resolve(&arguments.checkpoint, &settings, &mut go_on)?;
    if let Some(unasked) = &found.unasked {
        eprintln!("warning: {unasked}");
    }
    let checkpoint = match &arguments.adapter {
        Some(adapter) => Checkpoint::open_with_adapter(&found.folder, adapter)?,
        None => Checkpoint::open(&found.folder)?,
    };
    if let Some(adapter) = checkpoint.adapter() {
        eprintln!("the adapter in {} is merged into the weights", adapter.display());
    }
    let recipe = recipe.check(&checkpoint.config().quantizable_modules())?;
    let mut precisions = if arguments.precision.is_empty() {
        recipe.precisions.clone()
    } else {
        arguments.precision.clone()
    };
    precisions.sort();
    precisions.dedup();
    let options = ExportOptions {
        recipe,
        precisions,
        parts: arguments.graphs.clone(),
        weights: arguments.weights,
        image_inputs: arguments.image_inputs,
        calibration: arguments.calibration.clone(),
        force: arguments.force,
    };

    if let Some(provider) = &arguments.check_provider {
        let table = ProviderTable::builtin(provider)?;
        let partitions = partitions(&checkpoint, &options, &table)?;
        return Ok(print(&partition_text(arguments, &table, &partitions))?);
    }
    // clap asks for it where no provider is checked.
    let Some(output) = &arguments.output else { return Ok(()) };

    if arguments.report.is_some() {
        report::check(&options.recipe)?;
    }
    let report_files = arguments.report.as_deref().map(ReportFiles::create).transpose()?;

    let bar = progress_bar(arguments.json);
    let draft = export(&checkpoint, output, &options, &mut |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.written);
        go_on()
    })?;
    bar.finish_and_clear();

    let verification = if arguments.verify {
        let verification =
            verify(&checkpoint, draft.path(), &draft.report().manifest, &mut |_| go_on())?;
        eprint!("{verification}");
        verification.check()?;
        Some(verification)
    } else {
        None
    };
    let quality = match &arguments.samples {
        Some(samples) => {
            let manifest = &draft.report().manifest;
            Some(report::measure(&checkpoint, draft.path(), manifest, samples, &mut go_on)?)
        }
        None => None,
    };
    if go_on().is_break() {
        return Err(ExportError::Interrupted.into());
    }
    let report = draft.publish()?;
    if let Some(LeftOut { graph, why }) = &report.left_out {
        eprintln!("warning: there is no {graph} in the export: {why}");
    }
    if let (Some(files), Some(quality)) = (report_files, quality) {
        files.write(&quality)?;
    }
    Ok(print(&export_text(arguments, output, &report, verification.as_ref()))?)
}

fn progress_bar(hidden: bool) -> ProgressBar {
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {elapsed} eta {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, target).with_style(style)
}

fn export_text(
    arguments: &Arguments,
    output: &Path,
    report: &Report,
    verification: Option<&Verification>,
) -> String {
    if arguments.json {
        let value = serde_json::json!({
            "output": output,
            "report": report,
            "verification": verification,
        });
        return format!("{value:#}\n");
    }
    let mut text = String::new();
    for graph in &report.manifest.graphs {
        let bytes: u64 = graph.files.iter().map(|f| f.bytes).sum();
        text += &format!(
            "{:<22} {:<6} {:>9.1} MB\n",
            graph.graph.name(),
            graph.precision.to_string(),
            bytes as f64 / 1e6
        );
    }
    let (megabytes, seconds) = (report.bytes as f64 / 1e6, report.seconds);
    text + &format!("wrote {megabytes:.1} MB to {} in {seconds:.1} s\n", output.display())
}

fn partition_text(
    arguments: &Arguments,
    table: &ProviderTable,
    partitions: &[Partition],
) -> String {
    if arguments.json {
        let value = serde_json::json!({
            "provider": table.name,
            "onnxruntime": table.onnxruntime,
            "source": table.source,
            "graphs": partitions,
        });
        return format!("{value:#}\n");
    }
    let mut text = format!("{} of ONNX Runtime {}\n", table.name, table.onnxruntime);
    for partition in partitions {
        let Partition { graph, precision, taken, partitions, folded, left, notes } = partition;
        let rest: usize = left.iter().map(|left| left.nodes).sum();
        text += &format!(
            "\n{graph} {precision}: {taken} nodes taken in {partitions} partitions, {rest} left to the \
             CPU, {folded} computed when loading\n"
        );
        for Left { operator, nodes, reason } in left {
            text += &format!("  {nodes:>4} {operator}: {reason}\n");
        }
        for note in notes {
            text += &format!("  if it keeps to this: {note}\n");
        }
    }
    text
}

fn print(text: &str) -> Result<(), ExportError> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|source| ExportError::Write { path: "the standard output".into(), source })
}
