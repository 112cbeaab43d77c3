//! The report as one page with its plots inside.

use std::fmt::Write;

use lfm2vl_graphs::Precision;

use super::{GraphQuality, ModuleQuality, QualityReport};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:#333}
.note{color:#666}";

/// Colours that remain apart for most colour-blind people (Okabe and Ito, 2008).
fn colour(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "#000000",
        Precision::Fp16 => "#0072b2",
        Precision::Q8 => "#009e73",
        Precision::Q4 => "#d55e00",
        Precision::Q4F16 => "#cc79a7",
    }
}

pub(super) fn page(report: &QualityReport) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>What the precisions lose</title>\n<style>{STYLE}</style>\n\
<h1>What the precisions lose</h1>\n\
<p>{} prompts, run in {} and beside it in float32, each graph on the inputs that it has when all others are float32. Checkpoint {}.</p>\n\
<h2>Graphs</h2>\n{}\n{}\n\
<h2>Modules</h2>\n<p class=\"note\">How far a module's outputs turn from float32's, on the inputs that it has in float32: 1 - cosine, logarithmic. Left is better. Point at a dot for its figures.</p>\n{}\n\
<h2>Weights</h2>\n<p class=\"note\">Root mean square of the error over that of the weight, logarithmic.</p>\n{}\n</html>\n",
        report.samples,
        escape(&report.exporter),
        &report.source_fingerprint[..16.min(report.source_fingerprint.len())],
        graph_table(&report.graphs),
        size_plot(&report.graphs),
        module_plot(&report.modules, |m| m.output_cosine.map(|cosine| 1.0 - cosine)),
        module_plot(&report.modules, |m| Some(m.weight_error)),
    )
}

fn graph_table(graphs: &[GraphQuality]) -> String {
    let mut table = "<table><tr><th>graph<th>precision<th>MB<th>of float32's<th>mean cosine<th>least cosine<th>mean KL (nats)<th>largest KL<th>same first token".to_owned();
    for g in graphs {
        let (size, share) =
            (g.bytes as f64 / 1e6, 100.0 * g.bytes as f64 / g.float_bytes.max(1) as f64);
        // Writing to a string cannot fail.
        let _ = write!(
            table,
            "\n<tr><td>{}<td>{}<td>{size:.1}<td>{share:.0} %<td>{}<td>{}",
            g.graph,
            g.precision,
            number(g.cosine),
            number(g.least_cosine)
        );
        let _ = match g.next_token {
            Some(t) => write!(
                table,
                "<td>{:.2e}<td>{:.2e}<td>{:.2} % of {}",
                t.mean_kl,
                t.max_kl,
                100.0 * t.same_first,
                t.positions
            ),
            None => write!(table, "<td><td><td>"),
        };
    }
    table + "\n</table>"
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.6}"))
}

/// Bars of the sizes on disk.
fn size_plot(graphs: &[GraphQuality]) -> String {
    let largest = graphs.iter().map(|g| g.float_bytes.max(g.bytes)).max().unwrap_or(1) as f64;
    let (left, width, row) = (210.0, 560.0, 18.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 900 {}\" role=\"img\" aria-label=\"sizes on disk\">",
        row * graphs.len() as f64 + 4.0
    );
    for (index, g) in graphs.iter().enumerate() {
        let y = row * index as f64;
        let (size, float) = (g.bytes as f64, g.float_bytes as f64);
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} {}</text><rect x=\"{left}\" y=\"{}\" width=\"{:.1}\" height=\"12\" fill=\"#eee\"/><rect x=\"{left}\" y=\"{}\" width=\"{:.1}\" height=\"12\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{}\">{:.1} MB</text>",
            left - 8.0,
            y + 12.0,
            g.graph,
            g.precision,
            y + 2.0,
            width * float / largest,
            y + 2.0,
            width * size / largest,
            colour(g.precision),
            left + width * float.max(size) / largest + 6.0,
            y + 12.0,
            size / 1e6
        );
    }
    svg + "</svg>\n<p class=\"note\">Gray is float32.</p>"
}

/// A dot for each module and precision: modules from top to bottom, an error from left to right.
fn module_plot(modules: &[ModuleQuality], error: fn(&ModuleQuality) -> Option<f64>) -> String {
    let mut names: Vec<&str> = Vec::new();
    let mut precisions: Vec<Precision> = Vec::new();
    let mut dots: Vec<(usize, &ModuleQuality, f64)> = Vec::new();
    for module in modules {
        let Some(error) = error(module) else { continue };
        let row = names.iter().position(|name| *name == module.module).unwrap_or_else(|| {
            names.push(&module.module);
            names.len() - 1
        });
        if !precisions.contains(&module.precision) {
            precisions.push(module.precision);
        }
        // A logarithm has no place for what is exact.
        dots.push((row, module, error.max(1e-9)));
    }
    if dots.is_empty() {
        return "<p class=\"note\">Nothing is quantized.</p>".to_owned();
    }
    let logarithms = || dots.iter().map(|(_, _, error)| error.log10());
    let (low, high) = (
        logarithms().fold(f64::MAX, f64::min).floor(),
        logarithms().fold(f64::MIN, f64::max).ceil(),
    );
    let (left, width, row_height, top) = (330.0, 540.0, 13.0, 26.0);
    let x = |error: f64| left + width * (error.log10() - low) / (high - low).max(1.0);
    let height = top + row_height * names.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 900 {height}\" role=\"img\" aria-label=\"error of each module\">"
    );
    for decade in low as i64..=high as i64 {
        let x = x(10_f64.powi(decade as i32));
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{height}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">1e{decade}</text>",
            top - 6.0
        );
    }
    for (row, name) in names.iter().enumerate() {
        let y = top + row_height * (row as f64 + 0.5);
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            y + 4.0,
            escape(name)
        );
    }
    for (row, module, error) in dots {
        let y = top + row_height * (row as f64 + 0.5);
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{}\" fill-opacity=\".8\"><title>{} {}: {error:.2e} ({})</title></circle>",
            x(error),
            colour(module.precision),
            escape(&module.module),
            module.precision,
            escape(&module.format)
        );
    }
    let legend: String = precisions
        .iter()
        .map(|&p| format!("<span style=\"color:{}\">&#9679; {p}</span> ", colour(p)))
        .collect();
    format!("<p>{legend}</p>\n{svg}</svg>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
