//! `cargo xtask make-checkpoint`: random checkpoints of any shape, for measurements.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{root, setup};

pub(crate) fn run(config: &Path, out: &Path, seed: u64) -> Result<()> {
    setup::run(
        Command::new(env!("CARGO"))
            .args(["run", "--quiet", "--release", "--package", "lfm2vl-exporter"])
            .args(["--example", "make_checkpoint", "--"])
            .arg(config)
            .arg(out)
            .arg(seed.to_string())
            .arg(root().join("testdata/tiny-shapes")),
    )
}
