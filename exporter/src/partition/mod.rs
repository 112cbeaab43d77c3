//! Which nodes of a graph an execution provider will take, told from its table of operators before
//! anyone has the hardware.

mod shapes;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use lfm2vl_graphs::{Contract, Dtype, Graph, OperatorSupport, Precision, ProviderTable};
use serde::Serialize;
use shapes::Shapes;

use crate::{
    ExportOptions,
    checkpoint::Checkpoint,
    error::ExportError,
    onnx::{DataType, FinishedGraph, GraphProto, NodeProto},
    package,
};

/// What a provider is predicted to take of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Which graph.
    pub graph: Graph,
    /// Its precision.
    pub precision: Precision,
    /// Nodes that it takes.
    pub taken: usize,
    /// Parts of the graph that these make up, for providers that compile what they take. Those that
    /// run node by node, such as CUDA, leave small arithmetic on shapes to the CPU by choice.
    pub partitions: usize,
    /// Nodes that ONNX Runtime computes once, when it loads the graph.
    pub folded: usize,
    /// Nodes that are left to the CPU.
    pub left: Vec<Left>,
    /// Limits of operators that were counted as taken, which the table can say in words only.
    pub notes: BTreeSet<String>,
}

/// Nodes of one operator that a provider does not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The operator, with its domain where that is not the standard one.
    pub operator: String,
    /// How many nodes.
    pub nodes: usize,
    /// Why.
    pub reason: String,
}

/// What the provider of `table` takes of the graphs that `options` ask for. Nothing is written.
///
/// # Errors
/// [`ExportError`] when the checkpoint and the recipe do not go together.
pub fn partitions(
    checkpoint: &Checkpoint,
    options: &ExportOptions,
    table: &ProviderTable,
) -> Result<Vec<Partition>, ExportError> {
    let contract = Contract::builtin(&options.recipe.contract)?;
    let built = package::built(&contract, checkpoint, options)?;
    let built = built.into_iter();
    Ok(built.map(|(graph, precision, model)| partition(graph, precision, &model, table)).collect())
}

fn partition(
    graph: Graph,
    precision: Precision,
    finished: &FinishedGraph,
    table: &ProviderTable,
) -> Partition {
    let nodes = &finished.proto.node;
    let mut values = Values::of(finished);
    let mut verdicts: Vec<Verdict> = nodes.iter().map(|node| values.judge(node, table)).collect();
    let lacks_some = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Left(_)));
    if table.whole_graphs && lacks_some {
        let taken = verdicts.iter_mut().filter(|verdict| **verdict == Verdict::Taken);
        taken.for_each(|verdict| *verdict = Verdict::Left("it takes graphs whole".to_owned()));
    }
    let mut notes = BTreeSet::new();
    let mut left: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (node, verdict) in nodes.iter().zip(&verdicts) {
        if let Verdict::Left(reason) = verdict {
            *left.entry((operator(node), reason.clone())).or_default() += 1;
        }
        let support = table.operators.get(&operator(node)).filter(|_| *verdict == Verdict::Taken);
        let note = support.and_then(|support| support.note.as_ref());
        notes.extend(note.map(|note| format!("{}: {note}", operator(node))));
    }
    let count = |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|v| wanted(v)).count();
    Partition {
        graph,
        precision,
        taken: count(|verdict| *verdict == Verdict::Taken),
        partitions: groups(&finished.proto, &verdicts),
        folded: count(|verdict| *verdict == Verdict::Folded),
        left: left
            .into_iter()
            .map(|((operator, reason), nodes)| Left { operator, nodes, reason })
            .collect(),
        notes,
    }
}

