//! Building a graph node by node. Values are typed handles; names follow from the module path
//! that is being built, so graph code never handles a string name twice.

use std::{cell::RefCell, collections::HashMap, fmt::Display};

use half::f16;
use lfm2vl_graphs::{Dim, Dtype, GraphSpec, Tensor};

use super::{
    proto::{
        AttributeProto, AttributeType, DataType, DimensionProto, DimensionValue, GraphProto,
        NodeProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
    },
    weight::{Encoding, Part, Stored, Weight},
};
use crate::checkpoint::StoredDtype;

/// What floats are inside a graph.
#[derive(Debug, Clone)]
pub(crate) enum Floats {
    /// float32.
    Single,
    /// float16: weights and activations, but not what needs the accuracy.
    Half,
    /// float32, from weights that stay in the checkpoint's own files as these types.
    InPlace(HashMap<String, StoredDtype>),
}

/// A value in a graph under construction: an input, a weight, a constant or a node's output.
#[derive(Clone, Copy)]
pub(crate) struct Value<'g> {
    pub(super) graph: &'g GraphBuilder,
    id: usize,
}

/// An operator and its domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Op {
    domain: &'static str,
    name: &'static str,
}

impl Op {
    /// An operator of the ONNX standard.
    pub(crate) const fn onnx(name: &'static str) -> Self {
        Op { domain: "", name }
    }

    /// An operator of ONNX Runtime.
    pub(crate) const fn microsoft(name: &'static str) -> Self {
        Op { domain: "com.microsoft", name }
    }
}

/// The value of a node's attribute.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Attribute {
    /// One integer.
    Int(i64),
    /// One float.
    Float(f32),
    /// Integers.
    Ints(Vec<i64>),
    /// Text.
    Text(&'static str),
    /// A branch.
    Graph(GraphProto),
}

/// Collects the nodes, weights and constants of one graph.
pub(crate) struct GraphBuilder {
    spec: GraphSpec,
    floats: Floats,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Name of each value; empty for an omitted optional input.
    values: Vec<String>,
    nodes: Vec<NodeProto>,
    weights: Vec<Weight>,
    constants: Vec<TensorProto>,
    known: HashMap<String, usize>,
    scope: Vec<String>,
    node_names: HashMap<String, usize>,
    /// Outputs besides those of the contract.
    extra_outputs: Vec<Tensor>,
    /// Modules and what they are given, where that is recorded.
    taps: Option<Vec<(String, usize)>>,
}

/// An output that linear layers are given, and the modules that are.
pub(crate) struct Tap {
    pub(crate) output: String,
    pub(crate) modules: Vec<String>,
}

/// What a finished [`GraphBuilder`] holds.
pub(crate) struct FinishedGraph {
    /// Its inputs and outputs.
    pub(crate) spec: GraphSpec,
    /// The graph, with constants but without weights.
    pub(crate) proto: GraphProto,
    /// The weights in order of first use.
    pub(crate) weights: Vec<Weight>,
    /// Whether a node of `com.microsoft` is used.
    pub(crate) uses_microsoft: bool,
}

/// Leaves a module's scope when dropped.
pub(crate) struct Scope<'g>(&'g GraphBuilder);

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().scope.pop();
    }
}

