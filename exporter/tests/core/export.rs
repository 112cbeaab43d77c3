//! The folder as a whole: complete or not there, the same each time, and never written over.

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use lfm2vl_exporter::{
    ExportError, ExportOptions, Part, Report, VerifyError, builtin_recipes, checkpoint::Checkpoint,
    export, verify,
};
use lfm2vl_graphs::{FixedSizes, Graph, MANIFEST, Manifest, Method, Precision, Recipe};

use crate::common::{VARIANTS, copy_of, testdata};

fn options(recipe: &str) -> ExportOptions {
    ExportOptions {
        precisions: vec![Precision::Fp32],
        ..ExportOptions::new(Recipe::builtin(recipe).unwrap())
    }
}

fn export_to(
    checkpoint: &Path,
    out: &Path,
    options: &ExportOptions,
) -> Result<Report, ExportError> {
    let checkpoint = Checkpoint::open(checkpoint)?;
    export(&checkpoint, out, options, &mut |_| ControlFlow::Continue(()))?.publish()
}

/// Every file below `folder`, by its path there.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for sub in [folder.to_owned(), folder.join("onnx")] {
        for entry in fs::read_dir(sub).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

#[test]
fn the_same_checkpoint_gives_the_same_bytes() {
    let out = tempfile::tempdir().unwrap();
    let (first, second) = (out.path().join("first"), out.path().join("second"));
    let mut options = ExportOptions { precisions: Precision::ALL.to_vec(), ..options("default") };
    options.calibration = Some(testdata("tiny-shapes/calibration"));
    options.recipe.quantization.get_mut(&Precision::Q4).unwrap().method = Method::Gptq;
    export_to(&testdata("tiny-shapes"), &first, &options).unwrap();
    export_to(&testdata("tiny-shapes"), &second, &options).unwrap();
    assert_eq!(contents(&first), contents(&second));
}

#[test]
fn the_manifest_tells_every_file_and_its_hash() {
    use sha2::{Digest, Sha256};
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("model");
    export_to(&testdata("tiny-shapes"), &folder, &options("split")).unwrap();
    let mut files = contents(&folder);
    let manifest = files.remove("lfm2vl.yaml").unwrap();
    let manifest: Manifest = serde_yaml::from_slice(&manifest).unwrap();
    for file in manifest.graphs.iter().flat_map(|g| &g.files).chain(&manifest.files) {
        let content = files.remove(&file.path).unwrap();
        assert_eq!(content.len() as u64, file.bytes, "{}", file.path);
        let hash = hex::encode(Sha256::digest(&content));
        assert_eq!(hash, file.sha256, "{}", file.path);
    }
    assert!(files.is_empty(), "not in the manifest: {:?}", files.keys());
}

/// Folders as killed exports leave them: without a lock, and not from just now.
fn leave(folder: &Path) {
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("part"), "").unwrap();
    fs::write(folder.join(MANIFEST), "").unwrap();
    let earlier = SystemTime::now() - Duration::from_secs(600);
    fs::File::open(folder).unwrap().set_modified(earlier).unwrap();
}

#[test]
fn the_manifest_and_the_card_tell_the_oldest_onnxruntime() {
    let out = tempfile::tempdir().unwrap();
    for (recipe, precisions, expected) in [
        ("default", vec![Precision::Fp32], "1.30"),
        ("portable", Precision::ALL.to_vec(), "1.20"),
        ("directml", vec![Precision::Fp32], "1.20"),
    ] {
        let folder = out.path().join(recipe);
        let options = ExportOptions { precisions, ..options(recipe) };
        let report = export_to(&testdata("tiny-shapes"), &folder, &options).unwrap();
        assert_eq!(report.manifest.onnxruntime.as_deref(), Some(expected), "{recipe}");
        let card = fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(card.contains(&format!("for ONNX Runtime {expected} or newer")), "{recipe}");
    }
}

#[test]
fn recipes_are_listed_with_what_their_exports_need() {
    let out = tempfile::tempdir().unwrap();
    let recipes = builtin_recipes().unwrap();
    let names: Vec<_> = recipes.iter().map(|recipe| recipe.name.as_str()).collect();
    assert_eq!(names, Recipe::BUILTIN);
    for recipe in recipes {
        let precisions = recipe.precisions.clone();
        let options = ExportOptions { precisions, ..options(&recipe.name) };
        let report =
            export_to(&testdata("tiny-shapes"), &out.path().join(&recipe.name), &options).unwrap();
        assert_eq!(recipe.onnxruntime, report.manifest.onnxruntime, "{}", recipe.name);
        assert_eq!(recipe.purpose, report.manifest.recipe.purpose);
    }
}

