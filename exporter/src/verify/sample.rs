//! What graphs are verified on: made up, the same for each run, and awkward on purpose.

use ndarray::{Array2, Array3, s};

use crate::checkpoint::Config;

/// Prompt tokens before and after the image.
const TEXT_TOKENS: usize = 12;

/// One view of the batch.
pub(super) struct SampleView {
    /// Valid patches [rows * cols, values].
    pub(super) patches: Array2<f32>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// A ragged batch of views and a prompt.
pub(super) struct Sample {
    pub(super) views: Vec<SampleView>,
    /// Token ids before the image features.
    pub(super) before: Vec<u32>,
    /// Token ids after them.
    pub(super) after: Vec<u32>,
}

impl Sample {
    /// Views whose grids enlarge the position table, reduce it unevenly, and are narrow; token
    /// ids from all over the vocabulary.
    pub(super) fn new(config: &Config) -> Self {
        let factor = config.projector.downsample_factor;
        let grid = config.vision.position_grid.next_multiple_of(factor);
        let grids = [(grid, grid), (factor, grid + 2 * factor), (grid + factor, 2 * factor)];
        let values = config.dims().patch_values;
        let mut noise = Noise(1);
        let views = grids
            .map(|(rows, cols)| SampleView {
                patches: Array2::from_shape_simple_fn((rows * cols, values), || noise.value()),
                rows,
                cols,
            })
            .into();
        let mut tokens = || -> Vec<u32> {
            let ids = (0..TEXT_TOKENS).map(|_| noise.below(config.text.vocab_size) as u32);
            // An image token would want an image.
            ids.map(|id| if id == config.image_token_id { 0 } else { id }).collect()
        };
        Sample { views, before: tokens(), after: tokens() }
    }

    /// `pixel_values`, `pixel_attention_mask` and `spatial_shapes` of the batch, padded.
    pub(super) fn padded(&self) -> (Array3<f32>, Array2<i64>, Array2<i64>) {
        let patches = self.views.iter().map(|view| view.patches.nrows()).max();
        // One patch more than needed, so that even the largest view is padded.
        let views: Vec<&SampleView> = self.views.iter().collect();
        padded(&views, views.len(), patches.unwrap_or_default() + 1)
    }
}

/// `pixel_values`, `pixel_attention_mask` and `spatial_shapes` of so many views; where there are
/// fewer, the last one comes again.
pub(super) fn padded(
    views: &[&SampleView],
    count: usize,
    patches: usize,
) -> (Array3<f32>, Array2<i64>, Array2<i64>) {
    let values = views.first().map_or(0, |view| view.patches.ncols());
    let mut pixels = Array3::zeros((count, patches, values));
    let mut mask = Array2::zeros((count, patches));
    let mut shapes = Array2::zeros((count, 2));
    let again = std::iter::repeat_n(views.last(), count).flatten();
    for (i, view) in views.iter().chain(again).take(count).enumerate() {
        pixels.slice_mut(s![i, ..view.patches.nrows(), ..]).assign(&view.patches);
        mask.slice_mut(s![i, ..view.patches.nrows()]).fill(1);
        shapes[[i, 0]] = view.rows as i64;
        shapes[[i, 1]] = view.cols as i64;
    }
    (pixels, mask, shapes)
}

/// Reproducible noise (SplitMix64, Steele et al. 2014).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1, the range of normalised pixels.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
