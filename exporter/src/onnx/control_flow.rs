//! Parts of a graph that run under a condition or several times.

use super::{
    graph::{Attribute, GraphBuilder, Op, Value},
    proto::{
        DataType, DimensionProto, GraphProto, TensorShapeProto, TensorTypeProto, TypeProto,
        ValueInfoProto,
    },
};

impl GraphBuilder {
    /// What `yes` makes where the scalar `condition` is true, else what `no` makes: tensors of that type.
    /// What else they make cannot be used outside of them.
    pub(crate) fn either<'g>(
        &'g self,
        condition: Value<'g>,
        elem_type: DataType,
        yes: impl FnOnce() -> Value<'g>,
        no: impl FnOnce() -> Value<'g>,
    ) -> Value<'g> {
        let branch = |name: &str, (node, output): (_, String)| {
            let output = vec![value_info(output, elem_type, None)];
            let name = name.to_owned();
            Attribute::Graph(GraphProto { name, node, output, ..GraphProto::default() })
        };
        let branches = [
            ("then_branch", branch("then", self.nodes_of(yes))),
            ("else_branch", branch("else", self.nodes_of(no))),
        ];
        self.node(Op::onnx("If"), &[condition], &branches)
    }

    /// What `body` makes of each slice of `list` and `other` along their first axes, stacked along a new first
    /// axis. Types are those of the two lists and of what is made, whose rank must be told, too.
    pub(crate) fn for_each<'g>(
        &'g self,
        [list, other]: [(Value<'g>, DataType); 2],
        (elem_type, rank): (DataType, usize),
        body: impl FnOnce(Value<'g>, Value<'g>) -> Value<'g>,
    ) -> Value<'g> {
        let names = ["slice", "other_slice"].map(|name| self.path(name));
        let [slice, other_slice] = [&names[0], &names[1]].map(|name| self.named(name));
        let (node, output) = self.nodes_of(|| body(slice, other_slice));
        let [name, other_name] = names;
        let body = GraphProto {
            name: "body".to_owned(),
            node,
            input: vec![value_info(name, list.1, None), value_info(other_name, other.1, None)],
            output: vec![value_info(output, elem_type, Some(rank))],
            ..GraphProto::default()
        };
        let attributes = [("num_scan_inputs", Attribute::Int(2)), ("body", Attribute::Graph(body))];
        self.node(Op::onnx("Scan"), &[list.0, other.0], &attributes)
    }
}

/// A value with sizes that are not known, nor their number where there is no `rank`.
fn value_info(name: String, elem_type: DataType, rank: Option<usize>) -> ValueInfoProto {
    let shape =
        rank.map(|rank| TensorShapeProto { dim: vec![DimensionProto { value: None }; rank] });
    let tensor_type = TensorTypeProto { elem_type: elem_type as i32, shape };
    ValueInfoProto { name, r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}
