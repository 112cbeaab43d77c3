//! How an image is resized and split: pure functions of its size, with the arithmetic of
//! `Lfm2VlImageProcessor` (Python's `round` takes halves to the even neighbour).

use super::{ImageSettings, candidate_grids};

/// Patches of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchGrid {
    /// Rows of patches.
    pub rows: usize,
    /// Columns of patches.
    pub cols: usize,
}

impl PatchGrid {
    /// Patches in all.
    pub fn patches(self) -> usize {
        self.rows.saturating_mul(self.cols)
    }
}

/// Height and width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) height: usize,
    pub(super) width: usize,
}

/// The views of one image, and the image tokens that stand for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLayout {
    /// Rows of tiles; 1 for an image that is not split.
    pub rows: usize,
    /// Columns of tiles; 1 for an image that is not split.
    pub cols: usize,
    /// Image tokens of one tile.
    pub tokens_per_tile: usize,
    /// Image tokens of the single view, or of the thumbnail.
    pub tokens_for_image: usize,
    /// Whether a thumbnail comes after the tiles.
    pub thumbnail: bool,
    /// Height and width of the single view, or of the thumbnail, in pixels.
    pub image_size: (usize, usize),
}

impl ImageLayout {
    /// The layout of an image of that size.
    pub(super) fn new(size: Size, settings: &ImageSettings) -> Self {
        let resized = smart_resize(size, settings);
        let splitting =
            settings.do_image_splitting && !(settings.min_tiles == 1 && settings.max_tiles == 1);
        let (rows, cols) = if splitting && is_too_large(size, settings) {
            tile_grid(size, settings)
        } else {
            (1, 1)
        };
        let tokens = |pixels: usize| {
            (pixels / settings.encoder_patch_size).div_ceil(settings.downsample_factor)
        };
        ImageLayout {
            rows,
            cols,
            tokens_per_tile: tokens(settings.tile_size).pow(2),
            tokens_for_image: tokens(resized.height).saturating_mul(tokens(resized.width)),
            thumbnail: settings.use_thumbnail && rows * cols > 1,
            image_size: (resized.height, resized.width),
        }
    }

    /// Whether the image is split into tiles.
    pub fn is_split(&self) -> bool {
        self.rows.saturating_mul(self.cols) > 1
    }

    /// Image tokens of all views.
    pub fn tokens(&self) -> usize {
        let tiles = self.rows.saturating_mul(self.cols).saturating_mul(self.tokens_per_tile);
        match (self.is_split(), self.thumbnail) {
            (false, _) => self.tokens_for_image,
            (true, true) => tiles.saturating_add(self.tokens_for_image),
            (true, false) => tiles,
        }
    }
}

/// `number / factor`, rounded half to even, times `factor`.
fn round_by_factor(number: usize, factor: usize) -> usize {
    ((number as f64 / factor as f64).round_ties_even() as usize).saturating_mul(factor)
}

/// The size of the single view: multiples of a token's side, between the fewest and the most
/// image tokens, near the image's aspect ratio.
fn smart_resize(size: Size, settings: &ImageSettings) -> Size {
    let side = settings.token_side();
    let area_of = |tokens: usize| tokens * side * side;
    let (min_area, max_area) =
        (area_of(settings.min_image_tokens), area_of(settings.max_image_tokens));
    let height = round_by_factor(size.height, side).max(side);
    let width = round_by_factor(size.width, side).max(side);
    let area = size.height.saturating_mul(size.width) as f64;
    let steps = |length: f64| length / side as f64;
    let rounded = height.saturating_mul(width);
    if rounded > max_area {
        let beta = (area / max_area as f64).sqrt();
        let shrink =
            |length| (steps(length as f64 / beta).floor() as usize).saturating_mul(side).max(side);
        Size { height: shrink(size.height), width: shrink(size.width) }
    } else if rounded < min_area {
        let beta = (min_area as f64 / area).sqrt();
        let enlarge = |length| (steps(length as f64 * beta).ceil() as usize).saturating_mul(side);
        Size { height: enlarge(size.height), width: enlarge(size.width) }
    } else {
        Size { height, width }
    }
}

/// Whether an image has too many pixels for one view.
fn is_too_large(size: Size, settings: &ImageSettings) -> bool {
    let side = settings.token_side();
    let rounded = |length| round_by_factor(length, side).max(settings.encoder_patch_size);
    let area = rounded(size.height).saturating_mul(rounded(size.width)) as f64;
    let tokens_area = settings.max_image_tokens * side * side;
    area > tokens_area as f64 * settings.max_pixels_tolerance
}

/// Rows and columns of tiles whose aspect ratio is nearest to the image's. Of equally near grids
/// the later one (of more tiles) is taken if the image has more than half of its pixels.
fn tile_grid(size: Size, settings: &ImageSettings) -> (usize, usize) {
    let aspect_ratio = size.width as f64 / size.height as f64;
    let area = size.width.saturating_mul(size.height) as f64;
    let tile_area = settings.tile_size * settings.tile_size;
    let mut best = (1, 1);
    let mut best_difference = f64::INFINITY;
    for (cols, rows) in candidate_grids(settings.min_tiles, settings.max_tiles) {
        let difference = (aspect_ratio - cols as f64 / rows as f64).abs();
        if difference < best_difference {
            best_difference = difference;
            best = (rows, cols);
        } else if difference == best_difference && area > 0.5 * (tile_area * rows * cols) as f64 {
            best = (rows, cols);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Among them many images that are equally near to several grids.
    #[test]
    fn grids_of_the_reference() {
        let table = include_str!("../../../testdata/preprocess/grids.csv");
        let mut checked = 0;
        for line in table.lines().skip(1) {
            let row: Vec<usize> = line.split(',').map(|cell| cell.parse().unwrap()).collect();
            let settings =
                ImageSettings { min_tiles: row[0], max_tiles: row[1], ..ImageSettings::default() };
            let grid = tile_grid(Size { width: row[2], height: row[3] }, &settings);
            assert_eq!(grid, (row[4], row[5]), "{line}");
            checked += 1;
        }
        assert!(checked > 2000, "{checked}");
    }
}
