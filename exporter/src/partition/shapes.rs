//! Shapes of the values in a graph, as far as they follow from the shapes of its inputs. The rules are
//! those of the ONNX operators' documentation.

use std::{collections::HashMap, iter::repeat_n};

use lfm2vl_graphs::Dim;

use crate::onnx::{AttributeProto, DataType, FinishedGraph, NodeProto};

/// Sizes of a value's dimensions, where they are known.
pub(super) type Shape = Vec<Option<usize>>;

/// What is known of values' shapes.
#[derive(Default)]
pub(super) struct Shapes {
    shapes: HashMap<String, Shape>,
    /// Values of constant integer vectors and scalars, which other shapes depend on.
    ints: HashMap<String, Vec<i64>>,
}

impl Shapes {
    pub(super) fn of(finished: &FinishedGraph) -> Self {
        let mut known = Shapes::default();
        for input in &finished.spec.inputs {
            let size = |dim: &Dim| match dim {
                Dim::Fixed(size) => Some(*size),
                Dim::Free(_) => None,
            };
            known.shapes.insert(input.name.clone(), input.shape.iter().map(size).collect());
        }
        for part in finished.weights.iter().flat_map(|weight| &weight.parts) {
            let shape = part.shape.iter().map(|&size| Some(size)).collect();
            known.shapes.insert(part.name.clone(), shape);
        }
        for constant in &finished.proto.initializer {
            let shape = constant.dims.iter().map(|&size| usize::try_from(size).ok()).collect();
            known.shapes.insert(constant.name.clone(), shape);
            if let (DataType::Int64, Some(bytes)) = (constant.data_type(), &constant.raw_data) {
                let values = bytes.as_chunks().0.iter().map(|&value| i64::from_le_bytes(value));
                known.ints.insert(constant.name.clone(), values.collect());
            }
        }
        known
    }

    pub(super) fn get(&self, name: &str) -> Option<&Shape> {
        self.shapes.get(name)
    }

    /// Adds the outputs of a node whose inputs have been added.
    pub(super) fn add(&mut self, node: &NodeProto) {
        for (place, name) in node.output.iter().enumerate() {
            if let Some(shape) = self.output(node, place) {
                self.shapes.insert(name.clone(), shape);
            }
        }
    }

