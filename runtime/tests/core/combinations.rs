//! Many sizes and settings against `Lfm2VlImageProcessor`: layouts, and hashes of all pixels.

use image::RgbImage;
use lfm2vl::image::{ImageProcessor, ImageSettings, Overrides, PaddedViews};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::common::{json, testdata};

/// The image that `noise.py` makes of a size and a seed.
fn noise(width: u32, height: u32, seed: u64) -> RgbImage {
    let byte = |i: u64| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 56) as u8
    };
    let count = u64::from(width) * u64::from(height) * 3;
    RgbImage::from_raw(width, height, (1..=count).map(byte).collect()).unwrap()
}

#[test]
fn settings_and_sizes_give_the_pixels_of_the_reference() {
    let goldens = json("preprocess/combinations.json");
    let goldens = goldens.as_array().unwrap();
    assert!(goldens.len() >= 200);
    let (mut split, mut bicubic) = (0, 0);
    for golden in goldens {
        let number = |key: &str| golden[key].as_u64().unwrap();
        let settings = ImageSettings::from_json(&golden["settings"]).unwrap();
        let image = noise(number("width") as u32, number("height") as u32, number("seed"));
        let processed = ImageProcessor::new(settings).unwrap().process(&image).unwrap();
        let layout = processed.layout();
        let name = golden.to_string();
        assert_eq!(
            (layout.rows as u64, layout.cols as u64),
            (number("rows"), number("cols")),
            "{name}"
        );
        let shapes: Vec<_> = processed.grids().iter().map(|grid| [grid.rows, grid.cols]).collect();
        assert_eq!(json!(shapes), golden["spatial_shapes"], "{name}");
        assert_eq!(layout.tokens() as u64, number("image_tokens"), "{name}");

        let values = processed.patches().iter();
        let levels: Vec<u8> =
            values.map(|v| ((v * 0.5 + 0.5) * 255.0).round_ties_even() as u8).collect();
        let hash = hex::encode(Sha256::digest(&levels));
        assert_eq!(hash, golden["sha256"].as_str().unwrap(), "{name}");
        split += usize::from(layout.is_split());
        bicubic += usize::from(golden["settings"]["resample"] == 3);
    }
    assert!(split > 30 && bicubic > 80, "{split} {bicubic}");
}

/// Every setting replaced for one call, with the values and not only the levels compared.
#[test]
fn any_setting_may_be_replaced_for_one_image() {
    let goldens = json("preprocess/settings.json");
    let goldens = goldens.as_array().unwrap();
    assert!(goldens.len() >= 70);
    let mut replaced = std::collections::BTreeSet::new();
    for golden in goldens {
        let number = |key: &str| golden[key].as_u64().unwrap();
        let image = noise(number("width") as u32, number("height") as u32, number("seed"));
        let overrides = Overrides::from_json(&golden["overrides"]).unwrap();
        let settings = ImageSettings::from_json(&golden["settings"]).unwrap();
        let processor = ImageProcessor::new(settings).unwrap().with(&overrides).unwrap();
        let processed = processor.process(&image).unwrap();
        let name = golden["overrides"].to_string();
        let layout = processed.layout();
        assert_eq!([layout.rows as u64, layout.cols as u64], [number("rows"), number("cols")]);
        let shapes: Vec<_> = processed.grids().iter().map(|grid| [grid.rows, grid.cols]).collect();
        assert_eq!(json!(shapes), golden["spatial_shapes"], "{name}");
        let views: Vec<_> = processed.views().collect();
        let batch = PaddedViews::new(&views, processor.settings().max_num_patches()).unwrap();
        assert_eq!(batch.pixel_values.shape()[1] as u64, number("padded_patches"), "{name}");
        let mut hash = Sha256::new();
        processed.patches().iter().for_each(|value| hash.update(value.to_le_bytes()));
        let hash = hex::encode(hash.finalize());
        assert_eq!(hash, golden["sha256"].as_str().unwrap(), "{name}");
        replaced.extend(golden["overrides"].as_object().unwrap().keys().cloned());
    }
    let all: std::collections::BTreeSet<_> =
        // The reference has no limit of its own.
        Overrides::NAMES.iter().filter(|n| **n != "max_view_patches").map(|n| n.to_string()).collect();
    assert_eq!(replaced, all);
}

#[test]
fn random_sizes_have_the_layout_of_the_reference() {
    let processor = ImageProcessor::new(ImageSettings::default()).unwrap();
    let table = std::fs::read_to_string(testdata("preprocess/sizes.csv")).unwrap();
    let mut checked = 0;
    for line in table.lines().skip(1) {
        let row: Vec<usize> = line.split(',').map(|cell| cell.parse().unwrap()).collect();
        let layout = processor.layout(row[1], row[0]);
        assert_eq!([layout.rows, layout.cols], row[2..4], "{line}");
        assert_eq!([layout.image_size.0, layout.image_size.1], row[4..6], "{line}");
        checked += 1;
    }
    assert_eq!(checked, 2400);
}
