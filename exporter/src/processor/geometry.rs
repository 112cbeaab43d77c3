//! How an image is resized and split: arithmetic on its size, in float64 where Python's is.

use lfm2vl::image::candidate_grids;

use super::Processor;
use crate::onnx::Value;

/// Height and width in pixels, int64 scalars.
#[derive(Clone, Copy)]
pub(super) struct Size<'g> {
    pub(super) height: Value<'g>,
    pub(super) width: Value<'g>,
}

/// The views of an image, as int64 scalars.
pub(super) struct Layout<'g> {
    /// Rows and columns of tiles; 0 for an image that is not split.
    pub(super) rows: Value<'g>,
    pub(super) cols: Value<'g>,
    /// Size of all tiles together; 0 for an image that is not split.
    pub(super) tiled: Size<'g>,
    /// Size of the single view or the thumbnail; 0 where there is none.
    pub(super) whole: Size<'g>,
    /// How many single views or thumbnails there are, and how many thumbnails: 0 or 1.
    pub(super) wholes: Value<'g>,
    pub(super) thumbnails: Value<'g>,
    /// Image tokens of a tile, of the single view or the thumbnail, and of all views.
    pub(super) tokens_per_tile: Value<'g>,
    pub(super) tokens_of_whole: Value<'g>,
    pub(super) tokens: Value<'g>,
}

impl<'g> Processor<'g> {
    /// The layout of an image of that size.
    pub(super) fn layout(self, size: Size<'g>) -> Layout<'g> {
        let _scope = self.g.enter("layout");
        let one = self.int(1);
        let has_pixels = (size.height * size.width).greater(self.int(0));
        let checked = self.require("the_image_has_no_pixels", has_pixels) * self.checked_settings();
        let size = Size { height: size.height * checked, width: size.width * checked };
        let [rows, cols] = self.tile_grid(size);
        let is_split = self.is_too_large(size).and((rows * cols).greater(one)).to_i64();
        let splits = is_split * self.do_image_splitting;
        let (rows, cols) = (rows * splits, cols * splits);
        let thumbnails = splits * self.use_thumbnail;
        let wholes = one - splits + thumbnails;

        let resized = self.smart_resize(size);
        let whole = Size { height: resized.height * wholes, width: resized.width * wholes };
        let fits = self.is_within_limit(whole);
        let fits = self.require("the_image_is_too_long_and_thin", fits);
        let whole = Size { height: whole.height * fits, width: whole.width * fits };
        let tile = self.int(self.settings.tile_size);
        let tokens_per_tile = self.tokens(tile) * self.tokens(tile);
        let tokens_of_whole = self.tokens(whole.height) * self.tokens(whole.width);
        Layout {
            rows,
            cols,
            tiled: Size { height: rows * tile, width: cols * tile },
            whole,
            wholes,
            thumbnails,
            tokens_per_tile,
            tokens_of_whole,
            tokens: rows * cols * tokens_per_tile + tokens_of_whole,
        }
    }

    /// The int64 scalar 1, where the settings that a caller may change go together.
    fn checked_settings(self) -> Value<'g> {
        let (least, most) = self.table_range();
        let tiles = self.max_tiles.greater_or_equal(self.int(least));
        let tiles = tiles.and(self.int(most).greater_or_equal(self.max_tiles));
        let tokens = self.max_image_tokens.greater_or_equal(self.min_image_tokens);
        let tokens = tokens.and(self.min_image_tokens.greater(self.int(0)));
        self.require("max_tiles_is_out_of_range", tiles)
            * self.require("the_limits_of_image_tokens_do_not_go_together", tokens)
    }

    /// Whether a view has no more patches than are allowed. The reference has no such limit, and makes a
    /// view of gigabytes out of a small file.
    fn is_within_limit(self, view: Size<'g>) -> Value<'g> {
        let patch = self.int(self.settings.encoder_patch_size);
        let patches = (view.height / patch) * (view.width / patch);
        let allowed = self.int(self.settings.max_view_patches);
        allowed.max(self.padded_patches()).greater_or_equal(patches)
    }

    /// Patches to which the reference pads every view.
    pub(super) fn padded_patches(self) -> Value<'g> {
        let settings = self.settings;
        let tile = self.int((settings.tile_size / settings.encoder_patch_size).pow(2));
        let of_tokens = self.max_image_tokens * self.int(settings.downsample_factor.pow(2));
        (tile * self.do_image_splitting).max(of_tokens)
    }

    /// The fewest and the most tiles that the graph has tables for.
    fn table_range(self) -> (usize, usize) {
        let most = self.settings.max_tiles;
        let least = self.settings.min_tiles.min(most);
        if self.g.find_input("max_tiles").is_some() { (least, most) } else { (most, most) }
    }

