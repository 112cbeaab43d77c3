use std::{io, path::PathBuf};

/// Why an image cannot be processed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read.
    #[error("cannot read the image {path}: {source}; check the path")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Nothing to decode.
    #[error("the image is empty (0 bytes); give a PNG, JPEG, WebP, BMP or GIF file")]
    Empty,
    /// More bytes than allowed.
    #[error(
        "the image has {bytes} bytes, more than the limit of {limit}; shrink it or raise the limit"
    )]
    TooManyBytes {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// More pixels than allowed.
    #[error(
        "the image is {width}x{height}, more than the limit of {limit} pixels; shrink it or raise the limit"
    )]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit.
        limit: u64,
    },
    /// No pixels.
    #[error("the image is {width}x{height} and has no pixels; give another image")]
    NoPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// Not one of the formats.
    #[error("the data is not a PNG, JPEG, WebP, BMP or GIF image; convert it to one of these")]
    UnknownFormat,
    /// Broken data.
    #[error(
        "the image cannot be decoded ({0}); it is damaged or uses an unusual variant of its format"
    )]
    Broken(String),
    /// An image could not be resized.
    #[error("the image cannot be resized ({0}); give a smaller one")]
    Resize(String),
    /// An error of one file among several.
    #[error("{path}: {source}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<ImageError>,
    },
    /// A settings file could not be read.
    #[error("cannot read {path} ({message}); export the model again")]
    SettingsFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// A setting has a value that makes no sense or is not supported.
    #[error("the image setting '{name}' is {value}, and {expected}; correct it")]
    Setting {
        /// Its name in the processor files.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
}
