//! Captions many images at a time, as many as the engine has slots:
//! `cargo run --release --example many -- FOLDER *.jpg`

use std::error::Error;

use lfm2vl::{
    Conversation, Engine,
    chat::Message,
    image::{Limits, load},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give the folder that lfm2vl-export wrote")?;
    let sources: Vec<String> = arguments.collect();

    let engine = Engine::builder(folder).slots(8).queue(sources.len().max(1)).build()?;
    let options = engine.generation_options()?;
    // All are asked; the engine makes 8 answers at a time, and the others wait.
    let ask = |source: &String| -> Result<_, Box<dyn Error>> {
        let mut conversation = Conversation::new();
        let image = load(source, &Limits::default())?;
        conversation.push_with_images(Message::user("Describe this image."), [image])?;
        Ok(engine.generate(&mut conversation, &options)?)
    };
    let answers = sources.iter().map(ask).collect::<Result<Vec<_>, _>>()?;
    for (source, answer) in sources.iter().zip(answers) {
        match answer.finish() {
            Ok(completion) => println!("{source}: {}", completion.text),
            Err(error) => println!("{source}: error: {error}"),
        }
    }
    let metrics = engine.metrics();
    let rows = metrics.answer_tokens as f64 / metrics.steps.max(1) as f64;
    println!("{} tokens in {} steps: {rows:.1} at a time", metrics.answer_tokens, metrics.steps);
    Ok(())
}
