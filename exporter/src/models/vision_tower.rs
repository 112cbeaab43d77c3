//! SigLIP2 NaFlex vision tower: patches of any grid in, one hidden state for each patch out.

use lfm2vl_graphs::{Fusion, Operators};

use super::{
    Model,
    blocks::{Norm, Product, Residual},
};
use crate::onnx::{Attribute, Gelu, Op, Stored, Value};

/// What attention projects with.
const PROJECTIONS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// What the attention layers of the tower share.
#[derive(Clone, Copy)]
pub(super) struct Batch<'g> {
    /// [views, patches, -1] as a shape vector.
    pub(super) shape: Value<'g>,
    mask: Mask<'g>,
}

/// Which patches may be looked at.
#[derive(Clone, Copy)]
enum Mask<'g> {
    /// For the fused operator, which is faster and takes less memory without a mask: whether all
    /// patches are valid, and int32 [views, patches], 1 for a valid one.
    Fused { all_valid: Value<'g>, valid: Value<'g> },
    /// float32 [views, 1, 1, patches], added to the scores.
    Bias(Value<'g>),
}

impl<'g> Model<'g> {
    /// Patches [views, patches, values] -> last hidden state [views, patches, vision hidden],
    /// after the last norm. Rows where `pixel_attention_mask` [views, patches] is 0 are padding
    /// and carry no meaning.
    pub(super) fn vision_tower(
        self,
        pixel_values: Value<'g>,
        pixel_attention_mask: Value<'g>,
        spatial_shapes: Value<'g>,
    ) -> Value<'g> {
        let vision = &self.config.vision;
        let (size, epsilon) = (vision.hidden_size, vision.layer_norm_eps);
        let _scope = self.g.enter("vision_tower");

