//! `cargo xtask test`: sets up, then runs every test of the workspace.

use std::process::Command;

use anyhow::Result;

use crate::{root, setup};

pub(crate) fn run() -> Result<()> {
    let library = setup::onnxruntime()?;
    let packages = setup::python_packages()?;
    setup::run(
        Command::new(env!("CARGO"))
            .args(["test", "--workspace"])
            .current_dir(root())
            .env("ORT_DYLIB_PATH", library)
            .env("PYTHONPATH", packages),
    )
}
