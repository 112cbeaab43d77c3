//! Execution providers in libraries of their own, which ONNX Runtime loads.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
};

use ort::{
    device::Device, environment::Environment, memory::DeviceType, session::builder::SessionBuilder,
};
use serde::Deserialize;

use super::Unavailable;

/// The kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A graphics processor.
    Gpu,
    /// A neural processor.
    Npu,
}

/// An execution provider in a library of its own, such as those of the Python packages
/// `onnxruntime-ep-*` and `onnxruntime-ggml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// The library, or a folder that has one.
    pub library: PathBuf,
    /// Which kind of its devices; all of them when not given.
    pub device: Option<DeviceKind>,
    /// The provider's own settings.
    pub settings: BTreeMap<String, String>,
}

impl Plugin {
    /// A plugin with all its devices and no settings.
    pub fn new(library: impl Into<PathBuf>) -> Self {
        Plugin { library: library.into(), device: None, settings: BTreeMap::new() }
    }

    /// Loads the library, once for the process, and adds its devices to a session.
    pub(super) fn register(
        &self,
        environment: &Environment,
        builder: SessionBuilder,
    ) -> Result<SessionBuilder, Unavailable> {
        let library = find_library(&self.library)?;
        let names = load(environment, &library)?;
        let devices = || environment.devices().filter(|device| names.contains(&ep(device)));
        let wanted = |device: &Device<'_>| {
            let kind = match device.hardware_device().ty() {
                DeviceType::CPU => Some(DeviceKind::Cpu),
                DeviceType::GPU => Some(DeviceKind::Gpu),
                DeviceType::NPU => Some(DeviceKind::Npu),
                _ => None,
            };
            self.device.is_none() || self.device == kind
        };
        if !devices().any(|device| wanted(&device)) {
            let kind = self.device.map_or(String::new(), |kind| format!(" of the kind {kind:?}"));
            return Err(Unavailable {
                cause: format!("{} offers no device{kind} on this machine", library.display()),
                remedy: "use another provider, or a machine with a device that it supports",
            });
        }
        let settings: Vec<(String, String)> = names
            .iter()
            .flat_map(|name| {
                self.settings.iter().map(move |(k, v)| (format!("{name}.{k}"), v.clone()))
            })
            .collect();
        builder.with_devices(devices().filter(wanted), Some(&settings)).map_err(|error| {
            Unavailable {
                cause: error.to_string(),
                remedy: "correct its settings, or use another provider",
            }
        })
    }

    /// ONNX Runtime's names of the providers in the library, once it is loaded.
    pub(super) fn ep_names(&self) -> BTreeSet<String> {
        let library = find_library(&self.library).ok();
        let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        library.and_then(|library| loaded.get(&library).cloned()).unwrap_or_default()
    }
}

/// The providers of each library that was loaded.
static LOADED: LazyLock<Mutex<HashMap<PathBuf, BTreeSet<String>>>> = LazyLock::new(Mutex::default);

/// Loads a library if it is new, and gives the names of its providers that have devices.
fn load(environment: &Environment, library: &Path) -> Result<BTreeSet<String>, Unavailable> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(names) = loaded.get(library) {
        return Ok(names.clone());
    }
    let all = || environment.devices().map(|device| ep(&device)).collect::<BTreeSet<_>>();
    let before = all();
    let name = format!("{}-{}", short_name(library), loaded.len());
    environment.register_ep_library(name, library).map_err(|error| {
        Unavailable {
            cause: format!("{} cannot be loaded: {error}", library.display()),
            remedy: "use a library of a provider that fits this ONNX Runtime, and install what it needs",
        }
    })?;
    let names: BTreeSet<String> = all().difference(&before).cloned().collect();
    loaded.insert(library.to_owned(), names.clone());
    Ok(names)
}

fn ep(device: &Device<'_>) -> String {
    device.ep().unwrap_or_default().to_owned()
}

/// The library itself, or the one in a folder or a folder below it whose name says that it is a
/// provider.
fn find_library(path: &Path) -> Result<PathBuf, Unavailable> {
    let absolute = fs::canonicalize(path).map_err(|error| Unavailable {
        cause: format!("{} cannot be read: {error}", path.display()),
        remedy: "give the path of a provider's library, or of a folder that has one",
    })?;
    if absolute.is_file() {
        return Ok(absolute);
    }
    let mut found = Vec::new();
    let mut folders = vec![absolute];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if is_provider(&name) {
                found.push(path);
            }
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([library]) => Ok(library),
        Err(found) => Err(Unavailable {
            cause: format!("{} has {} libraries of providers", path.display(), found.len()),
            remedy: "give the path of the one to use",
        }),
    }
}

/// What a library is registered as, which some providers take for their own name; ort has room for
/// 127 bytes of it.
fn short_name(library: &Path) -> String {
    let stem = library.file_stem().unwrap_or_default().to_string_lossy();
    let stem = stem.strip_prefix("lib").unwrap_or(&stem);
    let stem = stem.strip_prefix("onnxruntime_").unwrap_or(stem);
    stem.strip_prefix("providers_").unwrap_or(stem).chars().take(32).collect()
}

/// Whether a file's name is that of a provider's library: `libonnxruntime_providers_NAME.so`,
/// `onnxruntime_NAME.dll` and the like, but not ONNX Runtime's own.
fn is_provider(name: &str) -> bool {
    let is_library = [".so", ".dylib", ".dll"].iter().any(|ending| name.ends_with(ending));
    let stem = name.strip_prefix("lib").unwrap_or(name);
    let own = ["providers_shared", "pybind"].iter().any(|part| stem.contains(part));
    is_library && !own && stem.starts_with("onnxruntime_")
}
