//! What the model sees of images, as one picture.

use std::path::Path;

use anyhow::{Context, Result};
use image::{ImageFormat, Rgb, RgbImage, imageops};
use lfm2vl::image::{ImageProcessor, ProcessedImage};

/// Pixels between two views.
const GAP: u32 = 4;
/// The colour around views, which photos seldom have.
const BACKGROUND: Rgb<u8> = Rgb([255, 0, 255]);

/// Writes a PNG file of the images one below the other, each with its tiles as they lie in it, and the thumbnail to
/// the right of them.
pub(super) fn write(
    path: &Path,
    images: &[ProcessedImage],
    processor: &ImageProcessor,
) -> Result<()> {
    let mut views: Vec<PlacedView> = Vec::new();
    for image in images {
        let top = views.iter().map(|view| view.bottom() + GAP).max().unwrap_or(0);
        views.extend(place(image, processor, top));
    }
    draw(&views)
        .save_with_format(path, ImageFormat::Png)
        .with_context(|| format!("cannot write {}; check the folder and its disk", path.display()))
}

/// A view, and where it is in the picture.
struct PlacedView {
    left: u32,
    top: u32,
    pixels: RgbImage,
}

impl PlacedView {
    fn right(&self) -> u32 {
        self.left + self.pixels.width()
    }

    fn bottom(&self) -> u32 {
        self.top + self.pixels.height()
    }
}

/// The views of an image that begins at `top`.
fn place(image: &ProcessedImage, processor: &ImageProcessor, top: u32) -> Vec<PlacedView> {
    let (rows, cols) = (image.layout().rows, image.layout().cols);
    // All tiles are of one size.
    let step = processor.settings().tile_size as u32 + GAP;
    let place = |(i, view)| {
        let (row, col) = if i < rows * cols { (i / cols, i % cols) } else { (0, cols) };
        let (left, top) = (col as u32 * step, top + row as u32 * step);
        PlacedView { left, top, pixels: processor.pixels(&view) }
    };
    image.views().enumerate().map(place).collect()
}

fn draw(views: &[PlacedView]) -> RgbImage {
    let width = views.iter().map(PlacedView::right).max().unwrap_or(0);
    let height = views.iter().map(PlacedView::bottom).max().unwrap_or(0);
    let mut picture = RgbImage::from_pixel(width, height, BACKGROUND);
    for view in views {
        imageops::replace(&mut picture, &view.pixels, view.left.into(), view.top.into());
    }
    picture
}
