//! The safetensors files of a checkpoint: which tensors they hold and where. Only headers are
//! read here.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{CheckpointError, names};

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredDtype {
    /// Brain float.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl StoredDtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            StoredDtype::Bf16 | StoredDtype::F16 => 2,
            StoredDtype::F32 => 4,
        }
    }
}

/// An open safetensors file.
#[derive(Debug)]
pub(super) struct TensorFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

impl StoredTensor {
    /// The file that it is in.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// The name of that file.
    pub fn file_name(&self) -> String {
        self.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Where a tensor is stored.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: StoredDtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Position of the first byte in the file.
    pub offset: u64,
    pub(super) source: Arc<TensorFile>,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether there are weights of a model in `folder`.
pub(super) fn has_weights(folder: &Path) -> bool {
    folder.join(SINGLE).is_file() || folder.join(INDEX).is_file()
}

fn is_ignored(stored: &str) -> bool {
    names::is_ignored(&names::canonical(stored))
}

/// All tensors of the checkpoint in `folder`, and the headers of its files for the fingerprint.
pub(super) fn read_headers(
    folder: &Path,
) -> Result<(Vec<StoredTensor>, Vec<Vec<u8>>), CheckpointError> {
    let index = folder.join(INDEX);
    if folder.join(SINGLE).is_file() {
        let (tensors, header) = read_header(&folder.join(SINGLE), &is_ignored)?;
        return Ok((tensors, vec![header]));
    }
    if !index.is_file() {
        return Err(CheckpointError::MissingFile { folder: folder.to_owned(), file: SINGLE });
    }
    let places = weight_map(&index)?;
    let (mut tensors, mut headers) = (Vec::new(), Vec::new());
    for shard in shards_of(&places) {
        let path = folder.join(shard);
        if !path.is_file() {
            return Err(CheckpointError::MissingShard { index, shard: shard.clone() });
        }
        let (in_shard, header) = read_header(&path, &is_ignored)?;
        for (tensor, _) in places.iter().filter(|(_, place)| *place == shard) {
            if is_ignored(tensor) {
                continue;
            }
            if !in_shard.iter().any(|t| t.name == *tensor) {
                return Err(CheckpointError::NotInShard {
                    index,
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
        }
        tensors.extend(in_shard);
        headers.push(header);
    }
    Ok((tensors, headers))
}

/// The weight files that the index `index` names, in order. Each is a file of the index's folder.
pub(crate) fn shards(index: &Path) -> Result<Vec<String>, CheckpointError> {
    Ok(shards_of(&weight_map(index)?).into_iter().cloned().collect())
}

fn shards_of(places: &HashMap<String, String>) -> BTreeSet<&String> {
    places.values().collect()
}

/// The index's map of tensor names to file names.
fn weight_map(index: &Path) -> Result<HashMap<String, String>, CheckpointError> {
    let json = read_json(index)?;
    let map: HashMap<String, String> = json
        .get("weight_map")
        .and_then(|map| serde_json::from_value(map.clone()).ok())
        .ok_or_else(|| CheckpointError::Index(index.to_owned()))?;
    match map.values().find(|name| !is_file_name(name)) {
        Some(shard) => {
            Err(CheckpointError::ShardName { index: index.to_owned(), shard: shard.clone() })
        }
        None => Ok(map),
    }
}

/// Whether this names a file of a folder, and nothing outside of it, on every system.
fn is_file_name(name: &str) -> bool {
    let leads_elsewhere = |c: char| c.is_control() || matches!(c, '/' | '\\' | ':');
    !matches!(name, "" | "." | "..") && !name.contains(leads_elsewhere)
}

pub(super) fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let content =
        fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&content)
        .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })
}

/// The tensors of a file but for those to ignore, and its header.
pub(super) fn read_header(
    path: &Path,
    is_ignored: &dyn Fn(&str) -> bool,
) -> Result<(Vec<StoredTensor>, Vec<u8>), CheckpointError> {
    let read_error = |source| CheckpointError::Read { path: path.to_owned(), source };
    let invalid = |reason: String| CheckpointError::Safetensors { path: path.to_owned(), reason };
    let file = File::open(path).map_err(read_error)?;
    if file.metadata().map_err(read_error)?.len() == 0 {
        return Err(invalid("the file is empty".into()));
    }
    // SAFETY: the map is read only here and dropped at the end of this function; should another
    // process cut the file meanwhile, the system ends this program, which has written nothing.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read_error)?;
    let (length, metadata) =
        SafeTensors::read_metadata(&map).map_err(|error| invalid(error.to_string()))?;
    let header = map[8..8 + length].to_vec();
    let source = Arc::new(TensorFile { path: path.to_owned(), file });
    let mut tensors = metadata
        .tensors()
        .into_iter()
        .filter(|(name, _)| !is_ignored(name))
        .map(|(name, info)| {
            let dtype = match info.dtype {
                Dtype::BF16 => StoredDtype::Bf16,
                Dtype::F16 => StoredDtype::F16,
                Dtype::F32 => StoredDtype::F32,
                other => {
                    return Err(CheckpointError::Dtype { tensor: name, dtype: other.to_string() });
                }
            };
            Ok(StoredTensor {
                name,
                dtype,
                shape: info.shape.clone(),
                offset: (8 + length + info.data_offsets.0) as u64,
                source: Arc::clone(&source),
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by_key(|tensor| tensor.offset);
    Ok((tensors, header))
}
