//! The image processor: an image in, its views out.

use std::{
    cell::RefCell,
    sync::{Mutex, PoisonError},
};

use image::{Rgb, RgbImage};
use ndarray::{Array2, ArrayView3, s};

use super::{
    ImageError, ImageLayout, ImageSettings, Overrides, PatchGrid, View,
    geometry::Size,
    memory::unwritten,
    normalize::Normalizer,
    patches::Band,
    resize::{Resize, Scratch},
};

/// Makes views of images, as `Lfm2VlImageProcessor` does.
pub struct ImageProcessor {
    settings: ImageSettings,
    normalizer: Normalizer,
}

/// The views of one image: the single view; or the tiles row by row, then the thumbnail.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessedImage {
    patches: Array2<f32>,
    grids: Vec<PatchGrid>,
    layout: ImageLayout,
}

impl ProcessedImage {
    /// An image that was processed elsewhere: patches of all views, one view after the other [patches, values],
    /// the shape of each view, and how the views belong together.
    ///
    /// # Errors
    /// [`ImageError::NotProcessed`] when these do not go together.
    pub fn from_parts(
        patches: Array2<f32>,
        grids: Vec<PatchGrid>,
        layout: ImageLayout,
    ) -> Result<Self, ImageError> {
        let count = grids.iter().try_fold(0_usize, |sum, grid| {
            sum.checked_add(grid.rows.checked_mul(grid.cols).filter(|&patches| patches > 0)?)
        });
        let is_whole = count == Some(patches.nrows()) && patches.is_standard_layout();
        let views = if layout.is_split() {
            layout.rows.saturating_mul(layout.cols).saturating_add(layout.thumbnail.into())
        } else {
            1
        };
        let tokens = 1..=patches.nrows();
        if is_whole && grids.len() == views && tokens.contains(&layout.tokens()) {
            Ok(ProcessedImage { patches, grids, layout })
        } else {
            Err(ImageError::NotProcessed)
        }
    }

    /// Patches of all views, one view after the other [patches, values].
    pub fn patches(&self) -> &Array2<f32> {
        &self.patches
    }

    /// The shape of each view.
    pub fn grids(&self) -> &[PatchGrid] {
        &self.grids
    }

    /// How the views belong together.
    pub fn layout(&self) -> ImageLayout {
        self.layout
    }

    /// The views.
    pub fn views(&self) -> impl Iterator<Item = View<'_>> {
        let mut start = 0;
        self.grids.iter().map(move |&grid| {
            let range = start..start + grid.patches();
            start = range.end;
            View { patches: self.patches.slice(s![range, ..]), grid }
        })
    }

    /// Views of equal shape that follow each other, together [views, patches, values]: the
    /// batches that a graph can be given without padding, nor a copy.
    pub fn groups(&self) -> impl Iterator<Item = (PatchGrid, ArrayView3<'_, f32>)> {
        let mut start = 0;
        // The array is contiguous, so no group is left out.
        self.grids.chunk_by(|a, b| a == b).filter_map(move |grids| {
            let range = start..start + grids.len() * grids[0].patches();
            start = range.end;
            let patches = self.patches.slice(s![range, ..]);
            let shape = (grids.len(), grids[0].patches(), patches.ncols());
            Some((grids[0], patches.into_shape_with_order(shape).ok()?))
        })
    }
}

impl ImageProcessor {
    /// A processor with these settings.
    ///
    /// # Errors
    /// [`ImageError::Setting`] when they do not go together.
    pub fn new(settings: ImageSettings) -> Result<Self, ImageError> {
        let settings = settings.with(&Overrides::default())?;
        let normalizer = Normalizer::new(&settings);
        Ok(ImageProcessor { settings, normalizer })
    }

    /// A processor with some settings replaced, for single images.
    ///
    /// # Errors
    /// [`ImageError::Setting`] when they do not go together.
    pub fn with(&self, overrides: &Overrides) -> Result<Self, ImageError> {
        Self::new(self.settings.with(overrides)?)
    }

    /// Its settings.
    pub fn settings(&self) -> &ImageSettings {
        &self.settings
    }

    /// The layout of an image of that size in pixels, without processing it.
    pub fn layout(&self, height: usize, width: usize) -> ImageLayout {
        ImageLayout::new(Size { height, width }, &self.settings)
    }

