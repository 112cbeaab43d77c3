//! Weights read back from an exported graph and turned into floats again, by the formulas in the
//! documentation of the operators that use them. It shares no code with the quantizers.

use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use half::f16;
use lfm2vl_graphs::Activations;
use ndarray::Array2;
use prost::Message;
use rayon::prelude::*;

use crate::onnx::{DataType, ModelProto, NodeProto, TensorProto};

/// The quantized weights of one exported graph.
pub(crate) struct ExportedWeights {
    folder: PathBuf,
    initializers: HashMap<String, TensorProto>,
    nodes: Vec<NodeProto>,
}

/// A weight [rows, columns] as its graph has it.
pub(crate) struct ExportedWeight {
    integers: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Option<Vec<u8>>,
    layout: Layout,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

#[derive(Clone, Copy)]
enum Layout {
    /// Whether the rows are padded to whole blocks, and their zero points to whole bytes.
    Blocks { bits: usize, block_size: usize, padded: bool, padded_zero_points: bool },
    /// int8 [columns, rows] with a scale for each row.
    Transposed,
}

impl ExportedWeights {
    /// Reads the `.onnx` file; weights are read when they are wanted.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let model = ModelProto::decode(&*std::fs::read(path)?).map_err(io::Error::other)?;
        let graph = model.graph.unwrap_or_default();
        let initializers = graph.initializer.into_iter().map(|t| (t.name.clone(), t)).collect();
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(ExportedWeights { folder, initializers, nodes: graph.node })
    }

    /// What the inputs of the quantized layers are computed in: the least exact, where layers differ.
    pub(crate) fn activations(&self) -> Activations {
        let is_int8 = |node: &NodeProto| {
            let level = node.attribute.iter().find(|attribute| attribute.name == "accuracy_level");
            level.is_some_and(|level| level.i == Some(4))
        };
        if self.nodes.iter().any(|node| node.op_type == "DynamicQuantizeMatMul") {
            Activations::Tensor
        } else if self.nodes.iter().any(is_int8) {
            Activations::Int8
        } else {
            Activations::Float
        }
    }

    /// The stored tensor `name` [rows, columns], if the graph has it quantized, by itself or in one with
    /// others.
    pub(crate) fn quantized(
        &self,
        name: &str,
        shape: [usize; 2],
    ) -> io::Result<Option<ExportedWeight>> {
        if let Some(weight) = self.whole(name, shape)? {
            return Ok(Some(weight));
        }
        let [rows, columns] = shape;
        let Some((attention, place)) = projection(name) else { return Ok(None) };
        let packed = format!("{attention}.qkv_proj.weight");
        let integers = self.initializers.get(&format!("{packed}.quantized"));
        let Some(all_rows) = integers.and_then(|tensor| tensor.dims.first()) else {
            return Ok(None);
        };
        let all_rows = usize::try_from(*all_rows).unwrap_or(0);
        let first = match place {
            Place::First => 0,
            Place::SecondLast => all_rows.saturating_sub(2 * rows),
            Place::Last => all_rows.saturating_sub(rows),
        };
        let Some(whole) = self.whole(&packed, [all_rows, columns])? else { return Ok(None) };
        let part = whole.part(first..first + rows);
        part.map(Some).ok_or_else(|| io::Error::other(format!("{packed} does not hold {name}")))
    }

    /// What the graph has quantized under this name.
    fn whole(&self, name: &str, [rows, columns]: [usize; 2]) -> io::Result<Option<ExportedWeight>> {
        let quantized = format!("{name}.quantized");
        let Some(integers) = self.initializers.get(&quantized) else { return Ok(None) };
        let node = self.nodes.iter().find(|node| node.input.contains(&quantized));
        let node = node.ok_or_else(|| io::Error::other(format!("nothing uses {quantized}")))?;
        let attribute = |key: &str| -> Option<usize> {
            let attribute = node.attribute.iter().find(|attribute| attribute.name == key)?;
            attribute.i.map(|value| value as usize)
        };
        let block_size = attribute("block_size").unwrap_or_default();
        let layout = match node.op_type.as_str() {
            "DynamicQuantizeMatMul" => Layout::Transposed,
            "DequantizeLinear" => {
                let bits = if integers.data_type == DataType::Uint4 as i32 { 4 } else { 8 };
                Layout::Blocks { bits, block_size, padded: false, padded_zero_points: false }
            }
            operator => {
                let bits = attribute("bits").unwrap_or_default();
                let padded = operator == "MatMulNBits";
                Layout::Blocks { bits, block_size, padded, padded_zero_points: true }
            }
        };
        let scales = self.initializers.get(&format!("{name}.scales"));
        let scales = scales.ok_or_else(|| io::Error::other(format!("{name} has no scales")))?;
        let scale_bytes = self.bytes(scales)?;
        let scales = if scales.data_type == DataType::Float16 as i32 {
            chunks(&scale_bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect()
        } else {
            chunks(&scale_bytes).map(f32::from_le_bytes).collect()
        };
        let zero_points = self.initializers.get(&format!("{name}.zero_points"));
        let zero_points = zero_points.map(|tensor| self.bytes(tensor)).transpose()?;
        let integers = self.bytes(integers)?;
        let weight = ExportedWeight { integers, scales, zero_points, layout, rows, columns };
        if weight.is_whole() {
            Ok(Some(weight))
        } else {
            Err(io::Error::other(format!("{name} does not have the bytes of its shape")))
        }
    }

    fn bytes(&self, tensor: &TensorProto) -> io::Result<Vec<u8>> {
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key);
        let Some(location) = entry("location") else {
            return Ok(tensor.raw_data.clone().unwrap_or_default());
        };
        let number = |key: &str| entry(key).and_then(|e| e.value.parse().ok()).unwrap_or(0_u64);
        let mut file = File::open(self.folder.join(&location.value))?;
        let mut bytes = vec![0; number("length") as usize];
        io::Seek::seek(&mut file, io::SeekFrom::Start(number("offset")))?;
        io::Read::read_exact(&mut file, &mut bytes)?;
        Ok(bytes)
    }
}

