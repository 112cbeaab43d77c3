//! Answers that are made in other ways than token by token alone: drafted, or many together. The tokens
//! must be the same.

use std::{path::Path, process::Command};

use lfm2vl::{Answer, Completion, Conversation, Engine, Error, GenerationOptions, chat::Message};
use lfm2vl_graphs::{FixedSizes, Precision, Recipe};
use lfm2vl_tests::{
    export_from, export_with, root, sample_images, sample_questions, succeed, testdata, tiny_shapes,
};
use serde_json::{Value, json};

fn conversation(question: &Value) -> Conversation {
    let mut conversation = Conversation::new();
    let prompt = Message::user(question["prompt"].as_str().unwrap());
    conversation.push_with_images(prompt, sample_images(question)).unwrap();
    conversation
}

fn options(index: usize) -> GenerationOptions {
    match index % 3 {
        // Goes on beyond the end, where the model repeats itself.
        1 => GenerationOptions {
            ignore_eos: true,
            max_new_tokens: 60,
            ..GenerationOptions::default()
        },
        // Random choices: the same seed must lead to the same ones.
        2 => GenerationOptions {
            temperature: 1.5,
            seed: Some(index as u64),
            max_new_tokens: 30,
            ..GenerationOptions::default()
        },
        _ => GenerationOptions { max_new_tokens: 20 + index, ..GenerationOptions::default() },
    }
}

/// What a conversation says to a question, and to the same question once more.
fn alone(engine: &Engine, question: &Value, index: usize) -> (Completion, Completion) {
    let mut conversation = conversation(question);
    let first = engine.answer(&mut conversation, &options(index)).unwrap();
    (first, again(engine, &mut conversation, question, &GenerationOptions::default()))
}

/// The answer to the same question once more, which goes on from the state.
fn again(
    engine: &Engine,
    conversation: &mut Conversation,
    question: &Value,
    options: &GenerationOptions,
) -> Completion {
    conversation.push(Message::user(question["prompt"].as_str().unwrap()));
    let second = engine.answer(conversation, options).unwrap();
    assert!(second.reused_tokens > 0);
    second
}

#[test]
fn drafts_do_not_change_the_tokens() {
    let plain = Engine::builder(tiny_shapes("default")).build().unwrap();
    let speculative = Engine::builder(tiny_shapes("default")).speculation(true).build().unwrap();
    // With candidates instead of all logits.
    let of_candidates = Engine::builder(tiny_shapes("cuda")).speculation(true).build().unwrap();
    let (mut drafted, mut accepted, mut tokens) = (0, 0, 0);
    for (index, question) in sample_questions().iter().enumerate().step_by(3) {
        let (expected, expected_second) = alone(&plain, question, index);
        for (most, engine) in [(1, &speculative), (4, &of_candidates), (9, &speculative)] {
            let mut conversation = conversation(question);
            let options =
                GenerationOptions { prompt_lookup_num_tokens: Some(most), ..options(index) };
            let answer = engine.answer(&mut conversation, &options).unwrap();
            assert_eq!(answer.token_ids, expected.token_ids, "{question:?} {most}");
            assert_eq!(
                (&answer.text, answer.finish_reason),
                (&expected.text, expected.finish_reason)
            );
            let drafting = GenerationOptions {
                ignore_eos: false,
                temperature: 0.0,
                max_new_tokens: 512,
                ..options
            };
            let second = again(engine, &mut conversation, question, &drafting);
            assert_eq!(second.token_ids, expected_second.token_ids, "{question:?} {most}");
            for answer in [answer, second] {
                drafted += answer.drafted_tokens;
                accepted += answer.accepted_tokens;
                tokens += answer.token_ids.len();
            }
        }
    }
    println!("{tokens} tokens, {drafted} drafted, {accepted} of them right");
    // Drafts of both kinds have been there, or the comparison says nothing.
    assert!(accepted > 20 && drafted > accepted + 20, "{drafted} {accepted}");
}

#[test]
fn drafts_need_their_decoder() {
    let engine = Engine::builder(tiny_shapes("default")).build().unwrap();
    let mut conversation = Conversation::new();
    conversation.push(Message::user("Hello"));
    let options =
        GenerationOptions { prompt_lookup_num_tokens: Some(4), ..GenerationOptions::default() };
    let error = engine.generate(&mut conversation, &options).map(drop).unwrap_err();
    assert!(matches!(error, Error::NoSpeculation), "{error}");
    for wrong in [0, 65, usize::MAX] {
        let options =
            GenerationOptions { prompt_lookup_num_tokens: Some(wrong), ..options.clone() };
        let error = engine.generate(&mut conversation, &options).map(drop).unwrap_err().to_string();
        assert!(error.contains("between 1 and 64"), "{error}");
    }
    let error = Engine::builder(tiny_shapes("portable")).speculation(true).build().map(drop);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("decoder_speculative"), "{error}");
}

