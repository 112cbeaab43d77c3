//! An exported folder: which graphs it has, and what its configs say.

use std::path::{Path, PathBuf};

use lfm2vl_graphs::{Bundle, Graph, MANIFEST, Manifest, Precision, Recipe};
use serde_json::{Map, Value};

use crate::{Error, files};

/// A folder of graphs, ours or one published by others under the same contract.
#[derive(Debug)]
pub struct ModelFolder {
    root: PathBuf,
    manifest: Option<Manifest>,
    config: Map<String, Value>,
    generation: Map<String, Value>,
}

impl ModelFolder {
    /// Reads the manifest (if there is one) and the configs of a folder.
    ///
    /// # Errors
    /// [`Error::NoFolder`] or [`Error::File`].
    pub fn open(root: &Path) -> Result<Self, Error> {
        if !root.is_dir() {
            return Err(Error::NoFolder(root.to_owned()));
        }
        let path = root.join(MANIFEST);
        let content = files::read(&path).map_err(|error| file_error(&path, error))?;
        let manifest = content.map(|content| Manifest::read(&content)).transpose();
        let manifest = manifest.map_err(|error| file_error(&path, error))?;
        if let Some(Manifest { left_out, .. }) = &manifest
            && !left_out.is_empty()
        {
            tracing::warn!(?left_out, "the folder has what this version does not know");
        }
        let path = root.join("config.json");
        let config = read_json(&path)?
            .ok_or_else(|| Error::File { path, source: "the file does not exist".into() })?;
        let generation = read_json(&root.join("generation_config.json"))?.unwrap_or_default();
        Ok(ModelFolder { root: root.to_owned(), manifest, config, generation })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Its manifest; folders published by others have none.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The recipe its graphs were built from; the default one where no manifest tells.
    pub(crate) fn recipe(&self) -> Result<Recipe, Error> {
        match &self.manifest {
            Some(manifest) => Ok(manifest.recipe.clone()),
            None => Ok(Recipe::builtin("default")?),
        }
    }

    /// `generation_config.json`.
    pub(crate) fn generation_config(&self) -> &Map<String, Value> {
        &self.generation
    }

    /// The file of a graph in a precision.
    pub fn graph_file(&self, graph: Graph, precision: Precision) -> PathBuf {
        self.root.join(format!("onnx/{graph}{}.onnx", precision.suffix()))
    }

    /// Size of a graph on disk: its file and the data file beside it, where there is one.
    pub fn graph_bytes(&self, graph: Graph, precision: Precision) -> u64 {
        let path = self.graph_file(graph, precision);
        let files = [path.with_extension("onnx_data"), path];
        files.iter().filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
    }

    /// The precisions in which a graph is there, the most exact first.
    pub fn precisions(&self, graph: Graph) -> Vec<Precision> {
        let exists = |&p: &Precision| self.graph_file(graph, p).is_file();
        Precision::ALL.into_iter().filter(exists).collect()
    }

    /// The bundle of that name, or else the recommended one.
    pub(crate) fn bundle(&self, name: Option<&str>) -> Result<Option<&Bundle>, Error> {
        let bundles = self.manifest.as_ref().map_or(&[][..], |manifest| &manifest.bundles);
        let Some(name) = name else { return Ok(bundles.first()) };
        let found = bundles.iter().find(|bundle| bundle.name == name);
        found.map(Some).ok_or_else(|| {
            let names: Vec<&str> = bundles.iter().map(|bundle| bundle.name.as_str()).collect();
            let (folder, wanted) = (self.root.clone(), name.to_owned());
            let available = if names.is_empty() {
                "only single precisions (fp32, fp16, q8, q4 or q4f16)".to_owned()
            } else {
                format!("only {}", names.join(", "))
            };
            Error::NoBundle { folder, wanted, available }
        })
    }

    /// The precision in which to open a graph: the one that is wanted, or else the most exact one.
    pub(crate) fn choose(
        &self,
        graph: Graph,
        wanted: Option<Precision>,
    ) -> Result<Precision, Error> {
        let available = self.precisions(graph);
        let folder = self.root.clone();
        let first = *available.first().ok_or(Error::NoGraph { folder, graph })?;
        let wanted = wanted.unwrap_or(first);
        if available.contains(&wanted) {
            return Ok(wanted);
        }
        let names: Vec<String> = available.iter().map(Precision::to_string).collect();
        let folder = self.root.clone();
        Err(Error::NoPrecision { folder, graph, wanted, available: names.join(", ") })
    }

    /// Most tokens of a conversation.
    pub(crate) fn context(&self) -> usize {
        let text = self.config.get("text_config");
        let limit = text.and_then(|text| text.get("max_position_embeddings"));
        limit.and_then(Value::as_u64).map_or(128_000, |limit| limit as usize)
    }

    /// Ids that end an answer: of `generation_config.json`, or else of `config.json`.
    pub(crate) fn eos_token_ids(&self) -> Vec<u32> {
        let text = self.config.get("text_config").and_then(Value::as_object);
        [Some(&self.generation), Some(&self.config), text]
            .into_iter()
            .flatten()
            .filter_map(|config| config.get("eos_token_id"))
            .find_map(|ids| match ids {
                Value::Number(_) => serde_json::from_value(ids.clone()).map(|id| vec![id]).ok(),
                _ => serde_json::from_value(ids.clone()).ok(),
            })
            .unwrap_or_default()
    }
}

fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    files::read_json(path).map_err(|error| file_error(path, error))
}

fn file_error(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::File { path: path.to_owned(), source: Box::new(error) }
}
