//! Any bytes as an image file, through to views.

#![no_main]

use std::sync::LazyLock;

use lfm2vl::image::{ImageError, ImageProcessor, ImageSettings, Limits, Overrides, decode};
use libfuzzer_sys::fuzz_target;

/// Small tiles, so that views are quick.
static PROCESSOR: LazyLock<ImageProcessor> = LazyLock::new(|| {
    let small = Overrides {
        tile_size: Some(64),
        min_image_tokens: Some(1),
        max_image_tokens: Some(4),
        ..Overrides::default()
    };
    let settings = ImageSettings::default().with(&small);
    let processor = settings.and_then(ImageProcessor::new);
    processor.unwrap_or_else(|error| panic!("{error}"))
});

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
    if let Ok(image) = decode(bytes, &limits) {
        let processed = match PROCESSOR.process(&image) {
            Ok(processed) => processed,
            Err(ImageError::TooThin { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        let patches: usize = processed.grids().iter().map(|grid| grid.patches()).sum();
        assert_eq!(processed.patches().nrows(), patches);
        assert!(processed.patches().iter().all(|value| (-1.0..=1.0).contains(value)));
    }
});