/// Asks all questions at once, of an engine with fewer slots than questions; and then each question
/// once more.
#[test]
fn many_at_once_do_not_change_the_tokens() {
    let plain = Engine::builder(tiny_shapes("default")).slots(1).build().unwrap();
    let questions = sample_questions();
    let asked: Vec<_> = questions.iter().enumerate().step_by(3).collect();
    // The second one gives candidates instead of all logits; and with room for all tokens from the beginning,
    // its steps keep their bindings, as those do that a device records, and may begin ahead.
    for (recipe, capacity, ahead) in [
        ("default", None, true),
        ("cuda", None, true),
        ("cuda", Some(2048), false),
        ("cuda", Some(2048), true),
    ] {
        let engine = Engine::builder(tiny_shapes(recipe)).slots(5).run_ahead(ahead);
        let engine = match capacity {
            Some(tokens) => engine.capacity(tokens),
            None => engine,
        };
        let engine = engine.build().unwrap();
        let mut conversations: Vec<_> = asked.iter().map(|(_, q)| conversation(q)).collect();
        let pairs = conversations.iter_mut().zip(&asked);
        let answers: Vec<Answer> = pairs
            .map(|(conversation, (index, _))| engine.generate(conversation, &options(*index)))
            .collect::<Result<_, _>>()
            .unwrap();
        assert!(engine.metrics().waiting > 0);
        for ((mut answer, conversation), (index, question)) in
            answers.into_iter().zip(&mut conversations).zip(&asked)
        {
            let text: String = answer.by_ref().map(|event| event.unwrap().text).collect();
            let answer = answer.completion().unwrap();
            let (expected, expected_second) = alone(&plain, question, *index);
            assert_eq!(answer.token_ids, expected.token_ids, "{recipe} {question:?}");
            assert_eq!((&answer.text, &text), (&expected.text, &expected.text));
            assert_eq!(
                (answer.finish_reason, answer.prompt_tokens),
                (expected.finish_reason, expected.prompt_tokens)
            );
            conversation.push_answer(&answer);
            conversation.push(Message::user(question["prompt"].as_str().unwrap()));
            let second = engine.answer(conversation, &GenerationOptions::default()).unwrap();
            assert_eq!(second.token_ids, expected_second.token_ids, "{recipe} {question:?}");
        }
        let metrics = engine.metrics();
        assert_eq!(metrics.finished, 2 * asked.len() as u64);
        assert_eq!((metrics.failed, metrics.cancelled, metrics.active), (0, 0, 0));
        let follows = ahead && recipe == "cuda" && capacity.is_some();
        assert_eq!(metrics.steps_ahead > 20, follows, "{recipe} {capacity:?} {metrics:?}");
    }
}

/// Most tokens are the most likely ones at this temperature, and not all: what was computed for the others is
/// taken back. So is what was computed after the end of an answer, whose state the next question goes on from.
#[test]
fn steps_that_begin_ahead_do_not_change_the_tokens() {
    let engine = Engine::builder(tiny_shapes("cuda")).slots(3).capacity(2048);
    let [plain, ahead] =
        [false, true].map(|ahead| engine.clone().run_ahead(ahead).build().unwrap());
    let mut missed = 0;
    for (index, question) in sample_questions().iter().enumerate().step_by(4) {
        for temperature in [0.0, 0.6] {
            let options = GenerationOptions {
                temperature,
                repetition_penalty: 1.05,
                seed: Some(index as u64),
                ignore_eos: index % 3 == 0,
                max_new_tokens: 40,
                stop: if index % 2 == 0 { vec!["a".to_owned()] } else { Vec::new() },
                ..GenerationOptions::default()
            };
            let before = [plain.metrics().steps, ahead.metrics().steps];
            let [expected, answers] = [&plain, &ahead].map(|engine| {
                let mut conversation = conversation(question);
                let first = engine.answer(&mut conversation, &options).unwrap();
                let second = again(engine, &mut conversation, question, &options);
                [first, second].map(|answer| (answer.token_ids, answer.text, answer.finish_reason))
            });
            assert_eq!(answers, expected, "{question} at {temperature}");
            let [needed, made] =
                [plain.metrics().steps - before[0], ahead.metrics().steps - before[1]];
            missed += made - needed;
        }
    }
    let (metrics, plain) = (ahead.metrics(), plain.metrics());
    println!("{} steps, {} of them ahead, {missed} in vain", metrics.steps, metrics.steps_ahead);
    assert_eq!(plain.steps_ahead, 0);
    assert!(metrics.steps_ahead > metrics.steps / 3 && missed > 5, "{metrics:?}, {missed} in vain");
}

