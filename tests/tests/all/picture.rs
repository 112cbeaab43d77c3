//! `lfm2vl preprocess --picture`: the picture beside the tensors.

use std::{fs, path::Path, process::Command};

use image::{Rgb, RgbImage};
use lfm2vl_tests::{fail, program, succeed, testdata, tiny_shapes};
use safetensors::SafeTensors;

/// Pixels between views, and their colour.
const GAP: u32 = 4;
const BACKGROUND: Rgb<u8> = Rgb([255, 0, 255]);
/// Side of a patch and of a tile.
const PATCH: u32 = 16;
const TILE: u32 = 128;

/// A view of the tensors: its pixels, as the model gets them.
struct View {
    rows: u32,
    cols: u32,
    /// The values of each patch.
    patches: Vec<f32>,
}

impl View {
    /// The value of a channel of a pixel.
    fn value(&self, x: u32, y: u32, channel: u32) -> f32 {
        let patch = y / PATCH * self.cols + x / PATCH;
        let within = 3 * (y % PATCH * PATCH + x % PATCH) + channel;
        self.patches[(patch * 3 * PATCH * PATCH + within) as usize]
    }
}

fn views(path: &Path) -> Vec<View> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (pixels, shapes) =
        (tensors.tensor("pixel_values").unwrap(), tensors.tensor("spatial_shapes").unwrap());
    let values: Vec<f32> =
        pixels.data().chunks(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect();
    let shapes: Vec<u32> = (shapes.data().chunks(8))
        .map(|v| i64::from_le_bytes(v.try_into().unwrap()) as u32)
        .collect();
    let view_size = pixels.shape()[1..].iter().product();
    let views = values.chunks(view_size).zip(shapes.chunks(2));
    views.map(|(v, s)| View { rows: s[0], cols: s[1], patches: v.to_vec() }).collect()
}

fn preprocess(images: &[&str]) -> Command {
    let mut command = program("lfm2vl");
    command.arg("preprocess").arg(tiny_shapes("default")).args(["--prompt", "What is this?"]);
    for image in images {
        command.arg("--image").arg(testdata("tiny-shapes/samples").join(image));
    }
    command
}

/// Compares a view with what is in the picture, within a level.
fn compare(picture: &RgbImage, view: &View, (left, top): (u32, u32), (mean, std): (f32, f32)) {
    for y in 0..view.rows * PATCH {
        for x in 0..view.cols * PATCH {
            let pixel = picture.get_pixel(left + x, top + y);
            for channel in 0..3 {
                let level = (view.value(x, y, channel) * std + mean) * 255.0;
                let drawn = f32::from(pixel.0[channel as usize]);
                assert!((level - drawn).abs() <= 1.0, "{level} is {drawn} at {x}, {y}");
            }
        }
    }
}

#[test]
fn the_picture_is_what_the_tensors_are() {
    let folder = tempfile::tempdir().unwrap();
    let (png, tensors) = (folder.path().join("seen.png"), folder.path().join("seen.safetensors"));
    for (settings, normalized) in [
        (&[][..], (0.5, 0.5)),
        (&["--image-setting", "image_mean=0.25", "--image-setting", "image_std=2"], (0.25, 2.0)),
        (&["--image-setting", "do_normalize=false"], (0.0, 1.0)),
    ] {
        let mut command = preprocess(&["number-tiled.png", "plain.png"]);
        command.args(settings).arg("--picture").arg(&png).arg("--tensors").arg(&tensors);
        succeed(&mut command);
        let picture = image::open(&png).unwrap().to_rgb8();
        let views = views(&tensors);
        let [tiles @ .., thumbnail, single] = &views[..] else { panic!("too few views") };
        // Two rows of three tiles, and beside them the thumbnail.
        assert_eq!(tiles.len(), 6);
        let step = TILE + GAP;
        for (i, tile) in tiles.iter().enumerate() {
            assert_eq!((tile.rows, tile.cols), (TILE / PATCH, TILE / PATCH));
            let place = (i as u32 % 3 * step, i as u32 / 3 * step);
            compare(&picture, tile, place, normalized);
        }
        compare(&picture, thumbnail, (3 * step, 0), normalized);
        // The next image is below.
        let top = 2 * step;
        compare(&picture, single, (0, top), normalized);
        let size = (3 * step + thumbnail.cols * PATCH, top + single.rows * PATCH);
        assert_eq!(picture.dimensions(), size);
        for (x, y) in [(TILE, 0), (0, TILE), (size.0 - 1, size.1 - 1)] {
            assert_eq!(*picture.get_pixel(x, y), BACKGROUND, "at {x}, {y}");
        }
    }
}

#[test]
fn what_cannot_be_drawn_is_told() {
    let mut command = preprocess(&["plain.png"]);
    let message = fail(command.args(["--picture", "/no/such/folder/seen.png"]));
    assert!(message.contains("/no/such/folder/seen.png") && message.contains("check the folder"));
    let mut command = preprocess(&[]);
    let output = command.args(["--picture", "seen.png"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
