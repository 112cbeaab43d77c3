//! Checkpoints that cannot be exported: each is refused with one sentence that names the cause.

use std::{fs, path::Path};

use lfm2vl_exporter::checkpoint::Checkpoint;
use serde_json::{Value, json};

use crate::common::{VARIANTS, assert_contains, copy_of, join, split, testdata};

fn error(folder: &Path) -> String {
    let message = Checkpoint::open(folder).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// The message for a checkpoint whose header was changed.
fn with_header(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> String {
    let copy = copy_of("variants/untied");
    let file = copy.path().join("model.safetensors");
    let (mut header, data) = split(&file);
    change(header.as_object_mut().unwrap());
    join(&file, &header, &data);
    error(copy.path())
}

/// The message for a checkpoint whose config was changed.
fn with_config(change: impl FnOnce(&mut Value)) -> String {
    let copy = copy_of("variants/untied");
    let file = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    fs::write(file, config.to_string()).unwrap();
    error(copy.path())
}

#[test]
fn every_kind_of_good_checkpoint_opens() {
    Checkpoint::open(&testdata("tiny-shapes")).unwrap();
    for variant in VARIANTS {
        let checkpoint = Checkpoint::open(&testdata(&format!("variants/{variant}"))).unwrap();
        assert_eq!(checkpoint.has_lm_head(), variant == "untied", "{variant}");
    }
}

/// Names as older and newer transformers save them.
#[test]
fn prefixes_of_names_do_not_matter() {
    let renames: [fn(&str) -> String; 3] = [
        |name| name.trim_start_matches("model.").to_owned(),
        |name| name.replace("vision_tower.vision_model.", "vision_tower."),
        |name| {
            name.replace("vision_tower.", "vision_tower.vision_model.")
                .replace("vision_model.vision_model.", "vision_model.")
        },
    ];
    for rename in renames {
        let copy = copy_of("variants/untied");
        let file = copy.path().join("model.safetensors");
        let (header, data) = split(&file);
        let renamed: serde_json::Map<_, _> = header
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (rename(name), value.clone()))
            .collect();
        join(&file, &Value::Object(renamed), &data);
        let checkpoint = Checkpoint::open(copy.path()).unwrap();
        assert!(checkpoint.tensor("vision_tower.post_layernorm.weight").is_some());
        assert!(checkpoint.tensor("language_model.embedding_norm.weight").is_some());
    }
}

#[test]
fn missing_files() {
    assert_contains(&error(Path::new("no/such/folder")), &["no/such/folder", "not a folder"]);
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let copy = copy_of("variants/untied");
        fs::remove_file(copy.path().join(file)).unwrap();
        assert_contains(&error(copy.path()), &[file]);
    }
}

#[test]
fn broken_weight_files() {
    let good = fs::read(testdata("variants/untied/model.safetensors")).unwrap();
    let length_lie = |length: u64| [&length.to_le_bytes()[..], &good[8..]].concat();
    let cases: [(&str, Vec<u8>); 7] = [
        ("empty", Vec::new()),
        ("cut in the length", good[..5].to_vec()),
        ("cut in the header", good[..100].to_vec()),
        ("cut in the data", good[..good.len() - 10].to_vec()),
        ("garbage", b"definitely not safetensors, though long enough".to_vec()),
        ("header longer than the file", length_lie(good.len() as u64 * 2)),
        ("header of 2^64 bytes", length_lie(u64::MAX)),
    ];
    for (name, bytes) in cases {
        let copy = copy_of("variants/untied");
        fs::write(copy.path().join("model.safetensors"), bytes).unwrap();
        let message = error(copy.path());
        assert_contains(&message, &["model.safetensors", "not a valid safetensors file"]);
        assert!(message.len() < 400, "{name}: {message}");
    }
}

