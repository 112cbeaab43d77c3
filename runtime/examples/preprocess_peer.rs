//! Our side of `cargo xtask bench-images`: one line of JSON for each image path that comes in,
//! with the milliseconds of loading it and of everything after that. The settings are those of
//! the released models.

use std::time::Instant;

use lfm2vl::image::{ImageProcessor, ImageSettings, Limits, load};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let processor = ImageProcessor::new(ImageSettings::default())?;
    for line in std::io::stdin().lines() {
        let start = Instant::now();
        let image = load(line?.trim(), &Limits::default())?;
        let decoded = Instant::now();
        let processed = processor.process(&image)?;
        let times = serde_json::json!({
            "decode_ms": 1e3 * (decoded - start).as_secs_f64(),
            "process_ms": 1e3 * decoded.elapsed().as_secs_f64(),
        });
        println!("{times}");
        drop(processed);
    }
    Ok(())
}
