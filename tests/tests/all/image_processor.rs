//! `image_processor.onnx` against the goldens of transformers in `testdata/preprocess`, in several releases of
//! ONNX Runtime and in its WebAssembly.

use std::{
    collections::HashMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use lfm2vl_exporter::{ExportOptions, Part, checkpoint::Checkpoint, export};
use lfm2vl_graphs::{Precision, Recipe};
use lfm2vl_tests::{copy_folder, hollow_checkpoint, node, python, set_up, succeed, testdata};
use serde_json::{Map, Value, json};

/// Exports image processors with other settings than the sample model's.
struct Exports {
    checkpoint: tempfile::TempDir,
    out: PathBuf,
    /// By settings, and whether they are inputs.
    known: HashMap<(String, bool), String>,
}

/// The settings that are inputs of the graph.
const INPUTS: [&str; 5] =
    ["do_image_splitting", "max_image_tokens", "max_tiles", "min_image_tokens", "use_thumbnail"];

impl Exports {
    fn new(out: &Path) -> Self {
        let checkpoint = tempfile::tempdir().unwrap();
        copy_folder(&testdata("tiny-shapes"), checkpoint.path());
        fs::remove_file(checkpoint.path().join("processor_config.json")).unwrap();
        // Tiles that released models have no tokens for, in place of rare words.
        let path = checkpoint.path().join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        for (row, col) in (1..=20).flat_map(|row| (1..=20).map(move |col| (row, col))) {
            let content = format!("<|img_row_{row}_col_{col}|>");
            if !added.iter().any(|token| token["content"] == *content) {
                added.push(json!({"id": 1000 + 20 * row + col, "content": content}));
            }
        }
        fs::write(&path, tokenizer.to_string()).unwrap();
        Exports { checkpoint, out: out.to_owned(), known: HashMap::new() }
    }

    /// The file of the graph with these settings.
    fn graph(&mut self, settings: &Map<String, Value>) -> String {
        self.export(settings, false)
    }

    /// The file of a graph that takes settings as inputs, and has these as defaults.
    fn graph_with_inputs(&mut self, settings: &Map<String, Value>) -> String {
        self.export(settings, true)
    }

    fn export(&mut self, settings: &Map<String, Value>, inputs: bool) -> String {
        let settings = Value::Object(settings.clone()).to_string();
        if let Some(known) = self.known.get(&(settings.clone(), inputs)) {
            return known.clone();
        }
        fs::write(self.checkpoint.path().join("preprocessor_config.json"), &settings).unwrap();
        self.fit_model(&serde_json::from_str(&settings).unwrap());
        let checkpoint = Checkpoint::open(self.checkpoint.path()).unwrap();
        let options = ExportOptions {
            precisions: vec![Precision::Fp32],
            parts: vec![Part::ImageProcessor],
            image_inputs: inputs,
            ..ExportOptions::new(Recipe::builtin("portable").unwrap())
        };
        let folder = tempfile::tempdir().unwrap();
        let export = export(&checkpoint, &folder.path().join("m"), &options, &mut |_| {
            ControlFlow::Continue(())
        });
        export.unwrap().publish().unwrap();
        let name = format!("{}.onnx", self.known.len());
        let graph = folder.path().join("m/onnx/image_processor.onnx");
        fs::copy(graph, self.out.join(&name)).unwrap();
        self.known.insert((settings, inputs), name.clone());
        name
    }

    /// Makes the model one for these settings.
    fn fit_model(&self, settings: &Value) {
        let path = testdata("tiny-shapes/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        if let Some(side) = settings.get("encoder_patch_size") {
            config["vision_config"]["patch_size"] = side.clone();
        }
        if let Some(factor) = settings.get("downsample_factor") {
            config["downsample_factor"] = factor.clone();
        }
        hollow_checkpoint(&config, self.checkpoint.path());
    }

    /// Which token has which id.
    fn tokens(&self) -> Map<String, Value> {
        let path = self.checkpoint.path().join("tokenizer.json");
        let tokenizer: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let added = tokenizer["added_tokens"].as_array().unwrap();
        added.iter().map(|token| (token["id"].to_string(), token["content"].clone())).collect()
    }
}

/// The graphs of all settings of the goldens, `N.onnx`, and `cases.json`: which graph gives what for
/// which image, and which for which size.
static CASES: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let mut exports = Exports::new(folder.path());
    let cases = json!({
        "images": images(&mut exports),
        "sizes": sizes(&mut exports),
        "tokens": exports.tokens(),
    });
    fs::write(folder.path().join("cases.json"), cases.to_string()).unwrap();
    succeed(python("image_processor.py").arg(folder.path()).arg("--cut"));
    folder
});

