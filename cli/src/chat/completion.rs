//! What the tabulator completes: commands, and the names of files behind `/image`.

use std::{fs, path::Path};

use rustyline::{
    Context, Helper,
    completion::{Completer, Pair},
    highlight::Highlighter,
    hint::Hinter,
    validate::Validator,
};

use super::command::COMMANDS;

/// Completes what stands before the cursor.
pub(super) struct CommandCompleter;

impl Completer for CommandCompleter {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..position];
        let Some(path) = before.strip_prefix("/image ") else {
            return Ok((0, commands(before)));
        };
        let path = path.trim_start();
        let name = path.rfind(std::path::is_separator).map_or(path, |at| &path[at + 1..]);
        let folder = &path[..path.len() - name.len()];
        let folder = if folder.is_empty() { "." } else { folder };
        Ok((position - name.len(), files(Path::new(folder), name)))
    }
}

impl Hinter for CommandCompleter {
    type Hint = String;
}

impl Highlighter for CommandCompleter {}

impl Validator for CommandCompleter {}

impl Helper for CommandCompleter {}

/// The commands that begin so; none where there is nothing yet.
fn commands(start: &str) -> Vec<Pair> {
    let is_meant = |command: &&str| !start.is_empty() && command.starts_with(start);
    let pair = |command: &str| Pair {
        display: command.trim_end().to_owned(),
        replacement: command.to_owned(),
    };
    COMMANDS.into_iter().filter(is_meant).map(pair).collect()
}

/// The files and folders whose names begin so. Hidden ones are shown to whoever types their dot.
fn files(folder: &Path, start: &str) -> Vec<Pair> {
    // Where a folder cannot be read, there is nothing to offer.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let is_meant =
            name.starts_with(start) && (start.starts_with('.') || !name.starts_with('.'));
        let end = if entry.path().is_dir() { "/" } else { "" };
        is_meant.then(|| name + end)
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.into_iter().map(|name| Pair { display: name.clone(), replacement: name }).collect()
}

#[cfg(test)]
mod tests {
    use rustyline::history::MemHistory;

    use super::*;

    fn complete(line: &str) -> (usize, Vec<String>) {
        let history = MemHistory::new();
        let (start, found) =
            CommandCompleter.complete(line, line.len(), &Context::new(&history)).unwrap();
        (start, found.into_iter().map(|pair| pair.replacement).collect())
    }

    #[test]
    fn commands_and_files() {
        assert_eq!(complete("/re"), (0, vec!["/reset".into()]));
        assert_eq!(complete("/i"), (0, vec!["/image ".into()]));
        assert_eq!(complete("/").1.len(), COMMANDS.len());
        for line in ["", "What is /i", "hello", "/x"] {
            assert!(complete(line).1.is_empty(), "{line}");
        }

        let folder = tempfile::tempdir().unwrap();
        for file in ["photo one.png", "photo two.png", "other.png", ".photo"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        fs::create_dir(folder.path().join("photos")).unwrap();
        let path = format!("{}/", folder.path().display());
        let line = format!("/image {path}photo");
        let names = ["photo one.png", "photo two.png", "photos/"].map(str::to_owned);
        assert_eq!(complete(&line), (line.len() - 5, names.to_vec()));
        assert_eq!(complete(&format!("/image {path}")).1.len(), 4);
        assert_eq!(complete(&format!("/image   {path}.")).1, [".photo"]);
        assert!(complete(&format!("/image {path}no/such/")).1.is_empty());
        assert_eq!(complete("/image src/chat/comm").1, ["command.rs"]);
    }
}