#[test]
fn an_image_processor_that_cannot_be_made_is_left_out_or_an_error() {
    let out = tempfile::tempdir().unwrap();
    let alone = ExportOptions { parts: vec![Part::ImageProcessor], ..options("default") };
    let settings = |settings: serde_json::Value| {
        let copy = copy_of("tiny-shapes");
        fs::remove_file(copy.path().join("processor_config.json")).unwrap();
        fs::write(copy.path().join("preprocessor_config.json"), settings.to_string()).unwrap();
        copy
    };
    // What no client could process is an error.
    let copy = settings(serde_json::json!({"resample": 5}));
    let error = export_to(copy.path(), &out.path().join("x"), &options("default")).unwrap_err();
    assert!(error.to_string().contains("'resample' is 5"), "{error}");
    for (i, (wrong, message)) in [
        (serde_json::json!({"max_tiles": 11}), "no token <|img_row_1_col_11|>"),
        (serde_json::json!({"encoder_patch_size": 8}), "'encoder_patch_size' is 8"),
        (serde_json::json!({"downsample_factor": 4}), "config.json says 2"),
    ]
    .into_iter()
    .enumerate()
    {
        let copy = settings(wrong);
        let folder = out.path().join(i.to_string());
        let error = export_to(copy.path(), &folder, &alone).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        let report = export_to(copy.path(), &folder, &options("default")).unwrap();
        let left_out = report.left_out.unwrap();
        assert_eq!((left_out.graph, left_out.why), (Graph::ImageProcessor, error));
        assert!(!folder.join("onnx/image_processor.onnx").exists());
        let card = fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(!card.contains("## Python") && card.contains("an export that has image_processor"));
    }
    // What is never asked for need not be there.
    let copy = settings(serde_json::json!({"max_tiles": 11, "do_image_splitting": false}));
    export_to(copy.path(), &out.path().join("single"), &alone).unwrap();
}

#[test]
fn the_card_has_a_prompt_only_where_it_is_a_plain_one() {
    let out = tempfile::tempdir().unwrap();
    let user = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}";
    let plain = "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}";
    for (i, (template, is_plain)) in [
        (format!("{user}{plain}é\u{2028}"), true),
        (format!("{user}{plain}{{{{ strftime_now('%Y') }}}}"), false),
        (format!("{user}{{{{ p.text }}}}{{% endfor %}}{{% endfor %}}"), false),
        ("{{ raise_exception('no') }}".to_owned(), false),
        ("{% for m in messages %}{{ m.role }}{% endfor %}".to_owned(), false),
    ]
    .into_iter()
    .enumerate()
    {
        let copy = copy_of("tiny-shapes");
        fs::write(copy.path().join("chat_template.jinja"), template).unwrap();
        let folder = out.path().join(i.to_string());
        export_to(copy.path(), &folder, &options("default")).unwrap();
        let card = fs::read_to_string(folder.join("README.md")).unwrap();
        assert_eq!(card.contains("A plain question is the string"), is_plain, "{i}");
        assert_eq!(card.contains("## Python"), is_plain, "{i}");
        assert_eq!(card.contains(r#"{content}\u00e9\u2028""#), is_plain, "{i}");
    }
}

#[test]
fn what_killed_exports_left_is_cleaned_up() {
    let out = tempfile::tempdir().unwrap();
    let (folder, source) = (out.path().join("m"), testdata("tiny-shapes"));
    let force = ExportOptions { force: true, ..options("portable") };
    export_to(&source, &folder, &force).unwrap();
    let names =
        [".m.replaced", ".m.replaced-x", ".m.incomplete-old", ".m.incomplete-busy", ".n.replaced"];
    names.iter().for_each(|name| leave(&out.path().join(name)));
    let busy = fs::File::open(out.path().join(".m.incomplete-busy")).unwrap();
    busy.lock().unwrap();
    export_to(&source, &folder, &force).unwrap();
    let mut left: Vec<_> =
        fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".m.incomplete-busy", ".n.replaced", "m"]);
}

#[test]
fn an_export_that_was_being_replaced_comes_back() {
    let out = tempfile::tempdir().unwrap();
    let (folder, source) = (out.path().join("m"), testdata("tiny-shapes"));
    leave(&out.path().join(".m.replaced-x"));
    let error = export_to(&source, &folder, &options("portable")).unwrap_err().to_string();
    assert!(error.contains("already exists"), "{error}");
    assert!(folder.join("part").is_file());
}

