//! `cargo xtask wheel`: the provider of the project's own kernels as a Python package.

use std::{
    env::consts::{ARCH, DLL_PREFIX, DLL_SUFFIX},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::{root, setup};

const PACKAGE: &str = "onnxruntime_ep_lfm2vl";

/// Builds the library, packs it, and gives the package's path.
/// (Format: the Python packaging guide's "Binary distribution format".)
pub(crate) fn run(folder: &Path) -> Result<PathBuf> {
    setup::build_release(&["--package", "lfm2vl-provider"])?;
    let name = format!("{DLL_PREFIX}onnxruntime_providers_lfm2vl{DLL_SUFFIX}");
    let library = fs::read(setup::release_file(&name)?)?;
    let version = env!("CARGO_PKG_VERSION");
    let tag = format!("py3-none-{}", platform(&library));
    let source = root().join("provider");
    let read = |path: &str| fs::read(source.join(path)).with_context(|| format!("no {path}"));
    let metadata = [
        format!("Metadata-Version: 2.4\nName: onnxruntime-ep-lfm2vl\nVersion: {version}\n"),
        "Summary: Faster kernels for quantized weights in ONNX Runtime on x86 processors\n".into(),
        "License-Expression: MIT OR Apache-2.0\nRequires-Python: >=3.9\n".into(),
        "Description-Content-Type: text/markdown\n\n".into(),
        String::from_utf8(read("README.md")?)?,
    ];
    let wheel =
        format!("Wheel-Version: 1.0\nGenerator: xtask\nRoot-Is-Purelib: false\nTag: {tag}\n");
    let info = format!("{PACKAGE}-{version}.dist-info");
    let files = [
        (format!("{PACKAGE}/__init__.py"), read("python/__init__.py")?),
        (format!("{PACKAGE}/{name}"), library),
        (format!("{info}/METADATA"), metadata.concat().into_bytes()),
        (format!("{info}/WHEEL"), wheel.into_bytes()),
    ];
    let mut record = String::new();
    for (name, content) in &files {
        let hash = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(content));
        record += &format!("{name},sha256={hash},{}\n", content.len());
    }
    record += &format!("{info}/RECORD,,\n");

    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{PACKAGE}-{version}-{tag}.whl"));
    let mut archive = ZipWriter::new(File::create(&path)?);
    let options = SimpleFileOptions::default();
    for (name, content) in files.iter().chain([&(format!("{info}/RECORD"), record.into_bytes())]) {
        archive.start_file(name, options)?;
        archive.write_all(content)?;
    }
    archive.finish()?;
    Ok(path)
}

/// A folder `.wheel` with nothing but this package, installed anew.
pub(crate) fn installed() -> Result<PathBuf> {
    let folder = setup::folder(".wheel");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let wheel = run(&folder.join("dist"))?;
    let package = folder.join("package");
    let mut install = Command::new("python3");
    install.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]);
    setup::quietly(install.arg(&package).arg(wheel))?;
    Ok(package)
}

/// The platform as Python's packages name it. On Linux that is the oldest C library that has all that the
/// provider's uses.
fn platform(library: &[u8]) -> String {
    match std::env::consts::OS {
        "linux" => {
            let prefix = b"GLIBC_2.";
            let versions = library.windows(prefix.len() + 2).filter(|w| w.starts_with(prefix));
            let minor = versions.filter_map(|window| {
                let digits = &window[prefix.len()..];
                let count = digits.iter().take_while(|digit| digit.is_ascii_digit()).count();
                std::str::from_utf8(&digits[..count]).ok()?.parse::<u32>().ok()
            });
            format!("manylinux_2_{}_{ARCH}", minor.max().unwrap_or(17).max(17))
        }
        "windows" => "win_amd64".into(),
        "macos" => format!("macosx_11_0_{}", if ARCH == "aarch64" { "arm64" } else { ARCH }),
        other => other.into(),
    }
}
