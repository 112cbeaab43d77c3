//! Programs that we did not write load the exported folder and give the tokens that ours gives.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use lfm2vl_graphs::{Activations, Precision, Recipe};
use lfm2vl_tests::{
    export_from, node, program, python, released_files, root, succeed, testdata,
    tiny_shapes_in_all_precisions,
};
use serde_json::Value;

const STEPS: usize = 24;

/// A question that every client is asked.
struct Question {
    image: Option<PathBuf>,
    prompt: String,
    /// Whether the image is split into tiles.
    tiled: bool,
}

fn questions() -> Vec<Question> {
    let question = |image: Option<&str>, prompt: &str, tiled| Question {
        image: image.map(|file| testdata("tiny-shapes/samples").join(file)),
        prompt: prompt.to_owned(),
        tiled,
    };
    vec![
        question(None, "Tell me a story.", false),
        question(Some("tall.png"), "What shapes are in this image?", false),
        question(Some("number-tiled.png"), "Describe this image.", true),
    ]
}

impl Question {
    fn arguments(&self, command: &mut Command) {
        command.args(["--prompt", &self.prompt]);
        if let Some(image) = &self.image {
            command.arg("--image").arg(image);
        }
    }

    /// The tokens that our program gives.
    fn ours(&self, folder: &Path, precision: Precision) -> Vec<u32> {
        let mut run = program("lfm2vl");
        run.arg("run").arg(folder).args(["--json", "--temperature", "0"]);
        run.args(["--repetition-penalty", "1", "--max-new-tokens", &STEPS.to_string()]);
        run.args(["--precision", &precision.to_string()]);
        self.arguments(&mut run);
        let answer: Value = serde_json::from_slice(&succeed(&mut run).stdout).unwrap();
        serde_json::from_value(answer["token_ids"].clone()).unwrap()
    }

    /// The inputs of the graphs, in a file.
    fn tensors(&self, folder: &Path, out: &Path) -> PathBuf {
        let file = out.join("tensors.safetensors");
        let mut preprocess = program("lfm2vl");
        preprocess.arg("preprocess").arg(folder).arg("--tensors").arg(&file);
        self.arguments(&mut preprocess);
        succeed(&mut preprocess);
        file
    }
}

fn tokens(command: &mut Command) -> Vec<u32> {
    serde_json::from_slice(&succeed(command).stdout).unwrap()
}

/// Its own image processor, template and tokenizer where it can; the tiles as tensors where not.
#[test]
fn onnxruntime_genai() {
    let (folder, out) = (tiny_shapes_in_all_precisions(), tempfile::tempdir().unwrap());
    for question in questions() {
        let tensors = question.tensors(&folder, out.path());
        for precision in [Precision::Fp32, Precision::Q4, Precision::Fp16] {
            let ours = question.ours(&folder, precision);
            let name = precision.to_string();
            let mut given = python("generate_genai.py");
            given.arg(&folder).arg(&tensors).args([&STEPS.to_string(), "--precision", &name]);
            assert_eq!(tokens(&mut given), ours, "{precision} {}", question.prompt);
            if question.tiled {
                continue;
            }
            let mut own = python("generate_genai.py");
            own.arg(&folder).arg(&question.prompt).args([&STEPS.to_string(), "--precision", &name]);
            if let Some(image) = &question.image {
                own.arg("--image").arg(image);
            }
            assert_eq!(tokens(&mut own), ours, "{precision} {}", question.prompt);
        }
    }
    // Without a precision it takes the one that genai_config.json names: the recommended bundle.
    let question = &questions()[0];
    let mut own = python("generate_genai.py");
    own.arg(&folder).arg(&question.prompt).arg(STEPS.to_string());
    assert_eq!(tokens(&mut own), question.ours(&folder, Precision::Q4));
}

