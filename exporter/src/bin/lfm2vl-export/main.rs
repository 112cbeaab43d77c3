//! `lfm2vl-export`: a checkpoint in, a folder of ONNX graphs out.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod arguments;
mod generate;
mod text;

use std::{
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;
use clap::Parser;
use lfm2vl_exporter::{
    ExportError, ExportOptions, LeftOut, ProgressDisplay, builtin_recipes, check_verifiable,
    checkpoint::Checkpoint,
    export,
    hub::{self, HubSettings},
    partitions,
    report::{self, ReportFiles},
    verify,
};
use lfm2vl_graphs::{ProviderTable, Recipe, RecipeSource};
use lfm2vl_onnxruntime::search_library_above;

use crate::{
    arguments::Arguments,
    generate::{print_completions, write_man_page},
    text::{
        export_json, export_text, partition_json, partition_text, print, recipes_json, recipes_text,
    },
};

/// Asked again and again, it tells to stop.
type GoOn<'a> = &'a mut dyn FnMut() -> ControlFlow<()>;

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
    if arguments.list_recipes {
        return list_recipes(arguments.json);
    }
    if let Some(shell) = arguments.completions {
        return Ok(print_completions(shell)?);
    }
    if let Some(folder) = &arguments.man {
        return Ok(write_man_page(folder)?);
    }
    // clap asks for it where nothing else is asked for.
    let Some(checkpoint) = &arguments.checkpoint else { return Ok(()) };
    let recipe = RecipeSource::load(&arguments.recipe)?;

    // What is under way has files of its own, which are removed when it ends early.
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
    let mut go_on = || {
        if interrupted.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };

    let checkpoint = open_checkpoint(checkpoint, arguments, &mut go_on)?;
    let recipe = recipe.check(&checkpoint.config().quantizable_modules())?;
    let options = export_options(arguments, recipe);
    if let Some(provider) = &arguments.check_provider {
        return check_provider(provider, &checkpoint, &options, arguments.json);
    }
    // clap asks for it where no provider is checked.
    let Some(output) = &arguments.output else { return Ok(()) };
    write_folder(arguments, &checkpoint, output, &options, &mut go_on)
}

/// Tells what there is to choose from.
fn list_recipes(json: bool) -> Result<()> {
    let recipes = builtin_recipes()?;
    Ok(print(&if json { recipes_json(&recipes) } else { recipes_text(&recipes) })?)
}

/// The checkpoint, downloaded if need be, with its adapter.
fn open_checkpoint(name: &str, arguments: &Arguments, go_on: GoOn<'_>) -> Result<Checkpoint> {
    let settings = HubSettings::from_environment(!arguments.json);
    let found = hub::resolve(name, &settings, go_on)?;
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
    Ok(checkpoint)
}

fn export_options(arguments: &Arguments, recipe: Recipe) -> ExportOptions {
    let mut precisions = arguments.precision.clone();
    if precisions.is_empty() {
        precisions.clone_from(&recipe.precisions);
    }
    precisions.sort();
    precisions.dedup();
    ExportOptions {
        recipe,
        precisions,
        parts: arguments.graphs.clone(),
        weights: arguments.weights,
        image_inputs: arguments.image_inputs,
        calibration: arguments.calibration.clone(),
        force: arguments.force,
    }
}

/// Tells what a provider will take, and writes nothing.
fn check_provider(
    name: &str,
    checkpoint: &Checkpoint,
    options: &ExportOptions,
    json: bool,
) -> Result<()> {
    let table = ProviderTable::builtin(name)?;
    let partitions = partitions(checkpoint, options, &table)?;
    let text = if json {
        partition_json(&table, &partitions)
    } else {
        partition_text(&table, &partitions)
    };
    Ok(print(&text)?)
}

/// Exports, with all that is asked for besides.
fn write_folder(
    arguments: &Arguments,
    checkpoint: &Checkpoint,
    output: &Path,
    options: &ExportOptions,
    go_on: GoOn<'_>,
) -> Result<()> {
    if arguments.verify {
        check_verifiable(options)?;
    }
    if arguments.report.is_some() {
        report::check(&options.recipe)?;
    }
    let report_files = arguments.report.as_deref().map(ReportFiles::create).transpose()?;

    let mut display = ProgressDisplay::new("writing the weights", !arguments.json);
    let draft = export(checkpoint, output, options, &mut |progress| {
        display.set(progress.written, Some(progress.total));
        go_on()
    })?;
    display.finish();

    let manifest = &draft.report().manifest;
    let verification = if arguments.verify {
        let verification = verify(checkpoint, draft.path(), manifest, &mut |_| go_on())?;
        eprint!("{verification}");
        verification.check()?;
        Some(verification)
    } else {
        None
    };
    let quality = match &arguments.samples {
        Some(samples) => Some(report::measure(checkpoint, draft.path(), manifest, samples, go_on)?),
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
    let text = if arguments.json {
        export_json(output, &report, verification.as_ref())
    } else {
        export_text(output, &report)
    };
    Ok(print(&text)?)
}
