//! Execution providers in libraries of their own, which ONNX Runtime loads.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env::consts::{DLL_PREFIX, DLL_SUFFIX},
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
};

use lfm2vl_onnxruntime::{DEVICES, library_path};
use ort::{
    AsPointer, device::Device, environment::Environment, memory::DeviceType,
    session::builder::SessionBuilder,
};
use serde::Deserialize;
use serde_json::Value;

use super::Unavailable;
use crate::backend::copies;

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
    /// Which of these, counted from 0 in ONNX Runtime's order; all of them when not given.
    pub device_index: Option<usize>,
    /// The provider's own settings.
    pub settings: BTreeMap<String, String>,
}

impl Plugin {
    /// A plugin with all its devices and no settings.
    pub fn new(library: impl Into<PathBuf>) -> Self {
        let library = library.into();
        Plugin { library, device: None, device_index: None, settings: BTreeMap::new() }
    }

    /// The plugin at `path`, with its own settings and those that choose its devices.
    pub(super) fn parse(path: &str, settings: &[(String, String)]) -> Result<Self, String> {
        let mut settings: BTreeMap<String, String> = settings.iter().cloned().collect();
        let device = settings.remove("device");
        let device = device.map(|device| {
            serde_json::from_value(Value::String(device.clone()))
                .map_err(|_| format!("'{device}' is not a kind of device; use cpu, gpu or npu"))
        });
        let device_index = settings.remove("device_index");
        let device_index = device_index.map(|index| {
            index
                .parse()
                .map_err(|_| format!("'{index}' is not an index of a device; use 0, 1, ..."))
        });
        Ok(Plugin {
            library: path.into(),
            device: device.transpose()?,
            device_index: device_index.transpose()?,
            settings,
        })
    }

    /// Loads the library, once for the process, and adds its devices to a session.
    pub(super) fn register(
        &self,
        environment: &Environment,
        builder: SessionBuilder,
    ) -> Result<SessionBuilder, Unavailable> {
        let library = find_library(&self.library)?;
        let loaded = load(environment, &library)?;
        let _reading = DEVICES.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = |device: &Device<'_>| {
            let kind = match device.hardware_device().ty() {
                DeviceType::CPU => Some(DeviceKind::Cpu),
                DeviceType::GPU => Some(DeviceKind::Gpu),
                DeviceType::NPU => Some(DeviceKind::Npu),
                _ => None,
            };
            loaded.devices.contains(&address(device))
                && (self.device.is_none() || self.device == kind)
        };
        let mut devices: Vec<Device<'_>> = environment.devices().filter(wanted).collect();
        let count = devices.len();
        if let Some(index) = self.device_index {
            devices = devices.into_iter().skip(index).take(1).collect();
        }
        if devices.is_empty() {
            let kind = self.device.map_or(String::new(), |kind| format!(" of the kind {kind:?}"));
            let library = library.display();
            return Err(match self.device_index.filter(|_| count > 0) {
                Some(index) => Unavailable {
                    cause: format!(
                        "{library} has no device{kind} of index {index}; how many it has: {count}"
                    ),
                    remedy: "count from 0, or leave device_index out",
                },
                None => Unavailable {
                    cause: format!("{library} offers no device{kind} on this machine"),
                    remedy: "use another provider, or a machine with a device that it supports",
                },
            });
        }
        let of = |name: &String| {
            let settings = self.settings.iter();
            settings.map(|(k, v)| (format!("{name}.{k}"), v.clone())).collect::<Vec<_>>()
        };
        let settings: Vec<(String, String)> = loaded.names.iter().flat_map(of).collect();
        builder.with_devices(devices, Some(&settings)).map_err(|error| Unavailable {
            cause: error.to_string(),
            remedy: "correct its settings, or use another provider",
        })
    }

    /// ONNX Runtime's names of the providers in the library, once it is loaded.
    pub(super) fn ep_names(&self) -> BTreeSet<String> {
        let library = find_library(&self.library).ok();
        let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        library
            .and_then(|library| loaded.get(&library))
            .map(|l| l.names.clone())
            .unwrap_or_default()
    }
}

/// What a library brought.
#[derive(Debug, Clone)]
struct Loaded {
    /// ONNX Runtime's names of its providers that have devices.
    names: BTreeSet<String>,
    /// Where ONNX Runtime keeps these devices.
    devices: BTreeSet<usize>,
}

/// The libraries that were loaded.
static LOADED: LazyLock<Mutex<HashMap<PathBuf, Loaded>>> = LazyLock::new(Mutex::default);

