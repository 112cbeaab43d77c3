//! Image processing, step by step: `cargo bench -p lfm2vl`. The photos are those of
//! `cargo xtask bench-images`, which compares with transformers; without them, noise is used.

use std::path::Path;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use image::RgbImage;
use lfm2vl::image::{ImageProcessor, ImageSettings, Limits, Overrides, Resample, load_all, open};

fn noise(width: u32, height: u32) -> RgbImage {
    let mut state = 1_u32;
    RgbImage::from_fn(width, height, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [_, r, g, b] = state.to_le_bytes();
        image::Rgb([r, g, b])
    })
}

fn process(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("process");
    for (width, height) in [(4000, 3000), (1280, 720), (512, 512), (200, 140)] {
        let image = noise(width, height);
        for resample in [Resample::Bilinear, Resample::Bicubic] {
            let overrides = Overrides { resample: Some(resample), ..Overrides::default() };
            let settings = ImageSettings::default().with(&overrides);
            let processor = settings.and_then(ImageProcessor::new);
            let Ok(processor) = processor else { continue };
            let name = BenchmarkId::new(format!("{resample:?}"), format!("{width}x{height}"));
            group.bench_with_input(name, &image, |b, image| b.iter(|| processor.process(image)));
        }
    }
}

fn load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load");
    group.sample_size(20);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/photos");
    let limits = Limits::default();
    for name in ["4000x3000.jpg", "1280x720.jpg", "512x512.png"] {
        let path = folder.join(name);
        if path.is_file() {
            group.bench_function(name, |b| b.iter(|| open(&path, &limits)));
            let four = vec![path.to_string_lossy().into_owned(); 4];
            group.bench_function(format!("four of {name}"), |b| {
                b.iter(|| load_all(&four, &limits));
            });
        }
    }
}

criterion_group!(benches, process, load);
criterion_main!(benches);
