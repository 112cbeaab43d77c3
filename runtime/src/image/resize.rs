//! Antialiased resizing of 8-bit images, equal bit for bit to PyTorch's
//! `interpolate(uint8, mode, antialias=True)` on a CPU, which torchvision and so the reference
//! uses: filter weights as 16-bit integers, a horizontal pass rounded to 8 bits, then a vertical
//! one (`UpSampleKernel.cpp`, after Pillow-SIMD).
//!
//! `fast_image_resize` has the same weights, but takes the passes in the order that is faster for
//! the sizes at hand; asked for one pass at a time it gives the same pixels. Pillow itself keeps
//! 22-bit weights and so differs by a level here and there.

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeError, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};
use image::RgbImage;

use super::{ImageError, Resample, geometry::Size};

/// Resizes to `size`.
pub(super) fn resize(
    image: &RgbImage,
    size: Size,
    resample: Resample,
) -> Result<RgbImage, ImageError> {
    let filter = match resample {
        Resample::Bilinear => FilterType::Bilinear,
        // Keys' cubic convolution with a = -0.5.
        Resample::Bicubic => FilterType::CatmullRom,
    };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    let (width, height) = (size.width as u32, size.height as u32);
    let failed = |error: ResizeError| ImageError::Resize(error.to_string());

    let source = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3)
        .map_err(|error| ImageError::Resize(error.to_string()))?;
    let mut rows = Image::new(width, image.height(), PixelType::U8x3);
    let mut resizer = Resizer::new();
    resizer.resize(&source, &mut rows, &options).map_err(failed)?;
    let mut resized = Image::new(width, height, PixelType::U8x3);
    resizer.resize(&rows, &mut resized, &options).map_err(failed)?;
    RgbImage::from_raw(width, height, resized.into_vec())
        .ok_or_else(|| ImageError::Resize("the buffer has another size".into()))
}
