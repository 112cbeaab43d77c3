//! Views as patches, padded to a batch.

use super::{Processor, geometry::Layout};
use crate::onnx::Value;

/// The inputs of the vision graphs.
pub(super) struct Views<'g> {
    pub(super) pixel_values: Value<'g>,
    pub(super) pixel_attention_mask: Value<'g>,
    pub(super) spatial_shapes: Value<'g>,
}

impl<'g> Processor<'g> {
    /// Values of a patch: its pixel rows one after the other, and of a pixel red, green and blue.
    fn patch_values(self) -> usize {
        3 * self.settings.encoder_patch_size.pow(2)
    }

    /// Patches along a side of a tile.
    fn tile_grid_side(self) -> usize {
        self.settings.tile_size / self.settings.encoder_patch_size
    }

    /// Patches of the single view or the thumbnail: rows and columns.
    fn whole_grid(self, layout: &Layout<'g>) -> [Value<'g>; 2] {
        let side = self.int(self.settings.encoder_patch_size);
        [layout.whole.height / side, layout.whole.width / side]
    }

    /// Tiles, from their image uint8 [height, 3 * width], as uint8 [tiles, patches, values].
    pub(super) fn tiles(self, image: Value<'g>, layout: &Layout<'g>) -> Value<'g> {
        let _scope = self.g.enter("tiles");
        let side = self.settings.encoder_patch_size;
        let grid = self.int(self.tile_grid_side());
        let (rows, cols) = (layout.rows, layout.cols);
        let lines = [rows, grid, self.int(side), cols, grid, self.int(3 * side)];
        let patches = image.reshape_to_sizes(&lines).transpose(&[0, 3, 1, 4, 2, 5]);
        let shape = [rows * cols, grid * grid, self.int(self.patch_values())];
        patches.reshape_to_sizes(&shape)
    }

    /// The single view or the thumbnail, from its image uint8 [height, 3 * width], as uint8
    /// [views, patches, values].
    pub(super) fn whole(self, image: Value<'g>, layout: &Layout<'g>) -> Value<'g> {
        let _scope = self.g.enter("whole");
        let side = self.settings.encoder_patch_size;
        let [rows, cols] = self.whole_grid(layout);
        let lines = [rows, self.int(side), cols, self.int(3 * side)];
        let patches = image.reshape_to_sizes(&lines).transpose(&[0, 2, 1, 3]);
        let shape = [layout.wholes, rows * cols, self.int(self.patch_values())];
        patches.reshape_to_sizes(&shape)
    }

    /// All views, tiles first, padded with zeros.
    pub(super) fn batch(
        self,
        tiles: Value<'g>,
        whole: Value<'g>,
        layout: &Layout<'g>,
    ) -> Views<'g> {
        let g = self.g;
        let _scope = g.enter("batch");
        let tile_grid = self.int(self.tile_grid_side());
        let tile_patches = tile_grid * tile_grid;
        let [rows, cols] = self.whole_grid(layout);
        let views = layout.rows * layout.cols;

        let of_all = self.padded_patches() * self.do_pad;
        let largest = (tile_patches * views.min(self.int(1))).max(rows * cols);
        let patches = of_all.max(largest);
        let zero = self.int(0);
        let padded = |views: Value<'g>| {
            let missing = patches - views.dim(1);
            views.pad(1, g.vector(&[zero, missing]))
        };
        let levels = padded(tiles).concat(&[padded(whole)], 0);

        let tile_shapes = g.vector(&[tile_grid, tile_grid]).expand(g.vector(&[views, self.int(2)]));
        let whole_shape = g.vector(&[rows, cols]).unsqueeze(&[0]);
        let whole_shape = whole_shape.take(0, g.vector(&[layout.wholes]));
        let spatial_shapes = tile_shapes.concat(&[whole_shape], 0);
        let valid = spatial_shapes.slice(1, 0, 1) * spatial_shapes.slice(1, 1, 2); // [views, 1]
        let pixel_attention_mask = patches.range().less(valid).to_i64();
        let pixel_values = self.normalize(levels, pixel_attention_mask);
        Views { pixel_values, pixel_attention_mask, spatial_shapes }
    }

    /// From levels uint8 [views, patches, values] to float32, in the arithmetic of the reference, which folds
    /// the rescale factor into mean and standard deviation. Where `mask` (int64 [views, patches]) is 0, levels
    /// are 0 and stay so.
    fn normalize(self, levels: Value<'g>, mask: Value<'g>) -> Value<'g> {
        let settings = self.settings;
        let values = levels.bytes_to_f32();
        let fold = if settings.do_rescale { (1.0 / settings.rescale_factor) as f32 } else { 1.0 };
        // One number, if it is that of all channels.
        let by_channel = |numbers: [f32; 3]| {
            let is_one = numbers.iter().all(|number| *number == numbers[0]);
            let count = if is_one { 1 } else { self.patch_values() };
            let folded: Vec<f32> = (0..count).map(|i| numbers[i % 3] * fold).collect();
            self.g.floats(&folded, &[count])
        };
        match (settings.do_normalize, settings.do_rescale) {
            (true, _) => {
                let mean = by_channel(settings.image_mean) * mask.to_f32().unsqueeze(&[2]);
                (values - mean) / by_channel(settings.image_std)
            }
            (false, true) => values * self.g.float(settings.rescale_factor as f32),
            (false, false) => values,
        }
    }
}
