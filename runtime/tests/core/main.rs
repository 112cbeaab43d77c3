//! Image and chat processing against goldens of the reference.

mod bad_images;
mod combinations;
mod common;
mod hostile;
mod preprocess;
mod prompts;
mod sources;
mod templates;
