//! `lfm2vl chat`: a conversation on the terminal.

mod command;
mod completion;
mod editor;
mod input;
mod interrupt;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lfm2vl::{
    Conversation, Engine, Error, GenerationOptions,
    chat::{Message, Role},
};

use crate::{
    arguments::{ChatArguments, GenerationArguments, ImageArguments, LoadArguments},
    describe, is_broken_pipe, print,
};
use command::{EDITING, HELP, Line};
use input::Input;
use interrupt::Interrupt;

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

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let engine = arguments.load.load(&arguments.folder, &arguments.images)?;
    let options = arguments.generation.options(&engine, &arguments.load)?;
    let mut images = arguments.images.load(&arguments.image)?;
    let mut conversation = start(&arguments.chat)?;
    let mut input = Input::new()?;
    let interrupt = Interrupt::default();
    if input.is_terminal() {
        interrupt.listen()?;
        help(&input);
    }
    while let Some(line) = input.read()? {
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
            Line::Help => help(&input),
            Line::Quit => return Ok(()),
            Line::Unknown(command) => eprintln!("error: there is no {command}; see /help"),
            Line::Message(text) => {
                let images = std::mem::take(&mut images);
                let pushed = conversation.push_with_images(Message::user(text), images);
                let answered = pushed
                    .map_err(Into::into)
                    .and_then(|()| answer(&engine, &mut conversation, &options, &interrupt));
                match answered {
                    Err(error) if !is_broken_pipe(&error) => {
                        eprintln!("error: {}", describe(&error));
                        take_back(&mut conversation);
                    }
                    result => result?,
                }
            }
        }
    }
    Ok(())
}

fn help(input: &Input) {
    eprintln!("{HELP}");
    if input.is_terminal() {
        eprintln!("{EDITING}");
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

/// Writes an answer as it is made. One that is stopped is a part of the conversation as far as it went.
fn answer(
    engine: &Engine,
    conversation: &mut Conversation,
    options: &GenerationOptions,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut answer = engine.generate(conversation, options)?;
    let stopping = interrupt.stops(answer.cancel_handle());
    let mut is_stopped = false;
    for event in &mut answer {
        match event {
            Err(Error::Cancelled) => is_stopped = true,
            event => print(&event?.text)?,
        }
    }
    drop(stopping);
    print("\n")?;
    let completion = answer.completion()?;
    if is_stopped {
        eprintln!("(stopped)");
    }
    if completion.token_ids.is_empty() && is_stopped {
        take_back(conversation);
    } else {
        conversation.push_answer(&completion);
    }
    Ok(())
}
