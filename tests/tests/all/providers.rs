//! Execution providers: plugins that run here, and what is predicted of those that do not.

use std::path::{Path, PathBuf};

use lfm2vl::{
    Conversation, Engine, Error, GenerationOptions, GraphInfo, Plugin, Provider, chat::Message,
};
use lfm2vl_exporter::{ExportOptions, Partition, checkpoint::Checkpoint, partitions};
use lfm2vl_graphs::{Graph, Precision, ProviderTable, Recipe};
use lfm2vl_tests::{
    export_with, program, sample_images, sample_questions, set_up, succeed, testdata, tiny_shapes,
};
use serde_json::Value;

/// A plugin that `cargo xtask test` has installed; nothing where there is none for the platform.
fn plugin(variable: &str) -> Option<Provider> {
    let folder = PathBuf::from(set_up(variable)?);
    Some(Provider::parse(&format!("plugin:{}", folder.display()), &[]).unwrap())
}

fn graph(engine: &Engine, graph: Graph) -> GraphInfo {
    engine.graphs().iter().find(|info| info.graph == graph).unwrap().clone()
}

fn answer(engine: &Engine, question: &Value) -> Vec<u32> {
    let mut conversation = Conversation::new();
    let prompt = Message::user(question["prompt"].as_str().unwrap());
    conversation.push_with_images(prompt, sample_images(question)).unwrap();
    engine.answer(&mut conversation, &GenerationOptions::default()).unwrap().token_ids
}

/// Which it would find out when it answers.
#[test]
fn a_cpu_refuses_attention_that_only_devices_have() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("m");
    let recipe = Recipe { packed_qkv: true, ..Recipe::builtin("cuda").unwrap() };
    export_with(&folder, "tiny-shapes", recipe, &[Precision::Fp32]);
    for (speculation, expected) in [(false, Graph::Decoder), (true, Graph::SpeculativeDecoder)] {
        let Err(error) = Engine::builder(&folder).speculation(speculation).build() else {
            panic!("loaded {expected}")
        };
        assert!(matches!(error, Error::PackedAttention(graph) if graph == expected), "{error}");
    }
}

#[test]
fn a_plugin_gives_the_same_tokens() {
    let Some(ggml) = plugin("LFM2VL_GGML") else { return };
    let folder = tiny_shapes("portable");
    let cpu = Engine::builder(&folder).build().unwrap();
    // It lacks `Gelu`, and takes a graph whole or not at all.
    let vision = [ggml.clone(), Provider::Cpu];
    let builder = Engine::builder(&folder).provider(ggml.clone());
    let engine = builder.graph_providers(Graph::VisionEncoder, vision).build().unwrap();
    for kind in [Graph::EmbedTokens, Graph::Decoder] {
        let info = graph(&engine, kind);
        let [assignment] = info.assignments.as_slice() else { panic!("{:?}", info.assignments) };
        assert!(assignment.provider.starts_with("ggml"), "{assignment:?}");
        assert!(assignment.nodes >= if kind == Graph::Decoder { 300 } else { 1 }, "{assignment:?}");
    }
    let vision = graph(&engine, Graph::VisionEncoder);
    assert_eq!(vision.provider, "cpu");
    assert!(vision.skipped[0].reason.contains("takes no node of vision_encoder"));
    for question in sample_questions().iter().step_by(5) {
        assert_eq!(answer(&engine, question), answer(&cpu, question), "{question}");
    }
    // A plugin that is loaded runs nothing that it was not asked for.
    for info in Engine::builder(&folder).build().unwrap().graphs() {
        let providers: Vec<_> = info.assignments.iter().map(|a| a.provider.as_str()).collect();
        assert_eq!(providers, ["CPUExecutionProvider"], "{}", info.graph);
    }
    // ONNX Runtime's own operators it has not at all.
    let Err(error) = Engine::builder(tiny_shapes("default")).provider(ggml).build() else {
        panic!("took the default recipe")
    };
    assert!(error.to_string().contains("takes no node of decoder_model_merged"), "{error}");
}