#[test]
fn exports_to_one_folder_at_once_leave_one() {
    let source = testdata("tiny-shapes");
    for force in [false, true] {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("m");
        let export =
            || export_to(&source, &folder, &ExportOptions { force, ..options("portable") });
        let results: Vec<_> = thread::scope(|scope| {
            let exports: Vec<_> = (0..4).map(|_| scope.spawn(export)).collect();
            exports.into_iter().map(|export| export.join().unwrap()).collect()
        });
        let done = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(done, if force { 4 } else { 1 }, "{results:?}");
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(error, ExportError::OutputExists(_)), "{error}");
        }
        let manifest = fs::read_to_string(folder.join(MANIFEST)).unwrap();
        let manifest: Manifest = serde_yaml::from_str(&manifest).unwrap();
        manifest.check_files(&folder).unwrap();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
    }
}

#[test]
fn an_existing_folder_is_replaced_only_with_force_and_only_if_it_is_an_export() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("model");
    let source = testdata("tiny-shapes");
    export_to(&source, &folder, &options("default")).unwrap();
    let before = contents(&folder);
    let error = export_to(&source, &folder, &options("portable")).unwrap_err().to_string();
    assert!(error.contains("already exists") && error.contains("--force"), "{error}");
    assert_eq!(contents(&folder), before);

    let force = ExportOptions { force: true, ..options("portable") };
    export_to(&source, &folder, &force).unwrap();
    assert_ne!(contents(&folder), before);

    let other = out.path().join("holiday photos");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("beach.jpg"), "").unwrap();
    let error = export_to(&source, &other, &force).unwrap_err().to_string();
    assert!(error.contains("not an exported folder"), "{error}");
    assert!(other.join("beach.jpg").is_file());
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 2, "something was left behind");
}

#[test]
fn a_failed_or_stopped_export_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("model");
    let checkpoint = Checkpoint::open(&testdata("tiny-shapes")).unwrap();
    let mut calls = 0;
    let stopped = export(&checkpoint, &folder, &options("default"), &mut |progress| {
        calls += 1;
        assert!(progress.written <= progress.total);
        if calls == 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped.err(), Some(ExportError::Interrupted)));
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);

    // A NaN that only shows when its tensor is written.
    let copy = copy_of("tiny-shapes");
    let weights = copy.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7FC0_u16.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let error = export_to(copy.path(), &folder, &options("default")).unwrap_err().to_string();
    assert!(error.contains("NaN") && error.contains("tensor model."), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn progress_ends_at_the_total() {
    let out = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&testdata("tiny-shapes")).unwrap();
    let mut last = None;
    let draft = export(&checkpoint, &out.path().join("m"), &options("default"), &mut |progress| {
        last = Some(progress);
        ControlFlow::Continue(())
    });
    drop(draft.unwrap());
    let last = last.unwrap();
    assert_eq!(last.written, last.total);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "a draft that is dropped is gone");
}

#[test]
fn parts_can_be_exported_alone() {
    let out = tempfile::tempdir().unwrap();
    let cases = [
        (
            "default",
            vec![Part::Decoder],
            vec![Graph::Decoder, Graph::GenaiDecoder, Graph::SpeculativeDecoder],
        ),
        ("default", vec![Part::Projector], vec![Graph::VisionEncoder]),
        (
            "split",
            vec![Part::Projector, Part::Embedding],
            vec![Graph::Projector, Graph::EmbedTokens],
        ),
    ];
    for (i, (recipe, parts, graphs)) in cases.into_iter().enumerate() {
        let options = ExportOptions { parts, ..options(recipe) };
        let folder = out.path().join(i.to_string());
        let report = export_to(&testdata("tiny-shapes"), &folder, &options).unwrap();
        let built: Vec<_> = report.manifest.graphs.iter().map(|g| g.graph).collect();
        assert_eq!(built, graphs);
    }
}

