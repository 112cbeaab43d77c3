//! What the program prints.

use std::{
    io::{self, Write},
    path::Path,
};

use lfm2vl_exporter::{ExportError, Left, Partition, RecipeSummary, Report, Verification};
use lfm2vl_graphs::ProviderTable;

/// What was exported, as JSON.
pub(crate) fn export_json(
    output: &Path,
    report: &Report,
    verification: Option<&Verification>,
) -> String {
    let value = serde_json::json!({
        "output": output,
        "report": report,
        "verification": verification,
    });
    format!("{value:#}\n")
}

/// What was exported.
pub(crate) fn export_text(output: &Path, report: &Report) -> String {
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

/// What a provider takes of the graphs, as JSON.
pub(crate) fn partition_json(table: &ProviderTable, partitions: &[Partition]) -> String {
    let value = serde_json::json!({
        "provider": table.name,
        "onnxruntime": table.onnxruntime,
        "source": table.source,
        "graphs": partitions,
    });
    format!("{value:#}\n")
}

/// What a provider takes of the graphs.
pub(crate) fn partition_text(table: &ProviderTable, partitions: &[Partition]) -> String {
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

/// The built-in recipes, as JSON.
pub(crate) fn recipes_json(recipes: &[RecipeSummary]) -> String {
    format!("{:#}\n", serde_json::json!(recipes))
}

/// The built-in recipes, each on a line.
pub(crate) fn recipes_text(recipes: &[RecipeSummary]) -> String {
    let longest = recipes.iter().map(|recipe| recipe.name.len()).max().unwrap_or(0);
    let line = |recipe: &RecipeSummary| {
        let RecipeSummary { name, purpose, onnxruntime, .. } = recipe;
        let purpose = purpose.as_deref().unwrap_or_default();
        let needed = onnxruntime.as_ref().map(|v| format!(" ONNX Runtime {v} or newer."));
        format!("{name:<longest$}  {purpose}{}\n", needed.unwrap_or_default())
    };
    recipes.iter().map(line).collect()
}

/// Writes to the standard output.
pub(crate) fn print(text: &str) -> Result<(), ExportError> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|source| ExportError::Write { path: "the standard output".into(), source })
}
