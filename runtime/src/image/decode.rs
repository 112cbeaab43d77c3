//! Image files to pixels.

use std::{
    fs::{self, File},
    io::{Cursor, Read},
    path::Path,
};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

use super::ImageError;

/// How large an image may be. Both are checked before anything is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a file; 64 MiB by default.
    pub max_bytes: u64,
    /// Most pixels, by the image's header; 100 million by default.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_bytes: 64 << 20, max_pixels: 100_000_000 }
    }
}

/// Opens an image file and decodes it, as [`decode`].
///
/// # Errors
/// [`ImageError`] that names the file.
pub fn open(path: &Path, limits: &Limits) -> Result<RgbImage, ImageError> {
    let read_error = |source| ImageError::Read { path: path.to_owned(), source };
    let in_file = |source| ImageError::InFile { path: path.to_owned(), source: Box::new(source) };
    let bytes = fs::metadata(path).map_err(read_error)?.len();
    if bytes > limits.max_bytes {
        return Err(in_file(ImageError::TooManyBytes { bytes, limit: limits.max_bytes }));
    }
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limits.max_bytes).read_to_end(&mut content))
        .map_err(read_error)?;
    decode(&content, limits).map_err(in_file)
}

/// Decodes a PNG, JPEG, WebP, BMP or GIF (its first frame), turns it as its EXIF orientation
/// says, and converts it to RGB; an alpha channel is dropped, not blended.
///
/// # Errors
/// [`ImageError`] when the data is too large, damaged or of another format.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    if bytes.len() as u64 > limits.max_bytes {
        let bytes = bytes.len() as u64;
        return Err(ImageError::TooManyBytes { bytes, limit: limits.max_bytes });
    }
    let broken = |error: image::ImageError| ImageError::Broken(error.to_string());
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| ImageError::Broken(error.to_string()))?;
    if reader.format().is_none() {
        return Err(ImageError::UnknownFormat);
    }
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_is_complete(bytes) {
        return Err(ImageError::Broken("the JPEG data ends too early".into()));
    }
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(ImageError::NoPixels { width, height });
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(ImageError::TooManyPixels { width, height, limit: limits.max_pixels });
    }
    let orientation = decoder.orientation().map_err(broken)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// Whether there is an end marker after the last start of a scan. The decoder itself fills what
/// is missing with gray.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const START_OF_SCAN: [u8; 2] = [0xFF, 0xDA];
    const END_OF_IMAGE: [u8; 2] = [0xFF, 0xD9];
    let last_scan = bytes.windows(2).rposition(|marker| marker == START_OF_SCAN);
    last_scan.is_some_and(|start| bytes[start..].windows(2).any(|m| m == END_OF_IMAGE))
}
