//! The `lfm2vl` program: what it prints, and what it says when something is wrong.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    thread,
};

use lfm2vl_tests::{fail, program, succeed, testdata, tiny_shapes};
use serde_json::{Value, json};

fn lfm2vl(command: &str) -> Command {
    let mut lfm2vl = program("lfm2vl");
    lfm2vl.arg(command);
    lfm2vl
}

fn sample(name: &str) -> std::path::PathBuf {
    testdata("tiny-shapes/samples").join(name)
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(succeed(command).stdout).unwrap()
}

/// A copy of the exported folder that may be damaged.
fn copy() -> tempfile::TempDir {
    let source = tiny_shapes("default");
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("onnx")).unwrap();
    for folder in ["", "onnx"] {
        for entry in fs::read_dir(source.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, copy.path().join(folder).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    copy
}

fn run(folder: &Path) -> Command {
    let mut command = lfm2vl("run");
    command.arg(folder).args(["--prompt", "Hello"]);
    command
}

#[test]
fn run_answers_on_stdout_alone() {
    let answer = "Hello! I can tell you about the shapes, colours and numbers in your images.\n";
    let output = succeed(&mut run(&tiny_shapes("default")));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), answer);
    assert!(output.stderr.is_empty());
}

#[test]
fn run_json_has_every_key() {
    let mut command = run(&tiny_shapes("default"));
    command.arg("--image").arg(sample("tiled.jpg")).args(["--json", "--threads", "1"]);
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    assert_eq!(report["finish_reason"], "stop");
    assert_eq!(report["image_tokens"], 108);
    assert!(report["prompt_tokens"].as_u64().unwrap() > 108);
    assert!(!report["token_ids"].as_array().unwrap().is_empty());
    for part in ["load", "preprocess", "vision", "prefill", "decode"] {
        assert!(report["timings_ms"][part].as_f64().unwrap() > 0.0, "{part}");
    }
    assert!(report["tokens_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn preprocess_needs_no_onnxruntime() {
    let mut command = lfm2vl("preprocess");
    command.arg(tiny_shapes("default")).args(["--prompt", "Describe this image.", "--json"]);
    command.arg("--image").arg(sample("number-tiled.png")).env("ORT_DYLIB_PATH", "/nowhere.so");
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    let image = &report["images"][0];
    assert_eq!((&image["rows"], &image["cols"]), (&json!(2), &json!(3)));
    assert_eq!(image["spatial_shapes"].as_array().unwrap().len(), 7);
    assert_eq!(report["prompt_tokens"], report["input_ids"].as_array().unwrap().len());
    command.arg("--no-splitting");
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    assert_eq!(report["images"][0]["spatial_shapes"].as_array().unwrap().len(), 1);
}

/// The sizes of `testdata/preprocess`, through a folder with the settings of the released models.
#[test]
fn preprocess_gives_the_goldens_of_every_size() {
    let golden = fs::read(testdata("preprocess/layout.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(testdata("tiny-shapes").join(file), folder.path().join(file)).unwrap();
    }
    let settings = golden["settings"].to_string();
    fs::write(folder.path().join("preprocessor_config.json"), settings).unwrap();
    let picture = folder.path().join("picture.png");
    for row in golden["resample"]["bilinear"].as_array().unwrap() {
        let size = |key: &str| row[key].as_u64().unwrap() as u32;
        image::RgbImage::new(size("width"), size("height")).save(&picture).unwrap();
        let mut command = lfm2vl("preprocess");
        command.arg(folder.path()).args(["--prompt", "What is this?", "--json"]);
        let report: Value =
            serde_json::from_str(&stdout(command.arg("--image").arg(&picture))).unwrap();
        let image = &report["images"][0];
        for key in ["rows", "cols", "spatial_shapes", "image_tokens"] {
            assert_eq!(image[key], row[key], "{row}");
        }
        assert_eq!(report["prompt_tokens"], row["prompt_tokens"], "{row}");
    }
}

#[test]
fn inspect_tells_graphs_and_provider() {
    let mut command = lfm2vl("inspect");
    command.arg(tiny_shapes("split")).arg("--json");
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    let graphs: Vec<_> = report["graphs"].as_array().unwrap().iter().map(|g| &g["graph"]).collect();
    assert_eq!(graphs, ["vision_tower", "projector", "embed_tokens", "decoder_model_merged"]);
    assert_eq!(report["graphs"][0]["assignments"][0]["provider"], "CPUExecutionProvider");
    assert_eq!(report["graphs"][2]["inputs"][0]["name"], "input_ids");
    assert_eq!(report["graphs"][2]["state_memory"], Value::Null);
    assert_eq!(report["graphs"][3]["state_memory"], "Cpu");
    assert!(stdout(lfm2vl("inspect").arg(tiny_shapes("default"))).contains("present_conv.0"));
}

#[test]
fn bench_measures_every_part() {
    let mut command = lfm2vl("bench");
    command.arg(tiny_shapes("default")).args(["--prompt-tokens", "64", "--new-tokens", "8"]);
    command.args(["--repeat", "2", "--json", "--image"]).arg(sample("plain.png"));
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    for key in ["load_ms", "vision_ms", "prefill_tokens_per_second", "decode_tokens_per_second"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}");
    }
}

#[test]
fn bench_measures_several_scenarios() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scenarios.json");
    let bench = || {
        let mut command = lfm2vl("bench");
        command.arg(tiny_shapes("default")).args(["--repeat", "1", "--scenarios"]).arg(&file);
        command
    };
    let scenarios = json!([
        {"image": sample("plain.png"), "prompt_tokens": 16, "new_tokens": 2},
        {"prompt_tokens": 64, "new_tokens": 8},
        {"prompt_tokens": 32, "new_tokens": 128, "batch": 2},
    ]);
    fs::write(&file, scenarios.to_string()).unwrap();
    let output = stdout(&mut bench());
    let reports: Vec<Value> = output.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let figure = |at: usize, key: &str| reports[at][key].as_f64().unwrap();
    assert_eq!(reports.len(), 3);
    assert!(figure(0, "vision_ms") > 0.0 && figure(1, "vision_ms") == 0.0, "{output}");
    assert!(figure(1, "prompt_tokens") > figure(2, "prompt_tokens"), "{output}");
    for (wrong, expected) in
        [("[{\"promptt\": 1}]", "`promptt`"), ("{}", "JSON list"), ("[]", "no scenario")]
    {
        fs::write(&file, wrong).unwrap();
        assert!(fail(&mut bench()).contains(expected), "{expected}");
    }
}

#[test]
fn folders_that_are_not_whole() {
    assert!(fail(&mut run(Path::new("/no/such/folder"))).contains("not a folder"));

    let folder = copy();
    fs::remove_file(folder.path().join("onnx/embed_tokens.onnx")).unwrap();
    assert!(fail(&mut run(folder.path())).contains("has no graph embed_tokens"));

    let folder = copy();
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(fail(&mut run(folder.path())).contains("tokenizer.json"));

    let folder = copy();
    fs::remove_file(folder.path().join("onnx/decoder_model_merged.onnx_data")).unwrap();
    assert!(fail(&mut run(folder.path())).contains("decoder_model_merged"));

    let folder = copy();
    fs::write(folder.path().join("onnx/vision_encoder.onnx"), "no graph").unwrap();
    assert!(fail(&mut run(folder.path())).contains("vision_encoder"));

    let folder = copy();
    fs::write(folder.path().join("lfm2vl.yaml"), "exporter: [").unwrap();
    assert!(fail(&mut run(folder.path())).contains("lfm2vl.yaml"));

    let message = fail(run(&tiny_shapes("default")).args(["--precision", "q4"]));
    assert!(message.contains("fp32") && message.contains("not in q4"), "{message}");
}

#[test]
fn a_graph_of_another_contract() {
    let folder = copy();
    let onnx = folder.path().join("onnx");
    fs::copy(onnx.join("embed_tokens.onnx"), onnx.join("vision_encoder.onnx")).unwrap();
    let message = fail(&mut run(folder.path()));
    assert!(message.contains("vision_encoder") && message.contains("pixel_values"), "{message}");
}

#[test]
fn a_folder_without_a_manifest_runs() {
    let folder = copy();
    fs::remove_file(folder.path().join("lfm2vl.yaml")).unwrap();
    assert!(stdout(&mut run(folder.path())).starts_with("Hello!"));
}

#[test]
fn images_and_settings_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.png");
    fs::write(&empty, "").unwrap();
    let text = folder.path().join("text.png");
    fs::write(&text, "this is no image").unwrap();
    let model = tiny_shapes("default");
    let with_image = |path: &Path| fail(run(&model).arg("--image").arg(path));
    assert!(with_image(&empty).contains("empty.png"));
    let message = with_image(&text);
    assert!(message.contains("text.png"));
    // The cause is told once.
    assert_eq!(message.matches("is not a PNG").count(), 1, "{message}");
    assert_eq!(with_image(Path::new("missing.png")).matches("No such file").count(), 1);
    assert!(fail(run(&model).args(["--temperature=-1"])).contains("temperature"));
    assert!(fail(run(&model).args(["--max-image-tokens", "1"])).contains("min_image_tokens"));
    let message = fail(run(&model).args(["--provider", "cuda"]));
    assert!(message.contains("provider cuda") && message.contains("feature"), "{message}");
    let setting = |setting| fail(run(&model).args(["--image-setting", setting]));
    assert!(setting("tile_sise=512").contains("the settings are min_image_tokens"));
    assert!(setting("resample=4").contains("resample"));
    let mut marks = lfm2vl("run");
    marks.arg(&model).args(["--prompt", "<image> what?", "--special-tokens-in-text"]);
    assert!(fail(&mut marks).contains("1 <image> marks and 0 images"));
    let tools = folder.path().join("tools.json");
    fs::write(&tools, "{").unwrap();
    assert!(fail(run(&model).arg("--tools").arg(&tools)).contains("tools.json is no JSON list"));
}

