//! Asks one question, about an image if there is one:
//! `cargo run --release --example ask -- FOLDER "What is this?" photo.jpg`

use std::error::Error;

use lfm2vl::{
    Conversation, Engine,
    chat::Message,
    image::{Limits, load},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give the folder that lfm2vl-export wrote")?;
    let question = arguments.next().ok_or("give a question")?;
    let images = arguments.map(|source| load(&source, &Limits::default()));
    let images = images.collect::<Result<Vec<_>, _>>()?;

    let engine = Engine::builder(folder).build()?;
    let mut conversation = Conversation::new();
    conversation.push_with_images(Message::user(question), images)?;
    let completion = engine.answer(&mut conversation, &engine.generation_options()?)?;
    println!("{}", completion.text);
    println!("{} tokens a second", completion.tokens_per_second().round());
    Ok(())
}
