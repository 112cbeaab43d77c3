//! `cargo xtask test`: sets up, then runs every test of the workspace.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{root, setup, wheel};

pub(crate) fn run() -> Result<()> {
    let library = setup::onnxruntime()?;
    setup::kernels()?;
    let packages = setup::python_packages()?;
    let mut tests = cargo(&["test", "--workspace"]);
    tests.env("ORT_DYLIB_PATH", library).env("PYTHONPATH", packages);
    // Whose packages are for this platform.
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        for (variable, name) in
            [("LFM2VL_GGML", "ggml"), ("LFM2VL_OPENVINO", "openvino"), ("LFM2VL_WEBGPU", "webgpu")]
        {
            tests.env(variable, setup::plugin(name)?);
        }
        tests.env("LFM2VL_CLIENTS", setup::client_packages()?);
        tests.env("LFM2VL_HUGGINGFACE_HUB", setup::huggingface_hub()?);
        tests.env("LFM2VL_RAY", setup::ray_packages()?);
        tests.env("LFM2VL_WHEEL", wheel::installed()?);
        tests.env("LFM2VL_OLDEST_ORT", setup::old_onnxruntime("oldest")?);
        tests.env("LFM2VL_OLDER_ORT", setup::old_onnxruntime("older")?);
        tests.env("LFM2VL_PORTABLE_ORT", setup::old_onnxruntime("portable")?);
        if let Some(packages) = setup::program_packages()? {
            tests.env("LFM2VL_PROGRAMS", packages);
        }
    }
    if let Some(packages) = setup::node_packages()? {
        tests.env("LFM2VL_NODE", packages);
    }
    setup::run(&mut tests)?;
    core_alone()
}

/// Image processing and prompts build without ONNX Runtime, and for WebAssembly where the
/// toolchain has that target.
fn core_alone() -> Result<()> {
    let core = ["check", "--package", "lfm2vl", "--no-default-features"];
    setup::run(&mut cargo(&core))?;
    let wasm = "wasm32-unknown-unknown";
    let printed = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", wasm])
        .output()
        .context("cannot start rustc")?;
    if Path::new(String::from_utf8_lossy(&printed.stdout).trim()).is_dir() {
        setup::run(cargo(&core).args(["--target", wasm]))
    } else {
        eprintln!("not built for {wasm}: this toolchain lacks it (rustup target add {wasm})");
        Ok(())
    }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(arguments).current_dir(root());
    cargo
}