    /// Image tokens along so many pixels.
    fn tokens(self, pixels: Value<'g>) -> Value<'g> {
        let patches = pixels / self.int(self.settings.encoder_patch_size);
        let factor = self.settings.downsample_factor;
        (patches + self.int(factor - 1)) / self.int(factor)
    }

    /// The nearest multiple of an image token's side.
    fn round_to_tokens(self, length: Value<'g>) -> Value<'g> {
        let side = self.int(self.settings.token_side());
        (length.to_f64() / side.to_f64()).round().to_i64() * side
    }

    /// Pixels of so many image tokens.
    fn area(self, tokens: Value<'g>) -> Value<'g> {
        tokens * self.int(self.settings.token_side().pow(2))
    }

    /// The size of the single view: multiples of a token's side, between the fewest and the most
    /// image tokens, near the image's aspect ratio.
    fn smart_resize(self, size: Size<'g>) -> Size<'g> {
        let side = self.int(self.settings.token_side());
        let min_area = self.area(self.min_image_tokens);
        let max_area = self.area(self.max_image_tokens);
        let height = self.round_to_tokens(size.height).max(side);
        let width = self.round_to_tokens(size.width).max(side);
        let area = (size.height * size.width).to_f64();
        let is_large = (height * width).greater(max_area);
        let is_small = (height * width).less(min_area);

        let too_large = (area / max_area.to_f64()).sqrt();
        let shrink = |length: Value<'g>| {
            let steps = length.to_f64() / too_large / side.to_f64();
            (steps.floor().to_i64() * side).max(side)
        };
        let too_small = (min_area.to_f64() / area).sqrt();
        let enlarge = |length: Value<'g>| {
            let steps = length.to_f64() * too_small / side.to_f64();
            steps.ceil().to_i64() * side
        };
        let choose = |length, rounded| {
            is_large.select(shrink(length), is_small.select(enlarge(length), rounded))
        };
        Size { height: choose(size.height, height), width: choose(size.width, width) }
    }

    /// Whether an image has too many pixels for one view.
    fn is_too_large(self, size: Size<'g>) -> Value<'g> {
        let patch = self.int(self.settings.encoder_patch_size);
        let rounded = |length| self.round_to_tokens(length).max(patch);
        let area = (rounded(size.height) * rounded(size.width)).to_f64();
        let most = self.area(self.max_image_tokens).to_f64();
        area.greater(most * self.g.double(self.settings.max_pixels_tolerance))
    }

    /// Rows and columns of tiles whose aspect ratio is nearest to the image's. Of equally near grids
    /// the last of those is taken of which the image has more than half of the pixels, or else the
    /// first of all.
    fn tile_grid(self, size: Size<'g>) -> [Value<'g>; 2] {
        let [cols, rows] = self.candidates();
        let aspect_ratio = size.width.to_f64() / size.height.to_f64();
        let difference = (aspect_ratio - cols.to_f64() / rows.to_f64()).abs();
        let is_nearest = difference.equal(difference.min_all());

        let area = (size.width * size.height).to_f64();
        let tile = self.settings.tile_size;
        let area_of_grid = (self.int(tile * tile) * rows * cols).to_f64();
        let is_covered = area.greater(self.g.double(0.5) * area_of_grid);
        // From the first to the last, then the other way round, and nothing for those that are farther.
        let count = rows.dim(0);
        let place = count.range() + self.int(1);
        let rank = is_covered.select(count + place, count - place + self.int(1));
        let best = is_nearest.select(rank, self.int(0)).to_f32().place_of_max();
        [rows.gather(best, 0), cols.gather(best, 0)]
    }

    /// Columns and rows, int64 [grids], of the grids of at most `max_tiles` tiles. Their order depends on
    /// how many there may be, so there is a table for each number that a caller may give.
    fn candidates(self) -> [Value<'g>; 2] {
        let (least, most) = self.table_range();
        let fewest = self.settings.min_tiles.min(least);
        let tables: Vec<_> = (least..=most).map(|tiles| candidate_grids(fewest, tiles)).collect();
        let longest = tables.iter().map(Vec::len).max().unwrap_or_default();
        // As wide as no image is.
        let filler = (u32::MAX as usize, 1);
        let table = |number: fn(&(usize, usize)) -> usize| {
            let padded = tables
                .iter()
                .flat_map(|grids| grids.iter().chain(std::iter::repeat(&filler)).take(longest));
            let numbers: Vec<i64> = padded.map(|grid| number(grid) as i64).collect();
            self.g.ints(&numbers, &[tables.len(), longest])
        };
        let row = self.max_tiles - self.int(least);
        [table(|(cols, _)| *cols).gather(row, 0), table(|(_, rows)| *rows).gather(row, 0)]
    }
}
