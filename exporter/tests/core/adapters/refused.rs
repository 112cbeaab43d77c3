//! Adapters that cannot be merged: each is refused with one sentence that says what to do.

use std::fs;

use lfm2vl_exporter::checkpoint::Checkpoint;
use serde_json::{Map, Value, json};

use super::{Merged, changed};
use crate::common::{assert_contains, copy_of, testdata};

type Object = Map<String, Value>;

fn error(adapter: &str, change: impl FnOnce(&mut Object, &mut Object)) -> String {
    let base = Merged::open(adapter).base;
    let folder = changed(adapter, change);
    let message = Checkpoint::open_with_adapter(&base, folder.path()).unwrap_err().to_string();
    assert!(!message.contains('\n') && message.len() < 500, "{message}");
    message
}

fn with(key: &str, value: Value) -> String {
    error("plain", |config, _| {
        config.insert(key.into(), value);
    })
}

fn rename(header: &mut Object, from: &str, to: &str) {
    let renamed = header.iter().map(|(name, value)| (name.replace(from, to), value.clone()));
    *header = renamed.collect();
}

/// Adds a tensor without elements.
fn add(header: &mut Object, name: &str) {
    let end = header.values().filter_map(|v| v["data_offsets"][1].as_u64()).max().unwrap();
    let value = json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]});
    header.insert(name.to_owned(), value);
}

#[test]
fn other_methods_and_variants() {
    for method in ["LOHA", "IA3", "VERA", "PROMPT_TUNING", "ADALORA"] {
        assert_contains(
            &with("peft_type", json!(method)),
            &[method, "only LORA", "merge_and_unload"],
        );
    }
    assert_contains(&with("peft_type", Value::Null), &["missing", "only LORA"]);
    let cases = [
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 2})),
        ("kasa_config", json!({"beta": 1e-4})),
        ("monteclora_config", json!({"num_samples": 2})),
        ("velora_config", json!({"rank": 2})),
        ("megatron_config", json!({"a": 1})),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("target_parameters", json!(["a"])),
        ("trainable_token_indices", json!([1, 2])),
        ("use_some_newer_variant", json!(true)),
    ];
    for (key, value) in cases {
        assert_contains(&with(key, value), &[key, "merge_and_unload"]);
    }
    for init in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"] {
        let message = with("init_lora_weights", json!(init));
        assert_contains(&message, &[init, "path_initial_model_for_weight_conversion"]);
    }
    let message = with("alora_invocation_tokens", json!([1, 2]));
    assert_contains(&message, &["alora_invocation_tokens", "cannot be merged"]);
}

#[test]
fn initialisations_that_leave_the_base_model_alone_are_merged() {
    for init in [json!(true), json!("gaussian"), json!("eva"), json!("orthogonal"), json!("mica")] {
        let folder = changed("plain", |config, _| config["init_lora_weights"] = init);
        Checkpoint::open_with_adapter(&testdata("tiny-shapes"), folder.path()).unwrap();
    }
}

#[test]
fn values_that_are_none() {
    let cases = [
        ("r", json!(0)),
        ("r", json!(-1)),
        ("r", json!(1e30)),
        ("r", json!("two")),
        ("lora_alpha", json!("much")),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!([1])),
        ("alpha_pattern", json!({"q_proj": "much"})),
        ("use_rslora", json!("yes")),
        ("bias", json!("some")),
        ("target_modules", json!({"a": 1})),
        ("target_modules", json!([1])),
        ("target_modules", json!("(")),
        ("exclude_modules", json!("[")),
        ("rank_pattern", json!({"(": 1})),
        ("layers_to_transform", json!("first")),
        ("layers_pattern", json!(["("])),
        ("modules_to_save", json!(["("])),
    ];
    for (key, value) in cases {
        assert_contains(&with(key, value), &[key]);
    }
    let copy = changed("plain", |_, _| {});
    fs::write(copy.path().join("adapter_config.json"), "[1, 2]").unwrap();
    let opened = Checkpoint::open_with_adapter(&testdata("tiny-shapes"), copy.path());
    assert_contains(&opened.unwrap_err().to_string(), &["only LORA"]);
    fs::write(copy.path().join("adapter_config.json"), "{ not").unwrap();
    let opened = Checkpoint::open_with_adapter(&testdata("tiny-shapes"), copy.path());
    assert_contains(&opened.unwrap_err().to_string(), &["adapter_config.json", "not valid JSON"]);
}

#[test]
fn tensors_for_no_part_of_the_model() {
    let message = error("plain", |_, header| rename(header, "layers.5.", "layers.6."));
    assert_contains(&message, &["layers.6.", "for no part of this model"]);
    // As an adapter of the language model alone has them.
    let message = error("plain", |_, header| rename(header, "model.language_model.", "model."));
    assert_contains(&message, &["model.layers.", "for no part of this model"]);
    let message = error("plain", |_, header| rename(header, ".lora_A.", ".lora_diag."));
    assert_contains(&message, &["lora_diag", "for no part of this model"]);
    let message = error("modules-to-save", |_, header| rename(header, "linear_2", "linear_3"));
    assert_contains(&message, &["linear_3", "for no part of this model"]);
    // A convolution and a norm are no linear layers.
    let message = error("plain", |_, header| rename(header, "conv.in_proj", "conv.conv"));
    assert_contains(&message, &["conv.conv", "cannot be merged"]);
    let message = error("plain", |_, header| {
        rename(header, "layers.5.self_attn.q_proj", "layers.5.ffn_norm")
    });
    assert_contains(&message, &["ffn_norm", "cannot be merged"]);
    // Another model's, and another rank's.
    let message = error("plain", |config, _| config["r"] = json!(3));
    assert_contains(&message, &["[2, ", "[3, ", "shape"]);
    let folder = testdata("adapters/plain");
    let opened = Checkpoint::open_with_adapter(&testdata("variants/untied"), &folder);
    assert_contains(&opened.unwrap_err().to_string(), &["the model that it was trained on"]);
}