#[test]
fn caches_do_not_change_the_tokens() {
    caches_change_nothing(&tiny_shapes("default"), 4);
}

#[test]
fn caches_do_not_change_the_tokens_where_sizes_are_fixed() {
    for recipe in ["coreml", "tensorrt", "cuda-graph"] {
        let mut recipe = Recipe::builtin(recipe).unwrap();
        // Few prompts and views fill these, and no buffer has a length that other code likes.
        let (views, patches) = (Some(3), Some(64));
        recipe.sizes = Some(FixedSizes { views, patches, past_sequence: 700, sequence: 48 });
        let out = tempfile::tempdir().unwrap();
        export_with(&out.path().join("m"), "tiny-shapes", recipe, &[Precision::Fp32]);
        caches_change_nothing(&out.path().join("m"), 10);
    }
}

fn caches_change_nothing(folder: &Path, step: usize) {
    let plain = Engine::builder(folder).image_cache(0).build().unwrap();
    let caching = Engine::builder(folder).share_prefixes(true).slots(40).build().unwrap();
    let options = GenerationOptions::default();
    let mut reused = 0;
    for question in sample_questions().iter().step_by(step) {
        let mut expected = instructed(question);
        let first = plain.answer(&mut expected, &options).unwrap();
        let second = again(&plain, &mut expected, question, &options);
        for round in 0..2 {
            let answer = caching.answer(&mut instructed(question), &options).unwrap();
            assert_eq!(answer.token_ids, first.token_ids, "{question}");
            // All but the first of all know the system message.
            assert!(reused == 0 || answer.reused_tokens >= 32, "{}", answer.reused_tokens);
            reused += answer.reused_tokens;
            if round == 1 && first.image_tokens > 32 {
                assert!(answer.reused_tokens > first.image_tokens, "{}", answer.reused_tokens);
            }

            // The whole history at once, as a service gets it.
            let mut whole = instructed(question);
            whole.push(Message::assistant(&first.text));
            whole.push(Message::user(question["prompt"].as_str().unwrap()));
            let answer = caching.answer(&mut whole, &options).unwrap();
            assert_eq!(answer.token_ids, second.token_ids, "{question}");
            assert!(answer.reused_tokens >= first.prompt_tokens, "{}", answer.reused_tokens);
        }
    }
}

/// Where sizes are fixed, each slot has buffers of its own.
#[test]
fn answers_side_by_side_are_the_same_in_all_recipes() {
    let expected = answers_side_by_side("default");
    for recipe in ["cuda-graph", "tensorrt", "coreml", "portable", "features", "split"] {
        assert_eq!(answers_side_by_side(recipe), expected, "{recipe}");
    }
}

/// Three answers at a time, of which one is given up; then another question to each.
fn answers_side_by_side(recipe: &'static str) -> Vec<Vec<u32>> {
    let engine = Engine::builder(tiny_shapes(recipe)).slots(3).build().unwrap();
    let options =
        GenerationOptions { max_new_tokens: 24, ignore_eos: true, ..GenerationOptions::default() };
    let mut conversations: Vec<_> = sample_questions()[..3].iter().map(conversation).collect();
    let generate = |conversation| engine.generate(conversation, &options).unwrap();
    let mut answers: Vec<_> = conversations.iter_mut().map(generate).collect();
    for event in answers[1].by_ref().take(8) {
        event.unwrap();
    }
    drop(answers.remove(1));
    let mut tokens = Vec::new();
    for (answer, index) in answers.into_iter().zip([0, 2]) {
        let completion = answer.finish().unwrap();
        conversations[index].push_answer(&completion);
        tokens.push(completion.token_ids);
    }
    for conversation in &mut conversations {
        conversation.push(Message::user("And now?"));
        tokens.push(engine.answer(conversation, &options).unwrap().token_ids);
    }
    tokens
}