        let embeddings = self.patch_embeddings(pixel_values, spatial_shapes);
        let batch = self.batch(pixel_attention_mask);
        let mut x = Residual::new(embeddings); // [views * patches, hidden]
        for layer in 0..vision.num_hidden_layers {
            x = self.vision_layer(x, layer, batch);
        }
        let (hidden, _) = self.norm(x, Norm::Layer, "post_layernorm", size, epsilon);
        hidden.reshape_to(batch.shape)
    }

    /// What the layers need of a batch of views.
    pub(super) fn batch(self, pixel_attention_mask: Value<'g>) -> Batch<'g> {
        let shape = match self.fixed_views() {
            Some((views, patches)) => self.g.int_vector(&[views as i64, patches as i64, -1]),
            None => pixel_attention_mask.dims(0, 2).concat(&[self.g.int_vector(&[-1])], 0),
        };
        Batch {
            shape,
            mask: match self.operators {
                Operators::OnnxRuntime => {
                    let valid = pixel_attention_mask.to_i32();
                    let all_valid = match self.fusion {
                        Fusion::Cpu => valid.min_all().to_bool(),
                        // There, integers are reduced as float64 by cuDNN, and floats by one kernel.
                        Fusion::Cuda => {
                            let padding = (self.g.float(1.0) - valid.to_f32()).sum_all();
                            self.g.float(0.5).greater_or_equal(padding)
                        }
                    };
                    Mask::Fused { all_valid, valid }
                }
                Operators::Standard => {
                    let valid = pixel_attention_mask.unsqueeze(&[1, 2]);
                    Mask::Bias(self.attention_bias(valid.to_f32()))
                }
            },
        }
    }

    /// Views and patches of a batch, where the contract fixes them.
    pub(super) fn fixed_views(self) -> Option<(usize, usize)> {
        let size = |axis| self.g.fixed_size("pixel_values", axis);
        size(0).zip(size(1))
    }

    /// One layer on the stream [views * patches, hidden].
    pub(super) fn vision_layer(
        self,
        x: Residual<'g>,
        layer: usize,
        batch: Batch<'g>,
    ) -> Residual<'g> {
        let vision = &self.config.vision;
        let (size, epsilon) = (vision.hidden_size, vision.layer_norm_eps);
        let _scope = self.g.enter(format!("encoder.layers.{layer}"));
        let (normed, stream) = self.norm(x, Norm::Layer, "layer_norm1", size, epsilon);
        let x = stream.add(self.vision_attention(normed, batch));
        let (normed, stream) = self.norm(x, Norm::Layer, "layer_norm2", size, epsilon);
        stream.add(self.vision_mlp(normed))
    }

    /// Patches [views, patches, values] -> embeddings with positions [views * patches, hidden].
    pub(super) fn patch_embeddings(
        self,
        pixel_values: Value<'g>,
        spatial_shapes: Value<'g>,
    ) -> Value<'g> {
        let vision = &self.config.vision;
        let values = self.config.dims().patch_values;
        let _scope = self.g.enter("embeddings");
        let patches = pixel_values.reshape(&[-1, values as i64]).to_graph_floats();
        let embedded = self.linear(patches, "patch_embedding", values, vision.hidden_size, true);
        let patch = match self.fixed_views() {
            Some((_, patches)) => self.g.counting(patches),
            None => pixel_values.dim(1).range(),
        };
        let positions = self.position_embeddings(spatial_shapes, patch);
        embedded + positions.reshape(&[-1, vision.hidden_size as i64])
    }

    /// Bidirectional self-attention over the patches of each view.
    fn vision_attention(self, x: Value<'g>, batch: Batch<'g>) -> Product<'g> {
        let vision = &self.config.vision;
        let (size, heads) = (vision.hidden_size, vision.num_attention_heads);
        let _scope = self.g.enter("self_attn");
        let attended = match batch.mask {
            Mask::Fused { all_valid, valid } => {
                let (operator, inputs, place_of_mask) = match self.fusion {
                    Fusion::Cuda if self.packs_vision() => self.attention_of_one(x, batch),
                    _ => self.attention_of_three(x, batch),
                };
                let mut masked = inputs.clone();
                masked.resize(place_of_mask, self.g.omitted());
                masked.push(valid);
                let attention = |inputs: &[Value<'g>]| {
                    self.g.node(operator, inputs, &[("num_heads", Attribute::Int(heads as i64))])
                };
                self.g.either(
                    all_valid,
                    self.g.float_type(),
                    || attention(&inputs),
                    || attention(&masked),
                )
            }
            Mask::Bias(bias) => {
                let head_dim = size / heads;
                let [query, keys, values] = self.vision_projections(x, batch).map(|projected| {
                    let by_head = [0, 0, heads as i64, head_dim as i64];
                    projected.value.reshape(&by_head).transpose(&[0, 2, 1, 3])
                });
                self.attend(query, keys, values, bias, head_dim, &[0, 1, 3, 2])
                    .transpose(&[0, 2, 1, 3])
            }
        };
        self.product(attended.reshape(&[-1, size as i64]), "out_proj", size, size)
    }

    /// Whether the weights of the current module's projections can follow each other as floats.
    fn packs_vision(self) -> bool {
        let is_float = |name: &&str| self.format_of(&self.g.path(name)).is_none();
        PROJECTIONS.iter().all(is_float) && !self.has_weights_in_place
    }

    /// Queries, keys and values [views, patches, hidden] of rows x.
    fn vision_projections(self, x: Value<'g>, batch: Batch<'g>) -> [Product<'g>; 3] {
        let size = self.config.vision.hidden_size;
        PROJECTIONS.map(|name| {
            let Product { value, bias } = self.product(x, name, size, size);
            Product { value: value.reshape_to(batch.shape), bias }
        })
    }

    /// The operator that is given queries, keys and values, its inputs, and the place of the mask among them.
    fn attention_of_three(self, x: Value<'g>, batch: Batch<'g>) -> (Op, Vec<Value<'g>>, usize) {
        let products = self.vision_projections(x, batch);
        let mut inputs = products.map(|product| product.value).to_vec();
        if let [Some(query), Some(keys), Some(values)] = products.map(|product| product.bias) {
            // One bias for the three.
            inputs.push(query.concat(&[keys, values], 0));
        }
        (Op::microsoft("MultiHeadAttention"), inputs, 4)
    }

    /// The same of the operator that projects as well, from one weight: on CUDA there is one product then, and one
    /// kernel for all biases.
    fn attention_of_one(self, x: Value<'g>, batch: Batch<'g>) -> (Op, Vec<Value<'g>>, usize) {
        let size = self.config.vision.hidden_size;
        let of_all = |part: &str, shape: &[usize]| {
            let tensors = PROJECTIONS.map(|name| self.g.path(&format!("{name}.{part}"))).into();
            let name = self.g.path(&format!("qkv_proj.{part}"));
            self.g.stored(Stored { name, tensors }, shape)
        };
        // It wants columns, which ONNX Runtime makes of the rows when it loads the graph.
        let weight = of_all("weight", &[3 * size, size]).transpose(&[1, 0]);
        let inputs = vec![x.reshape_to(batch.shape), weight, of_all("bias", &[3 * size])];
        (Op::microsoft("Attention"), inputs, 3)
    }

    fn vision_mlp(self, x: Value<'g>) -> Product<'g> {
        let vision = &self.config.vision;
        let _scope = self.g.enter("mlp");
        let hidden = self.product(x, "fc1", vision.hidden_size, vision.intermediate_size);
        let hidden = self.gelu_of(hidden, Gelu::Tanh);
        self.product(hidden, "fc2", vision.intermediate_size, vision.hidden_size)
    }
}
