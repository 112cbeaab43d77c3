//! The `lfm2vl-export` program: what it prints, and that nothing is left when it is stopped.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use lfm2vl_tests::{fail, program, root, succeed, testdata};
use serde_json::{Value, json};

fn export(checkpoint: &Path, out: &Path) -> Command {
    let mut command = program("lfm2vl-export");
    command.arg(checkpoint).arg("-o").arg(out);
    command
}

#[test]
fn json_tells_what_was_written_and_verified() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("m");
    let output = succeed(export(&testdata("tiny-shapes"), &folder).args(["--verify", "--json"]));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["report"]["manifest"]["contract"], "community");
    let checks = report["verification"]["graphs"].as_array().unwrap();
    assert_eq!(checks.len(), 7);
    assert_eq!(checks[6]["graph"], "image_processor");
    assert_eq!(checks[6]["max_abs_error"], 0.0);
    assert!(checks.iter().all(|check| check["scaled_error"].as_f64().unwrap() < 2e-5));
    let size: u64 = ["", "onnx"]
        .iter()
        .flat_map(|sub| fs::read_dir(folder.join(sub)).unwrap())
        .map(|entry| entry.unwrap())
        .filter(|e| e.path().is_file() && e.file_name() != "lfm2vl.yaml")
        .map(|e| e.metadata().unwrap().len())
        .sum();
    assert_eq!(report["report"]["bytes"], size);
}

#[test]
fn a_log_has_lines_where_a_terminal_has_a_bar() {
    let out = tempfile::tempdir().unwrap();
    let told = |name: &str, more: &[&str]| {
        let mut command = export(&testdata("tiny-shapes"), &out.path().join(name));
        String::from_utf8(succeed(command.args(more)).stderr).unwrap()
    };
    let lines = told("lines", &[]);
    let [start, end] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
    let size = start.strip_prefix("writing the weights: ").unwrap();
    assert!(end.starts_with(&format!("writing the weights: done, {size} in ")), "{lines}");
    assert_eq!(told("json", &["--json"]), "");
}

#[test]
fn messages_are_one_sentence() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("m");
    let source = testdata("tiny-shapes");
    let gptq = out.path().join("gptq.yaml");
    let start = "recipe: mine\ncontract: community\nvision: fused\noperators: onnxruntime\nlogits: last\nlast_hidden_state: false\n";
    let quantization = "precisions: [q4]\nquantization:\n  q4: {bits: 4, block_size: 32, symmetric: false, method: gptq, activations: int8}\n";
    fs::write(&gptq, format!("{start}{quantization}")).unwrap();
    assert!(fail(&mut export(Path::new("no-such-folder"), &folder)).contains("hub id"));
    assert!(
        fail(
            export(&source, &folder)
                .args(["--calibration", "no-such-folder", "--recipe"])
                .arg(&gptq)
        )
        .contains("no-such-folder")
    );
    let message = fail(export(&source, &folder).arg("--recipe").arg(&gptq));
    assert!(message.contains("--calibration"), "{message}");
    assert!(
        fail(export(&source, &folder).args(["--recipe", "fast"])).contains("default, portable")
    );
    let recipe = out.path().join("mine.yaml");
    fs::write(&recipe, "recipe: mine\ncolour: red\n").unwrap();
    let message = fail(export(&source, &folder).arg("--recipe").arg(&recipe));
    assert!(message.contains("colour") && message.contains("line 2"), "{message}");
    for (wrong, expected) in [
        ("method: gptq", "method: guess"),
        ("block_size: 32", "block_size: 33"),
        ("activations: int8}", "activations: int8, exceptions: [{modules: nothing.*, bits: 8}]}"),
    ]
    .map(|(from, to)| (quantization.replace(from, to), to))
    {
        fs::write(&recipe, format!("{start}{wrong}")).unwrap();
        let message = fail(export(&source, &folder).arg("--recipe").arg(&recipe));
        assert!(message.contains("line 9 column"), "{expected}: {message}");
    }
    let cuda = fs::read_to_string(root().join("graphs/recipes/cuda.yaml")).unwrap();
    fs::write(&recipe, cuda + "packed_qkv: true\n").unwrap();
    let samples = source.join("samples");
    let page = out.path().join("page.html");
    let report = ["--report".as_ref(), page.as_os_str(), "--samples".as_ref(), samples.as_os_str()];
    for (arguments, expected) in [
        (
            &["--weights".as_ref(), "reference".as_ref()][..],
            "'packed_qkv' cannot be: the weights stay",
        ),
        (&["--verify".as_ref()], "leave --verify or 'packed_qkv' out"),
        (&report, "leave --report or 'packed_qkv' out"),
    ] {
        let mut export = export(&source, &folder);
        export.arg("--recipe").arg(&recipe).args(["--precision", "fp32"]).args(arguments);
        assert!(fail(&mut export).contains(expected), "{expected}");
        assert!(!folder.exists(), "{expected}");
    }
    // Of 8 values each.
    let mut odd_heads = export(&testdata("variants/conv-bias"), &folder);
    let message = fail(odd_heads.arg("--recipe").arg(&recipe));
    assert!(message.contains("does not take this model's heads"), "{message}");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("mine.txt"), "").unwrap();
    assert!(fail(&mut export(&source, &folder)).contains("already exists"));
    assert!(fail(export(&source, &folder).arg("--force")).contains("not an exported folder"));
}

