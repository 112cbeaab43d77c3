//! What is made of the arguments: completions for shells, and the manual page.

use std::{fs, path::Path};

use clap::CommandFactory;
use clap_complete::Shell;
use lfm2vl_exporter::ExportError;

use crate::{arguments::Arguments, text::print};

/// Prints what a shell needs to complete arguments.
pub(crate) fn print_completions(shell: Shell) -> Result<(), ExportError> {
    let mut program = Arguments::command();
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, name, &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes the manual page to `folder`.
pub(crate) fn write_man_page(folder: &Path) -> Result<(), ExportError> {
    let written = fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), folder));
    written.map_err(|source| ExportError::Write { path: folder.to_owned(), source })
}
