//! The exported files in ONNX's checker and in plain Python onnxruntime.

use lfm2vl_exporter::checkpoint::Checkpoint;
use lfm2vl_graphs::{LayerKind, Precision, Recipe};
use lfm2vl_tests::{
    VARIANTS, export_to, export_with, program, python, set_up, succeed, testdata, tiny_shapes,
};
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

/// What only CUDA and WebGPU run, with its attention spelled out as ONNX Runtime documents it.
#[test]
fn packed_attention_spelled_out_agrees_with_transformers() {
    let out = tempfile::tempdir().unwrap();
    let (mut unpack, mut goldens) = (python("unpack_attention.py"), python("goldens.py"));
    goldens.arg(testdata(""));
    let checkpoints = VARIANTS.map(|variant| format!("variants/{variant}"));
    let mut attentions = Vec::new();
    for checkpoint in checkpoints.into_iter().chain(["tiny-shapes".to_owned()]) {
        let config = Checkpoint::open(&testdata(&checkpoint)).unwrap().config().text.clone();
        if !config.head_dim.is_multiple_of(16) {
            continue;
        }
        let folder = out.path().join(checkpoint.replace('/', "-"));
        let recipe = Recipe { packed_qkv: true, ..Recipe::builtin("cuda").unwrap() };
        export_with(&folder, &checkpoint, recipe, &[Precision::Fp32]);
        unpack.arg(&folder);
        let golden = match &*checkpoint {
            "tiny-shapes" => "goldens/tiled.safetensors",
            _ => "golden.safetensors",
        };
        goldens.arg(format!("{}={checkpoint}/{golden}", folder.display()));
        let is_attention = |kind: &&LayerKind| **kind == LayerKind::FullAttention;
        attentions.push(config.layer_types.iter().filter(is_attention).count());
    }
    let report: Value = serde_json::from_slice(&succeed(&mut unpack).stdout).unwrap();
    assert_eq!(attentions.len(), VARIANTS.len());
    // Of the decoder, onnxruntime-genai's and the one for drafts.
    let spelled_out: usize = attentions.iter().sum::<usize>() * 3;
    let found = report.as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>();
    assert_eq!(found, spelled_out as u64, "{report}");
    println!("{}", String::from_utf8_lossy(&succeed(&mut goldens).stdout));
}

/// In the releases that are installed, the graphs of all recipes in all precisions, and the vision encoder and
/// the embedding of the default recipe alone.
#[test]
fn graphs_load_from_the_onnxruntime_that_the_manifest_names() {
    let out = tempfile::tempdir().unwrap();
    let mut folders = Vec::new();
    for name in Recipe::BUILTIN {
        let folder = out.path().join(name);
        let recipe = Recipe::builtin(name).unwrap();
        export_with(&folder, "tiny-shapes", recipe, &Precision::ALL);
        folders.push(folder);
    }
    let parts = out.path().join("parts");
    let mut export = program("lfm2vl-export");
    export.arg(testdata("tiny-shapes")).arg("-o").arg(&parts);
    export.args(["--graphs", "vision,embedding", "--precision", "fp32,fp16,q8,q4,q4f16"]);
    succeed(&mut export);
    folders.push(parts);
    let own = std::env::var_os("PYTHONPATH").unwrap_or_default();
    for (variable, version, fewest) in
        [("LFM2VL_PORTABLE_ORT", "1.20", 80), ("LFM2VL_OLDER_ORT", "1.23", 90)]
    {
        let Some(package) = set_up(variable) else { return };
        let mut script = python("load_graphs.py");
        let paths = [package, own.clone()];
        script.args(&folders).env("PYTHONPATH", std::env::join_paths(paths).unwrap());
        let report: Value = serde_json::from_slice(&succeed(&mut script).stdout).unwrap();
        println!("{report}");
        assert!(report["onnxruntime"].as_str().unwrap().starts_with(version), "{report}");
        assert!(report["loaded"].as_u64().unwrap() >= fewest, "{report}");
    }
}

/// ONNX Runtime does so on CUDA, which is not there.
#[test]
fn norms_can_be_moved_into_cudas_attention() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("m");
    export_with(&folder, "tiny-shapes", Recipe::builtin("cuda").unwrap(), &[Precision::Fp16]);
    let files = ["decoder_model_merged", "decoder_speculative", "decoder_genai"]
        .map(|graph| format!("{graph}_fp16.onnx"));
    let mut script = python("attention_norms.py");
    script.args(files.each_ref().map(|file| folder.join("onnx").join(file)));
    let report: Value = serde_json::from_slice(&succeed(&mut script).stdout).unwrap();
    let config = Checkpoint::open(&testdata("tiny-shapes")).unwrap().config().text.clone();
    let size = config.head_dim;
    let axes = [size, config.num_attention_heads * size, size, config.num_key_value_heads * size];
    let attentions =
        config.layer_types.iter().filter(|kind| **kind == LayerKind::FullAttention).count();
    for file in files {
        assert_eq!(report[&file], serde_json::json!(vec![axes; attentions]), "{report}");
    }
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