impl State {
    /// A node with names of its own for itself and its outputs.
    fn new_node(
        &mut self,
        op: Op,
        inputs: &[Value<'_>],
        outputs: usize,
        attributes: &[(&'static str, Attribute)],
    ) -> NodeProto {
        let mut name = self.scope.iter().fold(String::new(), |path, s| path + "/" + s);
        name = name + "/" + op.name;
        let count = self.node_names.entry(name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            name = format!("{name}_{count}");
        }
        NodeProto {
            input: inputs.iter().map(|v| self.values[v.id].clone()).collect(),
            output: (0..outputs).map(|i| format!("{name}/output_{i}")).collect(),
            name,
            op_type: op.name.to_owned(),
            domain: op.domain.to_owned(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
        }
    }
}

impl GraphBuilder {
    /// A graph with the inputs of `spec`.
    pub(crate) fn new(spec: GraphSpec, floats: Floats) -> Self {
        let builder = GraphBuilder { spec, floats, state: RefCell::default() };
        for input in &builder.spec.inputs {
            builder.named(&input.name);
        }
        builder
    }

    /// The input named `name` of the contract.
    ///
    /// # Panics
    /// When the contract has no such input: that is a mistake in the graph code.
    pub(crate) fn input(&self, name: &str) -> Value<'_> {
        assert!(self.has_input(name), "no input {name}");
        self.named(name)
    }

    /// The input named `name`, where the contract has it.
    pub(crate) fn find_input(&self, name: &str) -> Option<Value<'_>> {
        self.has_input(name).then(|| self.named(name))
    }

    fn has_input(&self, name: &str) -> bool {
        self.spec.inputs.iter().any(|t| t.name == name)
    }

    /// The size of one axis of an input or output, where the contract fixes it.
    pub(crate) fn fixed_size(&self, name: &str, axis: usize) -> Option<usize> {
        let mut tensors = self.spec.inputs.iter().chain(&self.spec.outputs);
        match tensors.find(|t| t.name == name)?.shape.get(axis)? {
            Dim::Fixed(size) => Some(*size),
            Dim::Free(_) => None,
        }
    }

    /// Declares `value` to be the output `name` of the contract.
    pub(crate) fn output(&self, name: &str, value: Value<'_>) {
        assert!(self.spec.outputs.iter().any(|t| t.name == name), "no output {name}");
        self.rename(name, value);
    }

    fn rename(&self, name: &str, value: Value<'_>) {
        let mut state = self.state.borrow_mut();
        let old = std::mem::replace(&mut state.values[value.id], name.to_owned());
        rename_in(&mut state.nodes, &old, name);
    }

    /// Declares an output that no contract has.
    pub(crate) fn extra_output(&self, name: &str, value: Value<'_>, rank: usize) {
        let shape = (0..rank).map(|axis| Dim::Free(format!("{name}.{axis}"))).collect();
        let tensor = Tensor { name: name.to_owned(), dtype: Dtype::Float32, shape };
        self.state.borrow_mut().extra_outputs.push(tensor);
        self.rename(name, value);
    }

    /// From here on, what each linear layer is given is remembered.
    pub(crate) fn record_taps(&self) {
        self.state.borrow_mut().taps = Some(Vec::new());
    }

    /// Remembers what `module` is given, if that is recorded.
    pub(crate) fn tap(&self, module: &str, value: Value<'_>) {
        if let Some(taps) = &mut self.state.borrow_mut().taps {
            taps.push((module.to_owned(), value.id));
        }
    }

    /// Makes every distinct value of the taps an output.
    pub(crate) fn output_taps(&self) -> Vec<Tap> {
        let taps = self.state.borrow_mut().taps.take().unwrap_or_default();
        let mut outputs: Vec<(usize, Vec<String>)> = Vec::new();
        for (module, id) in taps {
            match outputs.iter_mut().find(|(known, _)| *known == id) {
                Some((_, modules)) => modules.push(module),
                None => outputs.push((id, vec![module])),
            }
        }
        outputs
            .into_iter()
            .enumerate()
            .map(|(index, (id, modules))| {
                let output = format!("tap.{index}");
                self.extra_output(&output, Value { graph: self, id }, 2);
                Tap { output, modules }
            })
            .collect()
    }

    /// Enters the module `name`: what is built until the guard is dropped is named under it.
    #[must_use]
    pub(crate) fn enter(&self, name: impl Display) -> Scope<'_> {
        self.state.borrow_mut().scope.push(name.to_string());
        Scope(self)
    }

    /// Whether floats inside the graph are float16.
    pub(crate) fn is_half(&self) -> bool {
        matches!(self.floats, Floats::Half)
    }

    /// The name of `name` in the current module.
    pub(crate) fn path(&self, name: &str) -> String {
        let state = self.state.borrow();
        state.scope.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
    }

    /// The stored tensor `name` of the current module (`weight`, say), in the given shape, as the
    /// graph's floats.
    pub(crate) fn weight(&self, name: &str, shape: &[usize]) -> Value<'_> {
        self.stored(self.path(name), shape)
    }

