//! The gate of a feed-forward layer: from gate and up, `silu(gate) * up`.

use lfm2vl_kernels::{Instructions, swiglu};
use ort_sys::{ONNXTensorElementDataType as Element, OrtStatusPtr};

use super::{
    Group, Work,
    graph::{Graph, MICROSOFT, ONNX},
    values::Values,
};
use crate::{matmul, status::failure, tensor};

/// `QuickGelu`, which with a factor of 1 is silu, and the product with its gate; both from products
/// of the same input with weights of one size, so that they have the same shape.
pub(super) fn find(graph: &Graph<'_>, index: usize) -> Result<Option<Group>, OrtStatusPtr> {
    let silu = &graph.nodes[index];
    if !silu.is(c"QuickGelu", MICROSOFT)? || silu.float(c"alpha", 1.702)? != 1.0 {
        return Ok(None);
    }
    let activated = silu.output(0);
    let Some(product) = graph.only_consumer(activated, c"Mul", ONNX)? else { return Ok(None) };
    let factors = [0, 1].map(|input| graph.nodes[product].input(input));
    let up = if factors[0] == activated { factors[1] } else { factors[0] };
    let (Some(gate), Some(up), Some(output)) = (silu.input(0), up, graph.nodes[product].output(0))
    else {
        return Ok(None);
    };
    let mut sources = Vec::new();
    for value in [gate, up] {
        let name = matmul::OPERATOR.name;
        let Some(source) = graph.producer(Some(value), name, MICROSOFT)? else {
            return Ok(None);
        };
        let source = &graph.nodes[source];
        sources.push((source.input(0), source.int(c"N", 0)?));
    }
    let is_float = silu.element(0)? == Some(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    if !is_float || sources[0] != sources[1] || !graph.is_read(output)? {
        return Ok(None);
    }
    Group::new(Work::Gate, &[gate, up], &[output], vec![index, product]).map(Some)
}

/// Computes it.
///
/// # Safety
/// The values are those of the group, in the order that [`find`] gives.
pub(super) unsafe fn compute(
    instructions: Instructions,
    values: &Values<'_>,
) -> Result<(), OrtStatusPtr> {
    // SAFETY: ONNX Runtime's; all values are tensors of floats.
    unsafe {
        let (gate, up) = (values.input(0)?, values.input(1)?);
        let dimensions = tensor::dimensions(gate)?;
        if tensor::dimensions(up)? != dimensions {
            return Err(failure("a gate of another shape"));
        }
        let output = values.output(0, &dimensions)?;
        let [gate, up] = [tensor::elements(gate)?, tensor::elements(up)?];
        swiglu(instructions, gate, up, output, &values.threads());
    }
    Ok(())
}
