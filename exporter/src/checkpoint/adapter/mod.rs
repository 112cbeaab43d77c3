//! LoRA adapters, as peft saves them: `adapter_config.json` and `adapter_model.safetensors`. They are
//! merged into the model's weights as these are read, some rows at a time, as `merge_and_unload` of peft
//! 0.21.2 does it with a model in float32: to the bit, or within 1.4e-7 of a tensor's largest magnitude.
//!
//! Where the token embedding and the output head are one tensor, each gets what was trained for it. (peft
//! would add to both what was trained for one, which is its issue 2777.)

mod config;
mod error;
mod merge;
mod names;
mod pattern;
mod variants;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use lfm2vl_graphs::size_and_sha256;
use serde_json::Value;

use super::{CheckpointError, StoredTensor, files};
pub use error::AdapterError;
pub(super) use merge::Merge;

use config::AdapterConfig;
use merge::{Factors, Product};
use names::{AdapterName, Role, parse, spellings};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// An opened adapter.
#[derive(Debug)]
pub(super) struct Adapter {
    folder: PathBuf,
    config: AdapterConfig,
    tensors: Vec<StoredTensor>,
    fingerprint: String,
}

/// What an adapter makes of a model's tensors, by their canonical names.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Tensors that take the place of the model's.
    pub(super) whole: BTreeMap<String, Replacement>,
    /// What is added to tensors.
    pub(super) merges: HashMap<String, Merge>,
}

/// A tensor that takes the place of the model's.
#[derive(Debug)]
pub(super) struct Replacement {
    pub(super) tensor: StoredTensor,
    /// Whether it is for a copy of the module, so that tensors that were one become two.
    pub(super) of_copy: bool,
}

/// Whether there is an adapter in a folder.
pub(super) fn is_in(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
}

/// What to say of a folder that has an adapter and no model.
pub(super) fn alone(folder: &Path) -> Result<AdapterError, CheckpointError> {
    let base = files::read_json(&folder.join(CONFIG))?;
    let base = base["base_model_name_or_path"].as_str().map(short);
    Ok(AdapterError::Alone { folder: folder.to_owned(), base })
}

impl Adapter {
    /// Opens the adapter in `folder`.
    pub(super) fn open(folder: &Path) -> Result<Self, CheckpointError> {
        if !is_in(folder) {
            return Err(AdapterError::NotAnAdapter(folder.to_owned()).into());
        }
        let json = files::read_json(&folder.join(CONFIG))?;
        let config = AdapterConfig::from_json(&json)?;
        let path = folder.join(WEIGHTS);
        if !path.is_file() {
            return Err(AdapterError::NoWeights(folder.to_owned()).into());
        }
        let (tensors, _) = files::read_header(&path, &|name| {
            parse(name).is_some_and(|name| super::names::is_ignored(&name.canonical))
        })?;
        let (_, sha256) =
            size_and_sha256(&path).map_err(|source| CheckpointError::Read { path, source })?;
        let fingerprint = format!("{json} {sha256}");
        Ok(Adapter { folder: folder.to_owned(), config, tensors, fingerprint })
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What tells it from others: its config, and the sha256 of its weights.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What it makes of a model with tensors of these canonical names and shapes.
    pub(super) fn changes(
        &self,
        model: &HashMap<String, Vec<usize>>,
    ) -> Result<Changes, AdapterError> {
        let mut changes = Changes::default();
        let mut modules: BTreeMap<String, Module> = BTreeMap::new();
        for tensor in &self.tensors {
            let unknown = || AdapterError::UnknownTensor(tensor.name.clone());
            let AdapterName { role, canonical, trained } =
                parse(&tensor.name).ok_or_else(unknown)?;
            if role == Role::Whole {
                let shape = model.get(&canonical).ok_or_else(unknown)?;
                expect_shape(tensor, shape)?;
                let of_copy = self.is_saved(&trained) && !self.config.ensure_weight_tying;
                let replacement = Replacement { tensor: tensor.clone(), of_copy };
                if let Some(first) = changes.whole.insert(canonical, replacement) {
                    return Err(twice(&first.tensor, tensor));
                }
            } else {
                let module = modules.entry(canonical).or_insert_with(|| Module::new(trained));
                if let Some(first) = module.tensors.iter().find(|(known, _)| *known == role) {
                    return Err(twice(first.1, tensor));
                }
                module.tensors.push((role, tensor));
            }
        }
        for (name, module) in &modules {
            self.merge(name, module, model, &mut changes)?;
        }
        self.check_complete(model, &modules, &changes)?;
        Ok(changes)
    }

    /// Adds what the adapter makes of one module.
    fn merge(
        &self,
        name: &str,
        module: &Module<'_>,
        model: &HashMap<String, Vec<usize>>,
        changes: &mut Changes,
    ) -> Result<(), AdapterError> {
        let weight = format!("{name}.weight");
        let unknown = || AdapterError::UnknownTensor(module.first().to_owned());
        let shape = match model.get(&weight).ok_or_else(unknown)?[..] {
            [rows, columns] => [rows, columns],
            _ => return Err(AdapterError::Layer(module.first().to_owned())),
        };
        let mut names = vec![module.trained.clone()];
        names.extend(spellings(name).into_iter().filter(|name| *name != module.trained));
        let is_targeted = self.config.targets(&names)?
            || name == "lm_head"
                && self.config.ensure_weight_tying
                && self.config.targets(&spellings("language_model.embed_tokens"))?;
        if !is_targeted {
            return Err(AdapterError::NotTargeted(module.trained.clone()));
        }
        let (rank, scale) = self.config.rank_and_scale(&names)?;
        let is_embedding = super::names::is_embedding(name);
        let factors = if is_embedding {
            module.embedding_factors(shape, rank)?
        } else {
            module.linear_factors(shape, rank)?
        };
        let magnitude = module.asked_for(Role::Magnitude, "use_dora", self.config.use_dora)?;
        if let Some(magnitude) = magnitude {
            // An embedding's are of its columns, whose lengths all rows make.
            if is_embedding {
                return Err(AdapterError::EmbeddingMagnitude(magnitude.name.clone()));
            }
            expect_shape(magnitude, &[shape[0]])?;
        }
        let wants_bias = self.config.lora_bias && !is_embedding;
        if let Some(addition) = module.asked_for(Role::BiasOfB, "lora_bias", wants_bias)? {
            let bias = format!("{name}.bias");
            let no_bias = || AdapterError::NoBias(addition.name.clone());
            expect_shape(addition, model.get(&bias).ok_or_else(no_bias)?)?;
            changes.merges.insert(bias, Merge::Bias { addition: addition.clone(), scale });
        }
        let magnitude = magnitude.cloned();
        let product = Product { factors, rank, columns: shape[1], scale, magnitude };
        changes.merges.insert(weight, Merge::Product(product));
        Ok(())
    }

    /// Whether a tensor is of a module that is saved whole (`_set_trainable` in peft's `utils/other.py`).
    fn is_saved(&self, tensor: &str) -> bool {
        let mut module = tensor;
        while let Some((outer, _)) = module.rsplit_once('.') {
            if self.config.modules_to_save.iter().any(|end| outer.ends_with(end.as_str())) {
                return true;
            }
            module = outer;
        }
        false
    }

    /// Checks that all is there that the config says.
    fn check_complete(
        &self,
        model: &HashMap<String, Vec<usize>>,
        modules: &BTreeMap<String, Module<'_>>,
        changes: &Changes,
    ) -> Result<(), AdapterError> {
        let mut tensors: Vec<_> = model.iter().collect();
        tensors.sort();
        for (tensor, shape) in tensors {
            let Some((module, _)) = tensor.rsplit_once('.') else { continue };
            let saved = spellings(tensor).iter().any(|tensor| self.is_saved(tensor));
            if saved && !changes.whole.contains_key(tensor) {
                return Err(AdapterError::NoTensors(module.to_owned()));
            }
            let is_weight = shape.len() == 2 && tensor.ends_with(".weight");
            if is_weight
                && !modules.contains_key(module)
                && self.config.certainly_targets(&spellings(module))?
            {
                return Err(AdapterError::NoTensors(module.to_owned()));
            }
        }
        if changes.whole.is_empty() && changes.merges.is_empty() {
            Err(AdapterError::Empty(self.folder.clone()))
        } else {
            Ok(())
        }
    }
}

/// A module's tensors.
struct Module<'a> {
    /// Its name when the adapter was trained.
    trained: String,
    tensors: Vec<(Role, &'a StoredTensor)>,
}

impl<'a> Module<'a> {
    fn new(trained: String) -> Self {
        Module { trained, tensors: Vec::new() }
    }