#[test]
fn client_files_are_made_from_their_equivalents() {
    let copy = copy_of("tiny-shapes");
    let template = fs::read_to_string(copy.path().join("chat_template.jinja")).unwrap();
    fs::remove_file(copy.path().join("chat_template.jinja")).unwrap();
    fs::remove_file(copy.path().join("preprocessor_config.json")).unwrap();
    let tokenizer_config = copy.path().join("tokenizer_config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(&tokenizer_config).unwrap()).unwrap();

    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("m");
    let error = export_to(copy.path(), &folder, &options("default")).unwrap_err().to_string();
    assert!(error.contains("chat_template"), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);

    // Of older processors, with the padding of some call in the tokenizer.
    let older = copy.path().join("chat_template.json");
    fs::write(&older, serde_json::json!({"chat_template": template}).to_string()).unwrap();
    let tokenizer = copy.path().join("tokenizer.json");
    let original = fs::read_to_string(&tokenizer).unwrap();
    let padded =
        original.replacen("\"truncation\": null", "\"truncation\": {\"max_length\": 20}", 1);
    assert_ne!(padded, original);
    fs::write(&tokenizer, padded).unwrap();
    export_to(copy.path(), &out.path().join("older"), &options("default")).unwrap();
    let written = |name: &str| fs::read_to_string(out.path().join("older").join(name)).unwrap();
    assert_eq!(written("chat_template.jinja"), template);
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(json(&written("tokenizer.json")), json(&original));
    fs::remove_file(older).unwrap();
    fs::write(&tokenizer, original).unwrap();

    config["chat_template"] = template.clone().into();
    fs::write(tokenizer_config, config.to_string()).unwrap();
    export_to(copy.path(), &folder, &options("default")).unwrap();
    assert_eq!(fs::read_to_string(folder.join("chat_template.jinja")).unwrap(), template);
    let settings: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("preprocessor_config.json")).unwrap())
            .unwrap();
    assert_eq!((&settings["tile_size"], &settings["do_resize"]), (&128.into(), &false.into()));
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["transformers.js_config"]["use_external_data_format"], 1);

    fs::remove_file(copy.path().join("processor_config.json")).unwrap();
    let folder = out.path().join("without settings");
    let error = export_to(copy.path(), &folder, &options("default")).unwrap_err().to_string();
    assert!(error.contains("preprocessor_config.json"), "{error}");
    assert!(!folder.exists());
}

#[test]
fn verification_passes_for_every_variant_recipe_and_precision() {
    for variant in VARIANTS {
        let checkpoint = Checkpoint::open(&testdata(&format!("variants/{variant}"))).unwrap();
        for recipe in Recipe::BUILTIN {
            let out = tempfile::tempdir().unwrap();
            let mut go_on = |_| ControlFlow::Continue(());
            let options = ExportOptions { precisions: Precision::ALL.to_vec(), ..options(recipe) };
            let draft = export(&checkpoint, &out.path().join("m"), &options, &mut go_on).unwrap();
            let verification =
                verify(&checkpoint, draft.path(), &draft.report().manifest, &mut |_| {
                    ControlFlow::Continue(())
                })
                .unwrap();
            verification.check().unwrap_or_else(|e| panic!("{variant} {recipe}: {e}"));
        }
    }
}