/// Loads a library if it is new.
fn load(environment: &Environment, library: &Path) -> Result<Loaded, Unavailable> {
    let mut all = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = all.get(library) {
        return Ok(loaded.clone());
    }
    let _changing = DEVICES.write().unwrap_or_else(PoisonError::into_inner);
    let before: BTreeSet<usize> = environment.devices().map(|device| address(&device)).collect();
    let name = format!("{}-{}", short_name(library), all.len());
    let register = || environment.register_ep_library(name.clone(), library);
    let mut registered = register();
    while let Err(error) = &registered
        && load_neighbour(library, &error.to_string())
    {
        registered = register();
    }
    registered.map_err(|error| Unavailable::of_library(library, &error.to_string()))?;
    let new: Vec<_> =
        environment.devices().filter(|device| !before.contains(&address(device))).collect();
    let names: Option<BTreeSet<String>> = new.iter().map(ep_name).collect();
    let loaded = Loaded {
        names: names.ok_or_else(|| Unavailable {
            cause: format!("a provider in {} has no name that can be used", library.display()),
            remedy: "use another provider",
        })?,
        devices: new.iter().map(address).collect(),
    };
    all.insert(library.to_owned(), loaded.clone());
    Ok(loaded)
}

/// Registers CUDA's library for [what it copies](copies), too. Without it, copies take longer.
pub(super) fn copy_cuda_directly(environment: &Environment) {
    let file = format!("{DLL_PREFIX}onnxruntime_providers_cuda{DLL_SUFFIX}");
    let library = library_path().map(|path| path.with_file_name(file));
    match library
        .ok()
        .filter(|library| library.is_file())
        .map(|library| load(environment, &library))
    {
        Some(Ok(_)) => copies::copy_cuda_directly(),
        Some(Err(error)) => {
            tracing::warn!(
                cause = error.cause,
                "CUDA's library cannot be registered, so copies take longer"
            )
        }
        None => {}
    }
}

/// Loads a library that the system did not find, as it says in `message` in whatever words, from the folder
/// of the provider's library: packages bring some under longer names. False where there is none, or it was of
/// no use before. (Windows looks there itself, and does not tell the name.)
fn load_neighbour(library: &Path, message: &str) -> bool {
    static LOADED: LazyLock<Mutex<BTreeSet<PathBuf>>> = LazyLock::new(Mutex::default);
    let words = message.split(|c: char| c.is_whitespace() || ":;,()'\"".contains(c));
    let names = words.filter_map(|word| word.rsplit('/').next());
    let own = library.file_name().unwrap_or_default();
    let names: Vec<&str> = names
        .filter(|name| (name.contains(".so") || name.contains(".dylib")) && own != *name)
        .collect();
    let is_named = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        names.iter().any(|name| file.starts_with(name))
    };
    let entries = library.parent().and_then(|folder| fs::read_dir(folder).ok());
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut new = paths.filter(is_named).filter(|path| !loaded.contains(path));
    let found = new.find(|path| ort::util::preload_dylib(path).is_ok());
    drop(new);
    found.is_some_and(|path| loaded.insert(path))
}

fn address(device: &Device<'_>) -> usize {
    device.ptr().addr()
}

/// ONNX Runtime's name of a device's provider; ort has room for 127 bytes of it.
fn ep_name(device: &Device<'_>) -> Option<String> {
    device.ep().ok().filter(|name| name.len() < 128).map(str::to_owned)
}

/// The library itself, or the one in a folder or a folder below it whose name says that it is a
/// provider.
fn find_library(path: &Path) -> Result<PathBuf, Unavailable> {
    let absolute = dunce::canonicalize(path).map_err(|error| Unavailable {
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

/// What a library is registered as, which some providers take for their own name.
fn short_name(library: &Path) -> String {
    let stem = library.file_stem().unwrap_or_default().to_string_lossy();
    let stem = stem.strip_prefix("lib").unwrap_or(&stem);
    let stem = stem.strip_prefix("onnxruntime_").unwrap_or(stem);
    let stem = stem.strip_prefix("providers_").unwrap_or(stem);
    stem.chars().filter(char::is_ascii_graphic).take(32).collect()
}

/// Whether a file's name is that of a provider's library: `libonnxruntime_providers_NAME.so`,
/// `onnxruntime_NAME.dll` and the like, but not ONNX Runtime's own.
fn is_provider(name: &str) -> bool {
    let is_library = [".so", ".dylib", ".dll"].iter().any(|ending| name.ends_with(ending));
    let stem = name.strip_prefix("lib").unwrap_or(name);
    let own = ["providers_shared", "pybind"].iter().any(|part| stem.contains(part));
    is_library && !own && stem.starts_with("onnxruntime_")
}