    fn output(&self, node: &NodeProto, place: usize) -> Option<Shape> {
        let input = |place: usize| self.shapes.get(node.input.get(place)?).cloned();
        let ints = |place: usize| self.ints.get(node.input.get(place)?);
        let int = |name: &str| attribute(node, name).and_then(|attribute| attribute.i);
        if !node.domain.is_empty() {
            return None;
        }
        match node.op_type.as_str() {
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "And" | "Equal"
            | "GreaterOrEqual" => broadcast(&input(0)?, &input(1)?),
            "MatMul" => {
                let (left, right) = (input(0)?, input(1)?);
                let (batch, [rows, _]) = left.split_last_chunk()?;
                let (other, [_, columns]) = right.split_last_chunk()?;
                Some([broadcast(batch, other)?, vec![*rows, *columns]].concat())
            }
            "Gemm" => {
                let transposed = int("transB") == Some(1);
                let columns = *input(1)?.get(usize::from(!transposed))?;
                Some(vec![*input(0)?.first()?, columns])
            }
            "Conv" => {
                let (mut shape, weight) = (input(0)?, input(1)?);
                *shape.get_mut(1)? = *weight.first()?;
                for (size, kernel) in shape.iter_mut().zip(&weight).skip(2) {
                    *size =
                        size.zip(*kernel).map(|(size, kernel)| (size + 1).saturating_sub(kernel));
                }
                Some(shape)
            }
            "Gather" => {
                let (data, indices) = (input(0)?, input(1)?);
                let axis = axis(int("axis").unwrap_or(0), data.len())?;
                let (before, after) = data.split_at_checked(axis)?;
                Some([before, &indices, after.get(1..)?].concat())
            }
            "Transpose" => {
                let shape = input(0)?;
                let order = &attribute(node, "perm")?.ints;
                order.iter().map(|&from| shape.get(usize::try_from(from).ok()?).copied()).collect()
            }
            "Concat" => {
                let mut shape = input(0)?;
                let axis = axis(int("axis")?, shape.len())?;
                let sizes = (0..node.input.len()).map(|place| input(place)?.get(axis).copied()?);
                *shape.get_mut(axis)? = sizes.sum();
                Some(shape)
            }
            "Split" => {
                let mut shape = input(0)?;
                let axis = axis(int("axis").unwrap_or(0), shape.len())?;
                let size = shape.get_mut(axis)?;
                *size = match ints(1) {
                    Some(sizes) => usize::try_from(*sizes.get(place)?).ok(),
                    None => size.map(|size| size / node.output.len()),
                };
                Some(shape)
            }
            "Slice" => {
                let (mut shape, axes) = (input(0)?, ints(3)?);
                let (starts, ends) = (ints(1), ints(2));
                for (index, &of) in axes.iter().enumerate() {
                    let size = shape.len();
                    let size = shape.get_mut(axis(of, size)?)?;
                    let bounds = starts.zip(ends);
                    *size = size.zip(bounds).and_then(|(size, (starts, ends))| {
                        let clamp = |bound: i64| {
                            let size = i64::try_from(size).ok()?;
                            let bound = if bound < 0 { bound + size } else { bound };
                            usize::try_from(bound.clamp(0, size)).ok()
                        };
                        clamp(*ends.get(index)?)?.checked_sub(clamp(*starts.get(index)?)?)
                    });
                }
                Some(shape)
            }
            "Reshape" => {
                let (from, Some(to)) = (input(0)?, ints(1)) else {
                    // Its rank at least is known.
                    return Some(vec![None; (*input(1)?.first()?)?]);
                };
                let kept = |(index, &size): (usize, &i64)| match size {
                    0 => from.get(index).copied().flatten(),
                    size => usize::try_from(size).ok(),
                };
                let mut shape: Shape = to.iter().enumerate().map(kept).collect();
                let all = product(&from);
                if let Some(rest) = to.iter().position(|&size| size == -1) {
                    let others = shape.iter().enumerate().filter(|(index, _)| *index != rest);
                    let others = product(&others.map(|(_, size)| *size).collect::<Shape>());
                    shape[rest] = all.zip(others).and_then(|(all, rest)| all.checked_div(rest));
                }
                Some(shape)
            }
            "Unsqueeze" => {
                let (mut shape, axes) = (input(0)?, ints(1)?);
                let rank = shape.len() + axes.len();
                let mut axes: Vec<usize> =
                    axes.iter().map(|&of| axis(of, rank)).collect::<Option<_>>()?;
                axes.sort_unstable();
                axes.into_iter().for_each(|axis| shape.insert(axis, Some(1)));
                Some(shape)
            }
            "Squeeze" => {
                let (shape, axes) = (input(0)?, ints(1)?);
                let gone: Vec<usize> =
                    axes.iter().map(|&of| axis(of, shape.len())).collect::<Option<_>>()?;
                let left = shape.iter().enumerate().filter(|(index, _)| !gone.contains(index));
                Some(left.map(|(_, size)| *size).collect())
            }
            "ReduceMean" | "ReduceSum" | "ReduceMin" => {
                let mut shape = input(0)?;
                let rank = shape.len();
                let axes: Vec<usize> = match ints(1) {
                    Some(axes) => axes.iter().map(|&of| axis(of, rank)).collect::<Option<_>>()?,
                    None => (0..rank).collect(),
                };
                if int("keepdims") == Some(0) {
                    return Some(vec![None; rank - axes.len()]);
                }
                axes.into_iter().for_each(|axis| shape[axis] = Some(1));
                Some(shape)
            }
            "Shape" => {
                let rank = input(0)?.len();
                let bound = |name, default| int(name).map_or(Some(default), |at| axis(at, rank));
                let (start, end) = (bound("start", 0)?, bound("end", rank)?.min(rank));
                Some(vec![end.checked_sub(start)])
            }
            "TopK" => {
                let (mut shape, count) = (input(0)?, ints(1)?.first()?);
                let rank = shape.len();
                *shape.get_mut(axis(int("axis").unwrap_or(-1), rank)?)? =
                    usize::try_from(*count).ok();
                Some(shape)
            }
            "Range" => Some(vec![None]),
            "NonZero" => Some(vec![Some(input(0)?.len()), None]),
            "Identity" | "Cast" | "Sqrt" | "Cos" | "Sin" | "Erf" | "Sigmoid" | "Gelu"
            | "Softmax" | "LayerNormalization" | "ScatterND" | "DequantizeLinear" => input(0),
            _ => None,
        }
    }
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

/// An axis counted from the start.
fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()
}

