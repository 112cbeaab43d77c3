//! What stands in a prompt in place of `<image>`.

use super::{Processor, geometry::Layout};
use crate::onnx::Value;

/// Ids of the tokens that stand for an image.
pub(crate) struct ImageTokenIds {
    /// Stands for one image feature.
    pub(crate) image: i64,
    /// Comes before an image.
    pub(crate) start: i64,
    /// Comes after an image.
    pub(crate) end: i64,
    /// Comes before a thumbnail.
    pub(crate) thumbnail: i64,
    /// Come before tiles: rows of columns, as many of both as there may be tiles. Those of grids with
    /// too many tiles are not used.
    pub(crate) tiles: Vec<Vec<i64>>,
}

impl<'g> Processor<'g> {
    /// The ids, int64 [tokens].
    pub(super) fn placeholders(self, layout: &Layout<'g>, ids: &ImageTokenIds) -> Value<'g> {
        let g = self.g;
        let _scope = g.enter("placeholders");
        let repeated = |id: i64, shape: &[Value<'g>]| g.ints(&[id], &[]).expand(g.vector(shape));
        let one = self.int(1);
        let (rows, cols) = (layout.rows, layout.cols);

        let table: Vec<i64> = ids.tiles.iter().flatten().copied().collect();
        let table = g.ints(&table, &[ids.tiles.len(), ids.tiles.len()]);
        let places = table.take(0, g.vector(&[rows])).take(1, g.vector(&[cols]));
        let places = places.reshape_to_sizes(&[rows * cols, one]);
        let features = repeated(ids.image, &[rows * cols, layout.tokens_per_tile]);
        let length = rows * cols * (one + layout.tokens_per_tile);
        let tiles = places.concat(&[features], 1).reshape_to_sizes(&[length]);

        let thumbnail = repeated(ids.thumbnail, &[layout.thumbnails]);
        let whole = repeated(ids.image, &[layout.tokens_of_whole]);
        let end = g.int_vector(&[ids.end]);
        g.int_vector(&[ids.start]).concat(&[tiles, thumbnail, whole, end], 0)
    }
}
