//! Whether a session has the inputs and outputs that the contract says.

use lfm2vl_graphs::{Dim, Dtype, GraphSpec, LayerKind, ModelDims, Tensor};
use ort::value::TensorElementType;

use crate::{
    Error,
    backend::{GraphSession, Outlet},
};

/// Sizes of the model, as the decoder's own inputs tell them; sizes that no input tells are 0.
pub(crate) fn dims_of(decoder: &GraphSession) -> ModelDims {
    let size = |name: &str, axis: usize| {
        let outlet = decoder.inputs().iter().find(|outlet| outlet.name() == name);
        let shape = outlet.and_then(|outlet| outlet.dtype().tensor_shape());
        shape.and_then(|shape| shape.get(axis)).map_or(0, |&size| size.max(0) as usize)
    };
    let layers_of = |prefix: &str, suffix: &str| -> Vec<usize> {
        let names = decoder.inputs().iter().map(Outlet::name);
        names
            .filter_map(|name| name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok())
            // An index beyond any model is no layer; the contract then does not know the input.
            .filter(|&layer: &usize| layer < 4096)
            .collect()
    };
    let conv = layers_of("past_conv.", "");
    let attention = layers_of("past_key_values.", ".key");
    let count = conv.iter().chain(&attention).max().map_or(0, |last| last + 1);
    let first = |layers: &[usize], name: &dyn Fn(usize) -> String, axis| {
        layers.first().map_or(0, |&layer| size(&name(layer), axis))
    };
    let key = |layer| format!("past_key_values.{layer}.key");
    let hidden_size = size("inputs_embeds", 2);
    let state = |axis| first(&conv, &|layer| format!("past_conv.{layer}"), axis);
    ModelDims {
        hidden_size,
        vocab_size: 0,
        num_key_value_heads: first(&attention, &key, 1),
        head_dim: first(&attention, &key, 3),
        // Columns, or rows and one.
        conv_l_cache: if state(2) == hidden_size { state(1) + 1 } else { state(2) },
        vision_hidden_size: 0,
        downsample_factor: 0,
        patch_values: 0,
        layer_types: (0..count)
            .map(
                |layer| {
                    if conv.contains(&layer) { LayerKind::Conv } else { LayerKind::FullAttention }
                },
            )
            .collect(),
    }
}

/// Inputs of decoders that others publish, which follow from the rest.
pub(crate) const POSITION_IDS: &str = "position_ids";
/// How many of the last positions to compute logits of, int64 scalar.
pub(crate) const NUM_LOGITS: &str = "num_logits_to_keep";

/// Element type of the decoder's state, as its inputs tell it.
pub(crate) fn state_dtype(session: &GraphSession) -> Dtype {
    let mut states = session.inputs().iter().filter(|outlet| outlet.name().starts_with("past_"));
    match states.next().and_then(|outlet| outlet.dtype().tensor_type()) {
        Some(TensorElementType::Float16) => Dtype::Float16,
        _ => Dtype::Float32,
    }
}

/// Checks names, types, ranks and sizes. A session may have outputs that the contract does not
/// know, but no such inputs, other than the two that this runtime can fill.
///
/// # Errors
/// [`Error::Contract`] names the first difference.
pub(crate) fn check(session: &GraphSession, spec: &GraphSpec) -> Result<(), Error> {
    let find = |outlets: &[Outlet], tensor: &Tensor, kind: &str| -> Result<(), Error> {
        let outlet = outlets
            .iter()
            .find(|outlet| outlet.name() == tensor.name)
            .ok_or_else(|| session.contract_error(format!("it has no {kind} {}", tensor.name)))?;
        compare(outlet, tensor)
            .map_err(|what| session.contract_error(format!("{kind} {} {what}", tensor.name)))
    };
    for tensor in &spec.inputs {
        find(session.inputs(), tensor, "input")?;
    }
    for tensor in &spec.outputs {
        find(session.outputs(), tensor, "output")?;
    }
    let unknown = |outlet: &&Outlet| {
        ![POSITION_IDS, NUM_LOGITS].contains(&outlet.name())
            && !spec.inputs.iter().any(|tensor| tensor.name == outlet.name())
    };
    match session.inputs().iter().find(unknown) {
        Some(extra) => Err(session.contract_error(format!("it wants an input {}", extra.name()))),
        None => Ok(()),
    }
}

fn compare(outlet: &Outlet, tensor: &Tensor) -> Result<(), String> {
    let expected = match tensor.dtype {
        Dtype::Float32 => TensorElementType::Float32,
        Dtype::Float16 => TensorElementType::Float16,
        Dtype::Int64 => TensorElementType::Int64,
        Dtype::Int32 => TensorElementType::Int32,
        Dtype::Uint8 => TensorElementType::Uint8,
        Dtype::Bool => TensorElementType::Bool,
    };
    let (Some(dtype), Some(shape)) = (outlet.dtype().tensor_type(), outlet.dtype().tensor_shape())
    else {
        return Err("is not a tensor".to_owned());
    };
    if dtype != expected {
        return Err(format!("is {dtype} and not {}", tensor.dtype));
    }
    let fits = |(&size, dim): (&i64, &Dim)| match dim {
        // Sizes that are symbolic here, or that nobody tells, cannot differ.
        Dim::Fixed(expected) => size < 0 || *expected == 0 || size as usize == *expected,
        Dim::Free(_) => true,
    };
    if shape.len() == tensor.shape.len() && shape.iter().zip(&tensor.shape).all(fits) {
        return Ok(());
    }
    let dims: Vec<String> = tensor.shape.iter().map(Dim::to_string).collect();
    Err(format!("has shape {:?} and not [{}]", &shape[..], dims.join(", ")))
}
