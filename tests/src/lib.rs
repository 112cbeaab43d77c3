//! What the tests of this crate share: exports of the test data, and other programs.

use std::{
    ffi::OsString,
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, Once, OnceLock},
};

use lfm2vl::{
    Completion, Conversation, Engine, GenerationOptions,
    chat::Message,
    image::{Limits, open},
};
use lfm2vl_exporter::{
    ExportOptions,
    checkpoint::{Checkpoint, Config, model_tensors, released_name},
    export,
};
use lfm2vl_graphs::{Precision, Recipe};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The six checkpoints that differ in their configs.
pub const VARIANTS: [&str; 6] =
    ["conv-bias", "layernorm-tied", "no-layernorm", "old-config", "sharded-f16", "untied"];

/// The project's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A path below `testdata`.
pub fn testdata(path: &str) -> PathBuf {
    root().join("testdata").join(path)
}

/// Exports a checkpoint of the test data to `out` in float32.
pub fn export_to(out: &Path, checkpoint: &str, recipe: &str) {
    let recipe = Recipe::builtin(recipe).expect("a built-in recipe");
    export_with(out, checkpoint, recipe, &[Precision::Fp32]);
}

/// Exports a checkpoint of the test data to `out`.
pub fn export_with(out: &Path, checkpoint: &str, recipe: Recipe, precisions: &[Precision]) {
    export_from(&testdata(checkpoint), out, recipe, precisions);
}

/// Exports any checkpoint to `out`.
pub fn export_from(checkpoint: &Path, out: &Path, recipe: Recipe, precisions: &[Precision]) {
    let checkpoint = Checkpoint::open(checkpoint).expect("the checkpoint opens");
    let options = ExportOptions { precisions: precisions.to_vec(), ..ExportOptions::new(recipe) };
    let draft = export(&checkpoint, out, &options, &mut |_| ControlFlow::Continue(()));
    draft.and_then(|draft| draft.publish()).expect("the checkpoint exports");
}

/// `tiny-shapes` in every precision, exported once for all tests of a process.
pub fn tiny_shapes_in_all_precisions() -> PathBuf {
    static EXPORT: OnceLock<TempDir> = OnceLock::new();
    let folder = EXPORT.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let recipe = Recipe::builtin("default").expect("a built-in recipe");
        export_with(&folder.path().join("m"), "tiny-shapes", recipe, &Precision::ALL);
        folder
    });
    folder.path().join("m")
}

/// `tiny-shapes` in float32, exported once for all tests of a process.
pub fn tiny_shapes(recipe: &'static str) -> PathBuf {
    static EXPORTS: OnceLock<(TempDir, Mutex<Vec<&'static str>>)> = OnceLock::new();
    let (folder, done) = EXPORTS
        .get_or_init(|| (tempfile::tempdir().expect("a temporary folder"), Mutex::default()));
    let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let out = folder.path().join(recipe);
    if !done.contains(&recipe) {
        export_to(&out, "tiny-shapes", recipe);
        done.push(recipe);
    }
    out
}

/// The sample questions of `tiny-shapes`, all of which it answers rightly in float32.
pub fn sample_questions() -> Vec<serde_json::Value> {
    let samples = std::fs::read(testdata("tiny-shapes/samples/samples.json"));
    serde_json::from_slice(&samples.expect("samples are there")).expect("samples are JSON")
}

/// The images of a sample question.
pub fn sample_images(question: &serde_json::Value) -> Vec<image::RgbImage> {
    let files = question["images"].as_array().into_iter().flatten();
    let files = files.filter_map(serde_json::Value::as_str);
    let folder = testdata("tiny-shapes/samples");
    files
        .map(|file| open(&folder.join(file), &Limits::default()).expect("a sample image opens"))
        .collect()
}

/// What `engine` answers to a sample question.
pub fn answer(engine: &Engine, question: &serde_json::Value) -> Completion {
    let text = |key: &str| question[key].as_str();
    let mut conversation = Conversation::new();
    if let Some(system) = text("system") {
        conversation.push(Message::system(system));
    }
    let message = Message::user(text("prompt").unwrap_or_default());
    conversation.push_with_images(message, sample_images(question)).expect("images fit");
    engine.answer(&mut conversation, &GenerationOptions::default()).expect("it generates")
}

/// A program of this workspace, built once for all tests of a process.
pub fn program(name: &str) -> Command {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        // All of them, since with the features of the whole workspace no library is built again.
        let build = ["build", "--quiet", "--workspace", "--bins"];
        let status = Command::new(env!("CARGO")).args(build).current_dir(root()).status();
        assert!(status.is_ok_and(|status| status.success()), "the programs do not build");
    });
    // Tests run in the `deps` folder beside the programs.
    let test = std::env::current_exe().expect("the test has a path");
    let folder = test.ancestors().nth(2).expect("the test is in a target folder");
    Command::new(folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}

