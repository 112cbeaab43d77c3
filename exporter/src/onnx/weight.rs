//! Weights of a graph: which stored tensors they are and what they become. Their bytes are moved
//! when the data files are written.

use super::proto::DataType;
use crate::{checkpoint::StoredDtype, quantize::BlockFormat};

/// How the values of a stored tensor are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Encoding {
    /// Converted to float32.
    Float32,
    /// Converted to float16.
    Float16,
    /// Not at all: the graph reads the checkpoint's own file.
    InPlace(StoredDtype),
    /// Integers with a scale for each block of a row.
    Blocks(BlockFormat),
    /// 8-bit integers with a scale for each row, rows as columns.
    Columns,
}

/// What a graph multiplies with: a stored tensor, or several whose rows follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Its name in the graph; the stored tensor's, where it is one.
    pub(crate) name: String,
    /// Canonical names of the stored tensors, which have rows of the same length.
    pub(crate) tensors: Vec<String>,
}

impl From<String> for Stored {
    fn from(tensor: String) -> Self {
        Stored { name: tensor.clone(), tensors: vec![tensor] }
    }
}

impl From<&str> for Stored {
    fn from(tensor: &str) -> Self {
        tensor.to_owned().into()
    }
}

/// Stored tensors and the initializers that they become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Weight {
    /// Canonical names of the stored tensors, one of which follows the other.
    pub(crate) tensors: Vec<String>,
    /// How each is written.
    pub(crate) encoding: Encoding,
    /// One initializer, or integers, scales and zero points.
    pub(crate) parts: Vec<Part>,
}

/// One initializer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its name in the graph.
    pub(crate) name: String,
    /// Its element type.
    pub(crate) data_type: DataType,
    /// Its shape in the graph.
    pub(crate) shape: Vec<usize>,
}

impl Part {
    /// Size of its data.
    pub(crate) fn bytes(&self) -> usize {
        let elements: usize = self.shape.iter().product();
        (elements * self.data_type.bits()).div_ceil(8)
    }
}

impl DataType {
    /// Bits of one element.
    fn bits(self) -> usize {
        match self {
            DataType::Undefined => 0,
            DataType::Uint4 => 4,
            DataType::Uint8 | DataType::Int8 | DataType::Bool => 8,
            DataType::Float16 | DataType::Bfloat16 => 16,
            DataType::Float | DataType::Int32 => 32,
            DataType::Int64 | DataType::Double => 64,
        }
    }
}

impl From<StoredDtype> for DataType {
    fn from(dtype: StoredDtype) -> Self {
        match dtype {
            StoredDtype::Bf16 => DataType::Bfloat16,
            StoredDtype::F16 => DataType::Float16,
            StoredDtype::F32 => DataType::Float,
        }
    }
}
