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

fn command(config: &Path, out: &Path, seed: u64) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["run", "--quiet", "--release", "--package", "lfm2vl-exporter"])
        .args(["--example", "make_checkpoint", "--"])
        .arg(config)
        .arg(out)
        .arg(seed.to_string())
        .arg(root().join("testdata/tiny-shapes"));
    command
}
