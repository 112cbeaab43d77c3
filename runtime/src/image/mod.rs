//! From image files to the patches that the vision graphs take, exactly as
//! `Lfm2VlImageProcessor` of transformers 5.24 makes them. Needs no ONNX Runtime.

mod bmp;
mod deadline;
mod decode;
mod error;
#[cfg(feature = "http")]
mod fetch;
mod filter;
mod geometry;
mod gif;
mod grids;
mod jpeg;
mod kernels;
mod memory;
mod normalize;
mod orientation;
mod patches;
mod pixels;
mod png;
mod processor;
mod resize;
mod settings;
mod source;

pub use image::{DynamicImage, RgbImage};

pub use decode::{Limits, decode, open};
pub use error::ImageError;
pub use geometry::{ImageLayout, PatchGrid};
pub use grids::candidate_grids;
pub use patches::{PaddedViews, View};
pub use pixels::{PixelFormat, from_array, from_dynamic, from_pixels};
pub use processor::{ImageProcessor, ProcessedImage};
pub use settings::{ImageSettings, Overrides, Resample, image_processor_json};
pub use source::{load, load_all, read};
