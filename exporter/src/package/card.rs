//! `README.md` of an exported folder: what it holds and how to use it, for people who have nothing
//! else at hand.

use std::fmt::Write;

use lfm2vl_graphs::{
    CacheUpdate, Graph, GraphSpec, Manifest, Operators, Precision, Recipe, Tensor,
};
use serde_json::{Map, Value};

const TEMPLATE: &str = include_str!("card/README.md");
/// Where graphs have what the project's own kernels are for.
const KERNELS: &str = include_str!("card/kernels.md");
/// Programs on ONNX Runtime alone, which the tests run as the card has them: title, language, code.
const PROGRAMS: [(&str, &str, &str); 5] = [
    ("Python", "python", include_str!("card/generate.py")),
    ("JavaScript", "js", include_str!("card/generate.mjs")),
    ("Java", "java", include_str!("card/Generate.java")),
    ("C++", "cpp", include_str!("card/generate.cpp")),
    ("C#", "csharp", include_str!("card/Generate.cs")),
];
const TRANSFORMERS_JS: &str = include_str!("card/transformers.mjs");
/// The string in the programs that a question is put into.
const PROMPT: &str =
    r#""<|startoftext|><|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n""#;

/// The card of a folder with these graphs; `generation` is its `generation_config.json`, and `prompt` what its
/// template makes of the question `{content}`.
pub(super) fn card(
    manifest: &Manifest,
    specs: &[GraphSpec],
    generation: &Map<String, Value>,
    prompt: Option<&str>,
) -> String {
    TEMPLATE
        .replace("{exporter}", &manifest.exporter)
        .replace("{contract}", &format!("{} {}", manifest.contract, manifest.contract_version))
        .replace("{recipe}", &manifest.recipe.name)
        .replace("{onnxruntime}", manifest.onnxruntime.as_deref().unwrap_or_default())
        .replace("{files}", &files(manifest))
        .replace("{protocol}", &protocol(&manifest.recipe))
        .replace("{bundles}", &bundles(manifest))
        .replace("{tensors}", &tensors(specs))
        .replace("{sampling}", &sampling(generation))
        .replace("{kernels}", &kernels(manifest))
        .replace("{snippets}", &snippets(manifest, prompt))
        .replace("{text}", &text(prompt))
}

/// How quantized products run faster, where there are any.
fn kernels(manifest: &Manifest) -> String {
    let is_quantized = |precision| matches!(precision, Precision::Q8 | Precision::Q4);
    let mut precisions = manifest.graphs.iter().map(|files| files.precision);
    if manifest.recipe.operators == Operators::OnnxRuntime && precisions.any(is_quantized) {
        format!("{KERNELS}\n")
    } else {
        String::new()
    }
}

/// How the decoder is run.
fn protocol(recipe: &Recipe) -> String {
    let Some(sizes) = recipe.sizes else {
        return "The decoder's state starts with zeros for `past_conv` and with length 0 for \
                `past_key_values`; each run's `present` is the next run's `past`."
            .to_owned();
    };
    let views = match sizes.views {
        Some(_) => {
            "Views are padded to one number of patches; where there are fewer views, one of them comes \
             again, and of each view's `image_features` those of its own patches come first. "
        }
        None => "",
    };
    let update = match recipe.cache_update {
        CacheUpdate::Graph => "`present` is the whole buffers, which may lie where the old ones do",
        CacheUpdate::Client => {
            "`present` has the new tokens' keys and values, to be put behind those in the buffers"
        }
    };
    format!(
        "{views}Keys and values lie in buffers of {} tokens, of zeros at first. `attention_mask` is 1 for \
         the tokens that they hold and 0 for the rest of them, and after that 1 for new tokens and 0 for \
         padding. A prompt goes through `decoder_prefill` in pieces of {} tokens, of which the last is \
         padded, and each further token through `decoder_model_merged`; {update}, and `present_conv` is \
         the next run's `past_conv`, of zeros at first.",
        sizes.past_sequence, sizes.sequence
    )
}

/// Code to copy, with the prompt of the model, and the precision that the folder has where it has no float32.
fn snippets(manifest: &Manifest, prompt: Option<&str>) -> String {
    let has = |graph| manifest.graphs.iter().any(|files| files.graph == graph);
    let Some(bundle) = manifest.bundles.last() else { return String::new() };
    if manifest.recipe.sizes.is_some() {
        return "No code here: the examples run graphs of free sizes, as of the recipe `default`."
            .into();
    }
    if !has(Graph::VisionEncoder) || !has(Graph::EmbedTokens) || !has(Graph::Decoder) {
        return "No code here: it needs vision_encoder, embed_tokens and decoder_model_merged."
            .into();
    }
    let all_float = manifest.bundles.iter().any(|bundle| bundle.decoder == Precision::Fp32);
    let precision = if all_float { Precision::Fp32 } else { bundle.decoder };
    let code = |title: &str, language: &str, code: &str| {
        format!("## {title}\n\n```{language}\n{}\n```", code.trim_end())
    };
    let mut snippets = Vec::new();
    let has_graphs = has(Graph::GenaiEmbeddings) && has_image_processor(manifest);
    match prompt.filter(|_| has_graphs) {
        Some(prompt) => {
            let prompt = literal(prompt);
            for (title, language, program) in PROGRAMS {
                let program = program.replace(PROMPT, &prompt);
                snippets.push(code(title, language, &with_suffix(&program, precision)));
            }
        }
        None => snippets.push(
            "Programs in Python, JavaScript, Java, C++ and C# are in the card of an export that has \
             image_processor and embeddings (of the recipes default, portable and cuda) and a template \
             that puts a string around a plain question."
                .to_owned(),
        ),
    }
    let dtype = format!("dtype = '{precision}'");
    let program = TRANSFORMERS_JS.replace("dtype = 'fp32'", &dtype);
    snippets.push(code("Transformers.js", "js", &program));
    snippets.join("\n\n")
}

