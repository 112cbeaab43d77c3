//! The exported files in ONNX's checker and in plain Python onnxruntime.

use lfm2vl_graphs::{Precision, Recipe};
use lfm2vl_tests::{VARIANTS, export_to, export_with, python, succeed, testdata, tiny_shapes};

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
    for name in Recipe::BUILTIN {
        for checkpoint in VARIANTS
            .map(|variant| format!("variants/{variant}"))
            .into_iter()
            .chain(["tiny-shapes".to_owned()])
        {
            let folder = out.path().join(format!("{}-{name}", checkpoint.replace('/', "-")));
            export_with(&folder, &checkpoint, Recipe::builtin(name).unwrap(), &Precision::ALL);
            command.arg(folder);
        }
    }
    let output = succeed(&mut command);
    println!("{}", String::from_utf8_lossy(&output.stdout));
}
