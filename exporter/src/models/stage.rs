//! The model in pieces, one layer at a time: what calibration runs, so that only one layer's weights
//! and inputs are ever held.

use lfm2vl_graphs::{Dim, Dtype, Fusion, Graph, GraphSpec, LayerKind, Tensor};

use super::{
    Build, Model,
    blocks::{Norm, Residual},
};
use crate::{
    checkpoint::Config,
    onnx::{Floats, GraphBuilder, Tap},
};

/// A piece of the model. Each has an output `hidden_out`, which is the next one's input `hidden`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Patches to embeddings [patches, vision hidden].
    PatchEmbeddings,
    /// A layer of the vision tower.
    VisionLayer(usize),
    /// The tower's last norm and the projector: image features [image tokens, hidden].
    Projector,
    /// A layer of the language model, on a prompt without a past [tokens, hidden].
    DecoderLayer(usize),
    /// The last norm, whose output the head is given.
    Head,
}

impl Stage {
    /// All stages in order, for the vision graphs and the decoder.
    pub(crate) fn all(config: &Config) -> (Vec<Stage>, Vec<Stage>) {
        let layers = (0..config.vision.num_hidden_layers).map(Stage::VisionLayer);
        let vision = [Stage::PatchEmbeddings].into_iter().chain(layers).chain([Stage::Projector]);
        let layers = (0..config.text.layer_types.len()).map(Stage::DecoderLayer);
        (vision.collect(), layers.chain([Stage::Head]).collect())
    }

    /// The linear layers of a stage, by canonical name.
    pub(crate) fn modules(self, config: &Config) -> Vec<String> {
        let prefix = match self {
            Stage::PatchEmbeddings => "vision_tower.embeddings.".to_owned(),
            Stage::VisionLayer(layer) => format!("vision_tower.encoder.layers.{layer}."),
            Stage::Projector => "multi_modal_projector.".to_owned(),
            Stage::DecoderLayer(layer) => format!("language_model.layers.{layer}."),
            Stage::Head => "lm_head".to_owned(),
        };
        let modules = config.quantizable_modules().into_iter();
        let names = modules.map(|module| module.name().to_owned());
        names.filter(|name| name.starts_with(&prefix)).collect()
    }

    fn spec(self, config: &Config, state: Dtype) -> GraphSpec {
        let free = |name: &str| Dim::Free(name.to_owned());
        let tensor =
            |name: &str, dtype, shape: Vec<Dim>| Tensor { name: name.into(), dtype, shape };
        let floats = |name: &str, shape| tensor(name, Dtype::Float32, shape);
        let ints = |name: &str, shape| tensor(name, Dtype::Int64, shape);
        let (text, dims) = (&config.text, config.dims());
        let one = || Dim::Fixed(1);
        let hidden = |size| floats("hidden", vec![free("rows"), Dim::Fixed(size)]);
        let shapes = || ints("spatial_shapes", vec![one(), Dim::Fixed(2)]);
        let mask = || ints("mask", vec![one(), free("rows")]);
        let inputs = match self {
            Stage::PatchEmbeddings => vec![
                floats("pixel_values", vec![one(), free("rows"), Dim::Fixed(dims.patch_values)]),
                shapes(),
            ],
            Stage::VisionLayer(_) => vec![hidden(dims.vision_hidden_size), mask()],
            Stage::Projector => vec![hidden(dims.vision_hidden_size), shapes()],
            Stage::DecoderLayer(layer) => {
                let mut inputs = vec![hidden(text.hidden_size), mask()];
                match text.layer_types[layer] {
                    LayerKind::Conv => inputs.push(tensor(
                        &format!("past_conv.{layer}"),
                        state,
                        vec![one(), Dim::Fixed(text.hidden_size), Dim::Fixed(text.conv_l_cache)],
                    )),
                    LayerKind::FullAttention => inputs.extend(["key", "value"].map(|kind| {
                        let heads = Dim::Fixed(text.num_key_value_heads);
                        let shape = vec![one(), heads, free("past"), Dim::Fixed(text.head_dim)];
                        tensor(&format!("past_key_values.{layer}.{kind}"), state, shape)
                    })),
                }
                inputs
            }
            Stage::Head => vec![hidden(text.hidden_size)],
        };
        // Any graph of the model will do: its name goes into the file only.
        GraphSpec { graph: Graph::Decoder, inputs, outputs: self.state_outputs(config, state) }
    }

    /// The layer's new state, which nobody reads.
    fn state_outputs(self, config: &Config, state: Dtype) -> Vec<Tensor> {
        let Stage::DecoderLayer(layer) = self else { return Vec::new() };
        let (names, rank) = match config.text.layer_types[layer] {
            LayerKind::Conv => (vec![format!("present_conv.{layer}")], 3),
            LayerKind::FullAttention => {
                (vec![format!("present.{layer}.key"), format!("present.{layer}.value")], 4)
            }
        };
        let shape: Vec<Dim> = (0..rank).map(|axis| Dim::Free(format!("state.{axis}"))).collect();
        let output = |name| Tensor { name, dtype: state, shape: shape.clone() };
        names.into_iter().map(output).collect()
    }
}

/// A stage's graph, and with `taps` which outputs are what its linear layers are given.
pub(crate) fn build_stage(stage: Stage, build: Build<'_>, taps: bool) -> (GraphBuilder, Vec<Tap>) {
    let Build { config, floats, .. } = build;
    let state = if matches!(floats, Floats::Half) { Dtype::Float16 } else { Dtype::Float32 };
    let g = GraphBuilder::new(stage.spec(config, state), floats.clone());
    if taps {
        g.record_taps();
    }
    // What stages are given has one sequence's rows; and they run on the CPU.
    let model = Model { flat_rows: true, fusion: Fusion::Cpu, ..Model::new(&g, build) };
    let text = &config.text;
    let hidden = match stage {
        Stage::PatchEmbeddings => {
            let _scope = g.enter("vision_tower");
            model.patch_embeddings(g.input("pixel_values"), g.input("spatial_shapes"))
        }
        Stage::VisionLayer(layer) => {
            let _scope = g.enter("vision_tower");
            let batch = model.batch(g.input("mask"));
            let x = Residual::new(g.input("hidden").to_graph_floats());
            model.vision_layer(x, layer, batch).value()
        }
        Stage::Projector => {
            let hidden = {
                let _scope = g.enter("vision_tower");
                let vision = &config.vision;
                let (size, epsilon) = (vision.hidden_size, vision.layer_norm_eps);
                let x = Residual::new(g.input("hidden").to_graph_floats());
                let (hidden, _) = model.norm(x, Norm::Layer, "post_layernorm", size, epsilon);
                hidden.unsqueeze(&[0])
            };
            model.projector(hidden, g.input("spatial_shapes"))
        }
        Stage::DecoderLayer(layer) => {
            let _scope = g.enter("language_model");
            let hidden = g.input("hidden").to_graph_floats();
            let step = model.step(hidden.unsqueeze(&[0]), g.input("mask"));
            model.decoder_layer(Residual::new(hidden), layer, step).value()
        }
        Stage::Head => {
            let normed = {
                let _scope = g.enter("language_model");
                let x = Residual::new(g.input("hidden").to_graph_floats());
                model.norm(x, Norm::Rms, "embedding_norm", text.hidden_size, text.norm_eps).0
            };
            g.tap("lm_head", normed);
            normed
        }
    };
    let taps = g.output_taps();
    // A value has one name, so a tap that is the output as well is passed on.
    g.extra_output("hidden_out", hidden.to_exact().identity(), 2);
    (g, taps)
}