#[test]
fn a_plugin_can_be_told_one_of_its_devices() {
    let Some(Provider::Plugin(ggml)) = plugin("LFM2VL_GGML") else { return };
    let decoder_on = |device_index| {
        let ggml = Provider::Plugin(Plugin { device_index: Some(device_index), ..ggml.clone() });
        let builder = Engine::builder(tiny_shapes("portable"));
        builder.graph_providers(Graph::Decoder, [ggml]).build()
    };
    assert_eq!(graph(&decoder_on(0).unwrap(), Graph::Decoder).assignments.len(), 1);
    let Err(error) = decoder_on(7).map(drop) else { panic!("has eight devices") };
    let message = error.to_string();
    assert!(message.contains("no device of index 7; how many it has: "), "{message}");
}

#[test]
fn only_steps_of_fixed_sizes_are_recorded() {
    let settings = [("graph_capture".to_owned(), "true".to_owned())];
    let cuda = Provider::parse("cuda", &settings).unwrap();
    let build = |recipe| Engine::builder(tiny_shapes(recipe)).provider(cuda.clone()).build();
    // Here it is the provider that is missing.
    for recipe in ["cuda", "cuda-graph"] {
        let Err(error) = build(recipe).map(drop) else { panic!("loaded") };
        assert!(matches!(error, Error::Provider { .. }), "{error}");
    }
    let Err(error) = Engine::builder(tiny_shapes("cuda")).provider(cuda).speculation(true).build()
    else {
        panic!("loaded")
    };
    assert!(error.to_string().contains("export with --recipe cuda or cuda-graph"), "{error}");
}

#[test]
fn ggml_takes_what_is_predicted() {
    let Some(ggml) = plugin("LFM2VL_GGML") else { return };
    for recipe in ["default", "portable", "cuda-graph", "tensorrt", "coreml", "directml"] {
        let builder = Engine::builder(tiny_shapes(recipe)).providers([ggml.clone(), Provider::Cpu]);
        let engine = builder.build().unwrap();
        for partition in predicted(recipe, Precision::Fp32, "ggml") {
            let Some(info) = engine.graphs().iter().find(|info| info.graph == partition.graph)
            else {
                continue;
            };
            let is_whole = info.assignments.iter().all(|a| a.provider.starts_with("ggml"));
            let what = format!("{recipe} {}: {:?}", partition.graph, info.assignments);
            assert_eq!(is_whole, partition.left.is_empty(), "{what}");
            assert_eq!(partition.partitions, usize::from(is_whole), "{what}");
        }
    }
}

/// An engine on a plugin; nothing where the plugin has no device on this machine, which must be told.
fn on_plugin(folder: &Path, provider: &Provider) -> Option<Engine> {
    match Engine::builder(folder).provider(provider.clone()).build() {
        Ok(engine) => Some(engine),
        Err(error) => {
            let message = error.to_string();
            assert!(
                message.contains("offers no device") && message.contains("use another provider"),
                "{message}"
            );
            None
        }
    }
}

#[test]
fn a_plugin_without_a_device_gives_way_to_the_next_provider() {
    let Some(webgpu) = plugin("LFM2VL_WEBGPU") else { return };
    let folder = tiny_shapes("portable");
    if on_plugin(&folder, &webgpu).is_some() {
        return;
    }
    let engine = Engine::builder(&folder).providers([webgpu.clone(), Provider::Cpu]).build();
    let info = graph(&engine.unwrap(), Graph::Decoder);
    assert_eq!(info.provider, "cpu");
    assert!(info.skipped[0].reason.contains("offers no device"), "{:?}", info.skipped);
    // What stands behind the first that works is not needed.
    let engine = Engine::builder(&folder).providers([Provider::Cpu, webgpu]).build().unwrap();
    assert!(engine.graphs().iter().all(|info| info.skipped.is_empty()));
}

