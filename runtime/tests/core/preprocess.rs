//! Image processing against `Lfm2VlImageProcessor`'s goldens in `testdata/preprocess`.

use crate::common::{Golden, json, testdata};
use lfm2vl::{
    chat::ImageTokens,
    image::{ImageLayout, ImageProcessor, ImageSettings, Limits, PaddedViews, open},
};
use ndarray::{Axis, s};
use proptest::prelude::*;
use serde_json::{Value, json};

fn processor(settings: &Value) -> ImageProcessor {
    ImageProcessor::new(ImageSettings::from_json(settings).unwrap()).unwrap()
}

/// `<image>*N` for each run of placeholders, as the goldens write it.
fn shorten(expansion: &str) -> String {
    let tokens = expansion.split_inclusive('>').collect::<Vec<_>>();
    let runs = tokens.chunk_by(|a, b| a == b).map(|run| match run[0] {
        "<image>" => format!("<image>*{}", run.len()),
        other => other.to_owned(),
    });
    runs.collect::<Vec<_>>().join(" ")
}

fn check_layout(processor: &ImageProcessor, golden: &Value) {
    let size = |key: &str| golden[key].as_u64().unwrap() as usize;
    let (width, height) = (size("width"), size("height"));
    let layout = processor.layout(height, width);
    let name = format!("{width}x{height}");
    assert_eq!((layout.rows, layout.cols), (size("rows"), size("cols")), "{name}");
    assert_eq!(json!([layout.image_size.0, layout.image_size.1]), golden["image_size"], "{name}");
    assert_eq!(layout.tokens(), size("image_tokens"), "{name}");

    let prompt = ImageTokens::default().expand("<image>", &[layout]).unwrap();
    assert_eq!(shorten(&prompt), golden["expansion"].as_str().unwrap(), "{name}");

    let processed = processor.process(&image::RgbImage::new(width as u32, height as u32)).unwrap();
    let shapes: Vec<_> = processed.grids().iter().map(|grid| [grid.rows, grid.cols]).collect();
    assert_eq!(json!(shapes), golden["spatial_shapes"], "{name}");
    let views: Vec<_> = processed.views().collect();
    let batch = PaddedViews::new(&views, processor.settings().max_num_patches()).unwrap();
    assert_eq!(json!(batch.pixel_values.shape()), golden["pixel_values_shape"], "{name}");
    assert_eq!(json!(batch.pixel_attention_mask.sum_axis(Axis(1)).to_vec()), golden["mask_sums"]);
}

