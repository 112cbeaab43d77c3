//! Images and settings that cannot be used: each gets one clear sentence.

use crate::common::testdata;
use lfm2vl::image::{ImageSettings, Limits, Overrides, decode, open};
use serde_json::json;

fn error(bytes: &[u8]) -> String {
    decode(bytes, &Limits::default()).map(drop).unwrap_err().to_string()
}

fn sample(name: &str) -> Vec<u8> {
    std::fs::read(testdata("tiny-shapes/samples").join(name)).unwrap()
}

/// A PNG that ends after its header, which says width x height.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    // CRC-32 of the chunk, bit by bit.
    let crc = !chunk.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xEDB8_8320 * (c & 1)))
    });
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    png.extend(13_u32.to_be_bytes());
    png.extend(chunk);
    png.extend(crc.to_be_bytes());
    // A data chunk, so that the decoder gets past the header.
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    png
}

#[test]
fn unusable_data() {
    assert!(error(b"").contains("0 bytes"));
    assert!(error(b"this is a text and no image").contains("not a PNG, JPEG"));
    for name in ["plain.png", "tiled.jpg"] {
        let bytes = sample(name);
        for length in [20, bytes.len() / 2] {
            let message = error(&bytes[..length]);
            assert!(message.contains("cannot be decoded"), "{name} cut to {length}: {message}");
        }
    }
}

#[test]
fn limits_hold_before_decoding() {
    let message = error(&png_header(50_000, 50_000));
    assert!(message.contains("50000x50000") && message.contains("limit"), "{message}");
    let limits = Limits { max_bytes: 100, ..Limits::default() };
    let message = decode(&sample("plain.png"), &limits).map(drop).unwrap_err().to_string();
    assert!(message.contains("more than the limit of 100"), "{message}");
    let message = open(&testdata("tiny-shapes/samples/plain.png"), &limits)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(message.contains("plain.png") && message.contains("limit of 100"), "{message}");
}

#[test]
fn images_without_pixels() {
    // The PNG decoder itself refuses a zero in the header.
    assert!(!error(&png_header(0, 10)).is_empty());
    let processor = lfm2vl::image::ImageProcessor::new(ImageSettings::default()).unwrap();
    let message = processor.process(&image::RgbImage::new(0, 10)).unwrap_err().to_string();
    assert!(message.contains("no pixels"), "{message}");
}

#[test]
fn missing_file_is_named() {
    let message =
        open("no/such/image.png".as_ref(), &Limits::default()).map(drop).unwrap_err().to_string();
    assert!(message.contains("no/such/image.png"), "{message}");
}

#[test]
fn settings_that_make_no_sense() {
    let cases = [
        (json!({"min_tiles": 5, "max_tiles": 3}), "min_tiles"),
        (json!({"encoder_patch_size": 0}), "encoder_patch_size"),
        (json!({"tile_size": 500}), "tile_size"),
        (json!({"min_image_tokens": 300}), "min_image_tokens"),
        (json!({"resample": 4}), "resample"),
        (json!({"resample": "BICUBIC"}), "resample"),
        (json!({"image_mean": [0.5]}), "image_mean"),
        (json!({"image_std": [0.5, 0.0, 0.5]}), "image_std"),
        (json!({"max_pixels_tolerance": -1.0}), "max_pixels_tolerance"),
        (json!({"rescale_factor": "1/255"}), "rescale_factor"),
        (json!({"max_tiles": u64::MAX}), "max_tiles"),
        (json!({"use_thumbnail": "yes"}), "use_thumbnail"),
    ];
    for (settings, name) in cases {
        let message = ImageSettings::from_json(&settings).unwrap_err().to_string();
        assert!(message.contains(name), "{settings}: {message}");
    }
    let overrides = Overrides { max_image_tokens: Some(10), ..Overrides::default() };
    let message = ImageSettings::default().with(&overrides).unwrap_err().to_string();
    assert!(message.contains("min_image_tokens"), "{message}");
}

/// As Pillow reads it: all pixels are there.
#[test]
fn a_png_may_lack_its_end() {
    let whole = sample("plain.png");
    assert!(whole.ends_with(b"IEND\xAE\x42\x60\x82"));
    let decoded = |bytes: &[u8]| decode(bytes, &Limits::default());
    let expected = decoded(&whole).unwrap();
    assert_eq!(decoded(&whole[..whole.len() - 12]).unwrap(), expected);
    // But not pixels.
    assert!(decoded(&whole[..whole.len() / 2]).is_err());
}