fn golden(name: &str) -> Value {
    let path = testdata("preprocess").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The settings with some replaced.
fn with(settings: &Value, overrides: &Value) -> Map<String, Value> {
    let objects = [settings, overrides].into_iter().filter_map(Value::as_object);
    objects.flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Whole images: their pixels, or what an image of that size is cut into.
fn images(exports: &mut Exports) -> Vec<Value> {
    let mut cases = Vec::new();
    let mut add = |graph: String, inputs: &Value, golden: &Value, hashed: Option<&str>| {
        let mut case = golden.clone();
        case["graph"] = graph.into();
        case["inputs"] = inputs.clone();
        case["hashed"] = hashed.into();
        cases.push(case);
    };
    let none = json!({});
    for golden in golden("combinations.json").as_array().unwrap() {
        let graph = exports.graph(&with(&golden["settings"], &none));
        add(graph, &none, golden, Some("levels"));
    }
    for golden in golden("settings.json").as_array().unwrap() {
        let (settings, overrides) = (&golden["settings"], &golden["overrides"]);
        add(exports.graph(&with(settings, overrides)), &none, golden, Some("values"));
        let mut names = overrides.as_object().unwrap().keys();
        // Fewer tiles than the checkpoint has.
        let tiles = overrides["max_tiles"].as_u64().is_none_or(|tiles| tiles <= 10);
        if names.all(|name| INPUTS.contains(&name.as_str())) && tiles {
            let unpadded = with(overrides, &json!({"do_pad": false}));
            let graph = exports.graph_with_inputs(&with(settings, &none));
            add(graph.clone(), overrides, golden, Some("values"));
            add(graph, &unpadded.into(), golden, Some("values"));
        }
    }
    let layouts = golden("layout.json");
    for (mode, resample) in [("bilinear", 2), ("bicubic", 3)] {
        let settings = with(&layouts["settings"], &json!({"resample": resample}));
        for golden in layouts["resample"][mode].as_array().unwrap() {
            add(exports.graph(&settings), &none, golden, None);
        }
    }
    for golden in layouts["options"].as_array().unwrap() {
        let graph = exports.graph(&with(&layouts["settings"], &golden["options"]));
        add(graph, &none, golden, None);
    }
    cases
}

/// Sizes alone: many usual ones, and many that are equally near to several grids.
fn sizes(exports: &mut Exports) -> Vec<Value> {
    let table = |name: &str| {
        let text = fs::read_to_string(testdata("preprocess").join(name)).unwrap();
        let rows = text.lines().skip(1);
        let row = |line: &str| line.split(',').map(|cell| cell.parse().unwrap()).collect();
        rows.map(row).collect::<Vec<Vec<u64>>>()
    };
    let mut cases = Vec::new();
    let graph = exports.graph(&Map::new());
    for row in table("sizes.csv") {
        cases.push(json!({
            "graph": graph, "width": row[0], "height": row[1], "rows": row[2], "cols": row[3],
            "image_size": row[4..6],
        }));
    }
    for row in table("grids.csv") {
        // So that every image is split.
        let settings = json!({
            "min_tiles": row[0], "max_tiles": row[1], "min_image_tokens": 1, "max_image_tokens": 1,
            "max_pixels_tolerance": 1e-9,
        });
        cases.push(json!({
            "graph": exports.graph(&with(&settings, &json!({}))),
            "width": row[2], "height": row[3], "rows": row[4], "cols": row[5],
        }));
    }
    cases
}

/// Images of all goldens, and those among them for which the graph has no inputs but the pixels: JavaScript's
/// bindings know no others.
const ALL: u64 = 549;
const WITHOUT_INPUTS: u64 = 507;

/// Runs the script on so many images, and on all sizes.
fn check(mut script: std::process::Command, version: &str, images: u64) {
    let printed = succeed(script.arg(CASES.path())).stdout;
    let report: Value = serde_json::from_slice(&printed).unwrap();
    println!("{report}");
    assert!(report["onnxruntime"].as_str().unwrap().starts_with(version), "{report}");
    assert_eq!(report["images"], images, "{report}");
    assert_eq!(report["sizes"], 2400 + 2793, "{report}");
}

/// Images and settings that do not go together fail, at nodes whose names say why.
#[test]
fn what_cannot_be_processed_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut exports = Exports::new(folder.path());
    let graph = exports.graph_with_inputs(&Map::new());
    let script = python("image_processor_refusals.py").arg(folder.path().join(graph)).output();
    let printed = script.unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
}

#[test]
fn onnxruntime_1_32() {
    check(python("image_processor.py"), "1.32", ALL);
}

#[test]
fn onnxruntime_1_24() {
    older("LFM2VL_OLDEST_ORT", "1.24");
}

#[test]
fn onnxruntime_1_20() {
    older("LFM2VL_PORTABLE_ORT", "1.20");
}

fn older(variable: &str, version: &str) {
    let Some(package) = set_up(variable) else { return };
    let mut script = python("image_processor.py");
    let own = std::env::var_os("PYTHONPATH").unwrap_or_default();
    script.env("PYTHONPATH", std::env::join_paths([package, own]).unwrap());
    check(script, version, ALL);
}

#[test]
fn onnxruntime_web() {
    let Some(script) = node(Path::new("tests/javascript/image_processor.mjs")) else { return };
    check(script, "1.", WITHOUT_INPUTS);
}
