//! The image processor: an image in, its views out.

use image::RgbImage;

use super::{
    ImageError, ImageLayout, ImageSettings, Overrides, PatchGrid, View, geometry::Size,
    patches::Normalizer, resize::resize,
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
        let mut views = Vec::new();
        if layout.is_split() {
            let tile = self.settings.tile_size;
            let size = Size { height: layout.rows * tile, width: layout.cols * tile };
            let resized = resize(image, size, self.settings.resample)?;
            let grid = self.grid(tile, tile);
            for i in 0..layout.rows * layout.cols {
                let (top, left) = (i / layout.cols * tile, i % layout.cols * tile);
                views.push(self.cut(&resized, top, left, grid));
            }
        }
        if !layout.is_split() || layout.thumbnail {
            let (height, width) = layout.image_size;
            let resized = resize(image, Size { height, width }, self.settings.resample)?;
            views.push(self.cut(&resized, 0, 0, self.grid(height, width)));
        }
        Ok(ProcessedImage { views, layout })
    }

    fn grid(&self, height: usize, width: usize) -> PatchGrid {
        let side = self.settings.encoder_patch_size;
        PatchGrid { rows: height / side, cols: width / side }
    }

    fn cut(&self, image: &RgbImage, top: usize, left: usize, grid: PatchGrid) -> View {
        View::cut(image, top, left, grid, self.settings.encoder_patch_size, &self.normalizer)
    }
}
