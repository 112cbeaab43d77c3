//! Image files to pixels, as Pillow's `open(...)`, `exif_transpose` and `convert("RGB")` give
//! them, which is how transformers loads images.

use std::{
    fs::{self, File},
    io::{self, BufRead, Cursor, Read, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use image::{
    DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage, metadata::Orientation,
};

use super::{
    ImageError, bmp,
    deadline::Deadline,
    gif, jpeg,
    orientation::orientation,
    pixels::from_dynamic,
    png::{self, Metadata},
};

/// What an image may take. Bytes and pixels are checked before anything is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a file or download; 64 MiB by default.
    pub max_bytes: u64,
    /// Most pixels, by the image's header; 100 million by default.
    pub max_pixels: u64,
    /// Most bytes of the decoded pixels; 400 MiB by default. Most images take 3 for a pixel, those with 16 bits
    /// for a channel up to 8.
    pub max_decoded_bytes: u64,
    /// Most time for fetching and decoding one image; 20 seconds by default. It is looked at
    /// whenever a decoder or a download asks for more data, and at the end. A JPEG is decoded in
    /// one go; what bounds its time are its pixels, and 50 scans at most.
    pub max_time: Duration,
    /// Whether [`load`](super::load) opens files; by default it does. Not for names that come from
    /// outside.
    pub allow_files: bool,
    /// Whether URLs may lead to addresses that are not public, such as 127.0.0.1 or 10.0.0.1, and
    /// through a proxy, behind which addresses cannot be seen; not by default.
    pub allow_private_addresses: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_bytes: 64 << 20,
            max_pixels: 100_000_000,
            max_decoded_bytes: 400 << 20,
            max_time: Duration::from_secs(20),
            allow_files: true,
            allow_private_addresses: false,
        }
    }
}

impl Limits {
    pub(super) fn check_bytes(&self, bytes: u64) -> Result<(), ImageError> {
        if bytes > self.max_bytes {
            Err(ImageError::TooManyBytes { bytes, limit: self.max_bytes })
        } else {
            Ok(())
        }
    }

    pub(super) fn check_size(&self, width: u32, height: u32) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::NoPixels { width, height });
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            Err(ImageError::TooManyPixels { width, height, limit: self.max_pixels })
        } else {
            Ok(())
        }
    }

    fn check_decoded(&self, bytes: u64) -> Result<(), ImageError> {
        if bytes > self.max_decoded_bytes {
            Err(ImageError::TooManyDecodedBytes { bytes, limit: self.max_decoded_bytes })
        } else {
            Ok(())
        }
    }
}

/// Opens an image file and decodes it, as [`decode`].
///
/// # Errors
/// [`ImageError`] that names the file.
pub fn open(path: &Path, limits: &Limits) -> Result<RgbImage, ImageError> {
    let content = read_file(path, limits)?;
    decode(&content, limits).map_err(|error| error.of(path.display()))
}

/// The bytes of an image file.
pub(super) fn read_file(path: &Path, limits: &Limits) -> Result<Vec<u8>, ImageError> {
    let read_error = |error| ImageError::Read { path: path.to_owned(), error };
    let in_file = |error: ImageError| error.of(path.display());
    let metadata = fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        return Err(read_error(io::Error::other("it is no regular file")));
    }
    limits.check_bytes(metadata.len()).map_err(in_file)?;
    let mut content = Vec::with_capacity(metadata.len() as usize);
    File::open(path)
        .and_then(|file| file.take(limits.max_bytes).read_to_end(&mut content))
        .map_err(read_error)?;
    Ok(content)
}

/// Decodes a PNG, JPEG, WebP, BMP or GIF (its first frame), turns it as its EXIF orientation
/// says, and converts it to RGB [height, width, 3]; an alpha channel is dropped, not blended.
///
/// # Errors
/// [`ImageError`] when the data is too large, damaged or of another format.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    decode_before(bytes, limits, Deadline::after(limits.max_time))
}

pub(super) fn decode_before(
    bytes: &[u8],
    limits: &Limits,
    deadline: Deadline,
) -> Result<RgbImage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    limits.check_bytes(bytes.len() as u64)?;
    let (image, orientation) = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg::decode(bytes, limits)?,
        Ok(format) if SUPPORTED.contains(&format) => {
            let decoded = decode_format(bytes, format, limits, deadline);
            deadline.check()?;
            decoded?
        }
        _ => return Err(ImageError::UnknownFormat),
    };
    deadline.check()?;
    if orientation == Orientation::NoTransforms {
        return Ok(image);
    }
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// The formats besides JPEG.
const SUPPORTED: [ImageFormat; 4] =
    [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif];

fn decode_format(
    bytes: &[u8],
    format: ImageFormat,
    limits: &Limits,
    deadline: Deadline,
) -> Result<(RgbImage, Orientation), ImageError> {
    let broken = |error: image::ImageError| ImageError::Broken(error.to_string());
    let ended = if format == ImageFormat::Png { with_end(bytes) } else { None };
    let bytes = ended.as_deref().unwrap_or(bytes);
    let reader = Timed { data: Cursor::new(bytes), deadline };
    if format == ImageFormat::Gif {
        return Ok((gif::decode(reader, limits)?, Orientation::NoTransforms));
    }
    let mut decoder = ImageReader::with_format(reader, format).into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    limits.check_decoded(decoder.total_bytes())?;
    let Metadata { exif, xmp } = match format {
        ImageFormat::Png => png::metadata(bytes),
        _ => Metadata {
            exif: decoder.exif_metadata().map_err(broken)?,
            xmp: decoder.xmp_metadata().map_err(broken)?,
        },
    };
    let orientation = orientation(exif.as_deref(), xmp.as_deref());
    let mut image = from_dynamic(DynamicImage::from_decoder(decoder).map_err(broken)?);
    if format == ImageFormat::Bmp {
        bmp::cut_off(bytes, &mut image);
    }
    Ok((image, orientation))
}

/// The chunk that ends a PNG file: no data, its name, and its checksum.
const PNG_END: [u8; 12] = *b"\0\0\0\0IEND\xAE\x42\x60\x82";

/// A PNG file with the chunk that ends it, where it has lost that: all pixels may be there, and Pillow
/// reads them.
fn with_end(bytes: &[u8]) -> Option<Vec<u8>> {
    let has_end = bytes.ends_with(&PNG_END) || bytes.windows(4).any(|name| name == b"IEND");
    (!has_end).then(|| [bytes, &PNG_END].concat())
}

/// Data that cannot be read any more after a deadline.
struct Timed<'a> {
    data: Cursor<&'a [u8]>,
    deadline: Deadline,
}

/// Bytes that a decoder gets at once.
const PIECE: usize = 64 << 10;

impl BufRead for Timed<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.deadline.check().map_err(io::Error::other)?;
        let rest = self.data.fill_buf()?;
        Ok(&rest[..rest.len().min(PIECE)])
    }

    fn consume(&mut self, amount: usize) {
        self.data.consume(amount);
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?.read(buffer)?;
        self.consume(piece);
        Ok(piece)
    }
}

impl Seek for Timed<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.data.seek(position)
    }
}
