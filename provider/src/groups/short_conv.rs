//! The gated short convolution with its state.

use lfm2vl_kernels::{Instructions, ShortConv};
use ort_sys::{ONNXTensorElementDataType as Element, OrtStatusPtr};

use super::{
    Group, Work,
    graph::{Graph, MICROSOFT, ONNX, Value},
    some,
    values::Values,
};
use crate::{status::failure, tensor};

/// From this place on an end of a slice is the end.
const END: i64 = i32::MAX as i64;

/// Gates, convolution and state, as the exporter writes them: `CausalConvWithState` keeps one column
/// of state less than the graph, so that the state is joined beside it.
pub(super) fn find(graph: &Graph<'_>, index: usize) -> Result<Option<Group>, OrtStatusPtr> {
    let conv = &graph.nodes[index];
    let is_plain = conv.is(c"CausalConvWithState", MICROSOFT)?
        && conv.int(c"channels_last", 0)? == 1
        && conv.int(c"dilation", 1)? == 1
        && conv.int(c"ndim", 1)? == 1
        && [c"state_window", c"state_length", c"state_update_capacity", c"input_channel_offset"]
            .iter()
            .try_fold(true, |all, name| Ok::<_, OrtStatusPtr>(all & (conv.int(name, 0)? == 0)))?
        && conv.int(c"input_channels", 0)? == 0
        && conv.int(c"state_channels_last", -1)? == -1
        && conv.text(c"activation")?.is_none_or(|name| name.starts_with(b"none"))
        && !conv.has_input(2)
        && graph.is_read_only_by(conv.output(1), &[])?
        && conv.element(0)? == Some(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    if !is_plain {
        return Ok(None);
    }
    // The product of two thirds, and the third that the result is multiplied with.
    let x = conv.input(0);
    let product = some!(graph.producer(x, c"Mul", ONNX)?);
    let factors = [0, 1].map(|input| graph.nodes[product].input(input));
    let split = some!(graph.producer(factors[0], c"Split", ONNX)?);
    let thirds = &graph.nodes[split];
    let gated = some!(graph.only_consumer(conv.output(0), c"Mul", ONNX)?);
    let of_gated = [0, 1].map(|input| graph.nodes[gated].input(input));
    let gate_value = if of_gated[0] == conv.output(0) { of_gated[1] } else { of_gated[0] };
    let place = |value: Option<Value>| {
        (0..3).find(|&third| value.is_some() && thirds.output(third) == value)
    };
    let gate = some!(place(gate_value));
    let mut places = [some!(place(factors[0])), some!(place(factors[1])), gate];
    places.sort_unstable();
    if places != [0, 1, 2]
        || thirds.outputs() != 3
        || thirds.has_input(1)
        || ![2, -1].contains(&thirds.int(c"axis", 0)?)
        || thirds.int(c"num_outputs", 0)? != 3
    {
        return Ok(None);
    }
    // The state: the last columns of it and x.
    let tail = some!(graph.producer(conv.input(3), c"Slice", ONNX)?);
    let columns = some!(graph.producer(graph.nodes[tail].input(0), c"Transpose", ONNX)?);
    let recent = match graph.consumers.get(&some!(x)).map_or(&[][..], |all| all) {
        [a, b] if *a == index => *b,
        [a, b] if *b == index => *a,
        _ => return Ok(None),
    };
    let joined = some!(graph.only_consumer(graph.nodes[recent].output(0), c"Concat", ONNX)?);
    let kept = some!(graph.only_consumer(graph.nodes[joined].output(0), c"Slice", ONNX)?);
    let state = some!(graph.only_consumer(graph.nodes[kept].output(0), c"Transpose", ONNX)?);
    let joins = &graph.nodes[joined];
    let nodes = vec![split, product, columns, tail, index, recent, joined, kept, state, gated];
    let starts = [recent, kept].map(|index| graph.nodes[index].input(1));
    let are_expected = graph.nodes[recent].is(c"Slice", ONNX)?
        && [tail, recent, kept].iter().try_fold(true, |all, &slice| {
            Ok::<_, OrtStatusPtr>(all & goes_to_end(graph, slice)?)
        })?
        && graph.nodes[tail].constant_ints(1)?.as_deref() == Some(&[1])
        && starts[0] == starts[1]
        && graph.nodes[recent].is_int64(1)?
        && joins.inputs() == 2
        && joins.input(0) == graph.nodes[columns].output(0)
        && joins.input(1) == graph.nodes[recent].output(0)
        && [1, -2].contains(&joins.int(c"axis", 0)?)
        && graph.nodes[columns].ints(c"perm")? == [0, 2, 1]
        && graph.nodes[state].ints(c"perm")? == [0, 2, 1];
    if !are_expected {
        return Ok(None);
    }
    let start = graph.nodes[recent].constant_ints(1)?;
    if start.is_some_and(|start| !matches!(start[..], [start] if start < 0)) {
        return Ok(None);
    }
    let outputs = [some!(graph.nodes[gated].output(0)), some!(graph.nodes[state].output(0))];
    if !graph.is_read(outputs[0])? || !graph.is_read(outputs[1])? {
        return Ok(None);
    }
    // What is computed on the way is not to be seen elsewhere.
    for inner in [
        x,
        gate_value,
        factors[0],
        factors[1],
        graph.nodes[columns].output(0),
        graph.nodes[tail].output(0),
    ] {
        if !graph.is_read_only_by(inner, &nodes)? {
            return Ok(None);
        }
    }
    Group::new(
        Work::ShortConv { gate },
        &[
            some!(thirds.input(0)),
            some!(conv.input(1)),
            some!(graph.nodes[columns].input(0)),
            some!(starts[0]),
        ],
        &outputs,
        nodes,
    )
    .map(Some)
}

/// Whether a slice is one of the second axis to its end, in steps of 1.
fn goes_to_end(graph: &Graph<'_>, index: usize) -> Result<bool, OrtStatusPtr> {
    let slice = &graph.nodes[index];
    let (ends, axes) = (slice.constant_ints(2)?, slice.constant_ints(3)?);
    let is_step_one = !slice.has_input(4) || slice.constant_ints(4)?.as_deref() == Some(&[1]);
    let is_end = matches!(ends.as_deref(), Some(&[end]) if end >= END);
    Ok(is_end && axes.as_deref() == Some(&[1]) && is_step_one)
}

/// Computes it.
///
/// # Safety
/// The values are those of the group, in the order that [`find`] gives.
pub(super) unsafe fn compute(
    instructions: Instructions,
    gate: usize,
    values: &Values<'_>,
) -> Result<(), OrtStatusPtr> {
    // SAFETY: ONNX Runtime's; all values but the place are tensors of floats.
    unsafe {
        let [inputs, weight, past] = [values.input(0)?, values.input(1)?, values.input(2)?];
        let start: &[i64] = tensor::elements(values.input(3)?)?;
        let shapes = [inputs, weight, past].map(|value| tensor::dimensions(value));
        let [inputs_shape, weight_shape, past_shape] = shapes;
        let shapes = (inputs_shape?, weight_shape?, past_shape?);
        let (&[batch, rows, thirds], &[channels, 1, width], past_shape) =
            (&shapes.0[..], &shapes.1[..], &shapes.2)
        else {
            return Err(failure(format!("a short convolution of {shapes:?}")));
        };
        if thirds != 3 * channels || past_shape != &[batch, channels, width] {
            return Err(failure(format!("a short convolution of {shapes:?}")));
        }
        let kept = kept_columns(start, width, rows)?;
        let output = values.output(0, &[batch, rows, channels])?;
        let present = values.output(1, &[batch, channels, kept])?;
        ShortConv { weight: tensor::elements(weight)?, channels, width, gate }.run(
            instructions,
            batch,
            tensor::elements(inputs)?,
            tensor::elements(past)?,
            output,
            present,
            &values.threads(),
        );
    }
    Ok(())
}

/// How many columns there are from a place on that is counted from the end: of the last new ones as
/// many as that, and of these after the state as many as that again.
fn kept_columns(start: &[i64], width: usize, rows: usize) -> Result<usize, OrtStatusPtr> {
    match start {
        &[start] if start < 0 => {
            let wanted = usize::try_from(start.unsigned_abs()).unwrap_or(usize::MAX);
            Ok(wanted.min(width + wanted.min(rows)))
        }
        _ => Err(failure(format!("a short convolution whose state is kept from {start:?} on"))),
    }
}
