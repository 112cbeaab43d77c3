//! The released models' configs, at their real sizes, with weights that take no room on the disk.

use std::{fs, ops::ControlFlow};

use lfm2vl_exporter::{ExportOptions, Part, Weights, checkpoint::Checkpoint, export, partitions};
use lfm2vl_graphs::{Contract, Precision, ProviderTable, Recipe};
use lfm2vl_tests::{copy_folder, hollow_checkpoint, testdata};
use serde_json::{Value, json};

/// A member of the family.
struct Member {
    name: &'static str,
    /// Sizes, in `testdata/configs`.
    config: &'static str,
    generation: Generation,
    /// Parameters in billions, at least and at most.
    parameters: [f64; 2],
}

/// What the configs of a generation have in common.
#[derive(Clone, Copy, PartialEq)]
enum Generation {
    /// LFM2-VL: `block_ff_dim`, `image_token_index`, a layer norm in the projector.
    First,
    /// LFM2.5-VL, also the Extract models: `intermediate_size` alone, `image_token_id`, no layer norm.
    Second,
}

const FAMILY: [Member; 7] = [
    member("LFM2-VL-450M", "lfm2-vl-450m", Generation::First, [0.44, 0.46]),
    member("LFM2-VL-1.6B", "lfm2-vl-1.6b", Generation::First, [1.55, 1.65]),
    member("LFM2-VL-3B", "3b-shape", Generation::First, [2.9, 3.1]),
    member("LFM2.5-VL-450M", "lfm2-vl-450m", Generation::Second, [0.44, 0.46]),
    member("LFM2.5-VL-1.6B", "lfm2-vl-1.6b", Generation::Second, [1.55, 1.65]),
    member("LFM2.5-VL-1.6B-Extract", "lfm2-vl-1.6b", Generation::Second, [1.55, 1.65]),
    member("LFM2.5-VL-3B", "3b-shape", Generation::Second, [2.9, 3.1]),
];

const fn member(
    name: &'static str,
    config: &'static str,
    generation: Generation,
    parameters: [f64; 2],
) -> Member {
    Member { name, config, generation, parameters }
}

impl Member {
    fn config(&self) -> Value {
        let path = testdata(&format!("configs/{}.json", self.config));
        let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let first = self.generation == Generation::First;
        config["projector_use_layernorm"] = first.into();
        config["projector_hidden_size"] = if first { 2560 } else { 2048 }.into();
        let remove =
            |section: &mut Value, key| section.as_object_mut().unwrap().remove(key).unwrap();
        match self.generation {
            Generation::First => {
                config["image_token_index"] = remove(&mut config, "image_token_id")
            }
            Generation::Second => drop(remove(&mut config["text_config"], "block_ff_dim")),
        }
        config
    }
}

/// Graphs and image processor; of the large ones the graphs are only built, since every byte that an
/// export refers to is hashed.
#[test]
fn every_member_exports() {
    let table = ProviderTable::builtin("cpu").unwrap();
    for member in FAMILY {
        let copy = tempfile::tempdir().unwrap();
        let folder = copy.path();
        copy_folder(&testdata("tiny-shapes"), folder);
        let parameters = hollow_checkpoint(&member.config(), folder) as f64 / 1e9;
        let [least, most] = member.parameters;
        assert!((least..=most).contains(&parameters), "{}: {parameters} billion", member.name);
        // One way of resizing, with and without a thumbnail.
        let first = member.generation == Generation::First;
        let settings = json!({"resample": if first { 2 } else { 3 }, "use_thumbnail": first});
        fs::remove_file(folder.join("processor_config.json")).unwrap();
        fs::write(folder.join("preprocessor_config.json"), settings.to_string()).unwrap();

        let checkpoint = Checkpoint::open(folder).unwrap();
        let is_small = parameters < 1.0;
        let options = ExportOptions {
            precisions: vec![Precision::Fp32],
            parts: if is_small { Vec::new() } else { vec![Part::ImageProcessor] },
            weights: if is_small { Weights::Reference } else { Weights::Written },
            ..ExportOptions::new(Recipe::builtin("default").unwrap())
        };
        let out = folder.join("exported");
        let draft = export(&checkpoint, &out, &options, &mut |_| ControlFlow::Continue(()));
        draft.unwrap().publish().unwrap();
        assert!(out.join("onnx/image_processor.onnx").is_file());
        assert_eq!(out.join("onnx/decoder_model_merged.onnx").is_file(), is_small);

        let options = ExportOptions { parts: Vec::new(), ..options };
        let built = partitions(&checkpoint, &options, &table).unwrap();
        assert_eq!(built.len(), Contract::graphs(&options.recipe).len());
        assert!(built.iter().all(|graph| graph.left.is_empty()), "{built:?}");
    }
}
