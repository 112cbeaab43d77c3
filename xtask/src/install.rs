//! `cargo xtask install`: the programs, and the library of the project's own kernels beside them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{root, setup};

/// Installs to `folder/bin`, or where `cargo install` does.
pub(crate) fn run(folder: Option<&Path>) -> Result<()> {
    let folder = match folder {
        Some(folder) => env::current_dir()?.join(folder),
        None => default_folder().context("there is no home folder; give one with --root")?,
    };
    for package in ["exporter", "cli"] {
        let mut install = Command::new(env!("CARGO"));
        install.args(["install", "--locked", "--path", package, "--root"]).arg(&folder);
        setup::run(install.current_dir(root()))?;
    }
    let library = setup::kernels_into(&folder.join("bin"))?;
    eprintln!("{}", library.display());
    Ok(())
}

/// As `cargo install` chooses.
fn default_folder() -> Option<PathBuf> {
    let named = ["CARGO_INSTALL_ROOT", "CARGO_HOME"].into_iter().find_map(env::var_os);
    named.map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}
