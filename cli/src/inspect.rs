//! `lfm2vl inspect`: what a folder holds and what runs it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use lfm2vl::{
    Assignment, Engine, Graph, GraphInfo, Kernels, ModelFolder, Precision, Provider, library_path,
};
use serde_json::{Value, json};

use crate::{
    arguments::{ImageArguments, LoadArguments},
    print,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that lfm2vl-export wrote.
    folder: PathBuf,
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    images: ImageArguments,
    /// Compare every file with the sha256 in lfm2vl.yaml; the graphs are not loaded.
    #[arg(long, conflicts_with = "json")]
    check: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.check {
        return check(&arguments.folder);
    }
    let engine = arguments.load.load(&arguments.folder, &arguments.images)?;
    let report = report(&engine)?;
    if arguments.json {
        return print(&format!("{report:#}\n"));
    }
    print(&to_text(&report))
}

fn check(folder: &Path) -> Result<()> {
    let folder = ModelFolder::open(folder)?;
    let manifest = folder.manifest().with_context(|| {
        let path = folder.path().display();
        format!("{path} has no lfm2vl.yaml to compare with; only exports of lfm2vl-export have one")
    })?;
    manifest.check_files(folder.path())?;
    if !manifest.left_out.is_empty() {
        let names = manifest.left_out.join(", ");
        eprintln!("warning: files of {names}, which this version does not know, were not compared");
    }
    print(&format!("all {} files are as exported\n", manifest.all_files().count()))
}

fn report(engine: &Engine) -> Result<Value> {
    let folder = engine.folder();
    let files = |graph: Graph| -> Vec<Value> {
        let file = |precision: Precision| json!({"precision": precision, "bytes": folder.graph_bytes(graph, precision)});
        folder.precisions(graph).into_iter().map(file).collect()
    };
    let graphs: Vec<Value> = engine
        .graphs()
        .iter()
        .map(|info| {
            json!({
                "graph": info.graph,
                "loaded": info.precision,
                "files": files(info.graph),
                "inputs": info.inputs,
                "outputs": info.outputs,
                "provider": info.provider,
                "skipped": info.skipped,
                "assignments": info.assignments,
                "state_memory": info.state_memory,
                "warning": crossing(info),
            })
        })
        .collect();
    let available: Vec<String> = Provider::available().iter().map(Provider::name).collect();
    Ok(json!({
        "folder": folder.path(),
        "exporter": folder.manifest().map(|manifest| &manifest.exporter),
        "contract": folder.manifest().map(|m| format!("{} {}", m.contract, m.contract_version)),
        "recipe": folder.manifest().map(|manifest| &manifest.recipe.name),
        "bundles": folder.manifest().map(|manifest| &manifest.bundles),
        "context": engine.context(),
        "graphs": graphs,
        "onnxruntime": library_path()?,
        "providers_available": available,
    }))
}

/// What to say where each run of a graph goes from one provider to another and back. The project's own
/// kernels have the same memory as the CPU, so nothing goes anywhere.
fn crossing(info: &GraphInfo) -> Option<String> {
    if info.provider == Provider::Kernels(Kernels::default()).name() {
        return None;
    }
    let [first, others @ ..] = info.assignments.as_slice() else { return None };
    if others.is_empty() {
        return None;
    }
    let parts = |assignment: &Assignment| {
        let Assignment { provider, nodes, parts, .. } = assignment;
        format!("{provider} has {nodes} nodes in {parts} parts")
    };
    let all: Vec<String> = std::iter::once(first).chain(others).map(parts).collect();
    let every = if info.graph.weights() == Graph::Decoder { "token" } else { "run" };
    Some(format!("every {every} goes between providers: {}", all.join(", ")))
}

fn to_text(report: &Value) -> String {
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let name = |key: &str| report[key].as_str().unwrap_or("not stated").to_owned();
    let mut text = format!(
        "folder    {}\nexporter  {}\ncontract  {}\nrecipe    {}\ncontext   {} tokens\n",
        name("folder"),
        name("exporter"),
        name("contract"),
        name("recipe"),
        report["context"]
    );
    for bundle in items(&report["bundles"]) {
        let of = |key: &str| bundle[key].as_str().unwrap_or_default().to_owned();
        text += &format!(
            "bundle    {}: vision {}, embedding {}, decoder {}\n",
            of("name"),
            of("vision"),
            of("embedding"),
            of("decoder")
        );
    }
    text += &format!("library   {}\n", name("onnxruntime"));
    let available = items(&report["providers_available"]);
    let available: Vec<&str> = available.iter().filter_map(Value::as_str).collect();
    text += &format!("providers {}\n", available.join(", "));
    for graph in items(&report["graphs"]) {
        text += &format!("\n{}", graph["graph"].as_str().unwrap_or_default());
        for file in items(&graph["files"]) {
            let megabytes = file["bytes"].as_f64().unwrap_or_default() / 1e6;
            text +=
                &format!("  {} {megabytes:.1} MB", file["precision"].as_str().unwrap_or_default());
        }
        text += &format!("  (loaded: {})\n", graph["loaded"].as_str().unwrap_or_default());
        for assignment in items(&graph["assignments"]) {
            let name = assignment["provider"].as_str().unwrap_or_default();
            text += &format!("  {} nodes on {name}:", assignment["nodes"]);
            for (operator, count) in assignment["operators"].as_object().into_iter().flatten() {
                text += &format!(" {count} {operator}");
            }
            text.push('\n');
        }
        if let Some(memory) = graph["state_memory"].as_str() {
            text += &format!("  state in the memory of {memory}\n");
        }
        if let Some(warning) = graph["warning"].as_str() {
            text += &format!("  warning: {warning}\n");
        }
        for (key, label) in [("inputs", "in "), ("outputs", "out")] {
            for tensor in items(&graph[key]) {
                let of = |key: &str| tensor[key].as_str().unwrap_or_default().to_owned();
                text += &format!("  {label} {:<30} {}\n", of("name"), of("type"));
            }
        }
    }
    text
}
