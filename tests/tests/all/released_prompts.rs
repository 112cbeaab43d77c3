//! The released LFM2.5-VL template and tokenizer, which the public crate `lfm` carries, on
//! conversations that transformers rendered.

use lfm2vl::chat::{ChatTemplate, Message, RenderOptions, Tokenizer};
use lfm2vl_tests::{released_files, testdata};
use serde_json::Value;

#[test]
fn conversations_render_as_the_reference_renders_them() {
    let folder = released_files();
    let template = ChatTemplate::from_folder(&folder).unwrap();
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    let goldens = std::fs::read(testdata("prompts/released.json")).unwrap();
    let goldens: Vec<Value> = serde_json::from_slice(&goldens).unwrap();
    assert!(goldens.len() >= 60);
    let mut wrong = Vec::new();
    for golden in &goldens {
        let messages: Vec<Message> = serde_json::from_value(golden["messages"].clone()).unwrap();
        let flag = |key: &str| golden[key].as_bool().unwrap_or_default();
        let options = RenderOptions {
            add_generation_prompt: flag("add_generation_prompt"),
            continue_final_message: flag("continue_final_message"),
            tools: golden.get("tools").cloned(),
            ..RenderOptions::default()
        };
        let today = chrono::Local::now().format("%Y-%m-%d").to_string();
        let text = template.render(&messages, &options).map(|text| text.replace(&today, "{date}"));
        let expected = golden["text"].as_str().unwrap();
        match text {
            Ok(text) if text == expected => {
                let ids: Option<Vec<u32>> =
                    golden.get("ids").map(|ids| serde_json::from_value(ids.clone()).unwrap());
                if ids.is_some_and(|ids| ids != tokenizer.encode(&text).unwrap()) {
                    wrong.push(format!("other tokens for {expected:?}"));
                }
            }
            Ok(text) => wrong.push(format!("{text:?}\n  not {expected:?}")),
            Err(error) => wrong.push(format!("{error}\n  not {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), goldens.len(), wrong.join("\n"));
}
