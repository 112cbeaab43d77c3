//! The released models' configs, at their real sizes, with weights that take no room on the disk.

use std::{fs, io::Write, ops::ControlFlow, path::Path};

use lfm2vl_exporter::{
    ExportOptions, Part, Weights,
    checkpoint::{Checkpoint, Config, model_tensors, released_name},
    export, partitions,
};
use lfm2vl_graphs::{Contract, Precision, ProviderTable, Recipe};
use serde_json::{Map, Value, json};

use crate::common::{copy_of, testdata};

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

const FAMILY: [Member; 6] = [
    member("LFM2-VL-450M", "lfm2-vl-450m", Generation::First, [0.44, 0.46]),
    member("LFM2-VL-1.6B", "lfm2-vl-1.6b", Generation::First, [1.55, 1.65]),
    member("LFM2-VL-3B", "3b-shape", Generation::First, [2.9, 3.1]),
    member("LFM2.5-VL-450M", "lfm2-vl-450m", Generation::Second, [0.44, 0.46]),
    member("LFM2.5-VL-1.6B", "lfm2-vl-1.6b", Generation::Second, [1.55, 1.65]),
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

/// Writes a checkpoint whose weights are a hole of zeros; returns how many there are.
fn write_checkpoint(config: &Value, folder: &Path) -> u64 {
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in model_tensors(&Config::from_json(config).unwrap()) {
        let start = end;
        end += 2 * shape.iter().product::<usize>() as u64;
        let tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(released_name(&name), tensor);
    }
    let header = Value::Object(header).to_string();
    let mut file = fs::File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    end / 2
}

/// Graphs and image processor; of the large ones the graphs are only built, since every byte that an
/// export refers to is hashed.
#[test]
fn every_member_exports() {
    let table = ProviderTable::builtin("cpu").unwrap();
    for member in FAMILY {
        let copy = copy_of("tiny-shapes");
        let folder = copy.path();
        let parameters = write_checkpoint(&member.config(), folder) as f64 / 1e9;
        let [least, most] = member.parameters;
        assert!((least..=most).contains(&parameters), "{}: {parameters} billion", member.name);
        // Whichever settings a release has.
        let first = member.generation == Generation::First;
        let settings = json!({"resample": if first { 2 } else { 3 }, "use_thumbnail": first});
        fs::remove_file(folder.join("processor_config.json")).unwrap();
        fs::write(folder.join("preprocessor_config.json"), settings.to_string()).unwrap();

        let checkpoint = Checkpoint::open(folder).unwrap();
        let is_small = parameters < 1.0;
        let options = ExportOptions {
            recipe: Recipe::builtin("default").unwrap(),
            precisions: vec![Precision::Fp32],
            parts: if is_small { Vec::new() } else { vec![Part::ImageProcessor] },
            weights: if is_small { Weights::Reference } else { Weights::Written },
            image_inputs: false,
            calibration: None,
            force: false,
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