    /// The name of one of its tensors.
    fn first(&self) -> &str {
        self.tensors.first().map_or(&self.trained, |(_, tensor)| &tensor.name)
    }

    fn get(&self, role: Role) -> Option<&'a StoredTensor> {
        self.tensors.iter().find(|(known, _)| *known == role).map(|(_, tensor)| *tensor)
    }

    fn factor(&self, role: Role, shape: [usize; 2]) -> Result<StoredTensor, AdapterError> {
        let half = || AdapterError::Half(self.first().to_owned());
        let factor = self.get(role).ok_or_else(half)?;
        expect_shape(factor, &shape)?;
        Ok(factor.clone())
    }

    fn linear_factors(
        &self,
        [rows, columns]: [usize; 2],
        rank: usize,
    ) -> Result<Factors, AdapterError> {
        let a = self.factor(Role::A, [rank, columns])?;
        Ok(Factors::Linear { a, b: self.factor(Role::B, [rows, rank])? })
    }

    fn embedding_factors(
        &self,
        [rows, columns]: [usize; 2],
        rank: usize,
    ) -> Result<Factors, AdapterError> {
        let a = self.factor(Role::EmbeddingA, [rank, rows])?;
        Ok(Factors::Embedding { a, b: self.factor(Role::EmbeddingB, [columns, rank])? })
    }

    /// A tensor that there is where a setting is on, and only there.
    fn asked_for(
        &self,
        role: Role,
        setting: &'static str,
        is_on: bool,
    ) -> Result<Option<&'a StoredTensor>, AdapterError> {
        let tensor = self.get(role);
        if tensor.is_some() == is_on {
            Ok(tensor)
        } else {
            let tensor = tensor.map_or(self.first(), |tensor| &tensor.name).to_owned();
            Err(AdapterError::Disagrees { tensor, setting, is_on })
        }
    }
}

fn twice(first: &StoredTensor, second: &StoredTensor) -> AdapterError {
    AdapterError::Twice { first: first.name.clone(), second: second.name.clone() }
}

fn expect_shape(tensor: &StoredTensor, expected: &[usize]) -> Result<(), AdapterError> {
    if tensor.shape == expected {
        return Ok(());
    }
    Err(AdapterError::Shape {
        tensor: tensor.name.clone(),
        found: tensor.shape.clone(),
        expected: expected.to_vec(),
    })
}

fn refused(key: &str, value: &Value, remedy: &str) -> AdapterError {
    AdapterError::Config {
        key: key.to_owned(),
        value: short(&value.to_string()),
        remedy: remedy.to_owned(),
    }
}

/// A text of the file for a message: its beginning, in one line.
fn short(text: &str) -> String {
    const LONGEST: usize = 80;
    let line = text.replace(char::is_control, " ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
