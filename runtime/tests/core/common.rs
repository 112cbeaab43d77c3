//! Where the test data is, and goldens read from it.

use std::path::{Path, PathBuf};

use ndarray::ArrayD;
use safetensors::{Dtype, SafeTensors};

pub(crate) fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(path)
}

pub(crate) fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(testdata(path)).unwrap()).unwrap()
}

/// A safetensors file of goldens.
pub(crate) struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    pub(crate) fn open(path: &str) -> Self {
        Golden { bytes: std::fs::read(testdata(path)).unwrap() }
    }

    /// A tensor as integers, whatever its integer type.
    pub(crate) fn ints(&self, name: &str) -> ArrayD<i64> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let data = tensor.data();
        let values = match tensor.dtype() {
            Dtype::U8 => data.iter().map(|&b| i64::from(b)).collect(),
            Dtype::I32 => data
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            Dtype::I64 => {
                data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            other => panic!("{name} is {other}"),
        };
        ArrayD::from_shape_vec(tensor.shape(), values).unwrap()
    }

    /// The metadata of the file as one JSON object.
    pub(crate) fn metadata(&self) -> serde_json::Value {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
        serde_json::to_value(metadata.metadata()).unwrap()
    }
}
