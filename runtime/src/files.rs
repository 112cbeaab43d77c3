//! Files of a model's folder that may be missing.

use std::{fs, io, path::Path};

use serde_json::{Map, Value};

/// The content of a file; `None` where there is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The JSON object in a file; `None` where there is no file.
pub(crate) fn read_json(path: &Path) -> io::Result<Option<Map<String, Value>>> {
    read(path)?.map(|content| Ok(serde_json::from_slice(&content)?)).transpose()
}
