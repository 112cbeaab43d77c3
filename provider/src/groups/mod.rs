//! Groups of nodes that are computed as one: what lies between two products takes less time than to
//! start each node of it.

mod attention;
mod gate;
mod graph;
mod short_conv;
mod values;

use std::{ffi::CStr, ptr};

use lfm2vl_kernels::Instructions;
use ort_sys::OrtStatusPtr;

use attention::Attention;
use graph::{Graph, Value};
pub(crate) use values::Values;

use crate::{api::Api, node::Node, status::check};

/// The value, or nothing found.
macro_rules! some {
    ($option:expr) => {
        match $option {
            Some(value) => value,
            None => return Ok(None),
        }
    };
}
use some;

/// A group: what it computes, from which values.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) work: Work,
    /// Names of what it reads and writes, in the order that the work says.
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    /// Indices of its nodes.
    pub(crate) nodes: Vec<usize>,
}

/// What a group computes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// From gate and up: `silu(gate) * up`.
    Gate,
    /// The gated short convolution: from inputs, weight, state and the place, counted from the end, from
    /// which on columns are kept; outputs and the next state.
    ShortConv {
        /// Which third of the inputs is multiplied with the result.
        gate: usize,
    },
    /// Attention with the cache of its keys and values.
    Attention(Attention),
}

impl Work {
    /// Computes a group.
    ///
    /// # Safety
    /// The values are those of the group in a run.
    pub(crate) unsafe fn compute(
        &self,
        instructions: Instructions,
        values: &Values<'_>,
    ) -> Result<(), OrtStatusPtr> {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Work::Gate => gate::compute(instructions, values),
                Work::ShortConv { gate } => short_conv::compute(instructions, *gate, values),
                Work::Attention(attention) => attention.compute(instructions, values),
            }
        }
    }
}

impl Group {
    fn new(
        work: Work,
        inputs: &[Value],
        outputs: &[Value],
        nodes: Vec<usize>,
    ) -> Result<Self, OrtStatusPtr> {
        let names = |values: &[Value]| values.iter().copied().map(name).collect::<Result<_, _>>();
        Ok(Group { work, inputs: names(inputs)?, outputs: names(outputs)?, nodes })
    }
}

/// The groups among the nodes of a graph.
pub(crate) fn find(nodes: &[Node]) -> Result<Vec<Group>, OrtStatusPtr> {
    let graph = Graph::new(nodes);
    let mut found = Vec::new();
    for index in 0..nodes.len() {
        let groups = [
            gate::find(&graph, index)?,
            short_conv::find(&graph, index)?,
            attention::find(&graph, index)?,
        ];
        for group in groups.into_iter().flatten() {
            // What another provider has cannot be claimed, and only what is read is given.
            let nodes = group.nodes.iter().map(|&index| &nodes[index]);
            let are_free = nodes.map(Node::is_free).collect::<Result<Vec<_>, _>>()?;
            if are_free.iter().all(|&is_free| is_free) {
                found.push(group);
            }
        }
    }
    Ok(found)
}

/// A value's name.
pub(crate) fn name(value: Value) -> Result<String, OrtStatusPtr> {
    let mut name = ptr::null();
    // SAFETY: ONNX Runtime's; the text lives as long as the value.
    unsafe {
        check(((*Api::get().ort).GetValueInfoName)(value, &mut name))?;
        Ok(CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}
