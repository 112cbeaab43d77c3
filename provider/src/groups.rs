//! Groups of nodes that are computed as one: what lies between two products takes less time than to
//! start each node of it.

use std::{collections::HashMap, ffi::CStr, ptr};

use ort_sys::{ONNXTensorElementDataType as Element, OrtStatusPtr, OrtValueInfo};

use crate::{api::Api, matmul, node::Node, status::check};

type Value = *const OrtValueInfo;

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

const ONNX: &CStr = c"";
const MICROSOFT: &CStr = c"com.microsoft";

/// From this place on an end of a slice is the end.
const END: i64 = i32::MAX as i64;

/// The groups among the nodes of a graph.
pub(crate) fn find(nodes: &[Node]) -> Result<Vec<Group>, OrtStatusPtr> {
    let graph = Graph::new(nodes);
    let mut found = Vec::new();
    for index in 0..nodes.len() {
        for group in [graph.gate(index)?, graph.short_conv(index)?].into_iter().flatten() {
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

/// Which node makes each value, and which ones read it.
struct Graph<'a> {
    nodes: &'a [Node],
    producers: HashMap<Value, usize>,
    consumers: HashMap<Value, Vec<usize>>,
}

impl<'a> Graph<'a> {
    fn new(nodes: &'a [Node]) -> Self {
        let mut graph = Graph { nodes, producers: HashMap::new(), consumers: HashMap::new() };
        for (index, node) in nodes.iter().enumerate() {
            for output in (0..node.outputs()).filter_map(|output| node.output(output)) {
                graph.producers.insert(output, index);
            }
            for input in (0..node.inputs()).filter_map(|input| node.input(input)) {
                graph.consumers.entry(input).or_default().push(index);
            }
        }
        graph
    }

    /// A node that makes a value, if it is of this operator.
    fn producer(
        &self,
        value: Option<Value>,
        name: &CStr,
        domain: &CStr,
    ) -> Result<Option<usize>, OrtStatusPtr> {
        let index = value.and_then(|value| self.producers.get(&value).copied());
        self.if_is(index, name, domain)
    }

    /// The only node that reads a value which is no output of the graph, if it is of this operator.
    fn only_consumer(
        &self,
        value: Option<Value>,
        name: &CStr,
        domain: &CStr,
    ) -> Result<Option<usize>, OrtStatusPtr> {
        let consumers = value.and_then(|value| self.consumers.get(&value));
        let &[index] = consumers.map_or(&[][..], |all| all) else { return Ok(None) };
        if !self.is_read_only_by(value, &[index])? {
            return Ok(None);
        }
        self.if_is(Some(index), name, domain)
    }

    fn if_is(
        &self,
        index: Option<usize>,
        name: &CStr,
        domain: &CStr,
    ) -> Result<Option<usize>, OrtStatusPtr> {
        let Some(index) = index else { return Ok(None) };
        Ok(self.nodes[index].is(name, domain)?.then_some(index))
    }

    /// Whether nothing but these nodes reads a value: no other node, no graph within a node, and not
    /// who runs the graph.
    fn is_read_only_by(&self, value: Option<Value>, nodes: &[usize]) -> Result<bool, OrtStatusPtr> {
        let Some(value) = value else { return Ok(true) };
        let ort = Api::get().ort;
        let (mut count, mut is_output) = (0, false);
        // SAFETY: ONNX Runtime's.
        unsafe {
            check(((*ort).ValueInfo_GetValueNumConsumers)(value, &mut count))?;
            check(((*ort).ValueInfo_IsGraphOutput)(value, &mut is_output))?;
        }
        let consumers = self.consumers.get(&value).map_or(&[][..], |all| all);
        let are_known = consumers.iter().all(|consumer| nodes.contains(consumer));
        Ok(!is_output && count == consumers.len() && are_known)
    }

    /// Whether anything reads a value.
    fn is_read(&self, value: Value) -> Result<bool, OrtStatusPtr> {
        Ok(!self.is_read_only_by(Some(value), &[])?)
    }

    /// `QuickGelu`, which with a factor of 1 is silu, and the product with its gate; both from products
    /// of the same input with weights of one size, so that they have the same shape.
    fn gate(&self, index: usize) -> Result<Option<Group>, OrtStatusPtr> {
        let silu = &self.nodes[index];
        if !silu.is(c"QuickGelu", MICROSOFT)? || silu.float(c"alpha", 1.702)? != 1.0 {
            return Ok(None);
        }
        let activated = silu.output(0);
        let Some(product) = self.only_consumer(activated, c"Mul", ONNX)? else { return Ok(None) };
        let factors = [0, 1].map(|input| self.nodes[product].input(input));
        let up = if factors[0] == activated { factors[1] } else { factors[0] };
        let (Some(gate), Some(up), Some(output)) =
            (silu.input(0), up, self.nodes[product].output(0))
        else {
            return Ok(None);
        };
        let mut sources = Vec::new();
        for value in [gate, up] {
            let name = matmul::OPERATOR.name;
            let Some(source) = self.producer(Some(value), name, MICROSOFT)? else {
                return Ok(None);
            };
            let source = &self.nodes[source];
            sources.push((source.input(0), source.int(c"N", 0)?));
        }
        let is_float = silu.element(0)? == Some(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        if !is_float || sources[0] != sources[1] || !self.is_read(output)? {
            return Ok(None);
        }
        Group::new(Work::Gate, &[gate, up], &[output], vec![index, product]).map(Some)
    }

    /// Gates, convolution and state, as the exporter writes them: `CausalConvWithState` keeps one column
    /// of state less than the graph, so that the state is joined beside it.
    fn short_conv(&self, index: usize) -> Result<Option<Group>, OrtStatusPtr> {
        let conv = &self.nodes[index];
        let is_plain = conv.is(c"CausalConvWithState", MICROSOFT)?
            && conv.int(c"channels_last", 0)? == 1
            && conv.int(c"dilation", 1)? == 1
            && conv.int(c"ndim", 1)? == 1
            && [
                c"state_window",
                c"state_length",
                c"state_update_capacity",
                c"input_channel_offset",
            ]
            .iter()
            .try_fold(true, |all, name| Ok::<_, OrtStatusPtr>(all & (conv.int(name, 0)? == 0)))?
            && conv.int(c"input_channels", 0)? == 0
            && conv.int(c"state_channels_last", -1)? == -1
            && conv.text(c"activation")?.is_none_or(|name| name.starts_with(b"none"))
            && !conv.has_input(2)
            && self.is_read_only_by(conv.output(1), &[])?
            && conv.element(0)? == Some(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        if !is_plain {
            return Ok(None);
        }
        macro_rules! some {
            ($option:expr) => {
                match $option {
                    Some(value) => value,
                    None => return Ok(None),
                }
            };
        }
        // The product of two thirds, and the third that the result is multiplied with.
        let x = conv.input(0);
        let product = some!(self.producer(x, c"Mul", ONNX)?);
        let factors = [0, 1].map(|input| self.nodes[product].input(input));
        let split = some!(self.producer(factors[0], c"Split", ONNX)?);
        let thirds = &self.nodes[split];
        let gated = some!(self.only_consumer(conv.output(0), c"Mul", ONNX)?);
        let of_gated = [0, 1].map(|input| self.nodes[gated].input(input));
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
        let tail = some!(self.producer(conv.input(3), c"Slice", ONNX)?);
        let columns = some!(self.producer(self.nodes[tail].input(0), c"Transpose", ONNX)?);
        let recent = match self.consumers.get(&some!(x)).map_or(&[][..], |all| all) {
            [a, b] if *a == index => *b,
            [a, b] if *b == index => *a,
            _ => return Ok(None),
        };
        let joined = some!(self.only_consumer(self.nodes[recent].output(0), c"Concat", ONNX)?);
        let kept = some!(self.only_consumer(self.nodes[joined].output(0), c"Slice", ONNX)?);
        let state = some!(self.only_consumer(self.nodes[kept].output(0), c"Transpose", ONNX)?);
        let joins = &self.nodes[joined];
        let nodes = vec![split, product, columns, tail, index, recent, joined, kept, state, gated];
        let starts = [recent, kept].map(|index| self.nodes[index].input(1));
        let are_expected = self.nodes[recent].is(c"Slice", ONNX)?
            && [tail, recent, kept].iter().try_fold(true, |all, &slice| {
                Ok::<_, OrtStatusPtr>(all & self.goes_to_end(slice)?)
            })?
            && self.nodes[tail].constant_ints(1)?.as_deref() == Some(&[1])
            && starts[0] == starts[1]
            && self.nodes[recent].is_int64(1)?
            && joins.inputs() == 2
            && joins.input(0) == self.nodes[columns].output(0)
            && joins.input(1) == self.nodes[recent].output(0)
            && [1, -2].contains(&joins.int(c"axis", 0)?)
            && self.nodes[columns].ints(c"perm")? == [0, 2, 1]
            && self.nodes[state].ints(c"perm")? == [0, 2, 1];
        if !are_expected {
            return Ok(None);
        }
        let start = self.nodes[recent].constant_ints(1)?;
        if start.is_some_and(|start| !matches!(start[..], [start] if start < 0)) {
            return Ok(None);
        }
        let outputs = [some!(self.nodes[gated].output(0)), some!(self.nodes[state].output(0))];
        if !self.is_read(outputs[0])? || !self.is_read(outputs[1])? {
            return Ok(None);
        }
        // What is computed on the way is not to be seen elsewhere.
        for inner in [
            x,
            gate_value,
            factors[0],
            factors[1],
            self.nodes[columns].output(0),
            self.nodes[tail].output(0),
        ] {
            if !self.is_read_only_by(inner, &nodes)? {
                return Ok(None);
            }
        }
        Group::new(
            Work::ShortConv { gate },
            &[
                some!(thirds.input(0)),
                some!(conv.input(1)),
                some!(self.nodes[columns].input(0)),
                some!(starts[0]),
            ],
            &outputs,
            nodes,
        )
        .map(Some)
    }

    /// Whether a slice is one of the second axis to its end, in steps of 1.
    fn goes_to_end(&self, index: usize) -> Result<bool, OrtStatusPtr> {
        let slice = &self.nodes[index];
        let (ends, axes) = (slice.constant_ints(2)?, slice.constant_ints(3)?);
        let is_step_one = !slice.has_input(4) || slice.constant_ints(4)?.as_deref() == Some(&[1]);
        let is_end = matches!(ends.as_deref(), Some(&[end]) if end >= END);
        Ok(is_end && axes.as_deref() == Some(&[1]) && is_step_one)
    }
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
