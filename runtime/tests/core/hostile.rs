//! Images that want to do harm: damaged, cut off, or far larger than they look. The fuzz targets
//! in `fuzz/` go further; what is here runs with all tests.

use std::{fs, path::PathBuf};

use lfm2vl::image::{
    ImageLayout, ImageProcessor, ImageSettings, Limits, Overrides, PaddedViews, PatchGrid,
    ProcessedImage, RgbImage, View, decode,
};
use ndarray::s;

use crate::common::testdata;

fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(testdata("formats")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| !path.to_str().unwrap().ends_with(".rgb.png"));
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Numbers that look random, from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

/// Decodes, and where that works goes on to views. What counts is that it returns.
fn to_views(bytes: &[u8]) -> bool {
    let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
    let small =
        Overrides { tile_size: Some(64), max_image_tokens: Some(64), ..Overrides::default() };
    let processor = ImageProcessor::new(ImageSettings::default().with(&small).unwrap()).unwrap();
    match decode(bytes, &limits) {
        Ok(image) => processor.process(&image).is_ok(),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

#[test]
fn damaged_files_are_decoded_or_refused() {
    let mut numbers = Numbers(1);
    let (mut decoded, mut refused) = (0, 0);
    for (_, bytes) in files() {
        for _ in 0..60 {
            let mut damaged = bytes.clone();
            for _ in 0..=numbers.below(6) {
                let place = numbers.below(damaged.len());
                match numbers.below(4) {
                    0 => damaged[place] ^= 1 << numbers.below(8),
                    1 => damaged[place] = [0, 0xFF, 0x7F, 0x80][numbers.below(4)],
                    2 => {
                        drop(damaged.drain(
                            place..(place + numbers.below(9)).min(bytes.len() / 2).max(place),
                        ))
                    }
                    _ => damaged.insert(place, numbers.below(256) as u8),
                }
                if damaged.is_empty() {
                    break;
                }
            }
            if to_views(&damaged) { decoded += 1 } else { refused += 1 }
        }
    }
    assert!(decoded > 300 && refused > 300, "{decoded} decoded, {refused} refused");
}

/// Where the last chunk of a PNG's pixels ends, but for its checksum.
fn end_of_pixels(png: &[u8]) -> usize {
    let name = png.windows(4).rposition(|name| name == b"IDAT").unwrap();
    let length: [u8; 4] = png[name - 4..name].try_into().unwrap();
    name + 4 + u32::from_be_bytes(length) as usize
}

#[test]
fn files_that_are_cut_off_are_refused() {
    for (path, bytes) in files() {
        for eighth in 0..8 {
            let cut = &bytes[..bytes.len() * eighth / 8];
            let decoded = to_views(cut);
            let name = path.file_name().unwrap().to_str().unwrap();
            // An animation's first frame may be whole even so.
            let animated = name.starts_with("animated") || name.ends_with(".gif");
            let has_pixels = name.ends_with(".png") && cut.len() >= end_of_pixels(&bytes);
            let may_decode = animated || has_pixels;
            assert!(may_decode || !decoded, "{name} cut to {eighth} eighths");
        }
    }
}

#[test]
fn sizes_in_headers_are_checked_before_decoding() {
    let jpeg = |width: u16, height: u16| {
        let path = testdata("formats/photo-420.jpg");
        let mut bytes = fs::read(path).unwrap();
        let frame = bytes.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
        bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        bytes
    };
    let gif = |width: u16, height: u16| {
        let mut bytes = fs::read(testdata("formats/still.gif")).unwrap();
        bytes[6..8].copy_from_slice(&width.to_le_bytes());
        bytes[8..10].copy_from_slice(&height.to_le_bytes());
        bytes
    };
    let bmp = |width: u16, height: u16| {
        let mut bytes = fs::read(testdata("formats/rgb.bmp")).unwrap();
        bytes[18..22].copy_from_slice(&u32::from(width).to_le_bytes());
        bytes[22..26].copy_from_slice(&u32::from(height).to_le_bytes());
        bytes
    };
    for bytes in [jpeg(65_000, 65_000), gif(65_000, 65_000), bmp(65_000, 65_000)] {
        let error = decode(&bytes, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains("65000x65000") && error.contains("limit"), "{error}");
    }
    for bytes in [jpeg(0, 10), gif(0, 10), bmp(0, 10)] {
        let error = decode(&bytes, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains("no pixels") || error.contains("cannot be decoded"), "{error}");
    }
}

/// 16 bits for a channel are twice the bytes of 8, for as many pixels.
#[test]
fn decoded_bytes_are_limited() {
    let png = |color| {
        let image = image::DynamicImage::new(100, 100, color);
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    let limits = Limits { max_decoded_bytes: 40_000, ..Limits::default() };
    assert!(decode(&png(image::ColorType::Rgb8), &limits).is_ok());
    let error = decode(&png(image::ColorType::Rgba16), &limits).unwrap_err().to_string();
    assert!(error.contains("80000 bytes") && error.contains("limit of 40000"), "{error}");
}

#[test]
fn images_like_threads_are_refused() {
    let processor = ImageProcessor::new(ImageSettings::default()).unwrap();
    for (width, height) in [(40_000, 1), (4_000_000, 1), (1, 4_000_000)] {
        let image = image::RgbImage::new(width, height);
        let error = processor.process(&image).unwrap_err().to_string();
        assert!(error.contains("too long and thin"), "{error}");
    }
    let wider = Overrides { max_view_patches: Some(50_000), ..Overrides::default() };
    assert!(processor.with(&wider).unwrap().process(&image::RgbImage::new(40_000, 1)).is_ok());
    // As in the reference, if not for long.
    let processed = processor.process(&image::RgbImage::new(9_000, 10)).unwrap();
    assert!(processed.layout().tokens() > 400);
}

/// What callers put together themselves is an error, not a panic.
#[test]
fn views_that_do_not_fit() {
    let processor = ImageProcessor::new(ImageSettings::default()).unwrap();
    let image = processor.process(&RgbImage::new(300, 200)).unwrap();
    let (patches, grids, layout) = (image.patches(), image.grids(), image.layout());
    let parts = |patches, grids: &[PatchGrid], layout| {
        ProcessedImage::from_parts(patches, grids.to_vec(), layout)
    };
    assert_eq!(parts(patches.clone(), grids, layout).unwrap(), image);
    let huge = PatchGrid { rows: usize::MAX, cols: 2 };
    for wrong in [&[][..], &[PatchGrid { rows: 0, cols: 7 }], &[huge], &[huge, huge]] {
        assert!(parts(patches.clone(), wrong, layout).is_err(), "{wrong:?}");
    }
    assert!(parts(patches.t().to_owned(), grids, layout).is_err());
    assert!(parts(patches.slice(s![1.., ..]).to_owned(), grids, layout).is_err());
    for wrong in [
        ImageLayout { tokens_for_image: usize::MAX, ..layout },
        ImageLayout { tokens_for_image: 0, ..layout },
        ImageLayout { rows: 2, ..layout },
    ] {
        assert!(parts(patches.clone(), grids, wrong).is_err(), "{wrong:?}");
    }
    let layout = ImageLayout { rows: usize::MAX, cols: usize::MAX, ..layout };
    assert!(layout.is_split() && layout.tokens() == usize::MAX);

    let view = image.views().next().unwrap();
    let shorter = View { patches: view.patches.slice_move(s![.., 1..]), ..view };
    let other = View { grid: huge, ..view };
    assert!(PaddedViews::new(&[view, view], 7).is_ok());
    for wrong in [&[view, shorter][..], &[other]] {
        assert!(PaddedViews::new(wrong, 7).is_err());
    }
    assert!(PaddedViews::new(&[view], usize::MAX).is_err());
    assert!(PaddedViews::new(&[], usize::MAX).is_err());
    assert_eq!(processor.pixels(&other).dimensions(), (0, 0));
    for (height, width) in [(0, 0), (0, 9), (1, usize::MAX), (usize::MAX, usize::MAX)] {
        processor.layout(height, width);
    }
}
