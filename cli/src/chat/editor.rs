//! Lines that are edited on a terminal, and the history of them.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::Result;
use etcetera::BaseStrategy;
use rustyline::{
    Behavior, CompletionType, Config, Editor, error::ReadlineError, history::FileHistory,
};

use super::completion::CommandCompleter;

const PROMPT: &str = "> ";
/// In front of a line that goes on with the last one.
const CONTINUATION: &str = ". ";

/// Messages and commands of the history; older ones are forgotten.
const HISTORY: usize = 1000;

/// Reads lines from the terminal.
pub(super) struct LineEditor {
    editor: Editor<CommandCompleter, FileHistory>,
    /// Where the history is kept; nowhere if it cannot be.
    history: Option<PathBuf>,
}

impl LineEditor {
    pub(super) fn new() -> Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY)?
            .completion_type(CompletionType::List)
            // The standard output is for answers alone, and may be a file.
            .behavior(Behavior::PreferTerm)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(CommandCompleter));
        let mut editor = LineEditor { editor, history: history_path() };
        editor.load_history();
        Ok(editor)
    }

    /// The next message or command, of several lines where these were pasted or end with a backslash; none at the
    /// end.
    pub(super) fn read(&mut self) -> Result<Option<String>> {
        let mut text = String::new();
        loop {
            let prompt = if text.is_empty() { PROMPT } else { CONTINUATION };
            match self.editor.readline(prompt) {
                Ok(line) => match line.strip_suffix('\\') {
                    Some(line) => text = text + line + "\n",
                    None => {
                        text += &line;
                        self.remember(&text);
                        return Ok(Some(text));
                    }
                },
                // What was typed is given up, and not the conversation.
                Err(ReadlineError::Interrupted) => text.clear(),
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn load_history(&mut self) {
        let Some(path) = &self.history else { return };
        match self.editor.load_history(path) {
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            loaded => self.check(loaded),
        }
    }

    /// Adds a line to the history at once, since the program may be killed.
    fn remember(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        let Some(path) = &self.history else { return drop(self.editor.add_history_entry(line)) };
        let folder = create_private_folder(path.parent().unwrap_or(path));
        let saved = self.editor.add_history_entry(line).and_then(|_| {
            folder?;
            self.editor.append_history(path)
        });
        self.check(saved);
    }

    /// Warns once where the history cannot be kept, and goes on without.
    fn check(&mut self, result: rustyline::Result<()>) {
        if let Err(error) = result
            && let Some(path) = self.history.take()
        {
            eprintln!("warning: the history is not kept in {}: {error}", path.display());
        }
    }
}

/// The file of the history, where the platform keeps the state of programs.
fn history_path() -> Option<PathBuf> {
    let folders = etcetera::choose_base_strategy().ok()?;
    let state = folders.state_dir().unwrap_or_else(|| folders.data_dir());
    Some(state.join("lfm2vl").join("history"))
}

/// Makes a folder that only the user can read, if it is not there.
fn create_private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}
