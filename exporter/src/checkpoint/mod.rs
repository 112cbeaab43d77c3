//! A checkpoint as published on the hub: `config.json`, safetensors files, tokenizer. Headers are
//! checked when it is opened; weights are read in pieces when they are wanted, and merged with an
//! adapter's where there is one.

mod adapter;
mod config;
mod convert;
mod error;
mod files;
mod names;

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};

use ndarray::{ArrayD, IxDyn};
use sha2::{Digest, Sha256};

pub use adapter::AdapterError;
pub use config::{Config, ProjectorConfig, TextConfig, VisionConfig};
pub(crate) use convert::read_exact_at;
pub use error::CheckpointError;
pub(crate) use files::shards;
pub use files::{StoredDtype, StoredTensor};
pub use names::{released as released_name, tensors as model_tensors};

use adapter::{Adapter, Merge};
use names::{EMBEDDING, LM_HEAD, canonical};

/// Elements read at a time.
const CHUNK: usize = 1 << 20;

/// An opened checkpoint. All of its tensors are known and have the right shapes.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: Config,
    tensors: HashMap<String, StoredTensor>,
    own_head: bool,
    fingerprint: String,
    /// What is added to tensors, by canonical name.
    merges: HashMap<String, Merge>,
    /// The folder of the adapter that is merged.
    adapter: Option<PathBuf>,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder`, with the adapter that lies beside it if there is one, and checks
    /// its config and the headers of its files.
    ///
    /// # Errors
    /// [`CheckpointError`] names the file, key or tensor that is missing, wrong or not supported.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Self::open_alone(folder)?;
        if adapter::is_in(folder) {
            checkpoint.merge(&Adapter::open(folder)?)
        } else {
            Ok(checkpoint)
        }
    }

    /// Opens the checkpoint in `folder`, to be merged with the LoRA adapter that peft saved to `adapter`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`CheckpointError::Adapter`] where the adapter cannot be merged, or another
    /// one lies beside the model.
    pub fn open_with_adapter(folder: &Path, adapter: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Self::open_alone(folder)?;
        let opened = Adapter::open(adapter)?;
        let is_same = || match (folder.canonicalize(), adapter.canonicalize()) {
            (Ok(folder), Ok(adapter)) => folder == adapter,
            _ => false,
        };
        if adapter::is_in(folder) && !is_same() {
            let (given, beside) = (adapter.to_owned(), folder.to_owned());
            return Err(AdapterError::Two { given, beside }.into());
        }
        checkpoint.merge(&opened)
    }

    fn open_alone(folder: &Path) -> Result<Self, CheckpointError> {
        if !folder.is_dir() {
            return Err(CheckpointError::NotAFolder(folder.to_owned()));
        }
        let is_model = folder.join("config.json").is_file() && files::has_weights(folder);
        if !is_model && adapter::is_in(folder) {
            return Err(adapter::alone(folder)?.into());
        }
        for file in ["config.json", "tokenizer.json"] {
            if !folder.join(file).is_file() {
                return Err(CheckpointError::MissingFile { folder: folder.to_owned(), file });
            }
        }
        let json = files::read_json(&folder.join("config.json"))?;
        let config = Config::from_json(&json)?;
        let (stored, headers) = files::read_headers(folder)?;

        let mut tensors: HashMap<String, StoredTensor> = HashMap::new();
        for tensor in stored {
            let name = canonical(&tensor.name);
            if let Some(first) = tensors.get(&name) {
                let (first, second) = (first.name.clone(), tensor.name);
                return Err(CheckpointError::DuplicateTensor { first, second });
            }
            tensors.insert(name, tensor);
        }
        check_tensors(&config, &tensors)?;

        let mut sha = Sha256::new();
        sha.update(json.to_string());
        headers.iter().for_each(|header| sha.update(header));

        let mut checkpoint = Checkpoint {
            folder: folder.to_owned(),
            config,
            tensors,
            own_head: false,
            fingerprint: hex::encode(sha.finalize()),
            merges: HashMap::new(),
            adapter: None,
        };
        checkpoint.own_head = checkpoint.head_differs()?;
        Ok(checkpoint)
    }

    /// The checkpoint whose tensors are read as `adapter` makes them.
    fn merge(mut self, adapter: &Adapter) -> Result<Self, CheckpointError> {
        let is_tied = !self.own_head;
        if is_tied && let Some(embedding) = self.tensors.get(EMBEDDING).cloned() {
            // Each of the two may become another.
            self.tensors.insert(LM_HEAD.to_owned(), embedding);
        }
        let shape = |(name, tensor): (&String, &StoredTensor)| (name.clone(), tensor.shape.clone());
        let changes = adapter.changes(&self.tensors.iter().map(shape).collect())?;
        for (name, replacement) in &changes.whole {
            let other = match name.as_str() {
                EMBEDDING => Some(LM_HEAD),
                LM_HEAD => Some(EMBEDDING),
                _ => None,
            };
            // What is no copy of a module is still shared.
            if let Some(other) = other.filter(|_| is_tied && !replacement.of_copy)
                && !changes.whole.contains_key(other)
            {
                self.tensors.insert(other.to_owned(), replacement.tensor.clone());
            }
            self.tensors.insert(name.clone(), replacement.tensor.clone());
        }
        self.merges = changes.merges;
        if is_tied {
            let is_changed =
                |name| changes.whole.contains_key(name) || self.merges.contains_key(name);
            self.own_head =
                (is_changed(EMBEDDING) || is_changed(LM_HEAD)) && self.head_differs()?;
            if !self.own_head {
                self.tensors.remove(LM_HEAD);
                self.merges.remove(LM_HEAD);
            }
        }
        let mut sha = Sha256::new();
        sha.update(&self.fingerprint);
        sha.update(adapter.fingerprint());
        self.fingerprint = hex::encode(sha.finalize());
        self.adapter = Some(adapter.folder().to_owned());
        Ok(self)
    }

    /// The folder of the adapter that is merged into the weights.
    pub fn adapter(&self) -> Option<&Path> {
        self.adapter.as_deref()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where a tensor is stored, by canonical name.
    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// Canonical name and shape of every matrix.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = (String, [usize; 2])> {
        self.tensors.iter().filter_map(|(name, tensor)| match tensor.shape[..] {
            [rows, columns] => Some((name.clone(), [rows, columns])),
            _ => None,
        })
    }

    /// Where every tensor is stored.
    pub fn stored_tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        self.tensors.values()
    }

    /// How each tensor is stored, by canonical name.
    pub fn dtypes(&self) -> HashMap<String, StoredDtype> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dtype)).collect()
    }

    /// Whether the output head is a tensor of its own: untied, or stored and different from the
    /// token embedding (the reference uses a stored head even where the config says it is tied).
    pub fn has_lm_head(&self) -> bool {
        self.own_head
    }

    /// sha256 of the config and the safetensors headers, and of the whole adapter, in hex.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Reads elements `range` of a tensor, converted to float32, into `out`.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], [`CheckpointError::Range`] for elements that the tensor does not have
    /// or `out` has no room for, [`CheckpointError::Read`], or [`CheckpointError::NotFinite`] for a NaN or an
    /// infinity.
    pub fn read(
        &self,
        name: &str,
        range: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let tensor =
            self.tensor(name).ok_or_else(|| CheckpointError::MissingTensor(name.to_owned()))?;
        let count = tensor.shape.iter().product();
        if range.start > range.end || range.end > count || range.len() > out.len() {
            let (tensor, room) = (name.to_owned(), out.len());
            return Err(CheckpointError::Range { tensor, range, count, room });
        }
        match self.merges.get(name) {
            Some(merge) => merge.read(tensor, range, out),
            None => tensor.read(range, out),
        }
    }

    /// A whole tensor as float32.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn load(&self, name: &str) -> Result<ArrayD<f32>, CheckpointError> {
        let missing = || CheckpointError::MissingTensor(name.to_owned());
        let shape = self.tensor(name).ok_or_else(missing)?.shape.clone();
        let mut values = vec![0.0; shape.iter().product()];
        self.read(name, 0..values.len(), &mut values)?;
        ArrayD::from_shape_vec(IxDyn(&shape), values).map_err(|_| missing())
    }

    fn head_differs(&self) -> Result<bool, CheckpointError> {
        let Some(head) = self.tensor(LM_HEAD) else { return Ok(false) };
        if !self.config.tie_word_embeddings {
            return Ok(true);
        }
        let count: usize = head.shape.iter().product();
        let (mut a, mut b) = (vec![0.0; count.min(CHUNK)], vec![0.0; count.min(CHUNK)]);
        for start in (0..count).step_by(CHUNK) {
            let range = start..count.min(start + CHUNK);
            self.read(LM_HEAD, range.clone(), &mut a)?;
            self.read(EMBEDDING, range.clone(), &mut b)?;
            if a[..range.len()] != b[..range.len()] {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Checks that there is every tensor of the model, with its shape, and no other.
fn check_tensors(
    config: &Config,
    tensors: &HashMap<String, StoredTensor>,
) -> Result<(), CheckpointError> {
    let mut expected = names::tensors(config);
    if !config.tie_word_embeddings || tensors.contains_key(LM_HEAD) {
        let text = &config.text;
        expected.push((LM_HEAD.to_owned(), vec![text.vocab_size, text.hidden_size]));
    }
    for (name, shape) in &expected {
        let tensor =
            tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor(name.clone()))?;
        if tensor.shape != *shape {
            return Err(CheckpointError::Shape {
                tensor: tensor.name.clone(),
                found: tensor.shape.clone(),
                expected: shape.clone(),
            });
        }
    }
    let known: std::collections::HashSet<_> = expected.iter().map(|(name, _)| name).collect();
    match tensors.iter().find(|(name, _)| !known.contains(name)) {
        Some((_, tensor)) => Err(CheckpointError::UnknownTensor(tensor.name.clone())),
        None => Ok(()),
    }
}