fn product(shape: &[Option<usize>]) -> Option<usize> {
    shape.iter().copied().product()
}

/// The shape of an element-wise result.
fn broadcast(a: &[Option<usize>], b: &[Option<usize>]) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let padded = |shape: &[Option<usize>]| -> Shape {
        repeat_n(Some(1), rank - shape.len()).chain(shape.iter().copied()).collect()
    };
    let sizes = padded(a).into_iter().zip(padded(b));
    Some(
        sizes
            .map(|sizes| match sizes {
                (Some(1), other) | (other, Some(1)) => other,
                (Some(a), _) | (_, Some(a)) => Some(a),
                (None, None) => None,
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::{
        ops::ControlFlow,
        path::{Path, PathBuf},
        process::Command,
    };

    use lfm2vl_graphs::{Contract, Precision, Recipe};

    use super::*;
    use crate::{ExportOptions, checkpoint::Checkpoint, export, package};

    /// Shapes as ONNX's own shape inference knows them, of each graph.
    fn inferred(files: &[PathBuf]) -> Vec<HashMap<String, Shape>> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut script = Command::new("python3");
        script.arg(project.join("tests/python/shapes.py")).args(files);
        if std::env::var_os("PYTHONPATH").is_none() {
            script.env("PYTHONPATH", project.join(".python"));
        }
        let output = script.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`cargo xtask test` sets Python up: {message}");
        let graphs = std::str::from_utf8(&output.stdout).unwrap().lines();
        graphs.map(|graph| serde_json::from_str(graph).unwrap()).collect()
    }

    #[test]
    fn shapes_are_those_of_onnx() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let checkpoint = Checkpoint::open(&project.join("testdata/tiny-shapes")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for name in ["portable", "tensorrt", "coreml", "directml"] {
            let options = ExportOptions {
                precisions: vec![Precision::Fp32, Precision::Fp16, Precision::Q4],
                ..ExportOptions::new(Recipe::builtin(name).unwrap())
            };
            let out = folder.path().join(name);
            let mut go_on = |_| ControlFlow::Continue(());
            export(&checkpoint, &out, &options, &mut go_on).unwrap().publish().unwrap();
            let contract = Contract::builtin(&options.recipe.contract).unwrap();
            let built = package::built(&contract, &checkpoint, &options).unwrap();
            let files: Vec<PathBuf> = built
                .iter()
                .map(|(graph, precision, _)| {
                    out.join(format!("onnx/{graph}{}.onnx", precision.suffix()))
                })
                .collect();
            let inferred = inferred(&files);
            assert_eq!(inferred.len(), built.len());
            for ((graph, precision, finished), all) in built.into_iter().zip(inferred) {
                let mut ours = Shapes::of(&finished);
                finished.proto.node.iter().for_each(|node| ours.add(node));
                assert!(all.len() >= finished.proto.node.len(), "{name} {graph}");
                for (value, shape) in all {
                    let what = format!("{name} {graph} {precision} {value}");
                    let known = ours.get(&value).unwrap_or_else(|| panic!("{what} is not known"));
                    assert_eq!(known.len(), shape.len(), "{what}");
                    for (ours, theirs) in known.iter().zip(&shape) {
                        // A size that is not known is never wrong, but where all are fixed it is missed.
                        let fits =
                            ours == theirs || (ours.is_none() && options.recipe.sizes.is_none());
                        assert!(fits || theirs.is_none(), "{what}: {known:?} and not {shape:?}");
                    }
                }
            }
        }
    }
}