    /// A stored weight by its whole canonical name.
    pub(crate) fn stored(&self, stored: impl Into<Stored>, shape: &[usize]) -> Value<'_> {
        let Stored { name, tensors } = stored.into();
        let (encoding, data_type) = match &self.floats {
            Floats::Single => (Encoding::Float32, DataType::Float),
            Floats::Half => (Encoding::Float16, DataType::Float16),
            Floats::InPlace(types) => {
                let dtype = types.get(&name).copied().unwrap_or(StoredDtype::F32);
                (Encoding::InPlace(dtype), dtype.into())
            }
        };
        let part = Part { name, data_type, shape: shape.to_vec() };
        let value = self.add_weight(Weight { tensors, encoding, parts: vec![part] })[0];
        match (encoding, data_type) {
            (Encoding::InPlace(_), DataType::Bfloat16 | DataType::Float16) => value.to_f32(),
            _ => value,
        }
    }

    /// A stored tensor in any encoding: the values of its parts.
    pub(super) fn add_weight(&self, weight: Weight) -> Vec<Value<'_>> {
        let known = self.state.borrow().known.contains_key(&weight.parts[0].name);
        let values = weight.parts.iter().map(|part| self.named(&part.name)).collect();
        if !known {
            self.state.borrow_mut().weights.push(weight);
        }
        values
    }

    /// A constant int64 tensor.
    pub(crate) fn ints(&self, values: &[i64], shape: &[usize]) -> Value<'_> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(format!("int64.{shape:?}.{values:?}"), DataType::Int64, shape, bytes)
    }

    /// A constant int64 vector.
    pub(crate) fn int_vector(&self, values: &[i64]) -> Value<'_> {
        self.ints(values, &[values.len()])
    }

    /// The constant integers `0..end`.
    pub(crate) fn counting(&self, end: usize) -> Value<'_> {
        let values: Vec<i64> = (0..end as i64).collect();
        self.int_vector(&values)
    }

    /// A constant float32 scalar.
    pub(crate) fn float(&self, value: f32) -> Value<'_> {
        self.floats(&[value], &[])
    }

    /// A constant float32 tensor.
    pub(crate) fn floats(&self, values: &[f32], shape: &[usize]) -> Value<'_> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(format!("float32.{shape:?}.{values:?}"), DataType::Float, shape, bytes)
    }

    /// A constant `name` of the current module, in the graph's floats.
    pub(crate) fn table(&self, name: &str, values: &[f32], shape: &[usize]) -> Value<'_> {
        let bytes = match self.float_type() {
            DataType::Float16 => {
                values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
            }
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        self.constant(self.path(name), self.float_type(), shape, bytes)
    }

    /// A constant float64 scalar.
    pub(crate) fn double(&self, value: f64) -> Value<'_> {
        self.doubles(&[value], &[])
    }

    /// A constant float64 tensor.
    pub(crate) fn doubles(&self, values: &[f64], shape: &[usize]) -> Value<'_> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(format!("float64.{shape:?}.{values:?}"), DataType::Double, shape, bytes)
    }

    /// A constant uint8 scalar.
    pub(crate) fn byte(&self, value: u8) -> Value<'_> {
        self.constant(format!("uint8.{value}"), DataType::Uint8, &[], vec![value])
    }

    /// An int64 vector of int64 scalars.
    pub(crate) fn vector<'g>(&'g self, scalars: &[Value<'g>]) -> Value<'g> {
        let elements: Vec<_> = scalars.iter().map(|scalar| scalar.unsqueeze(&[0])).collect();
        elements[0].concat(&elements[1..], 0)
    }

    /// An int64 scalar: the input named `name`, which may be left out, or a constant where the contract
    /// has no such input.
    pub(crate) fn int_or(&self, name: &str, default: i64) -> Value<'_> {
        let input = self.input_or(name, DataType::Int64, default.to_le_bytes().to_vec());
        input.unwrap_or_else(|| self.ints(&[default], &[]))
    }

    /// A bool as an int64 scalar of 0 or 1: the input named `name`, which may be left out, or a constant
    /// where the contract has no such input.
    pub(crate) fn flag_or(&self, name: &str, default: bool) -> Value<'_> {
        let input = self.input_or(name, DataType::Bool, vec![default.into()]);
        input.map_or_else(|| self.ints(&[default.into()], &[]), Value::to_i64)
    }

    /// A scalar input that is what its initializer says where it is left out.
    fn input_or(&self, name: &str, data_type: DataType, default: Vec<u8>) -> Option<Value<'_>> {
        let input = self.find_input(name)?;
        self.state.borrow_mut().constants.push(TensorProto {
            data_type: data_type as i32,
            name: name.to_owned(),
            raw_data: Some(default),
            ..TensorProto::default()
        });
        Some(input)
    }

    fn constant(
        &self,
        content: String,
        data_type: DataType,
        shape: &[usize],
        bytes: Vec<u8>,
    ) -> Value<'_> {
        let known = self.state.borrow().known.get(&content).copied();
        let id = known.unwrap_or_else(|| {
            let mut state = self.state.borrow_mut();
            let name = format!("constants.{}", state.constants.len());
            state.constants.push(TensorProto {
                dims: shape.iter().map(|&d| d as i64).collect(),
                data_type: data_type as i32,
                name: name.clone(),
                raw_data: Some(bytes),
                ..TensorProto::default()
            });
            state.values.push(name);
            let id = state.values.len() - 1;
            state.known.insert(content, id);
            id
        });
        Value { graph: self, id }
    }

    /// An optional input that is left out.
    pub(crate) fn omitted(&self) -> Value<'_> {
        self.named("")
    }

    /// Adds a node with one output.
    pub(crate) fn node(
        &self,
        op: Op,
        inputs: &[Value<'_>],
        attributes: &[(&'static str, Attribute)],
    ) -> Value<'_> {
        let [output] = self.node_with_outputs(op, inputs, attributes);
        output
    }

    /// Adds a node with `N` outputs.
    pub(crate) fn node_with_outputs<const N: usize>(
        &self,
        op: Op,
        inputs: &[Value<'_>],
        attributes: &[(&'static str, Attribute)],
    ) -> [Value<'_>; N] {
        let mut state = self.state.borrow_mut();
        let node = state.new_node(op, inputs, N, attributes);
        let first = state.values.len();
        state.values.extend_from_slice(&node.output);
        state.nodes.push(node);
        std::array::from_fn(|i| Value { graph: self, id: first + i })
    }

    /// The type of the graph's floats.
    pub(crate) fn float_type(&self) -> DataType {
        if self.is_half() { DataType::Float16 } else { DataType::Float }
    }

    /// What `make` adds: its nodes, which are taken out of the graph, and the name of its value.
    pub(super) fn nodes_of<'g>(
        &'g self,
        make: impl FnOnce() -> Value<'g>,
    ) -> (Vec<NodeProto>, String) {
        let before = self.state.borrow().nodes.len();
        let value = make();
        let mut state = self.state.borrow_mut();
        (state.nodes.split_off(before), state.values[value.id].clone())
    }

    /// The value of that name, made if new.
    pub(super) fn named(&self, name: &str) -> Value<'_> {
        let mut state = self.state.borrow_mut();
        let id = state.known.get(name).copied().unwrap_or_else(|| {
            state.values.push(name.to_owned());
            let id = state.values.len() - 1;
            state.known.insert(name.to_owned(), id);
            id
        });
        Value { graph: self, id }
    }

    /// The finished graph. Every output of the contract must have been declared.
    pub(crate) fn finish(self) -> FinishedGraph {
        let state = self.state.into_inner();
        let mut spec = self.spec;
        spec.outputs.extend(state.extra_outputs);
        for output in &spec.outputs {
            assert!(
                state.nodes.iter().any(|n| n.output.contains(&output.name)),
                "output {} was not built",
                output.name
            );
        }
        let uses_microsoft = any_node(&state.nodes, &|node| node.domain == "com.microsoft");
        let (nodes, mut constants) = (state.nodes, state.constants);
        // ONNX Runtime warns of those that nothing uses.
        constants.retain(|constant| any_node(&nodes, &|node| node.input.contains(&constant.name)));
        let proto = GraphProto {
            node: nodes,
            name: spec.graph.name().to_owned(),
            initializer: constants,
            input: spec.inputs.iter().map(value_info).collect(),
            output: spec.outputs.iter().map(value_info).collect(),
        };
        FinishedGraph { spec, proto, weights: state.weights, uses_microsoft }
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    match value {
        Attribute::Int(i) => {
            proto.i = Some(*i);
            proto.set_type(AttributeType::Int);
        }
        Attribute::Float(f) => {
            proto.f = Some(*f);
            proto.set_type(AttributeType::Float);
        }
        Attribute::Ints(ints) => {
            proto.ints.clone_from(ints);
            proto.set_type(AttributeType::Ints);
        }
        Attribute::Text(s) => {
            proto.s = Some(s.as_bytes().to_vec());
            proto.set_type(AttributeType::String);
        }
        Attribute::Graph(graph) => {
            proto.g = Some(graph.clone());
            proto.set_type(AttributeType::Graph);
        }
    }
    proto
}

/// Renames a value wherever nodes and their branches use it.
fn rename_in(nodes: &mut [NodeProto], old: &str, new: &str) {
    for node in nodes {
        for used in node.input.iter_mut().chain(&mut node.output).filter(|used| *used == old) {
            new.clone_into(used);
        }
        for branch in node.attribute.iter_mut().filter_map(|a| a.g.as_mut()) {
            rename_in(&mut branch.node, old, new);
        }
    }
}

/// Whether one of the nodes and those of their branches is such a node.
fn any_node(nodes: &[NodeProto], is_such: &dyn Fn(&NodeProto) -> bool) -> bool {
    nodes.iter().any(|node| {
        let mut branches = node.attribute.iter().filter_map(|a| a.g.as_ref());
        is_such(node) || branches.any(|branch| any_node(&branch.node, is_such))
    })
}

impl FinishedGraph {
    /// The oldest ONNX Runtime that loads the graph, of those that were tried: the first that knows its
    /// operators, with these types.
    pub(crate) fn oldest_onnxruntime(&self) -> &'static str {
        let uses = |operators: &[&str]| {
            any_node(&self.proto.node, &|node| operators.contains(&node.op_type.as_str()))
        };
        if uses(&["CausalConvWithState"]) {
            return "1.30";
        }
        if uses(&["GatherBlockQuantized", "MatMulNBits"]) { "1.23" } else { "1.20" }
    }
}

fn value_info(tensor: &lfm2vl_graphs::Tensor) -> ValueInfoProto {
    let dim = tensor
        .shape
        .iter()
        .map(|d| DimensionProto {
            value: Some(match d {
                Dim::Fixed(n) => DimensionValue::Value(*n as i64),
                Dim::Free(name) => DimensionValue::Param(name.clone()),
            }),
        })
        .collect();
    let elem_type = match tensor.dtype {
        Dtype::Float32 => DataType::Float,
        Dtype::Float16 => DataType::Float16,
        Dtype::Int64 => DataType::Int64,
        Dtype::Int32 => DataType::Int32,
        Dtype::Uint8 => DataType::Uint8,
        Dtype::Bool => DataType::Bool,
    };
    ValueInfoProto {
        name: tensor.name.clone(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: elem_type as i32,
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    }
}
