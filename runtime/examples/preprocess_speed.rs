//! Times image processing: `preprocess_speed REPEAT IMAGE...` prints one line of JSON for each
//! image, with medians in milliseconds of decoding and of everything after it. The settings are
//! those of the released models.

use std::{path::Path, time::Instant};

use lfm2vl::image::{ImageProcessor, ImageSettings, Limits, open};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [repeat, files @ ..] = &arguments[..] else {
        return Err("usage: preprocess_speed REPEAT IMAGE...".into());
    };
    let repeat: usize = repeat.parse()?;
    let processor = ImageProcessor::new(ImageSettings::default());
    for file in files {
        let (mut decode, mut process) = (Vec::new(), Vec::new());
        for _ in 0..repeat.max(1) {
            let start = Instant::now();
            let image = open(Path::new(file), &Limits::default())?;
            decode.push(start.elapsed().as_secs_f64() * 1e3);
            let start = Instant::now();
            let processed = processor.process(&image)?;
            process.push(start.elapsed().as_secs_f64() * 1e3);
            assert!(!processed.grids.is_empty());
        }
        let (decode, process) = (median(decode), median(process));
        println!(
            "{}",
            serde_json::json!({"file": file, "decode_ms": decode, "process_ms": process})
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
