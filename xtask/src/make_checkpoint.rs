//! `cargo xtask make-checkpoint`: random checkpoints of any shape, for measurements.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{root, setup};

pub(crate) fn run(config: &Path, out: &Path, seed: u64) -> Result<()> {
    setup::run(&mut command(config, out, seed))
}

/// One whose answers are its last token again and again.
pub(crate) fn repeating(config: &Path, out: &Path) -> Result<()> {
    setup::run(command(config, out, 0).arg("0.0001"))
}

/// One with the tokenizer and template of a folder.
pub(crate) fn with_tokenizer(config: &Path, out: &Path, tokenizer: &Path) -> Result<()> {
    setup::run(&mut command_with(config, out, 0, tokenizer))
}

fn command(config: &Path, out: &Path, seed: u64) -> Command {
    command_with(config, out, seed, &root().join("testdata/tiny-shapes"))
}

fn command_with(config: &Path, out: &Path, seed: u64, tokenizer: &Path) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["run", "--quiet", "--release", "--package", "lfm2vl-exporter"])
        .args(["--example", "make_checkpoint", "--"])
        .arg(config)
        .arg(out)
        .arg(seed.to_string())
        .arg(tokenizer);
    command
}