#[test]
fn an_image_processor_of_other_settings_is_found() {
    let copy = copy_of("variants/no-layernorm");
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut go_on = |_| ControlFlow::Continue(());
    let options = ExportOptions { parts: vec![Part::ImageProcessor], ..options("default") };
    let draft = export(&checkpoint, &out.path().join("m"), &options, &mut go_on).unwrap();
    let verified = || {
        let manifest = &draft.report().manifest;
        verify(&checkpoint, draft.path(), manifest, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let checks = verified();
    assert_eq!((checks.graphs.len(), checks.graphs[0].max_abs_error), (1, 0.0));
    assert_eq!(checks.check().map_err(|error| error.to_string()), Ok(()));

    let file = copy.path().join("processor_config.json");
    let mut settings: serde_json::Value =
        serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    settings["image_processor"]["image_mean"] = serde_json::json!([0.5, 0.5, 0.501]);
    fs::write(&file, settings.to_string()).unwrap();
    let error = verified().check().unwrap_err().to_string();
    assert!(error.starts_with("image_processor in fp32 differs"), "{error}");
}

#[test]
fn sizes_of_one_s_own_are_verified_or_refused() {
    let checkpoint = Checkpoint::open(&testdata("variants/untied")).unwrap();
    let mut go_on = |_| ControlFlow::Continue(());
    let out = tempfile::tempdir().unwrap();
    let mut with_sizes = |patches, past_sequence| {
        let mut options = options("tensorrt");
        options.recipe.sizes = Some(FixedSizes {
            views: Some(2),
            patches: Some(patches),
            past_sequence,
            sequence: 16,
        });
        options.force = true;
        let draft = export(&checkpoint, &out.path().join("m"), &options, &mut go_on);
        let draft = draft.map_err(|error| error.to_string())?;
        let manifest = draft.report().manifest.clone();
        let verified =
            verify(&checkpoint, draft.path(), &manifest, &mut |_| ControlFlow::Continue(()));
        verified.map_err(|error| error.to_string())?.check().map_err(|error| error.to_string())
    };
    assert_eq!(with_sizes(64, 300), Ok(()));
    let error = with_sizes(63, 300).unwrap_err();
    assert!(error.contains("make 'patches' in the recipe's sizes a multiple of 4"), "{error}");
    let error = with_sizes(4, 300).unwrap_err();
    assert!(error.contains("takes views of more than 4 patches"), "{error}");
    let error = with_sizes(64, 40).unwrap_err();
    assert!(error.contains("give more 'past_sequence'"), "{error}");
}

#[test]
fn verification_notices_wrong_integers() {
    let checkpoint = Checkpoint::open(&testdata("variants/untied")).unwrap();
    for precision in [Precision::Q8, Precision::Q4] {
        let out = tempfile::tempdir().unwrap();
        let mut go_on = |_| ControlFlow::Continue(());
        let options = ExportOptions { precisions: vec![precision], ..options("portable") };
        let draft = export(&checkpoint, &out.path().join("m"), &options, &mut go_on).unwrap();
        let verify = || {
            verify(&checkpoint, draft.path(), &draft.report().manifest, &mut |_| {
                ControlFlow::Continue(())
            })
        };
        verify().unwrap().check().unwrap();
        let file = format!("onnx/decoder_model_merged{}.onnx_data", precision.suffix());
        let data = draft.path().join(file);
        let mut bytes = fs::read(&data).unwrap();
        // The first weight's first page, a place further on.
        bytes[..4096].rotate_right(1);
        fs::write(&data, bytes).unwrap();
        let error = verify().unwrap_err().to_string();
        assert!(error.contains("of its size") && error.contains("decoder_model_merged"), "{error}");
    }
}

#[test]
fn verification_can_be_stopped() {
    let checkpoint = Checkpoint::open(&testdata("variants/untied")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut go_on = |_| ControlFlow::Continue(());
    let draft =
        export(&checkpoint, &out.path().join("m"), &options("default"), &mut go_on).unwrap();
    let mut stop = |_| ControlFlow::Break(());
    let error = verify(&checkpoint, draft.path(), &draft.report().manifest, &mut stop);
    assert!(matches!(error, Err(VerifyError::Interrupted)));
}

#[test]
fn verification_notices_a_wrong_weight() {
    let checkpoint = Checkpoint::open(&testdata("variants/untied")).unwrap();
    for graph in ["vision_encoder", "embed_tokens", "decoder_model_merged"] {
        let out = tempfile::tempdir().unwrap();
        let mut go_on = |_| ControlFlow::Continue(());
        let draft =
            export(&checkpoint, &out.path().join("m"), &options("default"), &mut go_on).unwrap();
        let data = draft.path().join(format!("onnx/{graph}.onnx_data"));
        let mut bytes = fs::read(&data).unwrap();
        // Every weight becomes twice as large; the norms hide nothing of that in the outputs.
        for value in bytes.chunks_exact_mut(4) {
            let doubled = 2.0 * f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
            value.copy_from_slice(&doubled.to_le_bytes());
        }
        fs::write(&data, bytes).unwrap();
        let verification = verify(&checkpoint, draft.path(), &draft.report().manifest, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
        let error = verification.check().unwrap_err().to_string();
        assert!(error.starts_with(graph), "{error}");
    }
}

/// What the tokenizer gives must have an embedding, and mean the same; of every part, since prompts go
/// through all of them.
#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let changed = |file: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let copy = copy_of("variants/untied");
        let path = copy.path().join(file);
        let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
        let options = ExportOptions { parts: vec![Part::Decoder], ..options("default") };
        export_to(copy.path(), &out.path().join("model"), &options).map_err(|e| e.to_string())
    };
    let added = |id: u64| {
        move |json: &mut serde_json::Value| {
            let mut token = json["added_tokens"][0].clone();
            token["content"] = "<|one more|>".into();
            token["id"] = id.into();
            json["added_tokens"].as_array_mut().unwrap().push(token);
        }
    };
    let error = changed("tokenizer.json", &added(768)).unwrap_err();
    assert!(error.contains("the id 768") && error.contains("768 rows"), "{error}");
    let in_vocabulary = |json: &mut serde_json::Value| json["model"]["vocab"]["more"] = 900.into();
    let error = changed("tokenizer.json", &in_vocabulary).unwrap_err();
    assert!(error.contains("the id 900") && error.contains("768 rows"), "{error}");
    let error = changed("config.json", &|json| json["image_token_id"] = 397.into()).unwrap_err();
    assert!(error.contains("396 in tokenizer.json and 397 in config.json"), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    changed("tokenizer.json", &added(767)).unwrap();
}
