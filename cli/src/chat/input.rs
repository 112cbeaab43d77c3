//! Where lines come from: a terminal, on which they are edited, or anything else.

use std::io::{self, BufRead, IsTerminal, Lines, StdinLock};

use anyhow::Result;

use super::editor::LineEditor;

pub(super) enum Input {
    Terminal(Box<LineEditor>),
    Other(Lines<StdinLock<'static>>),
}

impl Input {
    pub(super) fn new() -> Result<Self> {
        // Such a terminal cannot move its cursor.
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        if io::stdin().is_terminal() && !is_dumb {
            return Ok(Input::Terminal(Box::new(LineEditor::new()?)));
        }
        Ok(Input::Other(io::stdin().lock().lines()))
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// The next line; none at the end.
    pub(super) fn read(&mut self) -> Result<Option<String>> {
        match self {
            Input::Terminal(editor) => editor.read(),
            Input::Other(lines) => Ok(lines.next().transpose()?),
        }
    }
}