/// A script of `tests/python`, with the packages that `cargo xtask test` installs.
pub fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(root().join("tests/python").join(script));
    if std::env::var_os("PYTHONPATH").is_none() {
        let packages = root().join(".python");
        assert!(packages.is_dir(), "run the tests with `cargo xtask test`, which sets Python up");
        command.env("PYTHONPATH", packages);
    }
    command
}

/// The value of a variable by which `cargo xtask test` names what it has set up for some tests; nothing where
/// the platform lacks something, for which these are skipped.
///
/// # Panics
/// In CI, where all tests have to run.
pub fn set_up(variable: &str) -> Option<OsString> {
    let value = std::env::var_os(variable);
    if value.is_none() {
        eprintln!("not tested: {variable} is not set; `cargo xtask test` tells what is missing");
        assert!(std::env::var_os("CI").is_none(), "{variable} has to be set in CI");
    }
    value
}

/// A script beside the packages that `cargo xtask test` installs: Node looks for them there.
pub fn node(script: &Path) -> Option<Command> {
    let packages = set_up("LFM2VL_NODE")?;
    let beside = Path::new(&packages).join(script.file_name().unwrap_or_default());
    std::fs::copy(root().join(script), &beside).expect("the script can be copied");
    let mut command = Command::new("node");
    command.arg(beside);
    Some(command)
}

/// The folder with the released LFM2.5-VL tokenizer and template, in cargo's own copy of the crate
/// `lfm`.
pub fn released_files() -> PathBuf {
    let mut metadata = Command::new(env!("CARGO"));
    metadata
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(root().join("tests/lfm/Cargo.toml"));
    let metadata: serde_json::Value =
        serde_json::from_slice(&succeed(&mut metadata).stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let lfm = packages.into_iter().find(|package| package["name"] == "lfm");
    let manifest = lfm.and_then(|lfm| lfm["manifest_path"].as_str()).expect("lfm is there");
    Path::new(manifest).with_file_name("models")
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder can be made");
    for entry in std::fs::read_dir(from).expect("the folder can be read") {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).expect("it can be read");
        if path.is_dir() {
            copy_folder(&path, &to.join(name))
        } else {
            std::fs::copy(&path, to.join(name)).expect("it can be copied");
        }
    }
}

/// Runs a command that must succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command that must fail, and gives the one line it says on stderr.
pub fn fail(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{command:?} did not fail properly: {message}");
    assert!(output.stdout.is_empty(), "{command:?} printed an answer");
    let lines: Vec<&str> = message.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("error: "), "not one sentence: {message}");
    message
}

/// Writes a checkpoint whose weights are zeros that take no room on the disk; returns how many there are.
pub fn hollow_checkpoint(config: &Value, folder: &Path) -> u64 {
    std::fs::write(folder.join("config.json"), config.to_string())
        .expect("a checkpoint can be written");
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in
        model_tensors(&Config::from_json(config).expect("a checkpoint can be written"))
    {
        let start = end;
        end += 2 * shape.iter().product::<usize>() as u64;
        let tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(released_name(&name), tensor);
    }
    let header = Value::Object(header).to_string();
    let mut file = std::fs::File::create(folder.join("model.safetensors"))
        .expect("a checkpoint can be written");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("a checkpoint can be written");
    file.write_all(header.as_bytes()).expect("a checkpoint can be written");
    file.set_len(8 + header.len() as u64 + end).expect("a checkpoint can be written");
    end / 2
}
