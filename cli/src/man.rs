//! `lfm2vl man`: the program's manual pages.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder to write them to, such as ~/.local/share/man/man1.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, program: Command) -> Result<()> {
    let folder = &arguments.folder;
    let written =
        fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(program, folder));
    written.with_context(|| {
        format!("cannot write pages to {}; check the folder and its disk", folder.display())
    })
}
