//! What can be said to the program instead of to the model.

pub(super) const HELP: &str = "\
/image FILE   attach an image to the next message; a URL works too
/reset        start again
/help         show this
/quit         leave
Anything else is a message to the model.";

/// What keys do besides, on a terminal.
pub(super) const EDITING: &str = "\
A line that ends with \\ goes on. Tab completes commands and files, the arrows bring earlier lines back, Ctrl-C stops
an answer, and Ctrl-D leaves.";

/// The commands that the help names, for completion.
pub(super) const COMMANDS: [&str; 4] = ["/image ", "/reset", "/help", "/quit"];

/// A line of input.
pub(super) enum Line<'a> {
    Image(&'a str),
    Reset,
    Help,
    Quit,
    Unknown(&'a str),
    Message(&'a str),
}

impl<'a> Line<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "/image" => Line::Image(rest.trim()),
            "/reset" => Line::Reset,
            "/help" => Line::Help,
            "/quit" | "/exit" => Line::Quit,
            _ if command.starts_with('/') => Line::Unknown(command),
            _ => Line::Message(line),
        }
    }
}
