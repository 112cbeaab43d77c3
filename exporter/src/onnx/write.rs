//! Writing a model: the `.onnx` file, and its weights beside it in one external-data file.

use std::{
    fs::File,
    io::{self, Write},
    ops::ControlFlow,
    path::Path,
    sync::mpsc,
    thread,
};

use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    graph::{FinishedGraph, GraphBuilder, Weight},
    proto::{
        DataLocation, DataType, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    },
};
use crate::{checkpoint::Checkpoint, error::ExportError};

/// ONNX IR version; the first with opset 21.
const IR_VERSION: i64 = 10;
const OPSET: i64 = 21;
const MICROSOFT_OPSET: i64 = 1;

/// Weights of this many bytes and more go into the external-data file.
const EXTERNAL_FROM: usize = 1024;
/// Weights of this many bytes and more start on a page, so that readers can map them.
const PAGE: u64 = 4096;
/// Smaller ones start on a cache line.
const LINE: u64 = 64;
/// Elements converted at a time.
const CHUNK: usize = 1 << 20;

/// One file that was written.
pub(crate) struct WrittenFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// The files of one model: the `.onnx` file first.
pub(crate) struct WrittenModel {
    pub(crate) files: Vec<WrittenFile>,
}

/// Writes `STEM.onnx` and, if it has large weights, `STEM.onnx_data` into `dir`.
///
/// `on_bytes` is told of every run of bytes written, and may stop the export.
pub(crate) fn write_model(
    builder: GraphBuilder,
    checkpoint: &Checkpoint,
    dir: &Path,
    stem: &str,
    metadata: &[(String, String)],
    on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<WrittenModel, ExportError> {
    let FinishedGraph { mut proto, weights, uses_microsoft } = builder.finish();
    let data_name = format!("{stem}.onnx_data");
    let (large, small): (Vec<Weight>, Vec<Weight>) =
        weights.into_iter().partition(|w| size_in_bytes(w) >= EXTERNAL_FROM);

    for weight in &small {
        let mut values = vec![0.0; elements(weight)];
        checkpoint.read(&weight.tensor, 0..values.len(), &mut values)?;
        proto.initializer.push(TensorProto {
            raw_data: Some(little_endian(&values).to_vec()),
            ..initializer(weight)
        });
    }

    let mut files = Vec::new();
    if !large.is_empty() {
        let path = dir.join(&data_name);
        let write_error = |source| ExportError::Write { path: path.clone(), source };
        let mut data = HashedFile::create(&path).map_err(write_error)?;
        let mut values = vec![0.0; CHUNK];
        for weight in &large {
            let length = size_in_bytes(weight);
            data.align(if length as u64 >= PAGE { PAGE } else { LINE }).map_err(write_error)?;
            proto.initializer.push(external(weight, &data_name, data.position, length));
            let count = elements(weight);
            for start in (0..count).step_by(CHUNK) {
                let end = count.min(start + CHUNK);
                let chunk = &mut values[..end - start];
                checkpoint.read(&weight.tensor, start..end, chunk)?;
                let bytes = little_endian(chunk);
                data.write(bytes).map_err(write_error)?;
                if on_bytes(bytes.len() as u64).is_break() {
                    return Err(ExportError::Interrupted);
                }
            }
        }
        let (bytes, sha256) = data.finish().map_err(write_error)?;
        files.push(WrittenFile { name: data_name, bytes, sha256 });
    }

    let mut opset_import = vec![OperatorSetIdProto { domain: String::new(), version: OPSET }];
    if uses_microsoft {
        let domain = "com.microsoft".to_owned();
        opset_import.push(OperatorSetIdProto { domain, version: MICROSOFT_OPSET });
    }
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "lfm2vl-export".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(proto),
        opset_import,
        metadata_props: metadata
            .iter()
            .map(|(key, value)| StringStringEntryProto { key: key.clone(), value: value.clone() })
            .collect(),
    };
    files.insert(0, write_file(dir, &format!("{stem}.onnx"), &model.encode_to_vec())?);
    Ok(WrittenModel { files })
}

/// Writes a whole file.
pub(crate) fn write_file(
    dir: &Path,
    name: &str,
    content: &[u8],
) -> Result<WrittenFile, ExportError> {
    let path = dir.join(name);
    std::fs::write(&path, content).map_err(|source| ExportError::Write { path, source })?;
    Ok(WrittenFile {
        name: name.to_owned(),
        bytes: content.len() as u64,
        sha256: hex(&Sha256::digest(content)),
    })
}

/// How many bytes of external data a graph's weights make.
pub(crate) fn external_bytes(weights: &[Weight]) -> u64 {
    weights.iter().map(size_in_bytes).filter(|&b| b >= EXTERNAL_FROM).map(|b| b as u64).sum()
}

fn elements(weight: &Weight) -> usize {
    weight.shape.iter().product()
}

fn size_in_bytes(weight: &Weight) -> usize {
    elements(weight) * size_of::<f32>()
}

fn initializer(weight: &Weight) -> TensorProto {
    TensorProto {
        dims: weight.shape.iter().map(|&d| d as i64).collect(),
        data_type: DataType::Float as i32,
        name: weight.tensor.clone(),
        ..TensorProto::default()
    }
}

fn external(weight: &Weight, file: &str, offset: u64, length: usize) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
    TensorProto {
        external_data: vec![
            entry("location", file.to_owned()),
            entry("offset", offset.to_string()),
            entry("length", length.to_string()),
        ],
        data_location: Some(DataLocation::External as i32),
        ..initializer(weight)
    }
}

#[cfg(target_endian = "little")]
fn little_endian(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file that is written front to back and hashed meanwhile on another thread.
struct HashedFile {
    file: File,
    position: u64,
    /// Filled buffers to the hasher; empty ones come back.
    filled: mpsc::SyncSender<Vec<u8>>,
    emptied: mpsc::Receiver<Vec<u8>>,
    hasher: thread::JoinHandle<Sha256>,
}

impl HashedFile {
    fn create(path: &Path) -> io::Result<Self> {
        let (filled, to_hash) = mpsc::sync_channel::<Vec<u8>>(4);
        let (give_back, emptied) = mpsc::channel();
        let hasher = thread::spawn(move || {
            let mut sha = Sha256::new();
            for buffer in to_hash {
                sha.update(&buffer);
                // The writer may be gone; then nobody needs the buffer.
                let _ = give_back.send(buffer);
            }
            sha
        });
        Ok(HashedFile { file: File::create(path)?, position: 0, filled, emptied, hasher })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.position += bytes.len() as u64;
        let mut buffer = self.emptied.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        self.filled.send(buffer).map_err(|_| io::Error::other("the hashing thread stopped"))
    }

    /// Pads with zeros to a multiple of `alignment`.
    fn align(&mut self, alignment: u64) -> io::Result<()> {
        let padding = self.position.next_multiple_of(alignment) - self.position;
        if padding == 0 { Ok(()) } else { self.write(&vec![0; padding as usize]) }
    }

    /// The file's size and sha256.
    fn finish(self) -> io::Result<(u64, String)> {
        drop(self.filled);
        let sha = self.hasher.join().map_err(|_| io::Error::other("the hashing thread stopped"))?;
        Ok((self.position, hex(&sha.finalize())))
    }
}
