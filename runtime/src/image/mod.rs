//! From image files to the patches that the vision graphs take, exactly as
//! `Lfm2VlImageProcessor` of transformers 5.23 makes them. Needs no ONNX Runtime.

mod decode;
mod error;
mod geometry;
mod patches;
mod processor;
mod resize;
mod settings;

pub use decode::{Limits, decode, open};
pub use error::ImageError;
pub use geometry::{ImageLayout, PatchGrid};
pub use patches::{PaddedViews, View};
pub use processor::{ImageProcessor, ProcessedImage};
pub use settings::{ImageSettings, Overrides, Resample};
