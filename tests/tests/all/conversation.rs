//! Conversations: reuse of the state, streaming, stop strings, limits, hidden states.

use lfm2vl::{
    Conversation, Engine, Error, FinishReason, GenerationOptions, PromptOptions,
    chat::{Content, Message, Part, Tool},
    image::{Limits, Overrides, open},
};
use lfm2vl_graphs::{Precision, Recipe};
use lfm2vl_tests::{export_with, testdata, tiny_shapes};

fn engine() -> Engine {
    Engine::builder(tiny_shapes("default")).build().unwrap()
}

fn sample(name: &str) -> image::RgbImage {
    open(&testdata("tiny-shapes/samples").join(name), &Limits::default()).unwrap()
}

fn greedy() -> GenerationOptions {
    GenerationOptions::default()
}

#[test]
fn a_later_turn_goes_on_from_the_state() {
    let engine = engine();
    let mut conversation = Conversation::new();
    let question = Message::user("Describe this image.");
    conversation.push_with_images(question.clone(), [sample("tiled.jpg")]).unwrap();
    let first = engine.answer(&mut conversation, &greedy()).unwrap();
    assert_eq!(first.reused_tokens, 0);

    let next = Message::user("How many shapes are there?");
    conversation.push_with_images(next.clone(), [sample("plain.png")]).unwrap();
    let second = engine.answer(&mut conversation, &greedy()).unwrap();
    // Everything of the first turn: its end token came from logits after its last token.
    assert_eq!(second.reused_tokens, first.prompt_tokens + first.token_ids.len());

    let mut fresh = Conversation::new();
    fresh.push_with_images(question, [sample("tiled.jpg")]).unwrap();
    fresh.push(Message::assistant(&first.text));
    fresh.push_with_images(next, [sample("plain.png")]).unwrap();
    let whole = engine.answer(&mut fresh, &greedy()).unwrap();
    assert_eq!(whole.reused_tokens, 0);
    assert_eq!(whole.token_ids, second.token_ids);
    assert_eq!(whole.prompt_tokens, second.prompt_tokens);
    assert_eq!(whole.image_tokens, second.image_tokens);
}

#[test]
fn pieces_are_the_text_and_whole_characters() {
    let engine = engine();
    for prompt in ["Tell me a story.", "Hello", "Say something in Japanese.", "Show me an emoji."] {
        let mut conversation = Conversation::new();
        conversation.push(Message::user(prompt));
        let answer = engine.generate(&mut conversation, &greedy()).unwrap();
        let pieces: Vec<String> = answer.map(|event| event.unwrap().text).collect();
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
        let mut again = Conversation::new();
        again.push(Message::user(prompt));
        let whole = engine.answer(&mut again, &greedy()).unwrap();
        assert_eq!(pieces.concat(), whole.text);
        let decoded = engine.processor().tokenizer().decode(&whole.token_ids, true).unwrap();
        assert_eq!(whole.text, decoded);
    }
}

#[test]
fn answers_end_at_stop_strings_and_limits() {
    let engine = engine();
    let mut conversation = Conversation::new();
    conversation.push(Message::user("Tell me a story."));
    let options = GenerationOptions { stop: vec!["blue sq".into()], ..greedy() };
    let completion = engine.answer(&mut conversation, &options).unwrap();
    assert_eq!(completion.text, "Once upon a time a red circle met a ");
    assert_eq!(completion.finish_reason, Some(FinishReason::Stop));
    // The state went past the text, so the next turn goes on from before the answer.
    conversation.push(Message::user("Hello"));
    let next = engine.answer(&mut conversation, &greedy()).unwrap();
    assert_eq!(next.reused_tokens, completion.prompt_tokens);
    assert_eq!(next.token_ids, without_state(&engine, &conversation));

    let mut conversation = Conversation::new();
    conversation.push(Message::user("Tell me a story."));
    let options = GenerationOptions { max_new_tokens: 5, ..greedy() };
    let completion = engine.answer(&mut conversation, &options).unwrap();
    assert_eq!(
        (completion.token_ids.len(), completion.finish_reason),
        (5, Some(FinishReason::Length))
    );
}

#[test]
fn an_answer_that_is_dropped_early_can_become_a_part_of_the_conversation() {
    let engine = engine();
    let mut conversation = Conversation::new();
    conversation.push(Message::user("Tell me a story."));
    let mut answer = engine.generate(&mut conversation, &greedy()).unwrap();
    let start: String = answer.by_ref().take(3).map(|event| event.unwrap().text).collect();
    let completion = answer.completion().unwrap();
    assert!(completion.text.starts_with(&start) && completion.token_ids.len() >= 3);
    drop(answer);
    conversation.push_answer(&completion);
    assert_eq!(conversation.messages().last(), Some(&Message::assistant(completion.text)));
    conversation.push(Message::user("Hello"));
    let next = engine.answer(&mut conversation, &greedy()).unwrap();
    assert!(next.reused_tokens > 0);
    assert_eq!(next.token_ids, without_state(&engine, &conversation));
}