#[test]
fn equal_prompts_with_other_images_are_not_taken_for_each_other() {
    let caching = Engine::builder(tiny_shapes("default")).share_prefixes(true).build().unwrap();
    let plain = Engine::builder(tiny_shapes("default")).image_cache(0).build().unwrap();
    let photo = sample_images(&json!({"images": ["tiled.jpg"]})).remove(0);
    let mirrored = image::imageops::flip_horizontal(&photo);
    let options = GenerationOptions::default();
    let question = || Message::user("Describe this image.");
    let ask = |engine: &Engine, image: &image::RgbImage| {
        let mut conversation = Conversation::new();
        conversation.push_with_images(question(), [image.clone()]).unwrap();
        engine.answer(&mut conversation, &options).unwrap()
    };
    let expected = [&photo, &mirrored].map(|image| ask(&plain, image));
    // Nor within a conversation, where one takes the place of the other.
    let (mut conversation, mut fresh) = (Conversation::new(), Conversation::new());
    conversation.push_with_images(question(), [photo.clone()]).unwrap();
    plain.answer(&mut conversation, &options).unwrap();
    (0..2).for_each(|_| drop(conversation.pop()));
    let answers = [&mut conversation, &mut fresh].map(|conversation| {
        conversation.push_with_images(question(), [mirrored.clone()]).unwrap();
        conversation.push(Message::assistant("Yes."));
        conversation.push(question());
        plain.answer(conversation, &options).unwrap()
    });
    assert_eq!(answers[0].token_ids, answers[1].token_ids);
    for round in 0..2 {
        for (image, expected) in [&photo, &mirrored].into_iter().zip(&expected) {
            let answer = ask(&caching, image);
            assert_eq!(answer.token_ids, expected.token_ids);
            assert_eq!(answer.reused_tokens > 0, round == 1);
        }
    }
}

/// A question after a long system message.
fn instructed(question: &Value) -> Conversation {
    let mut conversation = Conversation::new();
    conversation.push(Message::system("You look at shapes. ".repeat(12)));
    let prompt = Message::user(question["prompt"].as_str().unwrap());
    conversation.push_with_images(prompt, sample_images(question)).unwrap();
    conversation
}

/// A random model of the 450M shape in 4 bits, whose products are other kernels for one row than for
/// several.
#[test]
fn a_450m_model_says_the_same_in_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, model) = (folder.path().join("checkpoint"), folder.path().join("model"));
    let config = testdata("configs/lfm2-vl-450m.json");
    let example = ["run", "--quiet", "--package", "lfm2vl-exporter", "--example"];
    let mut make = Command::new(env!("CARGO"));
    make.args(example).args(["make_checkpoint", "--"]).arg(config).arg(&checkpoint).arg("7");
    succeed(make.arg(testdata("tiny-shapes")).current_dir(root()));
    export_from(&checkpoint, &model, Recipe::builtin("default").unwrap(), &[Precision::Q4]);

    let plain = Engine::builder(&model).image_cache(0).build().unwrap();
    let options =
        GenerationOptions { max_new_tokens: 24, ignore_eos: true, ..GenerationOptions::default() };
    let questions = ["Tell me a story.", "one two three one two three one two", "What is red?"]
        .map(|prompt| json!({"prompt": prompt}));
    let ask = |engine: &Engine, prompt| {
        engine.answer(&mut instructed(prompt), &options).unwrap().token_ids
    };
    let expected = questions.each_ref().map(|prompt| ask(&plain, prompt));
    // Twice each, so that there are more than a group of rows.
    let asked = questions.iter().zip(&expected).cycle().take(2 * questions.len());
    let answers = asked.map(|(prompt, expected)| {
        (plain.generate(&mut instructed(prompt), &options).unwrap(), prompt, expected)
    });
    for (answer, prompt, expected) in answers.collect::<Vec<_>>() {
        assert_eq!(&answer.finish().unwrap().token_ids, expected, "together, {prompt}");
    }
    let other = Engine::builder(&model).speculation(true).share_prefixes(true).build().unwrap();
    let options = GenerationOptions { prompt_lookup_num_tokens: Some(7), ..options.clone() };
    for (prompt, expected) in questions.iter().zip(&expected) {
        for _ in 0..2 {
            let answer = other.answer(&mut instructed(prompt), &options).unwrap();
            assert_eq!(&answer.token_ids, expected, "{prompt}");
        }
    }
}