/// The script of the folder's README: text and tokens, tiles and all.
#[test]
fn transformers_js() {
    let folder = tiny_shapes_in_all_precisions();
    for question in questions() {
        for precision in Precision::ALL {
            let Some(mut script) = node(Path::new("exporter/src/package/card/transformers.mjs"))
            else {
                return;
            };
            let image = question.image.as_deref().unwrap_or(Path::new(""));
            script.arg(&folder).arg(image).arg(&question.prompt);
            script.args([precision.to_string(), STEPS.to_string()]);
            let answer: Value = serde_json::from_slice(&succeed(&mut script).stdout).unwrap();
            let mut theirs: Vec<u32> = serde_json::from_value(answer["token_ids"].clone()).unwrap();
            let ours = question.ours(&folder, precision);
            // It returns the end token, too.
            theirs.truncate(ours.len());
            assert_eq!(theirs, ours, "{precision} {}", question.prompt);
        }
    }
}

#[test]
fn transformers_js_on_the_same_pixels() {
    let (folder, out) = (tiny_shapes_in_all_precisions(), tempfile::tempdir().unwrap());
    for question in questions() {
        let tensors = question.tensors(&folder, out.path());
        for precision in [Precision::Fp32, Precision::Q4] {
            let Some(mut script) = node(Path::new("tests/javascript/generate_from_tensors.mjs"))
            else {
                return;
            };
            script.arg(&folder).arg(&tensors).args([STEPS.to_string(), precision.to_string()]);
            let ours = question.ours(&folder, precision);
            assert_eq!(tokens(&mut script), ours, "{precision} {}", question.prompt);
        }
    }
}

/// The crate `lfm`, which takes the 450M shape only: a random checkpoint with the released
/// tokenizer.
#[test]
fn lfm() {
    const TOKENS: usize = 8;
    let out = tempfile::tempdir().unwrap();
    let checkpoint = out.path().join("checkpoint");
    let mut make = Command::new(env!("CARGO"));
    make.args(["run", "--quiet", "--package", "lfm2vl-exporter", "--example", "make_checkpoint"]);
    make.arg("--").arg(testdata("configs/lfm2-vl-450m.json")).arg(&checkpoint).arg("0");
    succeed(make.arg(released_files()).current_dir(root()));
    let folder = out.path().join("exported");
    // It computes with float inputs whatever the graph allows, and between the random model's nearly
    // equal tokens the last bits decide.
    let mut recipe = Recipe::builtin("default").unwrap();
    recipe.quantization.get_mut(&Precision::Q4).unwrap().activations = Activations::Float;
    let precisions = [Precision::Fp32, Precision::Q4];
    export_from(&checkpoint, &folder, recipe, &precisions);

    // Its `ort` links the library under these names.
    let library = PathBuf::from(env::var_os("ORT_DYLIB_PATH").expect("cargo xtask test sets it"));
    let libraries = out.path().join("library");
    fs::create_dir(&libraries).unwrap();
    for name in ["libonnxruntime.so", "libonnxruntime.so.1"] {
        fs::copy(&library, libraries.join(name)).unwrap();
    }
    let test = env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap().join("lfm");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--manifest-path"]);
    build.arg(root().join("tests/lfm/Cargo.toml")).arg("--target-dir").arg(&target);
    build.env("ORT_LIB_PATH", &libraries).env("ORT_LIB_LOCATION", &libraries);
    succeed(build.env("ORT_PREFER_DYNAMIC_LINK", "1").stderr(Stdio::inherit()));

    let image = testdata("tiny-shapes/samples/number-tiled.png");
    for (precision, image) in precisions.into_iter().flat_map(|p| [(p, None), (p, Some(&image))]) {
        let question =
            Question { image: image.cloned(), prompt: "What is shown?".to_owned(), tiled: false };
        let mut client = Command::new(target.join("debug/lfm-client"));
        client
            .arg(&folder)
            .arg(precision.to_string())
            .args([question.prompt.as_str(), &TOKENS.to_string()]);
        let theirs = tokens(client.args(image).env("LD_LIBRARY_PATH", &libraries));
        assert_eq!(theirs.len(), TOKENS);
        let ours = question.ours(&folder, precision);
        assert_eq!(theirs, ours[..TOKENS], "{precision} {image:?}");
    }
}