/// The last answer again, in a conversation that has no state of the earlier ones.
fn without_state(engine: &Engine, conversation: &Conversation) -> Vec<u32> {
    let mut fresh = Conversation::new();
    let (_, before) = conversation.messages().split_last().unwrap();
    before.iter().for_each(|message| fresh.push(message.clone()));
    let answer = engine.answer(&mut fresh, &greedy()).unwrap();
    assert_eq!(answer.reused_tokens, 0);
    answer.token_ids
}

#[test]
fn messages_can_be_taken_back() {
    let engine = engine();
    let mut conversation = Conversation::new();
    conversation.push(Message::user("word ".repeat(5000)));
    let error = engine.generate(&mut conversation, &greedy()).map(drop);
    assert!(matches!(error, Err(Error::TooLong { .. })));
    assert!(conversation.pop().is_some());
    conversation.push_with_images(Message::user("What?"), [sample("plain.png")]).unwrap();
    conversation.pop();
    conversation.push(Message::user("Hello"));
    let answer = engine.answer(&mut conversation, &greedy()).unwrap();
    assert_eq!(answer.image_tokens, 0);
    assert_eq!(answer.token_ids, without_state(&engine, &conversation));
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let engine = engine();
    let run = |seed| {
        let mut conversation = Conversation::new();
        conversation.push(Message::user("Tell me a story."));
        let options = GenerationOptions {
            temperature: 2.0,
            seed: Some(seed),
            max_new_tokens: 30,
            ..greedy()
        };
        engine.answer(&mut conversation, &options).unwrap().token_ids
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn prompts_longer_than_the_context_are_refused() {
    let engine = engine();
    assert_eq!(engine.context(), 4096);
    let mut conversation = Conversation::new();
    conversation.push(Message::user("word ".repeat(5000)));
    let error = engine.generate(&mut conversation, &greedy()).map(drop).unwrap_err();
    assert!(matches!(error, Error::TooLong { context: 4096, tokens } if tokens > 4096), "{error}");
    let error = engine.generate(&mut Conversation::new(), &greedy()).map(drop).unwrap_err();
    assert!(matches!(error, Error::NoMessage), "{error}");
}

/// A template may write earlier answers in another way than the model did: here it keeps three
/// letters of each, as the released one drops what the model thought.
#[test]
fn where_the_template_rewrites_history_the_shared_prefix_is_reused() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&tiny_shapes("default"), folder.path());
    let path = folder.path().join("chat_template.jinja");
    let template = std::fs::read_to_string(&path).unwrap();
    let changed = template
        .replace("flatten(message.content) + (\"\" if", "flatten(message.content)[:3] + (\"\" if");
    assert_ne!(changed, template);
    std::fs::write(&path, changed).unwrap();

    let engine = Engine::builder(folder.path()).build().unwrap();
    let ask = |conversation: &mut Conversation| engine.answer(conversation, &greedy()).unwrap();
    let questions = ["Describe this image.", "How many shapes are there?", "Tell me a story."];
    let mut conversation = Conversation::new();
    let mut history = Vec::new();
    let mut answers = Vec::new();
    for (turn, question) in questions.iter().enumerate() {
        let images = if turn == 0 { vec![sample("tiled.jpg")] } else { Vec::new() };
        conversation.push_with_images(Message::user(*question), images.clone()).unwrap();
        history.push((Message::user(*question), images));
        let answer = ask(&mut conversation);

        let mut fresh = Conversation::new();
        for (message, images) in &history {
            fresh.push_with_images(message.clone(), images.clone()).unwrap();
        }
        let expected = ask(&mut fresh);
        assert_eq!(answer.token_ids, expected.token_ids, "{question}");
        assert_eq!(answer.prompt_tokens, expected.prompt_tokens);
        assert_eq!(expected.reused_tokens, 0);
        history.push((Message::assistant(&answer.text), Vec::new()));
        answers.push(answer);
    }
    // Up to each answer the next prompt is the same; the answer itself is not.
    assert_eq!(answers[1].reused_tokens, answers[0].prompt_tokens);
    assert_eq!(answers[2].reused_tokens, answers[1].prompt_tokens);
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target)
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn images_are_where_the_message_has_places_for_them() {
    let engine = engine();
    let tokens = |message: Message, images: &[image::RgbImage]| -> Result<_, Error> {
        let mut conversation = Conversation::new();
        conversation.push_with_images(message, images.to_vec())?;
        let prompt = conversation.messages()[0].clone();
        Ok((engine.answer(&mut conversation, &greedy())?.image_tokens, prompt))
    };
    let parts = vec![Part::Text("Look: ".into()), Part::Image, Part::Text(" What is it?".into())];
    let placed = Message { content: Some(Content::Parts(parts)), ..Message::user("") };
    let (image_tokens, prompt) = tokens(placed.clone(), &[sample("plain.png")]).unwrap();
    assert!(image_tokens > 0);
    assert_eq!(prompt, placed);
    let images = [sample("plain.png"), sample("tall.png")];
    let error = tokens(placed, &images).unwrap_err().to_string();
    assert!(error.contains("1 image marks and 2 images"), "{error}");
}