#[test]
fn layouts_of_all_sizes() {
    let golden = json("preprocess/layout.json");
    let mut checked = 0;
    for (mode, resample) in [("bilinear", 2), ("bicubic", 3)] {
        let mut settings = golden["settings"].clone();
        settings["resample"] = json!(resample);
        let processor = processor(&settings);
        for row in golden["resample"][mode].as_array().unwrap() {
            check_layout(&processor, row);
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}

#[test]
fn layouts_with_one_setting_changed() {
    let golden = json("preprocess/layout.json");
    let rows = golden["options"].as_array().unwrap();
    assert!(rows.len() >= 9);
    for row in rows {
        let mut settings = golden["settings"].clone();
        for (name, value) in row["options"].as_object().unwrap() {
            settings[name] = value.clone();
        }
        check_layout(&processor(&settings), row);
    }
}

/// All grids of up to ten tiles, with and without thumbnail and special tokens.
#[test]
fn placeholders_of_all_grids() {
    let goldens = json("preprocess/placeholders.json");
    let goldens = goldens.as_array().unwrap();
    assert!(goldens.len() > 100);
    for golden in goldens {
        let size = |key: &str| golden[key].as_u64().unwrap() as usize;
        let flag = |key: &str| golden[key].as_bool().unwrap();
        let (rows, cols) = (size("rows"), size("cols"));
        let layout = ImageLayout {
            rows,
            cols,
            tokens_per_tile: size("tokens_per_tile"),
            tokens_for_image: size("tokens_for_image"),
            thumbnail: flag("thumbnail") && rows * cols > 1,
            image_size: (0, 0),
        };
        let tokens =
            ImageTokens { use_image_special_tokens: flag("special"), ..ImageTokens::default() };
        let text = tokens.expand("<image>", &[layout]).unwrap();
        let tokens = text.split_inclusive('>').collect::<Vec<_>>();
        let runs = tokens.chunk_by(|a, b| a == b).map(|run| match run[0] {
            "<image>" => format!("<image>*{}", run.len()),
            other => other.to_owned(),
        });
        assert_eq!(runs.collect::<String>(), golden["text"].as_str().unwrap(), "{golden}");
    }
}

#[test]
fn placeholders_without_special_tokens() {
    let tokens = ImageTokens { use_image_special_tokens: false, ..ImageTokens::default() };
    let layout = ImageProcessor::new(ImageSettings::default()).unwrap().layout(720, 1280);
    let prompt = tokens.expand("<image>", &[layout]).unwrap();
    assert_eq!(shorten(&prompt), format!("<image>*{}", layout.tokens()));
}

/// Formats that lose nothing, and every EXIF orientation, as transformers reads them.
#[test]
fn formats_decode_as_the_reference_decodes_them() {
    let mut compared = 0;
    for entry in std::fs::read_dir(testdata("formats")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".rgb.png") {
            continue;
        }
        let ours = open(&path, &Limits::default()).unwrap();
        let expected = path.with_file_name(format!("{name}.rgb.png"));
        let expected = open(&expected, &Limits::default()).unwrap();
        assert_eq!(ours.dimensions(), expected.dimensions(), "{name}");
        assert_eq!(ours.as_raw(), expected.as_raw(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 85);
}

#[test]
fn pixels_equal_the_reference_bit_for_bit() {
    let settings = json("preprocess/layout.json")["settings"].clone();
    let mut compared = 0;
    for name in ["37x29", "200x140", "1000x760"] {
        let image = open(&testdata(&format!("preprocess/{name}.png")), &Limits::default()).unwrap();
        let golden = Golden::open(&format!("preprocess/{name}.safetensors"));
        for (mode, resample) in [("bilinear", 2), ("bicubic", 3)] {
            let mut settings = settings.clone();
            settings["resample"] = json!(resample);
            let processed = processor(&settings).process(&image).unwrap();
            let step = if name == "1000x760" { 37 } else { 5 };
            let expected = match step {
                37 => golden.ints(&format!("{mode}.pixels_uint8_every_37th_patch")),
                _ => golden.ints(&format!("{mode}.pixels_uint8_every_5th_patch")),
            };
            for (view, expected) in processed.views().zip(expected.outer_iter()) {
                let ours = view.patches.slice(s![..;step, ..]);
                let ours = ours.mapv(|v| ((v * 0.5 + 0.5) * 255.0).round() as i64);
                let expected = expected.slice_axis(Axis(0), (..ours.nrows()).into());
                let different =
                    ours.iter().zip(&expected).filter(|(ours, expected)| ours != expected).count();
                assert_eq!(different, 0, "{name} {mode}: of {}", ours.len());
                compared += ours.len();
            }
        }
    }
    assert!(compared > 480_000, "{compared}");
}

proptest! {
    /// What every image of any size must keep to, whatever the goldens cover.
    #[test]
    fn layouts_keep_their_promises(height in 1_usize..4000, width in 1_usize..4000) {
        let settings = ImageSettings::default();
        let processor = ImageProcessor::new(settings.clone()).unwrap();
        let ImageLayout { rows, cols, image_size, thumbnail, .. } = processor.layout(height, width);
        prop_assert!(rows * cols <= settings.max_tiles);
        prop_assert!(image_size.0 % 32 == 0 && image_size.1 % 32 == 0);
        prop_assert_eq!(thumbnail, rows * cols > 1);
        prop_assert!(rows * cols != 1 || (rows, cols) == (1, 1));
        // A very long image can exceed the most tokens by its one row, and by no more.
        let tokens = image_size.0 * image_size.1 / 1024;
        prop_assert!(tokens <= settings.max_image_tokens || image_size.0.min(image_size.1) == 32);
    }
}
