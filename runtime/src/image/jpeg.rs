//! JPEG files: the pixels of libjpeg-turbo, which Pillow decodes with, bit for bit.

use image::{RgbImage, metadata::Orientation};
use libjpeg_turbo_rs::{Decoder, JpegError, PixelFormat};

use super::{ImageError, Limits, orientation::orientation, pixels::from_cmyk};

/// Scans of a progressive file that are decoded at most; encoders write about ten. A file is
/// decoded in one go, so this and its pixels are what bounds the time.
const MAX_SCANS: u32 = 50;

/// Decodes a JPEG to RGB; its orientation is not applied yet.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(RgbImage, Orientation), ImageError> {
    let broken = |error: JpegError| ImageError::Broken(error.to_string());
    let mut decoder = Decoder::new(bytes).map_err(broken)?;
    let frame = decoder.header();
    let (width, height) = (u32::from(frame.width), u32::from(frame.height));
    limits.check_size(width, height)?;
    let is_cmyk = frame.components.len() == 4;
    decoder.set_scan_limit(MAX_SCANS);
    decoder.set_output_format(if is_cmyk { PixelFormat::Cmyk } else { PixelFormat::Rgb });
    let image = decoder.decode_image().map_err(broken)?;
    let orientation = orientation(image.exif_data.as_deref(), image.xmp_data.as_deref());
    let pixels = if is_cmyk { from_cmyk(&image.data) } else { image.data };
    let image = RgbImage::from_raw(width, height, pixels);
    let image = image.ok_or_else(|| ImageError::Broken("the data has another size".into()))?;
    Ok((image, orientation))
}
