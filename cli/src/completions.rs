//! `lfm2vl completions`: what a shell needs to complete the program's arguments.

use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;

use crate::print;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The shell that is to read them.
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments, mut program: Command) -> Result<()> {
    let name = program.get_name().to_owned();
    // Not straight to the standard output, since whoever reads it may have seen enough.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut program, name, &mut script);
    print(&String::from_utf8(script)?)
}
