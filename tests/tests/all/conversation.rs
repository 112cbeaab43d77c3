//! Conversations: reuse of the state, streaming, stop strings, limits, hidden states.

use lfm2vl::{
    Engine, Error, FinishReason, GenerationOptions, PromptOptions,
    chat::Message,
    image::{Limits, open},
};
use lfm2vl_tests::{testdata, tiny_shapes};

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
    let mut conversation = engine.conversation();
    let question = Message::user("Describe this image.");
    conversation.push_with_images(question.clone(), &[sample("tiled.jpg")]).unwrap();
    let first = conversation.generate(&greedy()).unwrap().finish().unwrap();
    assert_eq!(first.reused_tokens, 0);

    let next = Message::user("How many shapes are there?");
    conversation.push_with_images(next.clone(), &[sample("plain.png")]).unwrap();
    let second = conversation.generate(&greedy()).unwrap().finish().unwrap();
    // Everything of the first turn: its end token came from logits after its last token.
    assert_eq!(second.reused_tokens, first.prompt_tokens + first.token_ids.len());

    let mut fresh = engine.conversation();
    fresh.push_with_images(question, &[sample("tiled.jpg")]).unwrap();
    fresh.push(Message::assistant(&first.text));
    fresh.push_with_images(next, &[sample("plain.png")]).unwrap();
    let whole = fresh.generate(&greedy()).unwrap().finish().unwrap();
    assert_eq!(whole.reused_tokens, 0);
    assert_eq!(whole.token_ids, second.token_ids);
    assert_eq!(whole.prompt_tokens, second.prompt_tokens);
    assert_eq!(whole.image_tokens, second.image_tokens);
}

#[test]
fn pieces_are_the_text_and_whole_characters() {
    let engine = engine();
    for prompt in ["Tell me a story.", "Hello", "Say something in Japanese.", "Show me an emoji."] {
        let mut conversation = engine.conversation();
        conversation.push(Message::user(prompt));
        let pieces: Vec<String> =
            conversation.generate(&greedy()).unwrap().collect::<Result<_, _>>().unwrap();
        assert!(pieces.iter().all(|p| !p.is_empty() && !p.contains('\u{FFFD}')), "{pieces:?}");
        let mut again = engine.conversation();
        again.push(Message::user(prompt));
        let whole = again.generate(&greedy()).unwrap().finish().unwrap();
        assert_eq!(pieces.concat(), whole.text);
        let decoded = engine.prompter().tokenizer().decode(&whole.token_ids, true).unwrap();
        assert_eq!(whole.text, decoded);
    }
}

#[test]
fn answers_end_at_stop_strings_and_limits() {
    let engine = engine();
    let mut conversation = engine.conversation();
    conversation.push(Message::user("Tell me a story."));
    let options = GenerationOptions { stop: vec!["blue sq".into()], ..greedy() };
    let completion = conversation.generate(&options).unwrap().finish().unwrap();
    assert_eq!(completion.text, "Once upon a time a red circle met a ");
    assert_eq!(completion.finish_reason, FinishReason::Stop);
    // The state went past the text, so the next turn starts from the beginning.
    conversation.push(Message::user("Hello"));
    let next = conversation.generate(&greedy()).unwrap().finish().unwrap();
    assert_eq!(next.reused_tokens, 0);

    let mut conversation = engine.conversation();
    conversation.push(Message::user("Tell me a story."));
    let options = GenerationOptions { max_new_tokens: 5, ..greedy() };
    let completion = conversation.generate(&options).unwrap().finish().unwrap();
    assert_eq!((completion.token_ids.len(), completion.finish_reason), (5, FinishReason::Length));
}

#[test]
fn an_answer_that_is_dropped_early_stays_in_the_conversation() {
    let engine = engine();
    let mut conversation = engine.conversation();
    conversation.push(Message::user("Tell me a story."));
    let mut answer = conversation.generate(&greedy()).unwrap();
    let start: String = answer.by_ref().take(3).collect::<Result<_, _>>().unwrap();
    drop(answer);
    assert_eq!(conversation.messages().last(), Some(&Message::assistant(start)));
    conversation.push(Message::user("Hello"));
    let next = conversation.generate(&greedy()).unwrap().finish().unwrap();
    assert!(next.reused_tokens > 0);
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let engine = engine();
    let run = |seed| {
        let mut conversation = engine.conversation();
        conversation.push(Message::user("Tell me a story."));
        let options = GenerationOptions {
            temperature: 2.0,
            seed: Some(seed),
            max_new_tokens: 30,
            ..greedy()
        };
        conversation.generate(&options).unwrap().finish().unwrap().token_ids
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn prompts_longer_than_the_context_are_refused() {
    let engine = engine();
    assert_eq!(engine.context(), 4096);
    let mut conversation = engine.conversation();
    conversation.push(Message::user("word ".repeat(5000)));
    let error = conversation.generate(&greedy()).map(drop).unwrap_err();
    assert!(matches!(error, Error::TooLong { context: 4096, tokens } if tokens > 4096), "{error}");
    let error = engine.conversation().generate(&greedy()).map(drop).unwrap_err();
    assert!(matches!(error, Error::NoMessage), "{error}");
}

#[test]
fn marks_typed_by_hand_need_images() {
    let engine = engine();
    let mut conversation = engine.conversation();
    conversation.push(Message::user("<image> and <image>"));
    let error = conversation.generate(&greedy()).map(drop).unwrap_err().to_string();
    assert!(error.contains("2 <image> marks and 0 images"), "{error}");
}

#[test]
fn hidden_states_come_from_folders_that_have_them() {
    let image = sample("plain.png");
    let messages = [Message::user("Describe this image.").with_images(1)];
    let hidden = |recipe| {
        let engine = Engine::builder(tiny_shapes(recipe)).build().unwrap();
        let prompt = engine
            .prompter()
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
        .prompter()
        .prepare(&messages, std::slice::from_ref(&image), &PromptOptions::default())
        .unwrap();
    let view = prompt.images[0].views().next().unwrap();
    let features =
        model.image_features(view.patches.view(), view.grid.rows, view.grid.cols).unwrap();
    let mut embeds = model.embed(&prompt.input_ids).unwrap();
    let image_token = engine.prompter().image_token_id();
    let places = (0..prompt.input_ids.len()).filter(|&i| prompt.input_ids[i] == image_token);
    for (place, feature) in places.zip(features.rows()) {
        embeds.row_mut(place).assign(&feature);
    }
    let mut state = ReferenceState::new(checkpoint.config());
    let expected = model.last_hidden_state(embeds.view(), &mut state).unwrap();
    let error = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-3, "{error}");
}
