//! The image processor: an image in, its views out.

use std::cell::RefCell;

use image::RgbImage;
use rayon::prelude::*;

use super::{
    ImageError, ImageLayout, ImageSettings, Overrides, PatchGrid, View,
    geometry::Size,
    patches::{Band, Normalizer},
    resize::{Resize, Scratch},
};

/// Makes views of images, as `Lfm2VlImageProcessor` does.
pub struct ImageProcessor {
    settings: ImageSettings,
    normalizer: Normalizer,
}

/// The views of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessedImage {
    /// The single view; or the tiles row by row, then the thumbnail.
    pub views: Vec<View>,
    /// How the views belong together.
    pub layout: ImageLayout,
}

impl ImageProcessor {
    /// A processor with these settings.
    pub fn new(settings: ImageSettings) -> Self {
        let normalizer = Normalizer::new(&settings);
        ImageProcessor { settings, normalizer }
    }

    /// A processor with some settings replaced, for single images.
    ///
    /// # Errors
    /// [`ImageError::Setting`] when they do not go together.
    pub fn with(&self, overrides: &Overrides) -> Result<Self, ImageError> {
        Ok(Self::new(self.settings.with(overrides)?))
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
    /// [`ImageError::NoPixels`] for an image without any, [`ImageError::Resize`].
    pub fn process(&self, image: &RgbImage) -> Result<ProcessedImage, ImageError> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(ImageError::NoPixels { width, height });
        }
        let layout = self.layout(height as usize, width as usize);
        let side = self.settings.encoder_patch_size;
        let tile = self.settings.tile_size;
        let whole = {
            let (height, width) = layout.image_size;
            Size { height, width }
        };
        let tiled = Size { height: layout.rows * tile, width: layout.cols * tile };
        let resize = |size| Resize::new(image, size, self.settings.resample);

        let tiles = if layout.is_split() { layout.rows * layout.cols } else { 0 };
        let tile_grid = self.grid(tile, tile);
        let mut views: Vec<View> = (0..tiles).map(|_| View::empty(tile_grid, side)).collect();
        if !layout.is_split() || layout.thumbnail {
            views.push(View::empty(self.grid(whole.height, whole.width), side));
        }
        let (tile_views, whole_view) = views.split_at_mut(tiles);
        let to_tiles = layout.is_split().then(|| resize(tiled));
        let to_whole = resize(whole);
        let mut bands = Vec::new();
        if let Some(to_tiles) = &to_tiles {
            for (row, views) in tile_views.chunks_mut(layout.cols).enumerate() {
                bands.extend(Band::of_views(views, to_tiles, row * tile, side));
            }
        }
        bands.extend(Band::of_views(whole_view, &to_whole, 0, side));
        bands
            .into_par_iter()
            .with_min_len(MIN_BANDS)
            .for_each_init(Scratch::default, |scratch, mut band| {
                band.fill(side, &self.normalizer, scratch)
            });
        Ok(ProcessedImage { views, layout })
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

/// Bands that one thread takes at least: fewer are not worth handing over.
const MIN_BANDS: usize = 4;
