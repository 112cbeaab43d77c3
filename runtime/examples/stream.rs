//! Reads an answer as it is made, tells its parts, and gives it up after some seconds:
//! `cargo run --release --example stream -- FOLDER "Tell me a story." 10`

use std::{
    error::Error,
    io::{Write, stdout},
    time::Duration,
};

use lfm2vl::{Conversation, Engine, GenerationOptions, Part, chat::Message};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give the folder that lfm2vl-export wrote")?;
    let question = arguments.next().ok_or("give a question")?;
    let seconds = arguments.next().map_or(Ok(10), |seconds| seconds.parse())?;

    let engine = Engine::builder(folder).build()?;
    let mut conversation = Conversation::new();
    conversation.push(Message::user(question));
    let options = GenerationOptions {
        timeout: Some(Duration::from_secs(seconds)),
        ..engine.generation_options()?
    };
    let mut answer = engine.generate(&mut conversation, &options)?;
    let mut part = Part::Text;
    for event in &mut answer {
        match event {
            Ok(event) => {
                if event.part != part && !event.text.is_empty() {
                    part = event.part;
                    println!("\n[{part:?}]");
                }
                print!("{}", event.text);
                stdout().flush()?;
            }
            Err(error) => println!("\n({error})"),
        }
    }
    // What was made is there, however the answer ended.
    let completion = answer.completion()?;
    println!("\n{} tokens, {:?}", completion.token_ids.len(), completion.finish_reason);
    conversation.push_answer(&completion);
    Ok(())
}