#[test]
fn each_image_may_have_settings_of_its_own() {
    let engine = engine();
    let overrides = Overrides { do_image_splitting: Some(false), ..Overrides::default() };
    let coarse = engine.image_processor().with(&overrides).unwrap();
    let image = sample("tiled.jpg");
    let images =
        vec![engine.image_processor().process(&image).unwrap(), coarse.process(&image).unwrap()];
    let tokens: Vec<usize> = images.iter().map(|image| image.layout().tokens()).collect();
    assert!(tokens[0] > 4 * tokens[1], "{tokens:?}");
    let mut conversation = Conversation::new();
    conversation.push_with_processed(Message::user("Which has more shapes?"), images).unwrap();
    let answer = engine.answer(&mut conversation, &greedy()).unwrap();
    assert_eq!(answer.image_tokens, tokens.iter().sum::<usize>());
}

#[test]
fn tools_come_into_the_prompt() {
    let engine = engine();
    let length = |tools: &[Tool]| {
        let mut conversation = Conversation::new();
        conversation.set_tools(tools);
        conversation.push(Message::user("Hello"));
        engine.answer(&mut conversation, &greedy()).unwrap().prompt_tokens
    };
    let tool = Tool {
        name: "look".into(),
        description: "Looks closely.".into(),
        parameters: serde_json::json!({"type": "object", "properties": {}}),
    };
    assert!(length(&[tool]) > length(&[]) + 20);
}

#[test]
fn marks_typed_by_hand_are_text() {
    let engine = engine();
    let text = Message::user("<image> and <image>");
    let mut conversation = Conversation::new();
    conversation.push(text.clone());
    let answer = engine.answer(&mut conversation, &greedy()).unwrap();
    assert_eq!(answer.image_tokens, 0);

    let options = PromptOptions { special_tokens_in_text: true, ..PromptOptions::default() };
    let mut conversation = Conversation::with_options(options);
    conversation.push(text);
    let error = engine.generate(&mut conversation, &greedy()).map(drop).unwrap_err().to_string();
    assert!(error.contains("2 <image> marks and 0 images"), "{error}");
}

#[test]
fn hidden_states_come_from_folders_that_have_them() {
    let image = sample("plain.png");
    let messages = [Message::user("Describe this image.").with_images(1)];
    let hidden = |recipe| {
        let engine = Engine::builder(tiny_shapes(recipe)).build().unwrap();
        let prompt = engine
            .processor()
            .prepare(&messages, std::slice::from_ref(&image), &PromptOptions::default())
            .unwrap();
        let features = engine.image_features(&prompt.images[0]).unwrap();
        let hidden = engine.last_hidden_state(&prompt.input_ids, &[features])?;
        assert_eq!(hidden.nrows(), prompt.input_ids.len());
        Ok::<_, Error>(hidden)
    };
    let ours = hidden("features").unwrap();
    let error = hidden("default").unwrap_err().to_string();
    assert!(error.contains("--recipe features"), "{error}");

    // The independent implementation, on the same prompt.
    use lfm2vl_exporter::{
        checkpoint::Checkpoint,
        reference::{ReferenceModel, ReferenceState},
    };
    let checkpoint = Checkpoint::open(&testdata("tiny-shapes")).unwrap();
    let model = ReferenceModel::new(&checkpoint);
    let engine = engine();
    let prompt = engine
        .processor()
        .prepare(&messages, std::slice::from_ref(&image), &PromptOptions::default())
        .unwrap();
    let view = prompt.images[0].views().next().unwrap();
    let features =
        model.image_features(view.patches.view(), view.grid.rows, view.grid.cols).unwrap();
    let mut embeds = model.embed(&prompt.input_ids).unwrap();
    let image_token = engine.processor().image_token_id();
    let places = (0..prompt.input_ids.len()).filter(|&i| prompt.input_ids[i] == image_token);
    for (place, feature) in places.zip(features.rows()) {
        embeds.row_mut(place).assign(&feature);
    }
    let mut state = ReferenceState::new(checkpoint.config());
    let expected = model.last_hidden_state(embeds.view(), &mut state).unwrap();
    let error = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-4, "{error}");
}

/// A prompt of one token is no step, which would give logits alone.
#[test]
fn hidden_states_of_one_token_are_given_where_steps_keep_their_bindings() {
    let mut recipe = Recipe::builtin("cuda").unwrap();
    recipe.last_hidden_state = true;
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("m");
    export_with(&folder, "tiny-shapes", recipe, &[Precision::Fp32]);
    let engine = Engine::builder(&folder).capacity(64).build().unwrap();
    // A step before it.
    let mut conversation = Conversation::new();
    conversation.push(Message::user("Hello"));
    engine.answer(&mut conversation, &greedy()).unwrap();
    let found = engine.last_hidden_state(&[70], &[]).unwrap();
    let features = Engine::builder(tiny_shapes("features")).build().unwrap();
    let expected = features.last_hidden_state(&[70], &[]).unwrap();
    assert_eq!(found.dim(), expected.dim());
    let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-4, "{error}");
}
