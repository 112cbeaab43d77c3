//! The image processor as a graph of standard operators: what `Lfm2VlImageProcessor` of transformers 5.24
//! computes, equal bit for bit. What an image does not have is of size 0.

mod filter;
mod geometry;
mod placeholders;
mod resize;
mod views;

use lfm2vl::image::ImageSettings;
use lfm2vl_graphs::GraphSpec;

pub(crate) use placeholders::ImageTokenIds;

use crate::onnx::{Floats, GraphBuilder, Value};

use geometry::Size;

/// What every part needs to know.
#[derive(Clone, Copy)]
struct Processor<'a> {
    g: &'a GraphBuilder,
    settings: &'a ImageSettings,
    /// The settings that a caller may change, bools as 0 or 1.
    do_image_splitting: Value<'a>,
    min_image_tokens: Value<'a>,
    max_image_tokens: Value<'a>,
    max_tiles: Value<'a>,
    use_thumbnail: Value<'a>,
    do_pad: Value<'a>,
}

impl<'a> Processor<'a> {
    fn new(g: &'a GraphBuilder, settings: &'a ImageSettings) -> Self {
        let int = |name, default: usize| g.int_or(name, default as i64);
        Processor {
            g,
            settings,
            do_image_splitting: g.flag_or("do_image_splitting", settings.do_image_splitting),
            min_image_tokens: int("min_image_tokens", settings.min_image_tokens),
            max_image_tokens: int("max_image_tokens", settings.max_image_tokens),
            max_tiles: int("max_tiles", settings.max_tiles),
            use_thumbnail: g.flag_or("use_thumbnail", settings.use_thumbnail),
            do_pad: g.flag_or("do_pad", true),
        }
    }

    /// The int64 scalar 1 where a condition holds; where not, running the graph fails at a node of that name.
    fn require(self, name: &str, holds: Value<'a>) -> Value<'a> {
        let _scope = self.g.enter(name);
        let outside = self.int(1) - holds.to_i64();
        self.g.int_vector(&[1]).gather(outside, 0)
    }

    /// A constant int64 scalar.
    fn int(self, value: usize) -> Value<'a> {
        self.g.ints(&[value as i64], &[])
    }
}

/// Builds the graph; its inputs and outputs are those of `spec`.
pub(crate) fn build(
    spec: GraphSpec,
    settings: &ImageSettings,
    ids: &ImageTokenIds,
) -> GraphBuilder {
    let g = GraphBuilder::new(spec, Floats::Single);
    let processor = Processor::new(&g, settings);
    let pixels = g.input("pixels");
    let size = Size { height: pixels.dim(0), width: pixels.dim(1) };
    let layout = processor.layout(size);

    let columns = processor.with_ones(pixels.transpose(&[1, 2, 0]).flatten());
    let tiles = processor.resize("tiles", columns, size, layout.tiled);
    let whole = processor.resize("whole", columns, size, layout.whole);
    let (tiles, whole) = (processor.tiles(tiles, &layout), processor.whole(whole, &layout));
    let views = processor.batch(tiles, whole, &layout);
    g.output("pixel_values", views.pixel_values);
    g.output("pixel_attention_mask", views.pixel_attention_mask);
    g.output("spatial_shapes", views.spatial_shapes);
    g.output("image_token_ids", processor.placeholders(&layout, ids));
    g.output("tokens", layout.tokens);
    g
}
