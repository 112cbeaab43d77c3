//! The exported files in ONNX's checker and in plain Python onnxruntime.

use lfm2vl_graphs::Recipe;
use lfm2vl_tests::{VARIANTS, export_to, program, python, succeed, testdata, tiny_shapes};
use serde_json::Value;

/// Image features, logits, states and greedy tokens of every checkpoint and recipe, within the
/// bars of the script.
#[test]
fn graphs_in_plain_onnxruntime_agree_with_transformers() {
    let out = tempfile::tempdir().unwrap();
    let mut command = python("goldens.py");
    command.arg(testdata(""));
    let mut pair = |folder: &std::path::Path, golden: &str| {
        command.arg(format!("{}={golden}", folder.display()));
    };
    for recipe in Recipe::BUILTIN {
        for golden in ["plain", "tiled", "rgba", "tall", "two-images"] {
            pair(&tiny_shapes(recipe), &format!("tiny-shapes/goldens/{golden}.safetensors"));
        }
        for variant in VARIANTS {
            let folder = out.path().join(format!("{variant}-{recipe}"));
            export_to(&folder, &format!("variants/{variant}"), recipe);
            pair(&folder, &format!("variants/{variant}/golden.safetensors"));
        }
    }
    // Only standard operators take masks with padding on the left.
    pair(&tiny_shapes("portable"), "tiny-shapes/goldens/padded-batch.safetensors");
    let output = succeed(&mut command);
    println!("{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn graphs_pass_the_onnx_checker() {
    let out = tempfile::tempdir().unwrap();
    let mut command = python("check_onnx.py");
    for recipe in Recipe::BUILTIN {
        command.arg(tiny_shapes(recipe));
        for variant in VARIANTS {
            let folder = out.path().join(format!("{variant}-{recipe}"));
            export_to(&folder, &format!("variants/{variant}"), recipe);
            command.arg(folder);
        }
    }
    let output = succeed(&mut command);
    println!("{}", String::from_utf8_lossy(&output.stdout));
}

/// A script of 40 lines that knows only the contract gives the tokens that our program gives.
#[test]
fn a_short_script_gives_the_same_tokens() {
    let out = tempfile::tempdir().unwrap();
    let samples = testdata("tiny-shapes/samples");
    for (image, prompt) in [
        (Some("tiled.jpg"), "Describe this image."),
        (Some("tall.png"), "What shapes are in this image?"),
        (None, "Tell me a story."),
    ] {
        let folder = tiny_shapes("default");
        let tensors = out.path().join("tensors.safetensors");
        let arguments = |command: &mut std::process::Command| {
            command.arg(&folder).args(["--prompt", prompt]);
            if let Some(image) = image {
                command.arg("--image").arg(samples.join(image));
            }
        };
        let mut preprocess = program("lfm2vl");
        arguments(preprocess.arg("preprocess").arg("--tensors").arg(&tensors));
        succeed(&mut preprocess);

        let mut run = program("lfm2vl");
        arguments(run.args(["run", "--json", "--temperature", "0", "--max-new-tokens", "40"]));
        let ours: Value = serde_json::from_slice(&succeed(&mut run).stdout).unwrap();
        let ours: Vec<i64> = serde_json::from_value(ours["token_ids"].clone()).unwrap();
        assert!(!ours.is_empty());

        let mut script = python("generate.py");
        script.arg(&folder).arg(&tensors).arg(ours.len().to_string());
        let theirs: Vec<i64> = serde_json::from_slice(&succeed(&mut script).stdout).unwrap();
        assert_eq!(ours, theirs, "{prompt}");
    }
}
