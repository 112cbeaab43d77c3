//! Layers whose weights are integers.

use super::{
    graph::{Attribute, GraphBuilder, Op, Value},
    proto::DataType,
    weight::{Encoding, Part, Stored, Weight},
};
use crate::quantize::{BlockFormat, Packing};

use Attribute::Int;

/// A weight [rows, columns] in blocks, as a node's inputs.
struct Blocks<'g> {
    integers: Value<'g>,
    scales: Value<'g>,
    zero_points: Option<Value<'g>>,
}

impl GraphBuilder {
    /// A stored weight in blocks; `integers` and `zero_points` are the types and shapes that the
    /// operator wants.
    fn blocks(
        &self,
        stored: Stored,
        [rows, columns]: [usize; 2],
        format: BlockFormat,
        integers: (DataType, Vec<usize>),
        zero_points: Option<(DataType, Vec<usize>)>,
    ) -> Blocks<'_> {
        let scale_type = if format.half_scales { DataType::Float16 } else { DataType::Float };
        let scales = (scale_type, vec![rows, format.blocks(columns)]);
        let parts = [Some(integers), Some(scales), zero_points];
        let names = ["quantized", "scales", "zero_points"];
        let parts = names.into_iter().zip(parts).filter_map(|(name, part)| {
            let (data_type, shape) = part?;
            Some(Part { name: format!("{}.{name}", stored.name), data_type, shape })
        });
        let weight = Weight {
            tensors: stored.tensors.clone(),
            encoding: Encoding::Blocks(format),
            parts: parts.collect(),
        };
        let values = self.add_weight(weight);
        Blocks { integers: values[0], scales: values[1], zero_points: values.get(2).copied() }
    }

    /// A stored weight as floats again: with standard operators.
    pub(crate) fn dequantized(
        &self,
        stored: Stored,
        shape: [usize; 2],
        format: BlockFormat,
    ) -> Value<'_> {
        debug_assert_eq!(format.packing, Packing::DEQUANTIZE);
        let [rows, columns] = shape;
        let data_type = if format.bits == 4 { DataType::Uint4 } else { DataType::Uint8 };
        // Without zero points the operator takes them to be 0, so there are always some.
        let zero_points = (data_type, vec![rows, format.blocks(columns)]);
        let integers = (data_type, vec![rows, columns]);
        let blocks = self.blocks(stored, shape, format, integers, Some(zero_points));
        let inputs: Vec<_> =
            [blocks.integers, blocks.scales].into_iter().chain(blocks.zero_points).collect();
        self.node(
            Op::onnx("DequantizeLinear"),
            &inputs,
            &[("axis", Int(1)), ("block_size", Int(format.block_size as i64))],
        )
    }
}

impl<'g> Value<'g> {
    /// `self * weight^T + bias` for self [n, columns] and a stored weight [rows, columns] in
    /// blocks; `int8_inputs` lets the provider compute with 8-bit inputs.
    pub(crate) fn linear_blocks(
        self,
        stored: Stored,
        shape: [usize; 2],
        format: BlockFormat,
        int8_inputs: bool,
        bias: Option<Self>,
    ) -> Self {
        debug_assert_eq!(format.packing, Packing::MATMUL);
        let [rows, columns] = shape;
        let count = format.blocks(columns);
        let integers = (DataType::Uint8, vec![rows, count, format.row_bytes(columns) / count]);
        let zero_points = (DataType::Uint8, vec![rows, format.zero_point_bytes(columns)]);
        let zero_points = (!format.symmetric).then_some(zero_points);
        let blocks = self.graph.blocks(stored, shape, format, integers, zero_points);
        let mut inputs = vec![self, blocks.integers, blocks.scales];
        inputs.extend(blocks.zero_points);
        if let Some(bias) = bias {
            inputs.resize(5, self.graph.omitted());
            inputs.push(bias);
        }
        self.graph.node(
            Op::microsoft("MatMulNBits"),
            &inputs,
            &[
                ("K", Int(columns as i64)),
                ("N", Int(rows as i64)),
                ("bits", Int(format.bits.into())),
                ("block_size", Int(format.block_size as i64)),
                ("accuracy_level", Int(if int8_inputs { 4 } else { 0 })),
            ],
        )
    }

    /// Rows of a stored table [rows, columns] in blocks, by index.
    pub(crate) fn gather_from_blocks(
        self,
        tensor: &str,
        shape: [usize; 2],
        format: BlockFormat,
    ) -> Self {
        let [rows, columns] = shape;
        let integers = (DataType::Uint8, vec![rows, format.row_bytes(columns)]);
        let zero_points = (DataType::Uint8, vec![rows, format.zero_point_bytes(columns)]);
        let zero_points = (!format.symmetric).then_some(zero_points);
        let blocks = self.graph.blocks(tensor.into(), shape, format, integers, zero_points);
        let inputs: Vec<_> =
            [blocks.integers, self, blocks.scales].into_iter().chain(blocks.zero_points).collect();
        self.graph.node(
            Op::microsoft("GatherBlockQuantized"),
            &inputs,
            &[
                ("bits", Int(format.bits.into())),
                ("block_size", Int(format.block_size as i64)),
                ("gather_axis", Int(0)),
                ("quantize_axis", Int(1)),
            ],
        )
    }

    /// `self * weight^T + bias` for self [n, columns] and a stored tensor [rows, columns], both as
    /// 8-bit integers: self with one scale in all, the weight with one for each row.
    pub(crate) fn linear_int8(
        self,
        Stored { name: tensor, tensors }: Stored,
        [rows, columns]: [usize; 2],
        bias: Option<Self>,
    ) -> Self {
        debug_assert_eq!(tensors.len(), 1, "rows are columns here, which do not follow each other");
        let part = |name: &str, data_type, shape| Part {
            name: format!("{tensor}.{name}"),
            data_type,
            shape,
        };
        let weight = Weight {
            tensors,
            encoding: Encoding::Columns,
            parts: vec![
                part("quantized", DataType::Int8, vec![columns, rows]),
                part("scales", DataType::Float, vec![rows]),
            ],
        };
        let mut inputs = vec![self];
        inputs.extend(self.graph.add_weight(weight));
        if let Some(bias) = bias {
            inputs.extend([self.graph.omitted(), bias]);
        }
        self.graph.node(Op::microsoft("DynamicQuantizeMatMul"), &inputs, &[])
    }
}