#[test]
fn openvino_takes_what_is_predicted_and_gives_the_same_tokens() {
    let Some(openvino) = plugin("LFM2VL_OPENVINO") else { return };
    let quantized = tempfile::tempdir().unwrap();
    let quantized = quantized.path().join("portable");
    let portable = Recipe::builtin("portable").unwrap();
    export_with(&quantized, "tiny-shapes", portable, &[Precision::Q8]);
    for (recipe, precision, folder) in [
        ("default", Precision::Fp32, tiny_shapes("default")),
        ("portable", Precision::Fp32, tiny_shapes("portable")),
        ("portable", Precision::Q8, quantized),
        ("tensorrt", Precision::Fp32, tiny_shapes("tensorrt")),
        ("coreml", Precision::Fp32, tiny_shapes("coreml")),
    ] {
        let Some(engine) = on_plugin(&folder, &openvino) else { return };
        for partition in predicted(recipe, precision, "openvino") {
            let Some(info) = engine.graphs().iter().find(|info| info.graph == partition.graph)
            else {
                continue;
            };
            let of = |name| info.assignments.iter().find(|assigned| assigned.provider == name);
            let taken = of("OpenVINOExecutionProvider").unwrap();
            assert_eq!(taken.parts, partition.partitions, "{recipe} {}", partition.graph);
            let left: Vec<(&String, usize)> =
                partition.left.iter().map(|left| (&left.operator, left.nodes)).collect();
            let on_cpu = of("CPUExecutionProvider").map(|cpu| &cpu.operators);
            let on_cpu: Vec<_> = on_cpu.into_iter().flatten().map(|(name, n)| (name, *n)).collect();
            assert_eq!(on_cpu, left, "{recipe} {}", partition.graph);
        }
        let cpu = Engine::builder(&folder).build().unwrap();
        for question in sample_questions().iter().step_by(9) {
            assert_eq!(answer(&engine, question), answer(&cpu, question), "{recipe} {question}");
        }
    }
}

fn predicted(recipe: &str, precision: Precision, provider: &str) -> Vec<Partition> {
    let checkpoint = Checkpoint::open(&testdata("tiny-shapes")).unwrap();
    let options = ExportOptions {
        precisions: vec![precision],
        ..ExportOptions::new(Recipe::builtin(recipe).unwrap())
    };
    partitions(&checkpoint, &options, &ProviderTable::builtin(provider).unwrap()).unwrap()
}

#[test]
fn the_cpu_takes_all_as_predicted() {
    for recipe in Recipe::BUILTIN {
        let plain = Engine::builder(tiny_shapes(recipe)).provider(Provider::Cpu);
        for info in plain.build().unwrap().graphs() {
            let [all] = info.assignments.as_slice() else { panic!("{recipe} {:?}", info) };
            assert_eq!(all.provider, "CPUExecutionProvider", "{recipe}");
        }
        for precision in [Precision::Fp32, Precision::Q8, Precision::Q4] {
            for partition in predicted(recipe, precision, "cpu") {
                assert_eq!(partition.left, [], "{recipe} {precision} {}", partition.graph);
                assert_eq!(partition.partitions, 1, "{recipe} {precision} {}", partition.graph);
            }
        }
    }
}

#[test]
fn providers_have_all_of_their_recipes() {
    for (recipe, provider) in [
        ("cuda", "cuda"),
        ("cuda-graph", "cuda"),
        ("tensorrt", "tensorrt"),
        ("coreml", "coreml"),
        ("directml", "directml"),
    ] {
        for precision in Recipe::builtin(recipe).unwrap().precisions {
            for partition in predicted(recipe, precision, provider) {
                let Partition { graph, left, partitions, .. } = partition;
                assert_eq!((left, partitions), (vec![], 1), "{recipe} {graph}");
            }
        }
    }
}

#[test]
fn check_provider_names_what_is_left_and_writes_nothing() {
    let mut check = program("lfm2vl-export");
    check.arg(testdata("tiny-shapes")).args(["--check-provider", "coreml", "--json"]);
    let report: Value = serde_json::from_slice(&succeed(&mut check).stdout).unwrap();
    assert_eq!(report["provider"], "CoreMLExecutionProvider");
    let decoder = report["graphs"].as_array().unwrap();
    let decoder = decoder.iter().find(|graph| graph["graph"] == "decoder_model_merged").unwrap();
    let left = decoder["left"].as_array().unwrap();
    let reason = |operator: &str| {
        let left = left.iter().find(|left| left["operator"] == operator);
        left.unwrap()["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(reason("com.microsoft:GroupQueryAttention"), "the provider does not have it");
    assert_eq!(reason("Slice"), "its input has free sizes");
}
