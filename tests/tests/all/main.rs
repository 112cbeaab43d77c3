//! Tests that cross crates, and tests with programs that we did not write.

mod chat_program;
mod clients;
mod community;
mod constraint;
mod conversation;
mod damaged_files;
mod engine;
mod export_program;
mod family;
mod image_processor;
mod kernels;
mod load;
mod other_programs;
mod picture;
mod precisions;
mod programs;
mod providers;
mod released_prompts;
mod run_program;
mod samples;
mod server;
mod shell;
mod together;
