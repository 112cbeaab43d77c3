//! `lfm2vl run`: one question, one answer.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use lfm2vl::{Completion, Conversation, chat::ToolCall};
use serde_json::{Value, json};

use crate::{
    arguments::{GenerationArguments, ImageArguments, LoadArguments, PromptArguments},
    print,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that lfm2vl-export wrote.
    folder: PathBuf,
    #[command(flatten)]
    prompt: PromptArguments,
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    generation: GenerationArguments,
    #[command(flatten)]
    images: ImageArguments,
    /// Print one JSON object with the answer, its tokens and timings.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let engine = arguments.load.load(&arguments.folder, &arguments.images)?;
    let options = arguments.generation.options(&engine, &arguments.load)?;
    let chat = &arguments.prompt.chat;
    let mut conversation = Conversation::with_options(chat.options()?);
    if let Some(system) = chat.system_message() {
        conversation.push(system);
    }
    let start = Instant::now();
    let images = arguments.images.load(&arguments.prompt.image)?;
    let decoding = start.elapsed();
    conversation.push_with_images(arguments.prompt.message(), images)?;

    let answer = engine.generate(&mut conversation, &options)?;
    if arguments.json {
        let mut completion = answer.finish()?;
        completion.timings.preprocess += decoding;
        return print(&format!("{:#}\n", to_json(&completion, engine.load_time())));
    }
    for event in answer {
        print(&event?.text)?;
    }
    print("\n")
}

/// The object that `run --json` prints.
fn to_json(completion: &Completion, load: Duration) -> Value {
    let ms = |time: Duration| 1e3 * time.as_secs_f64();
    let timings = completion.timings;
    json!({
        "text": completion.text,
        "thinking": completion.reply.thinking,
        "tool_calls": completion.reply.tool_calls.iter().map(ToolCall::to_json).collect::<Vec<_>>(),
        "malformed_tool_calls": completion
            .reply
            .malformed
            .iter()
            .map(|calls| json!({"text": calls.text, "reason": calls.reason}))
            .collect::<Vec<_>>(),
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "image_tokens": completion.image_tokens,
        "drafted_tokens": completion.drafted_tokens,
        "accepted_tokens": completion.accepted_tokens,
        "timings_ms": {
            "load": ms(load),
            "preprocess": ms(timings.preprocess),
            "vision": ms(timings.vision),
            "prefill": ms(timings.prefill),
            "decode": ms(timings.decode),
        },
        "tokens_per_second": completion.tokens_per_second(),
    })
}
