//! Where the test data is, and ways to change a copy of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ndarray::ArrayD;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

pub(crate) const VARIANTS: [&str; 6] =
    ["conv-bias", "layernorm-tied", "no-layernorm", "old-config", "sharded-f16", "untied"];

pub(crate) fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(path)
}

/// A temporary copy of the files of a checkpoint.
pub(crate) fn copy_of(checkpoint: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(testdata(checkpoint)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

/// The header of a safetensors file and the bytes after it.
pub(crate) fn split(file: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

/// Writes a safetensors file.
pub(crate) fn join(file: &Path, header: &Value, data: &[u8]) {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(file, bytes).unwrap();
}

pub(crate) fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

/// A safetensors file of goldens.
pub(crate) struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    pub(crate) fn open(path: &str) -> Self {
        Golden { bytes: fs::read(testdata(path)).unwrap() }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).is_ok()
    }

    pub(crate) fn floats(&self, name: &str) -> ArrayD<f32> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        let values =
            tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        ArrayD::from_shape_vec(tensor.shape(), values.collect()).unwrap()
    }

    pub(crate) fn ints(&self, name: &str) -> ArrayD<i64> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let data = tensor.data();
        let values: Vec<i64> = match tensor.dtype() {
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
}

/// Largest absolute difference over the golden's largest magnitude, where that exceeds 1.
pub(crate) fn scaled_error<'a>(
    values: impl IntoIterator<Item = &'a f32>,
    golden: impl IntoIterator<Item = &'a f32>,
) -> f32 {
    let (values, golden): (Vec<_>, Vec<_>) =
        (values.into_iter().collect(), golden.into_iter().collect());
    assert_eq!(values.len(), golden.len());
    let scale = golden.iter().fold(1.0_f32, |scale, v| scale.max(v.abs()));
    let errors = values.iter().zip(&golden).map(|(a, b)| (*a - *b).abs());
    errors.fold(0.0, |largest, e| if e <= largest { largest } else { e }) / scale
}
