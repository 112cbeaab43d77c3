use std::{fmt::Display, io, path::PathBuf, time::Duration};

/// Why an image cannot be processed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file could not be read.
    #[error("cannot read the image {path}: {error}; check the path")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// What should be a processed image is none.
    #[error(
        "the patches, grids and layout of an image do not belong together; make it with an ImageProcessor"
    )]
    NotProcessed,
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
    /// Its pixels take more bytes than allowed.
    #[error(
        "the image takes {bytes} bytes when it is decoded, more than the limit of {limit}; shrink it, store it with 8 bits for a channel, or raise the limit"
    )]
    TooManyDecodedBytes {
        /// Bytes of its pixels.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// It took longer than allowed.
    #[error("the image took longer than the limit of {limit:?}; shrink it or raise the limit")]
    TooSlow {
        /// The limit.
        limit: Duration,
    },
    /// No pixels.
    #[error("the image is {width}x{height} and has no pixels; give another image")]
    NoPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// Its view would have many times the patches that the settings allow.
    #[error(
        "the image is {width}x{height}, too long and thin: its view would have {patches} patches, more than the limit of {limit}; crop it or raise max_view_patches"
    )]
    TooThin {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Patches of its view.
        patches: usize,
        /// The limit.
        limit: usize,
    },
    /// Not one of the formats.
    #[error("the data is not a PNG, JPEG, WebP, BMP or GIF image; convert it to one of these")]
    UnknownFormat,
    /// Broken data.
    #[error(
        "the image cannot be decoded ({0}); it is damaged or uses an unusual variant of its format"
    )]
    Broken(String),
    /// Pixels in memory are not as many as the size says.
    #[error(
        "the pixels have {bytes} bytes, and {width}x{height} of this format need {expected}; pass rows without gaps"
    )]
    PixelCount {
        /// Bytes given.
        bytes: usize,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes needed.
        expected: u64,
    },
    /// An array is not [height, width, channels] of an image.
    #[error("the array has {channels} channels; give [height, width, channels] with 1, 3 or 4")]
    Channels {
        /// Its last axis.
        channels: usize,
    },
    /// A data URI is not valid.
    #[error("the data URI is not valid ({0}); give data:image/png;base64,... or a file")]
    DataUri(String),
    /// A URL could not be fetched.
    #[error("cannot fetch {url} ({message}); check the address, or give a file")]
    Fetch {
        /// The address.
        url: String,
        /// The cause.
        message: String,
    },
    /// A URL leads to an address that is not public.
    #[error(
        "{host} is at the private address {address}; allow private addresses if you trust whoever gave the URL"
    )]
    PrivateAddress {
        /// The host of the URL.
        host: String,
        /// Where it leads.
        address: std::net::IpAddr,
    },
    /// A name that is neither a URL nor a data URI.
    #[error("the image is neither an http(s) URL nor a data URI, and files are not allowed")]
    NoFiles,
    /// This build cannot fetch URLs.
    #[error("cannot fetch {0}: this build lacks the feature 'http'; give a file, or build with it")]
    NoHttp(String),
    /// An error of one image among several.
    #[error("{name}: {error}")]
    Named {
        /// Its file or URL.
        name: String,
        /// What is wrong with it.
        error: Box<ImageError>,
    },
    /// A settings file could not be read.
    #[error("cannot read {path} ({message}); fetch or export the model again")]
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

impl ImageError {
    /// This error with the name of the image that it is about.
    pub(super) fn of(self, name: impl Display) -> Self {
        ImageError::Named { name: name.to_string(), error: Box::new(self) }
    }
}