#[test]
fn headers_that_lie() {
    let name = "model.language_model.layers.0.operator_norm.weight";
    let entry = |header: &serde_json::Map<String, Value>| {
        let (name, value) =
            header.iter().find(|(name, _)| name.ends_with("0.operator_norm.weight")).unwrap();
        (name.clone(), value.clone())
    };
    // Offsets that overlap another tensor, lie outside the file, or run backwards.
    for offsets in [json!([0, 96]), json!([1_000_000_000, 1_000_000_096]), json!([96, 0])] {
        let message = with_header(|header| {
            let (name, mut value) = entry(header);
            value["data_offsets"] = offsets.clone();
            header.insert(name, value);
        });
        assert_contains(&message, &["not a valid safetensors file"]);
    }
    // A shape whose size overflows.
    let message = with_header(|header| {
        let (name, mut value) = entry(header);
        value["shape"] = json!([u64::MAX, u64::MAX]);
        header.insert(name, value);
    });
    assert_contains(&message, &["not a valid safetensors file"]);
    // Tensors that are missing, extra, integers, or there twice.
    let message = with_header(|header| {
        let (name, value) = entry(header);
        header.remove(&name);
        header.insert("model.vision_tower.head.probe".into(), value);
    });
    assert_contains(&message, &["language_model.layers.0.operator_norm.weight"]);
    let message = with_header(|header| {
        let (_, value) = entry(header);
        let end = header.values().filter_map(|v| v["data_offsets"][1].as_u64()).max().unwrap();
        let mut extra = value;
        extra["shape"] = json!([0]);
        extra["data_offsets"] = json!([end, end]);
        header.insert("model.surprise".into(), extra);
    });
    assert_contains(&message, &["model.surprise", "not part of"]);
    let message = with_header(|header| {
        let (name, mut value) = entry(header);
        value["dtype"] = json!("I16");
        header.insert(name, value);
    });
    assert_contains(&message, &["I16", "operator_norm"]);
    let message = with_header(|header| {
        let end = header.values().filter_map(|v| v["data_offsets"][1].as_u64()).max().unwrap();
        let twin = json!({"dtype": "BF16", "shape": [0], "data_offsets": [end, end]});
        header.insert(name.trim_start_matches("model.").into(), twin);
    });
    assert_contains(&message, &["same part of the model"]);
}

/// Tensors that the reference has no use for, of any type, in one file and in shards.
#[test]
fn what_the_reference_ignores_is_ignored() {
    let ignored = [
        ("model.vision_tower.vision_model.head.probe", "F32"),
        ("model.vision_tower.vision_model.head.mlp.fc1.weight", "BF16"),
        ("model.vision_tower.vision_model.embeddings.position_ids", "I64"),
        ("model.language_model.layers.0.self_attn.rotary_emb.inv_freq", "F64"),
    ];
    for (variant, shard) in
        [("untied", "model.safetensors"), ("sharded-f16", "model-00002-of-00003.safetensors")]
    {
        let copy = copy_of(&format!("variants/{variant}"));
        let file = copy.path().join(shard);
        let (mut header, mut data) = split(&file);
        let index_file = copy.path().join("model.safetensors.index.json");
        let mut index: Option<Value> =
            fs::read(&index_file).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap());
        for (name, dtype) in ignored {
            let size = match dtype {
                "BF16" => 2,
                "F32" => 4,
                _ => 8,
            };
            let offsets = [data.len(), data.len() + 3 * size];
            header[name] = json!({"dtype": dtype, "shape": [3], "data_offsets": offsets});
            data.extend(vec![0xFF; 3 * size]);
            if let Some(index) = &mut index {
                index["weight_map"][name] = json!(shard);
            }
        }
        join(&file, &header, &data);
        if let Some(index) = index {
            fs::write(&index_file, index.to_string()).unwrap();
        }
        let checkpoint = Checkpoint::open(copy.path()).unwrap();
        let original = Checkpoint::open(&testdata(&format!("variants/{variant}"))).unwrap();
        assert_eq!(checkpoint.dtypes(), original.dtypes());
        for name in original.dtypes().into_keys() {
            assert_eq!(checkpoint.load(&name).unwrap(), original.load(&name).unwrap());
        }
    }
    // A retriever's head matters.
    let message = with_header(|header| {
        let end = header.values().filter_map(|v| v["data_offsets"][1].as_u64()).max().unwrap();
        let extra = json!({"dtype": "BF16", "shape": [0], "data_offsets": [end, end]});
        header.insert("custom_text_proj.weight".into(), extra);
    });
    assert_contains(&message, &["custom_text_proj.weight", "not part of"]);
}

#[test]
fn quantized_checkpoints() {
    let message = with_config(|config| {
        config["quantization_config"] = json!({"quant_method": "bitsandbytes"})
    });
    assert_contains(&message, &["quantization_config", "the model that it was made from"]);
}