#[test]
fn images_from_urls_and_data_uris() {
    let model = tiny_shapes("default");
    let ask = |image: &str| {
        let mut command = lfm2vl("preprocess");
        command.arg(&model).args(["--prompt", "Describe.", "--json", "--image", image]);
        command
    };
    let report = |command: &mut Command| -> Value {
        let report: Value = serde_json::from_str(&stdout(command)).unwrap();
        report["images"][0].clone()
    };
    let file = report(&mut ask(sample("plain.png").to_str().unwrap()));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/plain.png", listener.local_addr().unwrap());
    let message = fail(&mut ask(&url));
    assert!(message.contains("private address 127.0.0.1"), "{message}");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        let body = fs::read(sample("plain.png")).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
    });
    assert_eq!(report(ask(&url).arg("--allow-private-addresses")), file);
    server.join().unwrap();

    let pixel = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
    assert_eq!(report(&mut ask(pixel))["width"], 1);
}

#[test]
fn settings_of_images_and_tools() {
    let model = tiny_shapes("default");
    let tokens = |arguments: &[&str]| {
        let mut command = lfm2vl("preprocess");
        command.arg(&model).args(["--prompt", "Describe.", "--json"]).args(arguments);
        command.arg("--image").arg(sample("tiled.jpg"));
        let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
        (report["image_tokens"].as_u64().unwrap(), report["prompt_tokens"].as_u64().unwrap())
    };
    let (image_tokens, prompt_tokens) = tokens(&[]);
    assert_eq!(tokens(&["--image-setting", "use_thumbnail=false"]), tokens(&["--no-thumbnail"]));
    assert!(tokens(&["--image-setting", "use_thumbnail=false"]).0 < image_tokens);
    assert!(tokens(&["--max-tiles", "2"]).0 < image_tokens);
    let folder = tempfile::tempdir().unwrap();
    let tools = folder.path().join("tools.json");
    fs::write(&tools, r#"[{"type": "function", "function": {"name": "look"}}]"#).unwrap();
    let with_tools = tokens(&["--tools", tools.to_str().unwrap()]);
    assert!(with_tools.0 == image_tokens && with_tools.1 > prompt_tokens + 10);
}

#[test]
fn a_missing_or_wrong_library() {
    let model = tiny_shapes("default");
    let message = fail(run(&model).env("ORT_DYLIB_PATH", "/no/such/library.so"));
    assert!(message.contains("/no/such/library.so") && message.contains("ORT_DYLIB_PATH"));
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("libonnxruntime.so");
    fs::write(&broken, "no library").unwrap();
    let message = fail(run(&model).env("ORT_DYLIB_PATH", &broken));
    assert!(
        message.contains("cannot be loaded") && message.contains("cargo xtask setup"),
        "{message}"
    );
}

/// A library that says it is ONNX Runtime 1.20 and can do nothing else.
const OLD_LIBRARY: &str = r#"
#[repr(C)]
pub struct ApiBase(extern "C" fn(u32) -> *const u8, extern "C" fn() -> *const u8);
extern "C" fn api(_version: u32) -> *const u8 { std::ptr::null() }
extern "C" fn version() -> *const u8 { c"1.20.0".as_ptr().cast() }
static BASE: ApiBase = ApiBase(api, version);
#[unsafe(no_mangle)]
pub extern "C" fn OrtGetApiBase() -> *const ApiBase { &BASE }
"#;

#[test]
fn a_library_that_is_too_old() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("old.rs");
    let library = folder.path().join("libonnxruntime.so");
    fs::write(&source, OLD_LIBRARY).unwrap();
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(&library).arg(&source);
    succeed(&mut rustc);
    let message = fail(run(&tiny_shapes("default")).env("ORT_DYLIB_PATH", &library));
    assert!(message.contains("1.20.0") && message.contains("1.31 or newer"), "{message}");
}