/// Where the rows of a projection are among those of all three.
enum Place {
    First,
    /// In front of as many.
    SecondLast,
    Last,
}

/// The attention that a stored tensor is a projection of, and its place.
fn projection(name: &str) -> Option<(&str, Place)> {
    let (attention, projection) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let place = match projection {
        "q_proj" => Place::First,
        "k_proj" => Place::SecondLast,
        "v_proj" => Place::Last,
        _ => return None,
    };
    Some((attention, place))
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.chunks_exact(N).map(|chunk| {
        let mut array = [0; N];
        array.copy_from_slice(chunk);
        array
    })
}

impl ExportedWeight {
    /// A weight from the bytes of integers, float32 scales and zero points, for tests.
    #[cfg(test)]
    pub(crate) fn from_parts(
        parts: Vec<Vec<u8>>,
        format: crate::quantize::BlockFormat,
        [rows, columns]: [usize; 2],
    ) -> Self {
        let (bits, block_size) = (format.bits as usize, format.block_size);
        let layout = Layout::Blocks {
            bits,
            block_size,
            padded: format.packing.pads_rows,
            padded_zero_points: format.packing.pads_zero_points,
        };
        let scales = chunks(&parts[1]).map(f32::from_le_bytes).collect();
        let zero_points = Some(parts[2].clone());
        ExportedWeight { integers: parts[0].clone(), scales, zero_points, layout, rows, columns }
    }

    /// Bits of an integer.
    pub(crate) fn bits(&self) -> u32 {
        match self.layout {
            Layout::Blocks { bits, .. } => bits as u32,
            Layout::Transposed => 8,
        }
    }

    /// Whether there are as many bytes as the shape needs.
    fn is_whole(&self) -> bool {
        let Layout::Blocks { bits, block_size, padded, padded_zero_points } = self.layout else {
            return self.integers.len() == self.rows * self.columns
                && self.scales.len() == self.rows;
        };
        if ![4, 8].contains(&bits) || block_size == 0 {
            return false;
        }
        let blocks = self.columns.div_ceil(block_size);
        let stored = if padded { blocks * block_size } else { self.columns };
        let per_row = zero_points_of_row(blocks, bits, padded_zero_points);
        let bytes = |count: usize| (self.rows * count * bits).div_ceil(8);
        self.integers.len() == bytes(stored)
            && self.scales.len() == self.rows * blocks
            && self.zero_points.as_ref().is_none_or(|points| points.len() == bytes(per_row))
    }

    /// Some of its rows, if these have bytes of their own.
    fn part(&self, rows: Range<usize>) -> Option<Self> {
        let of = |bytes: &[u8]| {
            let of_row = bytes.len().checked_div(self.rows)?;
            let is_whole = of_row * self.rows == bytes.len();
            is_whole.then(|| bytes.get(rows.start * of_row..rows.end * of_row))?.map(<[u8]>::to_vec)
        };
        let blocks = self.scales.len().checked_div(self.rows)?;
        let zero_points = match &self.zero_points {
            Some(points) => Some(of(points)?),
            None => None,
        };
        Some(ExportedWeight {
            integers: of(&self.integers)?,
            scales: self.scales.get(rows.start * blocks..rows.end * blocks)?.to_vec(),
            zero_points,
            layout: self.layout,
            rows: rows.len(),
            columns: self.columns,
        })
    }

    /// Row `row`.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let Layout::Blocks { bits, block_size, padded, padded_zero_points } = self.layout else {
            let integers = self.integers.iter().skip(row).step_by(self.rows);
            return integers.map(|&q| f32::from(q as i8) * self.scales[row]).collect();
        };
        let blocks = self.columns.div_ceil(block_size);
        let integer = |bytes: &[u8], index: usize| match bits {
            4 => (bytes[index / 2] >> (4 * (index % 2))) & 15,
            _ => bytes[index],
        };
        let first = row * if padded { blocks * block_size } else { self.columns };
        let first_zero_point = row * zero_points_of_row(blocks, bits, padded_zero_points);
        (0..self.columns)
            .map(|column| {
                let block = column / block_size;
                let zero_point = self
                    .zero_points
                    .as_ref()
                    .map_or(1 << (bits - 1), |bytes| integer(bytes, first_zero_point + block));
                let quantized = integer(&self.integers, first + column);
                (f32::from(quantized) - f32::from(zero_point)) * self.scales[row * blocks + block]
            })
            .collect()
    }

    /// All values [rows, columns].
    pub(crate) fn matrix(&self) -> Array2<f32> {
        let values = (0..self.rows).into_par_iter().flat_map_iter(|row| self.row(row)).collect();
        Array2::from_shape_vec((self.rows, self.columns), values).unwrap_or_default()
    }
}

/// Zero points that a row has room for.
fn zero_points_of_row(blocks: usize, bits: usize, padded: bool) -> usize {
    if padded { blocks.next_multiple_of(8 / bits) } else { blocks }
}