#[test]
fn tensors_for_the_unused_pooling_head_are_ignored() {
    let folder = changed("plain", |_, header| {
        for part in ["lora_A", "lora_B"] {
            let module = "base_model.model.model.vision_tower.head.mlp.fc1";
            add(header, &format!("{module}.{part}.weight"));
        }
    });
    Checkpoint::open_with_adapter(&testdata("tiny-shapes"), folder.path()).unwrap();
}

#[test]
fn config_and_tensors_that_disagree() {
    let message = error("plain", |_, header| {
        header.retain(|name, _| !name.contains("layers.1.self_attn.q_proj.lora_B"));
    });
    // What its data was is now used by no tensor.
    assert_contains(&message, &["not a valid safetensors file"]);
    let message = error("plain", |_, header| {
        rename(header, "layers.1.self_attn.q_proj.lora_B", "layers.1.self_attn.q_proj.lora_A.x");
    });
    assert_contains(&message, &["layers.1.self_attn.q_proj.lora_A", "mean the same"]);
    let message = error("plain", |_, header| {
        rename(header, "layers.1.self_attn.q_proj.lora_B", "layers.1.self_attn.k_proj.lora_B");
    });
    assert_contains(&message, &["layers.1.self_attn.k_proj", "do not include"]);
    let message = with("target_modules", json!(["w2"]));
    assert_contains(&message, &["the modules that adapter_config.json names do not include"]);
    let message = with("target_modules", json!(".*language_model.*"));
    assert_contains(&message, &["the modules that adapter_config.json names do not include"]);
    let message = with("exclude_modules", json!(".*fc2"));
    assert_contains(&message, &["fc2", "do not include"]);
    let message = with("layers_to_transform", json!([0, 1, 2, 3]));
    assert_contains(&message, &["do not include"]);
    let message = error("plain", |config, _| {
        config["target_modules"].as_array_mut().unwrap().push(json!("k_proj"));
    });
    assert_contains(&message, &["k_proj", "no tensors for it"]);
    let message = error("plain", |config, _| config["modules_to_save"] = json!(["ffn_norm"]));
    assert_contains(&message, &["ffn_norm", "no tensors for it"]);
    let message = error("dora", |config, _| config["use_dora"] = json!(false));
    assert_contains(&message, &["lora_magnitude_vector", "'use_dora': false"]);
    let message = error("plain", |config, _| config["use_dora"] = json!(true));
    assert_contains(&message, &["'use_dora': true"]);
    let message = error("lora-bias", |config, _| config["lora_bias"] = json!(false));
    assert_contains(&message, &["lora_B.bias", "'lora_bias': false"]);
    let message = error("head", |config, header| {
        config["lora_bias"] = json!(true);
        add(header, "base_model.model.lm_head.lora_B.bias");
    });
    assert_contains(&message, &["lm_head.lora_B.bias", "without bias"]);
    let message = error("embedding", |config, header| {
        config["use_dora"] = json!(true);
        add(header, "base_model.model.model.language_model.embed_tokens.lora_magnitude_vector");
    });
    assert_contains(&message, &["lora_magnitude_vector", "scales an embedding"]);
}

#[test]
fn expressions_that_never_end_are_given_up() {
    let message = with("target_modules", json!(r"(?=((\w|\.)+)+$)((\w|\.)|(\w|\.))*\1\1!"));
    assert_contains(&message, &["target_modules", "correct it"]);
}

#[test]
fn weights_that_are_no_numbers() {
    let folder = changed("plain", |_, _| {});
    let file = folder.path().join("adapter_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7FC0_u16.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let opened = Checkpoint::open_with_adapter(&testdata("tiny-shapes"), folder.path()).unwrap();
    let read = |name: String| opened.load(&name).err();
    let error = opened.dtypes().into_keys().find_map(read).unwrap().to_string();
    assert_contains(&error, &["lora_B", "NaN"]);
}

#[test]
fn folders_without_weights_and_without_a_model() {
    let copy = copy_of("tiny-shapes");
    fs::copy(
        testdata("adapters/plain/adapter_config.json"),
        copy.path().join("adapter_config.json"),
    )
    .unwrap();
    let message = Checkpoint::open(copy.path()).unwrap_err().to_string();
    assert_contains(&message, &["no adapter_model.safetensors", "safetensors"]);

    let alone = testdata("adapters/plain");
    let message = Checkpoint::open(&alone).unwrap_err().to_string();
    let remedy = format!("--adapter {}", alone.display());
    assert_contains(&message, &["testdata/tiny-shapes", &remedy, "no model"]);

    let message =
        Checkpoint::open_with_adapter(&testdata("tiny-shapes"), &testdata("variants/untied"));
    assert_contains(&message.unwrap_err().to_string(), &["no adapter_config.json"]);

    let weights = testdata("adapters/plain/adapter_model.safetensors");
    fs::copy(weights, copy.path().join("adapter_model.safetensors")).unwrap();
    assert_eq!(Checkpoint::open(copy.path()).unwrap().adapter(), Some(copy.path()));
    Checkpoint::open_with_adapter(copy.path(), copy.path()).unwrap();
    let message = Checkpoint::open_with_adapter(copy.path(), &alone).unwrap_err().to_string();
    assert_contains(&message, &["has one of its own"]);
}