    /// Resizes, splits and normalises an image.
    ///
    /// # Errors
    /// [`ImageError::NoPixels`] for an image without any, [`ImageError::TooThin`].
    pub fn process(&self, image: &RgbImage) -> Result<ProcessedImage, ImageError> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(ImageError::NoPixels { width, height });
        }
        let layout = self.layout(height as usize, width as usize);
        let side = self.settings.encoder_patch_size;
        let tile = self.settings.tile_size;
        let tile_grid = self.grid(tile, tile);
        let whole_grid = self.grid(layout.image_size.0, layout.image_size.1);
        let tiles = if layout.is_split() { layout.rows * layout.cols } else { 0 };
        let has_whole = !layout.is_split() || layout.thumbnail;
        let (patches, limit) = (whole_grid.patches(), self.settings.view_limit());
        if has_whole && patches > limit {
            return Err(ImageError::TooThin { width, height, patches, limit });
        }
        let mut grids = vec![tile_grid; tiles];
        grids.extend(has_whole.then_some(whole_grid));

        let patch = side * side * 3;
        let rows: usize = grids.iter().map(|grid| grid.patches()).sum();
        let mut values = unwritten(rows * patch);
        let (of_tiles, of_whole) = values.split_at_mut(tiles * tile_grid.patches() * patch);
        let resize =
            |height, width| Resize::new(image, Size { height, width }, self.settings.resample);
        let to_tiles = (tiles > 0).then(|| resize(layout.rows * tile, layout.cols * tile));
        let to_whole = has_whole.then(|| resize(layout.image_size.0, layout.image_size.1));
        let mut bands = Vec::new();
        if let Some(to_tiles) = &to_tiles {
            let row = layout.cols * tile_grid.patches() * patch;
            for (i, values) in of_tiles.chunks_exact_mut(row).enumerate() {
                bands.extend(Band::of_views(values, tile_grid, side, to_tiles, i * tile));
            }
        }
        if let Some(to_whole) = &to_whole {
            bands.extend(Band::of_views(of_whole, whole_grid, side, to_whole, 0));
        }
        let bands = Mutex::new(bands.into_iter());
        let next = || bands.lock().unwrap_or_else(PoisonError::into_inner).next();
        let fill = || {
            SCRATCH.with_borrow_mut(|scratch| {
                while let Some(mut band) = next() {
                    band.fill(side, &self.normalizer, scratch);
                }
            });
        };
        // This thread works too, instead of waiting for the others.
        rayon::in_place_scope(|scope| {
            for _ in 1..rayon::current_num_threads() {
                scope.spawn(|_| fill());
            }
            fill();
        });
        // There are as many values as the shape says.
        let patches = Array2::from_shape_vec((rows, patch), values)
            .unwrap_or_else(|_| Array2::uninit((0, patch)));
        // SAFETY: the bands are all rows of patches of all views, and each has been filled; both
        // are asserted where it is done.
        let patches = unsafe { patches.assume_init() };
        Ok(ProcessedImage { patches, grids, layout })
    }

    /// The pixels of a view that this processor made, as they were before they were normalised; none of a view
    /// whose patches are not those of its grid.
    pub fn pixels(&self, view: &View<'_>) -> RgbImage {
        let side = self.settings.encoder_patch_size;
        let PatchGrid { rows, cols } = view.grid;
        if view.grid.patches() != view.patches.nrows() {
            return RgbImage::default();
        }
        RgbImage::from_fn((cols * side) as u32, (rows * side) as u32, |x, y| {
            let (x, y) = (x as usize, y as usize);
            let patch = y / side * cols + x / side;
            let red = 3 * (y % side * side + x % side);
            let value = |channel| view.patches.get([patch, red + channel]).copied();
            let level = |channel| self.normalizer.level(value(channel).unwrap_or(0.0), channel);
            Rgb(std::array::from_fn(level))
        })
    }

    fn grid(&self, height: usize, width: usize) -> PatchGrid {
        let side = self.settings.encoder_patch_size;
        PatchGrid { rows: height / side, cols: width / side }
    }
}

thread_local! {
    /// Kept by each thread: to give memory back to the system stops all threads for a moment.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}