/// A string as all five languages write it: what is beyond ASCII is escaped, but for characters of two UTF-16
/// units, which C++ escapes in another way than the others.
fn literal(text: &str) -> String {
    let json = Value::from(text).to_string();
    let escape = |c: char| match c {
        '\u{7f}'..='\u{ffff}' => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    json.chars().map(escape).collect()
}

/// How a plain question becomes a prompt.
fn text(prompt: Option<&str>) -> String {
    let Some(prompt) = prompt else {
        return "Prompts are made by the template in `chat_template.jinja`, which does more to a plain \
                question than putting a string around it: use a library of Jinja."
            .to_owned();
    };
    let prompt = literal(prompt);
    format!(
        "A plain question is the string\n\n```json\n{prompt}\n```\n\nwith the question in place of \
         `{{content}}`, and in front of it `<image>` for each image. Conversations and tools need the \
         template in `chat_template.jinja`."
    )
}

/// A program that takes the files of a precision.
fn with_suffix(program: &str, precision: Precision) -> String {
    let suffix = precision.suffix();
    ["SUFFIX = \"\"", "Suffix = \"\"", "SUFFIX = ''"].iter().fold(
        program.to_owned(),
        |program, empty| {
            let (start, quote) = empty.split_at(empty.len() - 1);
            program.replace(empty, &format!("{start}{suffix}{quote}"))
        },
    )
}

fn has_image_processor(manifest: &Manifest) -> bool {
    let path = format!("onnx/{}.onnx", Graph::ImageProcessor);
    manifest.files.iter().any(|file| file.path == path)
}

fn files(manifest: &Manifest) -> String {
    let mut table =
        "| graph | precision | file | MB with its weights |\n|---|---|---|---|\n".to_owned();
    for graph in &manifest.graphs {
        let bytes: u64 = graph.files.iter().map(|file| file.bytes).sum();
        let path = graph.files.first().map_or("", |file| &file.path);
        let (name, precision, size) = (graph.graph, graph.precision, bytes as f64 / 1e6);
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| {name} | {precision} | `{path}` | {size:.1} |");
    }
    let name = Graph::ImageProcessor.to_string();
    let path = format!("onnx/{name}.onnx");
    if let Some(file) = manifest.files.iter().find(|file| file.path == path) {
        let _ = writeln!(table, "| {name} | | `{path}` | {:.1} |", file.bytes as f64 / 1e6);
    }
    table.trim_end().to_owned()
}

/// The sets of graphs that answer questions, where all of them are there.
fn bundles(manifest: &Manifest) -> String {
    let has = |weights: Graph| manifest.graphs.iter().any(|files| files.graph.weights() == weights);
    let vision = has(Graph::VisionEncoder) || has(Graph::VisionTower) && has(Graph::Projector);
    if !(vision && has(Graph::EmbedTokens) && has(Graph::Decoder)) {
        return "These are not all graphs that answers need.".to_owned();
    }
    let mut table = "Precisions that go together; the first are what `lfm2vl run` takes:\n\n\
                     | bundle | vision | embedding | decoder |\n|---|---|---|---|\n"
        .to_owned();
    for bundle in &manifest.bundles {
        let (vision, embedding, decoder) = (bundle.vision, bundle.embedding, bundle.decoder);
        let _ = writeln!(table, "| {} | {vision} | {embedding} | {decoder} |", bundle.name);
    }
    table.trim_end().to_owned()
}

/// Inputs and outputs of each graph; runs of equal tensors of several layers are one row.
fn tensors(specs: &[GraphSpec]) -> String {
    let mut text = String::new();
    for spec in specs {
        let _ =
            writeln!(text, "**{}**\n\n| | name | dtype | shape |\n|---|---|---|---|", spec.graph);
        for (kind, tensors) in [("in", &spec.inputs), ("out", &spec.outputs)] {
            let mut rows: Vec<(String, Vec<&str>, &Tensor)> = Vec::new();
            for tensor in tensors {
                let layer = tensor.name.split('.').find(|part| part.parse::<usize>().is_ok());
                let name = layer.map_or_else(
                    || tensor.name.clone(),
                    |layer| tensor.name.replacen(layer, "{i}", 1),
                );
                match rows.iter_mut().find(|(known, _, _)| *known == name) {
                    Some((_, layers, _)) => layers.extend(layer),
                    None => rows.push((name, layer.into_iter().collect(), tensor)),
                }
            }
            for (name, layers, tensor) in rows {
                let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
                let layers = if layers.is_empty() {
                    String::new()
                } else {
                    format!(", i = {}", layers.join(", "))
                };
                let (dtype, shape) = (tensor.dtype, shape.join(", "));
                let _ = writeln!(text, "| {kind} | `{name}`{layers} | {dtype} | [{shape}] |");
            }
        }
        text.push('\n');
    }
    text.trim_end().to_owned()
}

fn sampling(generation: &Map<String, Value>) -> String {
    let keys = ["do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"];
    let settings: Vec<String> =
        keys.iter().filter_map(|&key| Some(format!("`{key}` {}", generation.get(key)?))).collect();
    if settings.is_empty() {
        "`generation_config.json` recommends none: greedy.".to_owned()
    } else {
        format!("`generation_config.json` recommends {}.", settings.join(", "))
    }
}
