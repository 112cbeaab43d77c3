//! Antialiased resizing of 8-bit images, equal bit for bit to PyTorch's
//! `interpolate(uint8, mode, antialias=True)` on a CPU, which torchvision and so the reference
//! uses: a horizontal pass rounded to 8 bits, then a vertical one.
//!
//! Rows of the result are made a few at a time, so that what lies between the two passes stays in
//! the processor's cache, and no resized image is ever held.

use std::ops::Range;

use image::RgbImage;

use super::{
    Resample,
    filter::Filter,
    geometry::Size,
    kernels::{SLACK, horizontal, vertical},
};

/// An image that is resized row by row.
pub(super) struct Resize<'i> {
    image: &'i RgbImage,
    width: usize,
    /// `None` where the width stays.
    across: Option<Filter>,
    /// `None` where the height stays.
    down: Option<Filter>,
    /// The last rows, continued by as many zeros as the horizontal pass reads beyond them.
    tail: Vec<u8>,
    tail_start: usize,
    /// Levels of one of these.
    tail_row: usize,
}

/// Memory that is used again for the next rows.
#[derive(Default)]
pub(super) struct Scratch {
    rows: Vec<u8>,
    resized: Vec<u8>,
}

/// Taps that the horizontal pass takes at a time.
const STEP: usize = 4;
/// Taps that the vertical pass takes at a time.
const PAIR: usize = 2;

impl<'i> Resize<'i> {
    pub(super) fn new(image: &'i RgbImage, size: Size, resample: Resample) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let across = (width != size.width).then(|| Filter::new(width, size.width, resample, STEP));
        let down =
            (height != size.height).then(|| Filter::new(height, size.height, resample, PAIR));
        let (levels, row) = (image.as_raw(), 3 * width);
        let needed = across.as_ref().map_or(row, |across| row.max(3 * across.reach() + SLACK));
        // Earlier rows are followed by enough others.
        let tail_start = (levels.len() + row).saturating_sub(needed) / row;
        let mut tail = Vec::new();
        for levels in levels[tail_start * row..].chunks_exact(row) {
            tail.extend_from_slice(levels);
            tail.resize(tail.len() + needed - row, 0);
        }
        Resize { image, width: size.width, across, down, tail, tail_start, tail_row: needed }
    }

    /// A row of the image, as long as the horizontal pass reads.
    fn row(&self, y: usize) -> &[u8] {
        match y.checked_sub(self.tail_start) {
            Some(y) => &self.tail[y * self.tail_row..][..self.tail_row],
            None => &self.image.as_raw()[3 * self.image.width() as usize * y..],
        }
    }

    /// Gives each of these rows of the result, as levels [width, 3], to `take`.
    pub(super) fn rows(
        &self,
        rows: Range<usize>,
        scratch: &mut Scratch,
        mut take: impl FnMut(&[u8]),
    ) {
        let Scratch { rows: between, resized } = scratch;
        let needed = match &self.down {
            Some(down) => down.inputs(rows.clone()),
            None => rows.clone(),
        };
        let needed = needed.start..needed.end.min(self.image.height() as usize);
        let stride = 3 * self.width + SLACK;
        if let Some(across) = &self.across {
            between.resize(needed.len().next_multiple_of(2) * stride, 0);
            for (i, pair) in between.chunks_exact_mut(2 * stride).enumerate() {
                let y = needed.start + 2 * i;
                let (top, bottom) = pair.split_at_mut(stride);
                let below = (y + 1).min(needed.end - 1);
                horizontal([self.row(y), self.row(below)], across, [top, bottom]);
            }
        }
        let row = |y: usize| match self.across {
            Some(_) => &between[(y - needed.start) * stride..][..3 * self.width],
            None => &self.row(y)[..3 * self.width],
        };
        for y in rows {
            let Some(down) = &self.down else {
                take(row(y));
                continue;
            };
            let (start, weights) = down.output(y);
            // Padding may go beyond the last row; its weight is 0.
            let sources: Vec<&[u8]> =
                (start..start + weights.len()).map(|y| row(y.min(needed.end - 1))).collect();
            resized.resize(3 * self.width, 0);
            vertical(&sources, weights, down.precision(), resized);
            take(resized);
        }
    }
}
