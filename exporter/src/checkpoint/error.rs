//! Why a checkpoint cannot be exported.

use std::{io, path::PathBuf};

use super::AdapterError;

/// Why a checkpoint cannot be exported; found before anything is written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The adapter cannot be merged.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Not a folder.
    #[error("{0} is not a folder; give the folder of a checkpoint")]
    NotAFolder(PathBuf),
    /// A file that every checkpoint has is missing.
    #[error("{folder} has no {file}; fetch the whole checkpoint")]
    MissingFile {
        /// The checkpoint.
        folder: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// The index names a file that is not there.
    #[error("{index} names the file {shard}, which does not exist; fetch the whole checkpoint")]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The shard.
        shard: String,
    },
    /// The index names a tensor that its file does not hold.
    #[error(
        "{index} places tensor {tensor} in {shard}, which does not hold it; fetch the checkpoint again"
    )]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// The index is not one.
    #[error("{0} has no 'weight_map' of tensor names to file names; fetch it again")]
    Index(PathBuf),
    /// The index names a file that is not in its folder.
    #[error(
        "the weight_map of {index} names {shard:?}, which is no file of its folder; report this to the model's owner"
    )]
    ShardName {
        /// The index.
        index: PathBuf,
        /// The name.
        shard: String,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}; check the file and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A JSON file is not valid.
    #[error("{path} is not valid JSON ({source}); fetch it again")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// Not a safetensors file.
    #[error("{path} is not a valid safetensors file ({reason}); fetch it again")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with its header.
        reason: String,
    },
    /// A key of `config.json` has a value that is not supported.
    #[error("config.json: '{key}' is {value}, and {supported}; this checkpoint cannot be exported")]
    Config {
        /// The key, with the section it is in.
        key: String,
        /// Its value.
        value: String,
        /// What is supported.
        supported: String,
    },
    /// The weights are no floats.
    #[error(
        "the checkpoint is quantized (config.json has a quantization_config), and only floats are exported; give the model that it was made from"
    )]
    Quantized,
    /// A tensor that the config asks for is missing.
    #[error("the checkpoint has no tensor {0}, which its config.json asks for; fetch it again")]
    MissingTensor(String),
    /// A tensor that the model does not have.
    #[error(
        "the checkpoint's tensor {0} is not part of an LFM2-VL model; this model is not supported"
    )]
    UnknownTensor(String),
    /// Two tensors of the same meaning.
    #[error("tensors {first} and {second} are the same part of the model; remove one of them")]
    DuplicateTensor {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// A tensor has another shape than the config says.
    #[error(
        "tensor {tensor} has shape {found:?}, and config.json asks for {expected:?}; the files do not belong together"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows from the config.
        expected: Vec<usize>,
    },
    /// A tensor is not of a float type.
    #[error(
        "tensor {tensor} is of type {dtype}, and only BF16, F16 and F32 are supported; convert the checkpoint"
    )]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// Elements that a tensor does not have, or that the caller has no room for.
    #[error(
        "elements {range:?} of tensor {tensor} were asked for, with room for {room}; it has {count}: ask for those"
    )]
    Range {
        /// The tensor.
        tensor: String,
        /// The elements.
        range: std::ops::Range<usize>,
        /// How many it has.
        count: usize,
        /// How many the caller takes.
        room: usize,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {tensor} holds {value} at element {index}; the checkpoint is damaged")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The value.
        value: f32,
        /// Where, counting elements in order.
        index: usize,
    },
}
