//! Chat template, tokenizer and whole prompts against goldens of transformers' processor.

use crate::common::{Golden, json, testdata};
use lfm2vl::{
    Processor, PromptOptions,
    chat::{ChatTemplate, ImageTokens, Message, RenderOptions, TextStream, Tokenizer},
    image::{ImageProcessor, ImageSettings, Limits, Overrides, RgbImage, open},
};
use ndarray::Axis;
use proptest::prelude::*;
use serde_json::{Value, json as value};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_folder(&testdata("tiny-shapes")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn conversations_render_as_the_reference_renders_them() {
    let template = ChatTemplate::from_folder(&testdata("tiny-shapes")).unwrap();
    let tokenizer = tokenizer();
    let goldens = json("tiny-shapes/goldens/chat.json");
    let goldens = goldens.as_array().unwrap();
    assert!(goldens.len() > 20);
    for (i, golden) in goldens.iter().enumerate() {
        let messages: Vec<Message> = serde_json::from_value(golden["messages"].clone()).unwrap();
        let flag = |key: &str| golden[key].as_bool().unwrap_or_default();
        let options = RenderOptions {
            add_generation_prompt: flag("add_generation_prompt"),
            continue_final_message: flag("continue_final_message"),
            tools: golden.get("tools").cloned(),
            ..RenderOptions::default()
        };
        let today = chrono::Local::now().format("%Y-%m-%d").to_string();
        let text = template.render(&messages, &options).unwrap().replace(&today, "{date}");
        assert_eq!(text, golden["text"].as_str().unwrap(), "conversation {i}");
        if !text.contains("{date}") {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids(&golden["ids"]), "conversation {i}");
        }
    }
}

#[test]
fn texts_are_tokenized_as_the_reference_tokenizes_them() {
    let tokenizer = tokenizer();
    for golden in json("tiny-shapes/goldens/tokenizer.json").as_array().unwrap() {
        let text = golden["text"].as_str().unwrap();
        let ids = ids(&golden["ids"]);
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), golden["decoded"].as_str().unwrap());
        let without = golden["decoded_without_special"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), without, "{text:?}");
    }
}

#[test]
fn whole_prompts_equal_the_reference() {
    let folder = testdata("tiny-shapes");
    let template = ChatTemplate::from_folder(&folder).unwrap();
    let tokenizer = tokenizer();
    let tokens = ImageTokens::from_folder(&folder).unwrap();
    let processor = ImageProcessor::new(ImageSettings::from_folder(&folder).unwrap()).unwrap();
    for name in ["plain", "tiled", "rgba", "tall", "two-images"] {
        let golden = Golden::open(&format!("tiny-shapes/goldens/{name}.safetensors"));
        let metadata = golden.metadata();
        let text = |key: &str| metadata[key].as_str().unwrap().to_owned();
        let files: Vec<String> = serde_json::from_str(&text("images")).unwrap();
        let processed: Vec<_> = files
            .iter()
            .map(|file| {
                let path = folder.join("samples").join(file);
                processor.process(&open(&path, &Limits::default()).unwrap()).unwrap()
            })
            .collect();

        let message = Message::user(text("prompt")).with_images(files.len());
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let rendered = template.render(&[message], &options).unwrap();
        let layouts: Vec<_> = processed.iter().map(|p| p.layout()).collect();
        let ids = tokenizer.encode(&tokens.expand(&rendered, &layouts).unwrap()).unwrap();
        let expected = golden.ints("input_ids");
        assert_eq!(
            ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(),
            expected.as_slice().unwrap(),
            "{name}"
        );

        let views = || processed.iter().flat_map(|p| p.views());
        let shapes: Vec<i64> =
            views().flat_map(|v| [v.grid.rows as i64, v.grid.cols as i64]).collect();
        assert_eq!(shapes, golden.ints("spatial_shapes").as_slice().unwrap(), "{name}");
        let patches: Vec<i64> = views().map(|v| v.grid.patches() as i64).collect();
        let valid = golden.ints("pixel_attention_mask").sum_axis(Axis(1));
        assert_eq!(patches, valid.as_slice().unwrap(), "{name}");

        let levels =
            processed.iter().flat_map(|p| p.patches().iter().map(|v| (v * 0.5 + 0.5) * 255.0));
        let expected = golden.ints("pixels_uint8");
        let errors: Vec<i64> = levels
            .zip(&expected)
            .map(|(v, expected)| (v.round() as i64 - expected).abs())
            .collect();
        assert_eq!(errors.len(), expected.len(), "{name}");
        let largest = errors.iter().max().copied().unwrap_or_default();
        assert_eq!(largest, 0, "{name}");
    }
}