/// The operator of a node, as tables name it.
fn operator(node: &NodeProto) -> String {
    match node.domain.as_str() {
        "" => node.op_type.clone(),
        domain => format!("{domain}:{}", node.op_type),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Taken,
    Left(String),
    /// All of its inputs are constants.
    Folded,
}

/// What is known of the values of a graph.
struct Values {
    types: HashMap<String, DataType>,
    constants: HashSet<String>,
    shapes: Shapes,
}

impl Values {
    fn of(finished: &FinishedGraph) -> Self {
        let shapes = Shapes::of(finished);
        let mut values = Values { types: HashMap::new(), constants: HashSet::new(), shapes };
        for input in &finished.spec.inputs {
            let data_type = match input.dtype {
                Dtype::Float32 => DataType::Float,
                Dtype::Float16 => DataType::Float16,
                Dtype::Int64 => DataType::Int64,
                Dtype::Int32 => DataType::Int32,
                Dtype::Uint8 => DataType::Uint8,
                Dtype::Bool => DataType::Bool,
            };
            values.types.insert(input.name.clone(), data_type);
        }
        for part in finished.weights.iter().flat_map(|weight| &weight.parts) {
            values.types.insert(part.name.clone(), part.data_type);
            values.constants.insert(part.name.clone());
        }
        for constant in &finished.proto.initializer {
            values.types.insert(constant.name.clone(), constant.data_type());
            values.constants.insert(constant.name.clone());
        }
        values
    }

    /// What becomes of a node, whose outputs are known from then on.
    fn judge(&mut self, node: &NodeProto, table: &ProviderTable) -> Verdict {
        let main = self.main_type(node);
        let output = self.output_type(node, main);
        for name in &node.output {
            self.types.insert(name.clone(), output);
        }
        self.shapes.add(node);
        let mut inputs = node.input.iter().filter(|input| !input.is_empty());
        // ONNX Runtime leaves DequantizeLinear for providers that compute with integers.
        let stays = node.op_type == "DequantizeLinear" || branches(node).next().is_some();
        if !stays && inputs.all(|input| self.constants.contains(input)) {
            self.constants.extend(node.output.iter().cloned());
            return Verdict::Folded;
        }
        let Some(support) = table.operators.get(&operator(node)) else {
            return Verdict::Left("the provider does not have it".to_owned());
        };
        let name = type_name(main);
        if !support.types.iter().any(|supported| supported == name) {
            return Verdict::Left(format!("not for {name}"));
        }
        let not_constant = |&&place: &&usize| {
            let input = node.input.get(place).filter(|input| !input.is_empty());
            input.is_some_and(|input| !self.constants.contains(input))
        };
        if let Some(place) = support.constant.iter().find(not_constant) {
            return Verdict::Left(format!("input {place} is no constant"));
        }
        let is_given = |&&place: &&usize| node.input.get(place).is_some_and(|i| !i.is_empty());
        if let Some(place) = support.without.iter().find(is_given) {
            return Verdict::Left(format!("it does not take input {place}"));
        }
        if let Some(reason) = self.unfit_shape(node, support) {
            return Verdict::Left(reason);
        }
        for inner in branches(node).flat_map(|branch| &branch.node) {
            if let Verdict::Left(reason) = self.judge(inner, table) {
                return Verdict::Left(format!("{} in a branch: {reason}", operator(inner)));
            }
        }
        Verdict::Taken
    }

    /// Why the provider does not take a node with these shapes.
    fn unfit_shape(&self, node: &NodeProto, support: &OperatorSupport) -> Option<String> {
        let shape = |name: &String| self.shapes.get(name);
        let ranks = node.input.iter().chain(&node.output).filter_map(shape).map(Vec::len);
        let (rank, most) = (ranks.max().unwrap_or(0), support.max_rank.unwrap_or(usize::MAX));
        if rank > most {
            return Some(format!("rank {rank}, and {most} is the most"));
        }
        let is_known = || {
            let main = node.input.first().and_then(shape);
            main.is_some_and(|sizes| sizes.iter().all(Option::is_some))
        };
        (support.static_input && !is_known()).then(|| "its input has free sizes".to_owned())
    }

    /// The type that tables speak of.
    fn main_type(&self, node: &NodeProto) -> DataType {
        let of = |place: usize| self.types.get(node.input.get(place)?).copied();
        let found = match node.op_type.as_str() {
            "Where" => of(1),
            "If" => branches(node)
                .flat_map(|branch| &branch.output)
                .find_map(|output| output.r#type.as_ref()?.tensor_type.as_ref())
                .and_then(|tensor| DataType::try_from(tensor.elem_type).ok()),
            _ => of(0),
        };
        found.unwrap_or(DataType::Undefined)
    }

    fn output_type(&self, node: &NodeProto, main: DataType) -> DataType {
        let of = |place: usize| self.types.get(node.input.get(place)?).copied();
        let found = match node.op_type.as_str() {
            "Cast" => {
                let to = node.attribute.iter().find(|attribute| attribute.name == "to");
                let to = to.and_then(|attribute| i32::try_from(attribute.i?).ok());
                to.and_then(|to| DataType::try_from(to).ok())
            }
            "Shape" | "NonZero" => Some(DataType::Int64),
            "Equal" | "GreaterOrEqual" | "And" => Some(DataType::Bool),
            "DequantizeLinear" => of(1),
            "GatherBlockQuantized" => of(2),
            _ => Some(main),
        };
        found.unwrap_or(DataType::Undefined)
    }
}

fn branches(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().filter_map(|attribute| attribute.g.as_ref())
}

/// The names of types in the tables.
fn type_name(data_type: DataType) -> &'static str {
    match data_type {
        DataType::Undefined => "an unknown type",
        DataType::Float => "float32",
        DataType::Uint8 => "uint8",
        DataType::Int8 => "int8",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::Bool => "bool",
        DataType::Float16 => "float16",
        DataType::Double => "float64",
        DataType::Bfloat16 => "bfloat16",
        DataType::Uint4 => "uint4",
    }
}

/// How many groups the taken nodes make up. As ONNX Runtime's `CreateSupportedPartitions` does, all
/// nodes that are ready are put into a group before those of the other kind have their turn.
fn groups(graph: &GraphProto, verdicts: &[Verdict]) -> usize {
    let nodes: Vec<usize> =
        (0..graph.node.len()).filter(|&node| verdicts[node] != Verdict::Folded).collect();
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for &node in &nodes {
        producers.extend(graph.node[node].output.iter().map(|output| (output.as_str(), node)));
    }
    let mut consumers = vec![Vec::new(); graph.node.len()];
    let mut waiting = vec![0; graph.node.len()];
    for &node in &nodes {
        let inner = branches(&graph.node[node]).flat_map(|branch| &branch.node);
        let inputs = graph.node[node].input.iter().chain(inner.flat_map(|node| &node.input));
        let before: HashSet<usize> =
            inputs.filter_map(|input| producers.get(input.as_str()).copied()).collect();
        waiting[node] = before.len();
        before.into_iter().for_each(|producer| consumers[producer].push(node));
    }
    let is_taken = |node: usize| usize::from(verdicts[node] == Verdict::Taken);
    let mut ready: [VecDeque<usize>; 2] = Default::default();
    nodes.iter().filter(|&&node| waiting[node] == 0).for_each(|&n| ready[is_taken(n)].push_back(n));
    let (mut groups, mut kind) = (0, 1);
    while !(ready[0].is_empty() && ready[1].is_empty()) {
        groups += usize::from(kind == 1 && !ready[1].is_empty());
        while let Some(node) = ready[kind].pop_front() {
            for &consumer in &consumers[node] {
                waiting[consumer] -= 1;
                if waiting[consumer] == 0 {
                    ready[is_taken(consumer)].push_back(consumer);
                }
            }
        }
        kind = 1 - kind;
    }
    groups
}
