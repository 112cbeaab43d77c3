//! GIF files: the first frame, as Pillow shows it.

use std::io::Read;

use gif::{ColorOutput, DecodeOptions, DecodingError};
use image::RgbImage;

use super::{ImageError, Limits};

/// Decodes the first frame of a GIF to RGB. Where it does not cover the canvas, there is the
/// frame's transparent colour, or else the first one of the palette.
pub(super) fn decode(reader: impl Read, limits: &Limits) -> Result<RgbImage, ImageError> {
    let broken = |error: DecodingError| ImageError::Broken(error.to_string());
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    let mut decoder = options.read_info(reader).map_err(broken)?;
    let (width, height) = (decoder.width(), decoder.height());
    limits.check_size(width.into(), height.into())?;
    let header = decoder.next_frame_info().map_err(broken)?;
    let frame = header.ok_or_else(|| ImageError::Broken("it has no image".into()))?;
    // A frame that goes beyond the canvas enlarges it.
    let [left, top, across, down] =
        [frame.left, frame.top, frame.width, frame.height].map(usize::from);
    let width = usize::from(width).max(left + across);
    let height = usize::from(height).max(top + down);
    limits.check_size(width as u32, height as u32)?;
    let background = frame.transparent.unwrap_or(0);
    let own_palette = frame.palette.clone();

    let mut levels = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut levels).map_err(broken)?;
    let palette = own_palette.or_else(|| decoder.global_palette().map(<[u8]>::to_vec));
    let palette = palette.unwrap_or_default();
    // Beyond the palette, a number is a level of gray.
    let colour = |index: u8| match palette.chunks_exact(3).nth(index.into()) {
        Some(colour) => [colour[0], colour[1], colour[2]],
        None => [index; 3],
    };
    let colours: Vec<[u8; 3]> = (0..=u8::MAX).map(colour).collect();

    let mut indices = vec![background; width * height];
    let rows = indices.chunks_exact_mut(width).skip(top);
    for (row, levels) in rows.zip(levels.chunks_exact(across.max(1))) {
        row[left..left + across].copy_from_slice(levels);
    }
    let pixels = indices.into_iter().flat_map(|index| colours[usize::from(index)]).collect();
    RgbImage::from_raw(width as u32, height as u32, pixels)
        .ok_or_else(|| ImageError::Broken("the data has another size".into()))
}
