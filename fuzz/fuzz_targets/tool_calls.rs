//! Any text as an answer of the model.

#![no_main]

use lfm2vl::chat::Reply;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = Reply::parse(text);
    let _ = Reply::parse(&format!("<|tool_call_start|>{text}<|tool_call_end|>"));
});