#[test]
fn shapes_that_the_config_does_not_ask_for() {
    let message = with_config(|config| config["text_config"]["vocab_size"] = json!(769));
    assert_contains(&message, &["embed_tokens.weight", "769", "768"]);
}

#[test]
fn shards() {
    let change_index = |change: &dyn Fn(&mut Value)| {
        let copy = copy_of("variants/sharded-f16");
        let file = copy.path().join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut index);
        fs::write(file, index.to_string()).unwrap();
        error(copy.path())
    };
    let copy = copy_of("variants/sharded-f16");
    fs::remove_file(copy.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert_contains(&error(copy.path()), &["model-00002-of-00003.safetensors", "does not exist"]);

    let message = change_index(&|index| {
        index["weight_map"]["made.up"] = json!("model-00001-of-00003.safetensors")
    });
    assert_contains(&message, &["made.up", "model-00001-of-00003.safetensors"]);
    let message = change_index(&|index| index["weight_map"] = json!("elsewhere"));
    assert_contains(&message, &["index.json", "weight_map"]);
    for name in [
        "",
        ".",
        "..",
        "../secret.safetensors",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..\\b",
        "C:b",
        "C:\\b",
        "a\0",
    ] {
        let message = change_index(&|index| index["weight_map"]["x"] = json!(name));
        assert_contains(&message, &["index.json", "weight_map", "no file of its folder"]);
    }
    let message = change_index(&|index| index["weight_map"]["x"] = json!(1));
    assert_contains(&message, &["index.json", "weight_map"]);
}

#[test]
fn weights_that_are_no_numbers() {
    for (bits, name) in [(0x7FC0_u16, "NaN"), (0x7F80, "inf"), (0xFF80, "-inf")] {
        let copy = copy_of("variants/untied");
        let file = copy.path().join("model.safetensors");
        let (header, mut data) = split(&file);
        let tensor = "lm_head.weight";
        let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start + 14..start + 16].copy_from_slice(&bits.to_le_bytes());
        join(&file, &header, &data);
        let message = Checkpoint::open(copy.path()).unwrap().load(tensor).unwrap_err().to_string();
        assert_contains(&message, &[tensor, name, "element 7"]);
    }
}

#[test]
fn configs_of_other_models() {
    let cases: [(&str, Value, &str); 8] = [
        ("/model_type", json!("llava"), "model_type"),
        ("/text_config/model_type", json!("lfm2_moe"), "text_config.model_type"),
        ("/vision_config/model_type", json!("clip"), "vision_config.model_type"),
        ("/vision_config/hidden_act", json!("relu"), "vision_config.hidden_act"),
        ("/text_config/rope_parameters/rope_type", json!("yarn"), "rope_type"),
        ("/text_config/hidden_size", json!(-1), "text_config.hidden_size"),
        ("/vision_config/num_patches", json!(17), "num_patches"),
        ("/text_config/num_key_value_heads", json!(1000), "num_key_value_heads"),
    ];
    for (pointer, value, key) in cases {
        let message = with_config(|config| *config.pointer_mut(pointer).unwrap() = value);
        assert_contains(&message, &[key]);
    }
    let copy = copy_of("variants/untied");
    fs::write(copy.path().join("config.json"), "{ not json").unwrap();
    assert_contains(&error(copy.path()), &["config.json", "not valid JSON"]);
}

#[test]
fn a_stored_head_that_differs_is_used_even_if_tied() {
    let copy = copy_of("variants/untied");
    let file = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["tie_word_embeddings"] = json!(true);
    fs::write(file, config.to_string()).unwrap();
    assert!(Checkpoint::open(copy.path()).unwrap().has_lm_head());
}

#[test]
fn elements_that_a_tensor_does_not_have_are_not_read() {
    let checkpoint = Checkpoint::open(&testdata("tiny-shapes")).unwrap();
    let read = |range, room| {
        let mut values = vec![0.0; room];
        checkpoint.read("language_model.embedding_norm.weight", range, &mut values)
    };
    assert!(read(0..128, 128).is_ok() && read(100..128, 28).is_ok() && read(128..128, 0).is_ok());
    for (range, room) in [(100..129, 29), (128..256, 128), (0..2, 1), (0..usize::MAX, 5)] {
        let message = read(range, room).unwrap_err().to_string();
        assert_contains(&message, &["embedding_norm", "it has 128"]);
    }
}
