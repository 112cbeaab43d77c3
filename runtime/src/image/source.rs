//! Images by name: a file, a data URI or a URL, as transformers' `load_image` takes them.

use std::path::Path;

use data_url::DataUrl;
use image::RgbImage;
use rayon::prelude::*;

use super::{
    ImageError, Limits,
    deadline::Deadline,
    decode::{decode_before, read_file},
};

/// Loads the image that `source` names: a URL that starts with `http://` or `https://` (with the
/// feature `http`), a data URI such as `data:image/png;base64,...`, or else the path of a file.
///
/// # Errors
/// [`ImageError`] when it cannot be found or fetched, or as [`decode`](super::decode).
pub fn load(source: &str, limits: &Limits) -> Result<RgbImage, ImageError> {
    let deadline = Deadline::after(limits.max_time);
    let bytes = read_before(source, limits, deadline)?;
    let name = if scheme(source) == "data" { None } else { Some(source) };
    decode_before(&bytes, limits, deadline).map_err(|error| match name {
        Some(name) => error.of(name),
        None => error,
    })
}

/// The bytes of the image that `source` names, as [`load`] finds them, before they are decoded: whoever serves
/// many may wait for the network in one thread, and decode in another.
///
/// # Errors
/// [`ImageError`] when it cannot be found or fetched.
pub fn read(source: &str, limits: &Limits) -> Result<Vec<u8>, ImageError> {
    read_before(source, limits, Deadline::after(limits.max_time))
}

/// Loads several images in parallel, each as [`load`].
///
/// # Errors
/// [`ImageError`] of one that cannot be loaded.
pub fn load_all<S: AsRef<str> + Sync>(
    sources: &[S],
    limits: &Limits,
) -> Result<Vec<RgbImage>, ImageError> {
    sources.par_iter().map(|source| load(source.as_ref(), limits)).collect()
}

fn scheme(source: &str) -> String {
    source.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase()
}

fn read_before(source: &str, limits: &Limits, deadline: Deadline) -> Result<Vec<u8>, ImageError> {
    match scheme(source).as_str() {
        "data" => from_data_uri(source, limits),
        "http" | "https" => fetch(source, limits, deadline),
        _ if !limits.allow_files => Err(ImageError::NoFiles),
        _ => read_file(Path::new(source), limits),
    }
}

/// The bytes of a data URI.
fn from_data_uri(uri: &str, limits: &Limits) -> Result<Vec<u8>, ImageError> {
    // Four characters of base64 are three bytes.
    limits.check_bytes(uri.len() as u64 / 4 * 3)?;
    let url = DataUrl::process(uri)
        .map_err(|_| ImageError::DataUri("it has no comma before its data".into()))?;
    let (bytes, _) =
        url.decode_to_vec().map_err(|_| ImageError::DataUri("its data is not base64".into()))?;
    Ok(bytes)
}

#[cfg(feature = "http")]
use super::fetch::fetch;

#[cfg(not(feature = "http"))]
fn fetch(url: &str, _: &Limits, _: Deadline) -> Result<Vec<u8>, ImageError> {
    Err(ImageError::NoHttp(url.to_owned()))
}
