//! The bytes that we write, read by `onnx-protobuf`, which is generated from ONNX's own schema.

use std::{fs, ops::ControlFlow, path::Path};

use lfm2vl_exporter::{ExportOptions, checkpoint::Checkpoint, export};
use lfm2vl_graphs::{Fusion, Method, Precision, Recipe};
use onnx_protobuf::{ModelProto, NodeProto, tensor_proto::DataType};
use protobuf::{Enum, Message};

use crate::common::testdata;

fn models(recipe: &str, folder: &Path) -> Vec<(String, ModelProto)> {
    models_of(Recipe::builtin(recipe).unwrap(), folder)
}

fn models_of(recipe: Recipe, folder: &Path) -> Vec<(String, ModelProto)> {
    let checkpoint = Checkpoint::open(&testdata("tiny-shapes")).unwrap();
    let options = ExportOptions {
        precisions: Precision::ALL.to_vec(),
        calibration: Some(testdata("tiny-shapes/calibration")),
        ..ExportOptions::new(recipe)
    };
    let draft = export(&checkpoint, folder, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    draft.publish().unwrap();
    let mut files: Vec<_> =
        fs::read_dir(folder.join("onnx")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "onnx"))
        .map(|path| {
            let model = ModelProto::parse_from_bytes(&fs::read(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_string_lossy().into_owned(), model)
        })
        .collect()
}

#[test]
fn every_field_arrives() {
    let out = tempfile::tempdir().unwrap();
    for (recipe, graphs) in [("default", 31), ("portable", 26), ("split", 21), ("features", 16)] {
        let folder = out.path().join(recipe);
        let models = models(recipe, &folder);
        assert_eq!(models.len(), graphs, "{recipe}");
        for (name, model) in models {
            // Nothing that the schema does not know.
            assert!(model.special_fields.unknown_fields().iter().next().is_none(), "{name}");
            assert_eq!((model.ir_version, model.opset_import[0].version), (10, 21));
            let graph = model.graph.name.as_str();
            assert!(name.starts_with(graph), "{name}");
            let metadata = |key: &str| {
                model.metadata_props.iter().find(|p| p.key == key).unwrap().value.clone()
            };
            assert_eq!(metadata("lfm2vl.recipe"), recipe);
            assert_eq!(metadata("lfm2vl.contract"), "community 1");
            assert_eq!(metadata("lfm2vl.source_fingerprint").len(), 64);
            for node in &model.graph.node {
                assert!(node.name.starts_with('/'), "{}", node.name);
                assert!(recipe != "portable" || node.domain.is_empty(), "{}", node.name);
                for attribute in &node.attribute {
                    assert!(attribute.special_fields.unknown_fields().iter().next().is_none());
                }
            }
            for value in model.graph.input.iter().chain(&model.graph.output) {
                let shape = &value.type_.tensor_type().shape;
                // No others are scalars.
                let is_scalar = ["num_logits_to_keep", "tokens"].contains(&value.name.as_str());
                assert!(shape.is_some() && shape.dim.is_empty() == is_scalar, "{}", value.name);
                assert!(shape.dim.iter().all(|d| d.value.is_some()), "{}", value.name);
            }
            check_external_data(&model, &folder.join("onnx"), &name);
        }
    }
}

/// With `fusion: cuda` vision's products have no bias but the first and the last, and no node is there for
/// a bias, an addition or a norm alone.
#[test]
fn biases_are_left_to_the_operators_that_follow() {
    let out = tempfile::tempdir().unwrap();
    let [cuda, default] = ["cuda", "default"].map(|name| models(name, &out.path().join(name)));
    let counts = |models: &[(String, ModelProto)], stem: &str| {
        let (_, model) = models.iter().find(|(name, _)| name == stem).unwrap();
        let nodes = &model.graph.node;
        let count = |op: &str| nodes.iter().filter(|node| node.op_type == op).count();
        let has_bias = |node: &&NodeProto| match node.op_type.as_str() {
            "Gemm" => node.input.len() > 2,
            "MatMulNBits" => node.input.len() > 5,
            _ => false,
        };
        let biased = nodes.iter().filter(has_bias).count();
        (biased, ["SkipLayerNormalization", "FastGelu", "BiasGelu", "Gelu"].map(count))
    };
    // Four layers of six products each, and two of the projector.
    for stem in ["vision_encoder_fp16", "vision_encoder_q4f16"] {
        assert_eq!(counts(&cuda, stem), (2, [8, 4, 1, 0]), "{stem}");
        assert_eq!(counts(&default, stem), (4 * 6 + 3, [0, 0, 0, 5]), "{stem}");
    }
}

/// The rows of queries' weights, keys' and values' follow each other, in every form that they have.
#[test]
fn projections_are_one_weight_on_cuda() {
    let out = tempfile::tempdir().unwrap();
    let mut cuda = Recipe::builtin("cuda").unwrap();
    cuda.quantization.get_mut(&Precision::Q4).unwrap().method = Method::Gptq;
    let apart = Recipe {
        contract: "community".to_owned(),
        fusion: Fusion::Cpu,
        feedback: false,
        ..cuda.clone()
    };
    let packed = Recipe { packed_qkv: true, ..cuda.clone() };
    let [apart, cuda, packed] = [("apart", apart), ("cuda", cuda), ("packed", packed)]
        .map(|(name, recipe)| (out.path().join(name), recipe))
        .map(|(folder, recipe)| (models_of(recipe, &folder), folder.join("onnx")));
    let decoder = [1, 3, 5].map(|layer| format!("language_model.layers.{layer}.self_attn"));
    let vision = [0, 1, 2, 3].map(|layer| format!("vision_tower.encoder.layers.{layer}.self_attn"));
    let weights = ["weight", "weight.quantized", "weight.scales", "weight.zero_points"];
    for (graph, layers, parts, expected) in [
        // Three graphs; floats in two precisions, two parts in q8 and three in both with 4 bits.
        ("decoder", &decoder[..], &weights[..], 3 * 3 * (2 + 2 + 3 + 3)),
        // Where weights are integers, there are three.
        ("vision_encoder", &vision, &["weight", "bias"], 4 * 2 * 2),
    ] {
        let mut compared = 0;
        for (name, model) in apart.0.iter().filter(|(name, _)| name.starts_with(graph)) {
            let same = |models: &[(String, ModelProto)]| {
                models.iter().find(|(other, _)| other == name).unwrap().1.clone()
            };
            let (cuda_model, packed_model) = (same(&cuda.0), same(&packed.0));
            for (layer, part) in layers.iter().flat_map(|l| parts.iter().map(move |p| (l, p))) {
                let name = format!("{layer}.qkv_proj.{part}");
                let whole = data(&cuda_model, &cuda.1, &name);
                assert_eq!(data(&packed_model, &packed.1, &name), whole, "{name}");
                let Some(whole) = whole else { continue };
                let three = ["q_proj", "k_proj", "v_proj"].map(|projection| {
                    data(model, &apart.1, &format!("{layer}.{projection}.{part}")).unwrap()
                });
                assert_eq!(whole, three.concat(), "{name}");
                compared += 1;
            }
        }
        assert_eq!(compared, expected, "{graph}");
    }
}

/// The bytes of an initializer, if there is one of that name.
fn data(model: &ModelProto, folder: &Path, name: &str) -> Option<Vec<u8>> {
    let tensor = model.graph.initializer.iter().find(|tensor| tensor.name == name)?;
    if tensor.external_data.is_empty() {
        return Some(tensor.raw_data.clone());
    }
    let entry = |key: &str| &tensor.external_data.iter().find(|e| e.key == key).unwrap().value;
    let number = |key: &str| entry(key).parse::<usize>().unwrap();
    let file = fs::read(folder.join(entry("location"))).unwrap();
    Some(file[number("offset")..][..number("length")].to_vec())
}

/// Every weight lies inside its file, aligned, and none overlaps another.
fn check_external_data(model: &ModelProto, folder: &Path, name: &str) {
    // What genai reads lies in the files of the others.
    let data = name
        .replace("decoder_genai", "decoder_model_merged")
        .replace("decoder_speculative", "decoder_model_merged");
    let data = data.replace("embeddings", "embed_tokens") + ".onnx_data";
    let mut end = 0;
    for tensor in &model.graph.initializer {
        let elements: i64 = tensor.dims.iter().product();
        let bits = match DataType::from_i32(tensor.data_type).unwrap() {
            DataType::UINT4 => 4,
            DataType::UINT8 => 8,
            DataType::FLOAT16 => 16,
            DataType::FLOAT => 32,
            DataType::INT32 => 32,
            DataType::INT64 | DataType::DOUBLE => 64,
            other => panic!("{other:?}"),
        };
        let size = (elements * bits + 7) / 8;
        if tensor.external_data.is_empty() {
            assert_eq!(tensor.raw_data.len() as i64, size, "{}", tensor.name);
            continue;
        }
        let entry =
            |key: &str| tensor.external_data.iter().find(|e| e.key == key).unwrap().value.clone();
        assert_eq!(entry("location"), data);
        let (offset, length): (u64, u64) =
            (entry("offset").parse().unwrap(), entry("length").parse().unwrap());
        assert_eq!(length as i64, size, "{}", tensor.name);
        assert!(offset >= end && offset % 64 == 0, "{}", tensor.name);
        assert!(length < 4096 || offset % 4096 == 0, "{}", tensor.name);
        end = offset + length;
    }
    // A graph without weights has no file for them.
    let bytes = fs::metadata(folder.join(data)).map_or(0, |metadata| metadata.len());
    assert_eq!(bytes, end, "{name}");
}
