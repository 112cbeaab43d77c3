//! `lfm2vl chat`: a conversation on the terminal.

use std::{
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

use anyhow::Result;
use clap::Args;
use lfm2vl::{
    Conversation, Engine, GenerationOptions,
    chat::{Message, Role},
};

use crate::{
    arguments::{ChatArguments, GenerationArguments, ImageArguments, LoadArguments},
    describe, is_broken_pipe, print,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that lfm2vl-export wrote.
    folder: PathBuf,
    /// An image for the first message: a file, a URL or a data URI; may be given several times.
    #[arg(long, value_name = "FILE|URL")]
    image: Vec<String>,
    #[command(flatten)]
    chat: ChatArguments,
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    generation: GenerationArguments,
    #[command(flatten)]
    images: ImageArguments,
}

const HELP: &str = "\
/image FILE   attach an image to the next message; a URL works too
/reset        start again
/help         show this
/quit         leave
Anything else is a message to the model.";

/// A line of input.
enum Line<'a> {
    Image(&'a str),
    Reset,
    Help,
    Quit,
    Unknown(&'a str),
    Message(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
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

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let engine = arguments.load.load(&arguments.folder, &arguments.images)?;
    let options = arguments.generation.options(&engine, &arguments.load)?;
    let mut images = arguments.images.load(&arguments.image)?;
    let mut conversation = start(&arguments.chat)?;
    let is_terminal = io::stdin().is_terminal();
    if is_terminal {
        eprintln!("{HELP}");
    }
    let mut lines = io::stdin().lock().lines();
    loop {
        if is_terminal {
            eprint!("> ");
        }
        let Some(line) = lines.next().transpose()? else { return Ok(()) };
        match Line::parse(line.trim()) {
            Line::Message("") => {}
            Line::Image(source) => match arguments.images.load(&[source.to_owned()]) {
                Ok(image) => images.extend(image),
                Err(error) => eprintln!("error: {error}"),
            },
            Line::Reset => {
                images.clear();
                conversation = start(&arguments.chat)?;
            }
            Line::Help => eprintln!("{HELP}"),
            Line::Quit => return Ok(()),
            Line::Unknown(command) => eprintln!("error: there is no {command}; see /help"),
            Line::Message(text) => {
                let images = std::mem::take(&mut images);
                let pushed = conversation.push_with_images(Message::user(text), images);
                let answered = pushed.map_err(Into::into);
                match answered.and_then(|()| answer(&engine, &mut conversation, &options)) {
                    Err(error) if !is_broken_pipe(&error) => {
                        eprintln!("error: {}", describe(&error));
                        take_back(&mut conversation);
                    }
                    result => result?,
                }
            }
        }
    }
}

fn start(chat: &ChatArguments) -> Result<Conversation> {
    let mut conversation = Conversation::with_options(chat.options()?);
    if let Some(system) = chat.system_message() {
        conversation.push(system);
    }
    Ok(conversation)
}

/// Takes back a message that got no answer.
fn take_back(conversation: &mut Conversation) {
    if conversation.messages().last().is_some_and(|message| message.role == Role::User) {
        conversation.pop();
    }
}

fn answer(
    engine: &Engine,
    conversation: &mut Conversation,
    options: &GenerationOptions,
) -> Result<()> {
    let mut answer = engine.generate(conversation, options)?;
    for event in &mut answer {
        print(&event?.text)?;
    }
    conversation.push_answer(&answer.completion()?);
    print("\n")
}
