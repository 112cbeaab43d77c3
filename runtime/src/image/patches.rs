//! Views as patches, alone or padded to a batch.

use image::RgbImage;
use ndarray::{Array2, Array3, s};
use rayon::prelude::*;

use super::{ImageSettings, PatchGrid};

/// One view of an image: the whole of it, a tile, or the thumbnail. It is not padded.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Normalised pixels [patches, values]; a patch is its pixel rows one after the other, and a
    /// pixel its red, green and blue.
    pub patches: Array2<f32>,
    /// How the patches lie, row by row.
    pub grid: PatchGrid,
}

/// Normalised value of each level of each channel.
pub(super) struct Normalizer([[f32; 256]; 3]);

impl Normalizer {
    /// The float32 arithmetic of the reference, which folds the rescale factor into mean and
    /// standard deviation.
    pub(super) fn new(settings: &ImageSettings) -> Self {
        let factor = settings.rescale_factor;
        let fold = if settings.do_rescale { (1.0 / factor) as f32 } else { 1.0 };
        Normalizer(std::array::from_fn(|channel| {
            let mean = settings.image_mean[channel] * fold;
            let std = settings.image_std[channel] * fold;
            std::array::from_fn(|level| match (settings.do_normalize, settings.do_rescale) {
                (true, _) => (level as f32 - mean) / std,
                (false, true) => level as f32 * factor as f32,
                (false, false) => level as f32,
            })
        }))
    }
}

impl Normalizer {
    /// Normalises a run of pixels.
    fn apply(&self, levels: &[u8], values: &mut [f32]) {
        let [red, green, blue] = &self.0;
        for (pixel, values) in levels.chunks_exact(3).zip(values.chunks_exact_mut(3)) {
            values[0] = red[usize::from(pixel[0])];
            values[1] = green[usize::from(pixel[1])];
            values[2] = blue[usize::from(pixel[2])];
        }
    }
}

impl View {
    /// Cuts the rectangle of `grid` patches at (`top`, `left`) out of an image.
    pub(super) fn cut(
        image: &RgbImage,
        top: usize,
        left: usize,
        grid: PatchGrid,
        side: usize,
        normalizer: &Normalizer,
    ) -> Self {
        let row_bytes = image.width() as usize * 3;
        let pixels = image.as_raw();
        let patch_values = side * side * 3;
        let mut values = vec![0.0; grid.patches() * patch_values];
        values.par_chunks_mut(grid.cols * patch_values).enumerate().for_each(|(row, patches)| {
            for (col, patch) in patches.chunks_exact_mut(patch_values).enumerate() {
                for (y, values) in patch.chunks_exact_mut(side * 3).enumerate() {
                    let start = (top + row * side + y) * row_bytes + (left + col * side) * 3;
                    let levels = &pixels[start..start + side * 3];
                    normalizer.apply(levels, values);
                }
            }
        });
        // The vector was made with exactly this many values.
        let patches = Array2::from_shape_vec((grid.patches(), patch_values), values);
        View { patches: patches.unwrap_or_default(), grid }
    }
}

/// Views as one batch: the inputs of the vision graphs.
#[derive(Debug, Clone, PartialEq)]
pub struct PaddedViews {
    /// [views, patches, values]; padding is 0.0.
    pub pixel_values: Array3<f32>,
    /// [views, patches]; 1 for a patch, 0 for padding.
    pub pixel_attention_mask: Array2<i64>,
    /// [views, 2]; rows and columns of patches.
    pub spatial_shapes: Array2<i64>,
}

impl PaddedViews {
    /// Pads every view to the largest of them, or to `patches` where that is more.
    pub fn new(views: &[&View], patches: usize) -> Self {
        let patches = views.iter().map(|v| v.grid.patches()).max().unwrap_or(0).max(patches);
        let values = views.first().map_or(0, |view| view.patches.ncols());
        let mut batch = PaddedViews {
            pixel_values: Array3::zeros((views.len(), patches, values)),
            pixel_attention_mask: Array2::zeros((views.len(), patches)),
            spatial_shapes: Array2::zeros((views.len(), 2)),
        };
        for (i, view) in views.iter().enumerate() {
            let valid = ..view.grid.patches();
            batch.pixel_values.slice_mut(s![i, valid, ..]).assign(&view.patches);
            batch.pixel_attention_mask.slice_mut(s![i, valid]).fill(1);
            batch.spatial_shapes[[i, 0]] = view.grid.rows as i64;
            batch.spatial_shapes[[i, 1]] = view.grid.cols as i64;
        }
        batch
    }
}