#[test]
fn recipes_are_listed_without_a_checkpoint() {
    let list = |more: &[&str]| {
        let mut command = program("lfm2vl-export");
        command.arg("--list-recipes").args(more);
        String::from_utf8(succeed(&mut command).stdout).unwrap()
    };
    let recipes: Value = serde_json::from_str(&list(&["--json"])).unwrap();
    let recipes = recipes.as_array().unwrap();
    let text = list(&[]);
    assert_eq!(recipes.len(), text.lines().count());
    for (recipe, line) in recipes.iter().zip(text.lines()) {
        for key in ["name", "purpose", "onnxruntime"] {
            assert!(line.contains(recipe[key].as_str().unwrap()), "{line}");
        }
    }
    let tensorrt = recipes.iter().find(|recipe| recipe["name"] == "tensorrt").unwrap();
    assert_eq!(tensorrt["precisions"], json!(["fp32", "fp16"]));
    assert_eq!(tensorrt["contract"], "static");
    // Nobody should wait for an export that is not made.
    let mut command = export(&testdata("tiny-shapes"), Path::new("m"));
    assert_eq!(command.arg("--list-recipes").output().unwrap().status.code(), Some(2));
}

#[test]
fn a_recipe_of_one_s_own() {
    let out = tempfile::tempdir().unwrap();
    let recipe = out.path().join("mine.yaml");
    let text = "recipe: mine\ncontract: community\nvision: split\noperators: standard\nlogits: all\nlast_hidden_state: true\n";
    fs::write(&recipe, text).unwrap();
    let folder = out.path().join("m");
    succeed(export(&testdata("tiny-shapes"), &folder).arg("--verify").arg("--recipe").arg(&recipe));
    assert!(folder.join("onnx/projector.onnx").is_file());
}

#[test]
fn a_report_needs_free_sizes() {
    let out = tempfile::tempdir().unwrap();
    let (folder, report) = (out.path().join("m"), out.path().join("r.html"));
    let mut command = export(&testdata("tiny-shapes"), &folder);
    command.args(["--recipe", "coreml", "--report"]).arg(&report);
    command.arg("--samples").arg(testdata("tiny-shapes/calibration"));
    assert!(fail(&mut command).contains("this recipe fixes sizes; leave --report out"));
    assert!(!folder.exists() && !report.exists());
}

#[test]
fn a_card_says_how_its_decoder_is_run() {
    let out = tempfile::tempdir().unwrap();
    for (recipe, expected) in [
        ("portable", "with length 0 for"),
        ("tensorrt", "whole buffers"),
        ("coreml", "to be put behind those in the buffers"),
    ] {
        let folder = out.path().join(recipe);
        succeed(export(&testdata("tiny-shapes"), &folder).args(["--recipe", recipe]));
        let card = fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(card.contains(expected), "{recipe}: {card}");
        assert_eq!(card.contains("```python"), recipe == "portable", "{recipe}");
    }
}

