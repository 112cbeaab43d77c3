//! Views as patches, alone or padded to a batch.

use std::{mem::MaybeUninit, ops::Range};

use ndarray::{Array2, Array3, ArrayView2, s};

use super::{
    ImageError, PatchGrid,
    normalize::{Normalizer, normalize},
    resize::{Resize, Scratch},
};

/// One view of an image: the whole of it, a tile, or the thumbnail. It is not padded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View<'p> {
    /// Normalised pixels [patches, values]; a patch is its pixel rows one after the other, and a
    /// pixel its red, green and blue.
    pub patches: ArrayView2<'p, f32>,
    /// How the patches lie, row by row.
    pub grid: PatchGrid,
}

/// A row of patches, through all views that are side by side.
pub(super) struct Band<'v> {
    resize: &'v Resize<'v>,
    /// Rows of the resized image.
    rows: Range<usize>,
    /// The row of patches in each view.
    patches: Vec<&'v mut [MaybeUninit<f32>]>,
}

impl<'v> Band<'v> {
    /// The bands of views of shape `grid` that are side by side, the first row of which is `top`
    /// in the resized image. `values` are those of all their patches.
    pub(super) fn of_views(
        values: &'v mut [MaybeUninit<f32>],
        grid: PatchGrid,
        side: usize,
        resize: &'v Resize<'v>,
        top: usize,
    ) -> Vec<Self> {
        let mut bands: Vec<Self> = (0..grid.rows)
            .map(|row| top + row * side)
            .map(|start| Band { resize, rows: start..start + side, patches: Vec::new() })
            .collect();
        let row = grid.cols * side * side * 3;
        assert!(values.len().is_multiple_of(grid.rows * row), "views of another shape");
        for (i, patches) in values.chunks_exact_mut(row).enumerate() {
            bands[i % grid.rows].patches.push(patches);
        }
        bands
    }

    /// Resizes, normalises and cuts into patches, in one pass.
    pub(super) fn fill(&mut self, side: usize, normalizer: &Normalizer, scratch: &mut Scratch) {
        let line = side * 3;
        let mut y = 0;
        self.resize.rows(self.rows.clone(), scratch, |mut levels| {
            for patches in &mut self.patches {
                for patch in patches.chunks_exact_mut(side * line) {
                    let (own, others) = levels.split_at(line);
                    normalize(own, normalizer, &mut patch[y * line..][..line]);
                    levels = others;
                }
            }
            y += 1;
        });
        assert_eq!(y, side, "a band has all its rows");
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
    ///
    /// # Errors
    /// [`ImageError::NotProcessed`] for a view whose patches are not those of its grid, or of another size than
    /// the others'.
    pub fn new(views: &[View<'_>], patches: usize) -> Result<Self, ImageError> {
        let patches = views.iter().map(|v| v.grid.patches()).max().unwrap_or(0).max(patches);
        let values = views.first().map_or(0, |view| view.patches.ncols());
        let is_whole = |view: &View<'_>| view.patches.dim() == (view.grid.patches(), values);
        let size = views
            .len()
            .max(1)
            .checked_mul(patches)
            .and_then(|rows| rows.checked_mul(values.max(1)));
        if !views.iter().all(is_whole) || size.is_none_or(|size| size > isize::MAX as usize / 4) {
            return Err(ImageError::NotProcessed);
        }
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
        Ok(batch)
    }
}
