//! The image processor's graph against the runtime's image processing.

use lfm2vl::image::{ImageProcessor, ImageSettings, RgbImage};
use ndarray::{Array3, Axis};

use super::VerifyError;
use crate::{
    metrics::Comparison,
    session::{GraphSession, Tensor},
};

/// All views of an image of one view, of one that is split, and of one that shrinks a lot.
pub(super) fn check(
    session: &mut GraphSession,
    settings: ImageSettings,
) -> Result<Comparison, VerifyError> {
    let side = settings.tile_size;
    let processor = ImageProcessor::new(settings)?;
    let mut comparison = Comparison::default();
    for (width, height) in
        [(side / 2 + 3, side - 5), (2 * side + 7, 3 * side / 2 + 1), (6 * side + 1, 5 * side - 3)]
    {
        let pixels = Array3::from_shape_fn((height, width, 3), noise);
        let image =
            RgbImage::from_raw(width as u32, height as u32, pixels.iter().copied().collect());
        let views = processor.process(&image.unwrap_or_default())?;
        let inputs = vec![("pixels".to_owned(), Tensor::Bytes(pixels.into_dyn()))];
        let found = &session.run(inputs)?["pixel_values"];
        let view_size = found.len() / found.len_of(Axis(0)).max(1);
        let mut expected = Vec::new();
        for (index, view) in views.views().enumerate() {
            expected.extend(view.patches);
            // Padding is of zeros.
            expected.resize((index + 1) * view_size, 0.0);
        }
        comparison.add(found, &expected);
    }
    Ok(comparison)
}

/// A level at (row, column, channel) that looks random and is the same on every machine.
fn noise((row, column, channel): (usize, usize, usize)) -> u8 {
    let place = (row as u32) << 18 ^ (column as u32) << 2 ^ channel as u32;
    (place.wrapping_mul(0x9E37_79B1).wrapping_mul(place | 1) >> 24) as u8
}