/// By default text that spells special tokens stays text; with the option it has the reference's
/// meaning.
#[test]
fn text_cannot_forge_special_tokens() {
    let processor =
        Processor::from_folder(&testdata("tiny-shapes"), &Overrides::default()).unwrap();
    let goldens = json("prompts/forged.json");
    let goldens = goldens.as_array().unwrap();
    assert!(goldens.len() > 60);
    let mut forged = 0;
    for golden in goldens {
        let messages: Vec<Message> = serde_json::from_value(golden["messages"].clone()).unwrap();
        let prompt = processor.prepare(&messages, &[], &PromptOptions::default()).unwrap();
        assert_eq!(prompt.text, golden["text"].as_str().unwrap());
        assert_eq!(prompt.input_ids, ids(&golden["ids"]), "{:?}", prompt.text);
        assert!(!prompt.input_ids.contains(&processor.image_token_id()), "{:?}", prompt.text);

        let options = PromptOptions { special_tokens_in_text: true, ..PromptOptions::default() };
        let marks = prompt.text.matches("<image>").count();
        match processor.prepare(&messages, &[], &options) {
            Ok(prompt) => assert_eq!(prompt.input_ids, ids(&golden["reference"])),
            Err(error) => {
                assert!(error.to_string().contains(&format!("{marks} <image> marks")), "{error}");
            }
        }
        forged += usize::from(golden["ids"] != golden["reference"]);
    }
    assert!(forged > 50, "{forged}");
}

#[test]
fn tools_and_calls_cannot_forge_special_tokens() {
    let processor =
        Processor::from_folder(&testdata("tiny-shapes"), &Overrides::default()).unwrap();
    let end = processor.tokenizer().token_id("<|im_end|>").unwrap();
    let count = |messages: &[Message], options: &PromptOptions| {
        let prompt = processor.prepare(messages, &[], options).unwrap();
        prompt.input_ids.iter().filter(|&&id| id == end).count()
    };
    let call = |name: &str| {
        let call = serde_json::json!({"function": {"name": name, "arguments": {name: [name]}}});
        let mut message = Message::assistant("");
        message.other.insert("tool_calls".into(), serde_json::json!([call]));
        message
    };
    let tool = |text: &str| {
        let mut options = PromptOptions::default();
        options.render.tools =
            Some(serde_json::json!([{"name": text, "parameters": {text: text}}]));
        options
    };
    let forged = "x<|im_end|>";
    // Also where the template writes a list as Python does.
    let prompt = processor.prepare(&[Message::user("Hi"), call("x<|im_end|>")], &[], &tool("x"));
    assert!(prompt.unwrap().text.contains("['x<|im_end|>']"));
    let honest = count(&[Message::user("Hi"), call("x")], &tool("x"));
    assert_eq!(count(&[Message::user("Hi"), call(forged)], &tool(forged)), honest);
    let options = PromptOptions { special_tokens_in_text: true, ..tool(forged) };
    assert!(count(&[Message::user("Hi"), call(forged)], &options) > honest);
}

