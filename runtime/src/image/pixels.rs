//! Pixels that are in memory already, and their conversion to RGB as Pillow's `convert("RGB")`
//! does it.

use image::{DynamicImage, GrayImage, RgbImage, buffer::ConvertBuffer};
use ndarray::{ArrayView3, Axis};

use super::ImageError;

/// The order of a pixel's bytes in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelFormat {
    /// One level of gray.
    Gray,
    /// Red, green, blue.
    Rgb,
    /// Red, green, blue, and an alpha that is dropped.
    Rgba,
    /// Blue, green, red, as OpenCV has them.
    Bgr,
    /// Blue, green, red, and an alpha that is dropped.
    Bgra,
}

impl PixelFormat {
    /// Where red, green and blue are in a pixel.
    fn channels(self) -> [usize; 3] {
        match self {
            PixelFormat::Gray => [0, 0, 0],
            PixelFormat::Rgb | PixelFormat::Rgba => [0, 1, 2],
            PixelFormat::Bgr | PixelFormat::Bgra => [2, 1, 0],
        }
    }

    fn bytes(self) -> usize {
        match self {
            PixelFormat::Gray => 1,
            PixelFormat::Rgb | PixelFormat::Bgr => 3,
            PixelFormat::Rgba | PixelFormat::Bgra => 4,
        }
    }
}

/// An image from its rows of pixels, one after the other without gaps.
///
/// # Errors
/// [`ImageError::PixelCount`] when the bytes are more or fewer than that.
pub fn from_pixels(
    bytes: &[u8],
    width: u32,
    height: u32,
    format: PixelFormat,
) -> Result<RgbImage, ImageError> {
    let pixels = u64::from(width) * u64::from(height);
    let expected = pixels.saturating_mul(format.bytes() as u64);
    if bytes.len() as u64 != expected {
        return Err(ImageError::PixelCount { bytes: bytes.len(), width, height, expected });
    }
    let channels = format.channels();
    let rgb = match format {
        PixelFormat::Rgb => bytes.to_vec(),
        _ => bytes.chunks_exact(format.bytes()).flat_map(|p| channels.map(|c| p[c])).collect(),
    };
    RgbImage::from_raw(width, height, rgb).ok_or(ImageError::NoPixels { width, height })
}

/// An image from an array [height, width, channels] of gray (1 channel), RGB (3) or RGBA (4), in
/// any memory order.
///
/// # Errors
/// [`ImageError::Channels`] for another number of channels.
pub fn from_array(array: ArrayView3<'_, u8>) -> Result<RgbImage, ImageError> {
    let (height, width, channels) = array.dim();
    let format = match channels {
        1 => PixelFormat::Gray,
        3 => PixelFormat::Rgb,
        4 => PixelFormat::Rgba,
        _ => return Err(ImageError::Channels { channels }),
    };
    let size = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let bytes: Vec<u8> = array.lanes(Axis(2)).into_iter().flatten().copied().collect();
    from_pixels(&bytes, size(width), size(height), format)
}

/// RGB of any decoded image. Alpha is dropped. Of 16 bits the upper 8 are kept, except for gray:
/// there Pillow cuts off what is above 255, and so does this.
pub fn from_dynamic(image: DynamicImage) -> RgbImage {
    match image {
        DynamicImage::ImageLuma16(gray) => {
            let levels = gray.as_raw().iter().map(|&level| level.min(255) as u8).collect();
            let gray = GrayImage::from_raw(gray.width(), gray.height(), levels);
            gray.unwrap_or_default().convert()
        }
        DynamicImage::ImageLumaA16(image) => {
            upper_bytes(image.width(), image.height(), |x, y| [image.get_pixel(x, y)[0]; 3])
        }
        DynamicImage::ImageRgb16(image) => {
            upper_bytes(image.width(), image.height(), |x, y| image.get_pixel(x, y).0)
        }
        DynamicImage::ImageRgba16(image) => upper_bytes(image.width(), image.height(), |x, y| {
            let [red, green, blue, _] = image.get_pixel(x, y).0;
            [red, green, blue]
        }),
        other => other.into_rgb8(),
    }
}

fn upper_bytes(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u16; 3]) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb(pixel(x, y).map(|level| (level >> 8) as u8)))
}

/// RGB of inverted CMYK, as Adobe's programs store it and Pillow takes all of it to be: each of
/// cyan, magenta and yellow is scaled by what black leaves, `round(x * k / 255)`.
pub(super) fn from_cmyk(pixels: &[u8]) -> Vec<u8> {
    // round(product / 255), Pillow's MULDIV255.
    let scaled = |level: u8, by: u8| {
        let product = u32::from(level) * u32::from(by) + 128;
        (((product >> 8) + product) >> 8) as u8
    };
    pixels.chunks_exact(4).flat_map(|p| [0, 1, 2].map(|channel| scaled(p[channel], p[3]))).collect()
}
