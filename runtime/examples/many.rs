//! Captions many images at a time, as many as the engine has slots:
//! `cargo run --release --example many -- FOLDER *.jpg`

use std::{collections::VecDeque, error::Error};

use lfm2vl::{
    Answer, Conversation, Engine,
    chat::Message,
    image::{Limits, load},
};

const SLOTS: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give the folder that lfm2vl-export wrote")?;
    let sources: Vec<String> = arguments.collect();

    let engine = Engine::builder(folder).slots(SLOTS).build()?;
    let options = engine.generation_options()?;
    let mut answers = VecDeque::new();
    for source in &sources {
        // As many more as wait while the others are answered: each holds its image.
        if answers.len() == 2 * SLOTS {
            answers.pop_front().into_iter().for_each(print);
        }
        let mut conversation = Conversation::new();
        let image = load(source, &Limits::default())?;
        conversation.push_with_images(Message::user("Describe this image."), [image])?;
        answers.push_back((source, engine.generate(&mut conversation, &options)?));
    }
    answers.into_iter().for_each(print);
    let metrics = engine.metrics();
    let rows = metrics.answer_tokens as f64 / metrics.steps.max(1) as f64;
    println!("{} tokens in {} steps: {rows:.1} at a time", metrics.answer_tokens, metrics.steps);
    Ok(())
}

fn print((source, answer): (&String, Answer)) {
    match answer.finish() {
        Ok(completion) => println!("{source}: {}", completion.text),
        Err(error) => println!("{source}: error: {error}"),
    }
}