#[test]
fn samples_are_a_list_or_just_images() {
    let out = tempfile::tempdir().unwrap();
    let recipe = out.path().join("gptq.yaml");
    let text = "recipe: mine\ncontract: community\nvision: fused\noperators: onnxruntime\nlogits: last\nlast_hidden_state: false\nprecisions: [q4]\nquantization:\n  q4: {bits: 4, block_size: 32, symmetric: false, method: gptq, activations: int8}\n";
    fs::write(&recipe, text).unwrap();
    let photos = out.path().join("photos");
    fs::create_dir(&photos).unwrap();
    let command = |report: &str| {
        let mut command = export(&testdata("tiny-shapes").canonicalize().unwrap(), Path::new("m"));
        // A folder that is named from where the program is.
        command.current_dir(out.path()).args(["--calibration", "photos", "--recipe"]).arg(&recipe);
        command.args(["--force", "--report", report, "--samples", "photos"]);
        command
    };
    assert!(fail(&mut command("r.html")).contains("no samples"));
    for (list, expected) in [
        ("[]", "no samples"),
        (r#"[{"prompt": "Hello", "image": "tall.png"}]"#, "unknown field `image`"),
        (r#"[{"prompt": "Hello"}]"#, "add samples with images"),
        (r#"[{"prompt": "Hello", "images": ["none.png"]}]"#, "none.png"),
    ] {
        fs::write(photos.join("samples.json"), list).unwrap();
        let message = fail(&mut command("r.html"));
        assert!(message.contains(expected), "{message}");
        let cause = message.split(": ").last().unwrap().trim_end();
        assert_eq!(message.matches(cause).count(), 1, "{message}");
    }
    fs::remove_file(photos.join("samples.json")).unwrap();
    fs::copy(testdata("tiny-shapes/samples/tall.png"), photos.join("tall.png")).unwrap();
    for name in ["r.json", "photos", "no-such-folder/r.html"] {
        assert!(fail(&mut command(name)).contains(name));
    }
    let left: Vec<_> = fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    succeed(&mut command("r.html"));
    assert!(out.path().join("m/lfm2vl.yaml").is_file());
    assert!(out.path().join("r.html").is_file() && out.path().join("r.html.json").is_file());
}

/// A checkpoint that takes a moment to export.
#[cfg(unix)]
fn large_checkpoint(folder: &Path) -> std::path::PathBuf {
    let config = fs::read(testdata("tiny-shapes/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["text_config"]["vocab_size"] = 400_000.into();
    let file = folder.join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    let out = folder.join("checkpoint");
    succeed(
        Command::new(env!("CARGO"))
            .args([
                "run",
                "--quiet",
                "--package",
                "lfm2vl-exporter",
                "--example",
                "make_checkpoint",
                "--",
            ])
            .arg(file)
            .arg(&out)
            .arg("1")
            .arg(testdata("tiny-shapes"))
            .current_dir(root()),
    );
    out
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = large_checkpoint(folder.path());
    let out = tempfile::tempdir().unwrap();
    let child = export(&checkpoint, &out.path().join("m"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while fs::read_dir(out.path()).unwrap().next().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "the export did not start");
        std::thread::sleep(Duration::from_millis(1));
    }
    succeed(Command::new("kill").arg("-INT").arg(child.id().to_string()));
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("interrupted"), "{message}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

/// Needs a file system of its own; where the system allows none to this user, there is nothing
/// to test.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let mounted = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script]);
        command
    };
    let disk = tempfile::tempdir().unwrap();
    let disk_path = disk.path().display();
    let mount = format!("mount -t tmpfs -o size=3m none '{disk_path}'");
    if !mounted(&mount).status().is_ok_and(|status| status.success()) {
        eprintln!("not tested: this system lets its users mount nothing");
        return;
    }
    let export = export(&testdata("tiny-shapes"), &disk.path().join("m"));
    let export: Vec<String> = std::iter::once(export.get_program())
        .chain(export.get_args())
        .map(|part| format!("'{}'", part.to_string_lossy()))
        .collect();
    let script =
        format!("{mount} && {} ; code=$?; ls -A '{disk_path}'; exit $code", export.join(" "));
    let output = mounted(&script).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("cannot write") && message.contains("free some space"), "{message}");
    assert!(output.stdout.is_empty(), "left: {}", String::from_utf8_lossy(&output.stdout));
}
