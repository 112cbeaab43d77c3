//! The program and the whole export.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::common::{assert_contains, copy_of, testdata};

fn export(arguments: &[&Path], more: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_lfm2vl-export"));
    program.args(arguments).args(more).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn fingerprint(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    json["report"]["manifest"]["source_fingerprint"].as_str().unwrap().to_owned()
}

/// Given, or beside the model: the same weights, told in one line, and verified against themselves.
#[test]
fn an_adapter_is_merged_and_told() {
    let out = tempfile::tempdir().unwrap();
    let (model, adapter) = (testdata("tiny-shapes"), testdata("adapters/plain"));
    let [plain, given, beside] = ["plain", "given", "beside"].map(|name| out.path().join(name));
    let o = Path::new("-o");
    let alone = export(&[&model, o, &plain], &["--json"]);
    assert_eq!(stderr(&alone), "");
    let option = Path::new("--adapter");
    let first = export(&[&model, option, &adapter, o, &given], &["--json", "--verify"]);
    let told = format!("the adapter in {} is merged into the weights\n", adapter.display());
    assert!(stderr(&first).starts_with(&told), "{}", stderr(&first));

    let copy = copy_of("tiny-shapes");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(adapter.join(file), copy.path().join(file)).unwrap();
    }
    let second = export(&[copy.path(), o, &beside], &["--json"]);
    assert_contains(&stderr(&second), &["is merged into the weights"]);
    let [alone, first, second] = [alone, first, second].map(|output| fingerprint(&output));
    assert_ne!(alone, first);
    let data =
        |folder: &Path| fs::read(folder.join("onnx/decoder_model_merged.onnx_data")).unwrap();
    assert_ne!(data(&plain), data(&given));
    assert_eq!(data(&given), data(&beside));
    assert_ne!(first, "");
    assert_eq!(first, second);
}

#[test]
fn what_cannot_be_done_with_an_adapter() {
    let out = tempfile::tempdir().unwrap();
    let (model, adapter) = (testdata("tiny-shapes"), testdata("adapters/plain"));
    let (o, option) = (Path::new("-o"), Path::new("--adapter"));
    let output = out.path().join("model");
    let refused = export(&[&model, option, &adapter, o, &output], &["--weights", "reference"]);
    assert!(!refused.status.success());
    assert_contains(&stderr(&refused), &["--weights reference", "adapter"]);
    let refused = export(&[&adapter, o, &output], &[]);
    assert!(!refused.status.success());
    assert_contains(&stderr(&refused), &["testdata/tiny-shapes", "with --adapter"]);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}