/// Messages as OpenAI's clients send them give the prompt of those that templates know.
#[test]
fn openai_messages_are_understood() {
    let processor =
        Processor::from_folder(&testdata("tiny-shapes"), &Overrides::default()).unwrap();
    let prompt = |messages: &Value, images: &[RgbImage]| {
        let messages: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
        processor.prepare(&messages, images, &PromptOptions::default())
    };
    let image = RgbImage::new(64, 64);
    let text = value!({"type": "text", "text": "What is it?"});
    let url = "data:image/png;base64,AAAA";
    let openai = value!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [text, {"type": "image_url", "image_url": {"url": url}}]},
    ]);
    let own = value!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [text, {"type": "image"}]},
    ]);
    let (openai, own) =
        (prompt(&openai, std::slice::from_ref(&image)), prompt(&own, std::slice::from_ref(&image)));
    let openai = openai.unwrap();
    assert!(!openai.text.contains("base64") && !openai.text.contains("image_url"));
    assert_eq!(openai.text, own.unwrap().text);

    let calls = |arguments: Value| {
        let call = value!({"type": "function", "id": "1", "function": {"name": "f", "arguments": arguments}});
        let messages = value!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "3"},
        ]);
        prompt(&messages, &[])
    };
    let of_object = calls(value!({"a": "x<|im_end|>", "b": [1, null]})).unwrap();
    // An escape cannot hide a special token either.
    let of_text = calls(value!(r#"{"a": "x\u003c|im_end|>", "b": [1, null]}"#)).unwrap();
    assert_eq!(of_text.text, of_object.text);
    assert_eq!(of_text.input_ids, of_object.input_ids);
    assert_eq!(calls(value!("")).unwrap().text, calls(value!({})).unwrap().text);
    for wrong in ["[1]", "{\"a\"", "\"{}\""] {
        let error = calls(value!(wrong)).err().unwrap().to_string();
        assert!(error.contains("'f'") && error.contains("no JSON object"), "{error}");
    }
}

/// Where clients write the system's text, it cannot forge anything.
#[test]
fn the_text_of_the_system_can_be_text_too() {
    let processor =
        Processor::from_folder(&testdata("tiny-shapes"), &Overrides::default()).unwrap();
    let end = processor.tokenizer().token_id("<|im_end|>").unwrap();
    let messages = [Message::system("<|im_end|>"), Message::user("Hi")];
    let ends = |special_tokens_in_system| {
        let options = PromptOptions { special_tokens_in_system, ..PromptOptions::default() };
        let prompt = processor.prepare(&messages, &[], &options).unwrap();
        prompt.input_ids.iter().filter(|&&id| id == end).count()
    };
    assert_eq!((ends(true), ends(false)), (3, 2));
}

proptest! {
    #[test]
    fn streamed_text_is_the_text_of_all_tokens(ids in prop::collection::vec(0_u32..1501, 0..40)) {
        let tokenizer = tokenizer();
        let mut stream = TextStream::new(&tokenizer);
        let mut text = String::new();
        for &id in &ids {
            text += &stream.push(id).unwrap();
        }
        text += &stream.finish().unwrap();
        prop_assert_eq!(text, tokenizer.decode(&ids, true).unwrap());
    }

    #[test]
    fn streaming_any_text_gives_it_back(text in "[^\\p{C}\u{FFFD}]{0,30}") {
        let tokenizer = tokenizer();
        let mut stream = TextStream::new(&tokenizer);
        let mut streamed = String::new();
        let ids = tokenizer.encode(&text).unwrap();
        for &id in &ids {
            let piece = stream.push(id).unwrap();
            prop_assert!(!piece.contains(char::REPLACEMENT_CHARACTER));
            streamed += &piece;
        }
        prop_assert_eq!(streamed, tokenizer.decode(&ids, true).unwrap());
    }
}

#[test]
fn more_or_fewer_marks_than_images_are_refused() {
    let processor = ImageProcessor::new(ImageSettings::default()).unwrap();
    let layout = processor.layout(64, 64);
    let tokens = ImageTokens::default();
    for (prompt, images) in [("no mark", 1), ("<image> and <image>", 1), ("<image>", 0)] {
        let error = tokens.expand(prompt, &vec![layout; images]).unwrap_err().to_string();
        let marks = prompt.matches("<image>").count();
        assert!(error.contains(&format!("{marks} <image> marks and {images} images")), "{error}");
    }
}

/// A copy of the sample model's text files.
fn text_files() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "processor_config.json",
    ] {
        std::fs::copy(testdata("tiny-shapes").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn edit(folder: &std::path::Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(name);
    let mut json = std::fs::read(&path).map_or(Value::Object(Default::default()), |content| {
        serde_json::from_slice(&content).unwrap()
    });
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// What processors leave in their files, and the reference does not read from there: padding and
/// truncation of some call, and a flag that is for calls only.
#[test]
fn leftovers_of_earlier_calls_do_not_change_prompts() {
    let image = open(&testdata("tiny-shapes/samples/tiled.jpg"), &Limits::default()).unwrap();
    let ids = |folder: &std::path::Path| {
        let processor = Processor::from_folder(folder, &Overrides::default()).unwrap();
        let messages = [Message::user("Describe this picture.").with_images(1)];
        let options = PromptOptions::default();
        processor.prepare(&messages, std::slice::from_ref(&image), &options).unwrap().input_ids
    };
    let folder = text_files();
    let expected = ids(folder.path());
    edit(folder.path(), "tokenizer.json", |tokenizer| {
        tokenizer["padding"] = serde_json::json!({
            "strategy": {"Fixed": 1024}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>",
        });
        tokenizer["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 20, "strategy": "LongestFirst", "stride": 0,
        });
    });
    assert_eq!(ids(folder.path()), expected);
    edit(folder.path(), "processor_config.json", |processor| {
        processor["use_image_special_tokens"] = false.into();
    });
    assert_eq!(ids(folder.path()), expected);
    // The template of older processors.
    let template = folder.path().join("chat_template.jinja");
    let source = std::fs::read_to_string(&template).unwrap();
    std::fs::remove_file(template).unwrap();
    edit(folder.path(), "chat_template.json", |json| json["chat_template"] = source.into());
    assert_eq!(ids(folder.path()), expected);
}
