//! Answers that are made in other ways than token by token alone: drafted, or in batches. The tokens
//! must be the same.

use std::{collections::HashMap, path::Path, process::Command};

use lfm2vl::{Completion, Conversation, Engine, Error, GenerationOptions, RowId, chat::Message};
use lfm2vl_graphs::{FixedSizes, Precision, Recipe};
use lfm2vl_tests::{
    export_from, export_with, root, sample_images, sample_questions, succeed, testdata, tiny_shapes,
};
use serde_json::{Value, json};

fn ask<'e>(engine: &'e Engine, question: &Value) -> Conversation<'e> {
    let mut conversation = engine.conversation();
    let prompt = Message::user(question["prompt"].as_str().unwrap());
    conversation.push_with_images(prompt, &sample_images(question)).unwrap();
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
    let mut conversation = ask(engine, question);
    let first = conversation.generate(&options(index)).unwrap().finish().unwrap();
    (first, again(conversation, question, &GenerationOptions::default()))
}

/// The answer to the same question once more, which goes on from the state.
fn again(
    mut conversation: Conversation<'_>,
    question: &Value,
    options: &GenerationOptions,
) -> Completion {
    conversation.push(Message::user(question["prompt"].as_str().unwrap()));
    let second = conversation.generate(options).unwrap().finish().unwrap();
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
            let mut conversation = ask(engine, question);
            let options =
                GenerationOptions { prompt_lookup_num_tokens: Some(most), ..options(index) };
            let answer = conversation.generate(&options).unwrap().finish().unwrap();
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
            let second = again(conversation, question, &drafting);
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
    let mut conversation = engine.conversation();
    conversation.push(Message::user("Hello"));
    let options =
        GenerationOptions { prompt_lookup_num_tokens: Some(4), ..GenerationOptions::default() };
    let error = conversation.generate(&options).map(drop).unwrap_err();
    assert!(matches!(error, Error::NoSpeculation), "{error}");
    for wrong in [0, 65, usize::MAX] {
        let options =
            GenerationOptions { prompt_lookup_num_tokens: Some(wrong), ..options.clone() };
        let error = conversation.generate(&options).map(drop).unwrap_err().to_string();
        assert!(error.contains("between 1 and 64"), "{error}");
    }
    let error = Engine::builder(tiny_shapes("portable")).speculation(true).build().map(drop);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("decoder_speculative"), "{error}");
}

/// Runs the questions in a batch of at most `rows`, each joining as soon as there is place.
fn in_a_batch(engine: &Engine, rows: usize) -> Vec<(Completion, String, Completion)> {
    let questions = sample_questions();
    let mut waiting = questions.iter().enumerate().step_by(3);
    let mut indices: HashMap<RowId, usize> = HashMap::new();
    let mut texts: HashMap<RowId, String> = HashMap::new();
    let mut answers = Vec::new();
    let mut batch = engine.batch();
    loop {
        while batch.len() < rows
            && let Some((index, question)) = waiting.next()
        {
            let row = batch.join(ask(engine, question), &options(index)).unwrap();
            indices.insert(row, index);
        }
        if batch.is_empty() {
            break;
        }
        for step in batch.step().unwrap() {
            texts.entry(step.row).or_default().push_str(&step.text);
            if let Some(finished) = step.finished {
                let question = &questions[indices[&step.row]];
                let second = again(finished.conversation, question, &GenerationOptions::default());
                let text = texts.remove(&step.row).unwrap();
                answers.push((indices[&step.row], (finished.completion, text, second)));
            }
        }
    }
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[test]
fn batches_do_not_change_the_tokens() {
    let plain = Engine::builder(tiny_shapes("default")).build().unwrap();
    let questions = sample_questions();
    // The second one gives candidates instead of all logits.
    for recipe in ["default", "cuda"] {
        let engine = Engine::builder(tiny_shapes(recipe)).build().unwrap();
        let answers = in_a_batch(&engine, 5);
        let asked: Vec<_> = questions.iter().enumerate().step_by(3).collect();
        assert_eq!(answers.len(), asked.len());
        for ((index, question), (answer, text, second)) in asked.into_iter().zip(answers) {
            let (expected, expected_second) = alone(&plain, question, index);
            assert_eq!(answer.token_ids, expected.token_ids, "{recipe} {question:?}");
            assert_eq!((&answer.text, &text), (&expected.text, &expected.text));
            assert_eq!(
                (answer.finish_reason, answer.prompt_tokens),
                (expected.finish_reason, expected.prompt_tokens)
            );
            assert_eq!(second.token_ids, expected_second.token_ids, "{recipe} {question:?}");
        }
    }
}

#[test]
fn a_row_can_leave_early_and_a_conversation_can_be_refused() {
    let engine = Engine::builder(tiny_shapes("default")).build().unwrap();
    let options = GenerationOptions::default();
    let mut batch = engine.batch();
    let question = json!({"prompt": "Tell me a story.", "images": []});
    let first = batch.join(ask(&engine, &question), &options).unwrap();
    let second = batch.join(ask(&engine, &question), &options).unwrap();
    let mut text = String::new();
    for _ in 0..4 {
        let steps = batch.step().unwrap();
        text += &steps.iter().find(|step| step.row == first).unwrap().text;
    }
    let left = batch.leave(first).unwrap().unwrap();
    assert_eq!(left.messages().last(), Some(&Message::assistant(text)));
    assert!(!again(left, &question, &options).text.is_empty());
    assert!(batch.leave(first).unwrap().is_none());

    let refused = batch.join(engine.conversation(), &options).unwrap_err();
    assert!(matches!(refused.error, Error::NoMessage) && batch.len() == 1);
    while !batch.is_empty() {
        for step in batch.step().unwrap() {
            assert_eq!(step.row, second);
            if let Some(finished) = step.finished {
                let mut alone = ask(&engine, &question);
                let expected = alone.generate(&options).unwrap().finish().unwrap();
                assert_eq!(finished.completion.token_ids, expected.token_ids);
            }
        }
    }
    let portable = Engine::builder(tiny_shapes("portable")).build().unwrap();
    let refused = batch.join(ask(&portable, &question), &options).unwrap_err();
    assert!(matches!(refused.error, Error::OtherEngine), "{refused}");
    let refused = portable.batch().join(ask(&portable, &question), &options).unwrap_err();
    assert!(matches!(refused.error, Error::NoBatch), "{refused}");
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
    let caching = Engine::builder(folder).state_cache(64 << 20).build().unwrap();
    let options = GenerationOptions::default();
    let mut reused = 0;
    for question in sample_questions().iter().step_by(step) {
        let mut expected = instructed(&plain, question);
        let first = expected.generate(&options).unwrap().finish().unwrap();
        let second = again(expected, question, &options);
        for round in 0..2 {
            let mut cached = instructed(&caching, question);
            let answer = cached.generate(&options).unwrap().finish().unwrap();
            assert_eq!(answer.token_ids, first.token_ids, "{question}");
            // All but the first of all know the system message.
            assert!(reused == 0 || answer.reused_tokens >= 32, "{}", answer.reused_tokens);
            reused += answer.reused_tokens;
            if round == 1 && first.image_tokens > 32 {
                assert!(answer.reused_tokens > first.image_tokens, "{}", answer.reused_tokens);
            }

            // The whole history at once, as a service gets it.
            let mut whole = instructed(&caching, question);
            whole.push(Message::assistant(&first.text));
            whole.push(Message::user(question["prompt"].as_str().unwrap()));
            let answer = whole.generate(&options).unwrap().finish().unwrap();
            assert_eq!(answer.token_ids, second.token_ids, "{question}");
            assert!(answer.reused_tokens >= first.prompt_tokens, "{}", answer.reused_tokens);
        }
    }
}

/// Where sizes are fixed, steps run in buffers that conversations lend and give back.
#[test]
fn answers_in_turns_are_the_same_in_all_recipes() {
    let expected = answers_in_turns("default");
    for recipe in ["cuda-graph", "tensorrt", "coreml"] {
        assert_eq!(answers_in_turns(recipe), expected, "{recipe}");
    }
}

/// Token by token, three answers in turns, of which one is given up; then another question to each.
fn answers_in_turns(recipe: &'static str) -> Vec<Vec<u32>> {
    let engine = Engine::builder(tiny_shapes(recipe)).build().unwrap();
    let options =
        GenerationOptions { max_new_tokens: 24, ignore_eos: true, ..GenerationOptions::default() };
    let mut conversations: Vec<_> =
        sample_questions()[..3].iter().map(|question| ask(&engine, question)).collect();
    let mut answers: Vec<_> = conversations
        .iter_mut()
        .map(|conversation| conversation.generate(&options).unwrap())
        .collect();
    for round in 0..20 {
        if round == 8 {
            answers.remove(1);
        }
        for answer in &mut answers {
            answer.next().unwrap().unwrap();
        }
    }
    let finished = answers.into_iter().map(|answer| answer.finish().unwrap().token_ids);
    let mut tokens: Vec<Vec<u32>> = finished.collect();
    for conversation in &mut conversations {
        conversation.push(Message::user("And now?"));
        let answer = conversation.generate(&options).unwrap().finish().unwrap();
        tokens.push(answer.token_ids);
    }
    tokens
}

#[test]
fn equal_prompts_with_other_images_are_not_taken_for_each_other() {
    let caching = Engine::builder(tiny_shapes("default")).state_cache(64 << 20).build().unwrap();
    let plain = Engine::builder(tiny_shapes("default")).image_cache(0).build().unwrap();
    let photo = sample_images(&json!({"images": ["tiled.jpg"]})).remove(0);
    let mirrored = image::imageops::flip_horizontal(&photo);
    let options = GenerationOptions::default();
    let ask = |engine: &Engine, image: &image::RgbImage| {
        let mut conversation = engine.conversation();
        let question = Message::user("Describe this image.");
        conversation.push_with_images(question, std::slice::from_ref(image)).unwrap();
        conversation.generate(&options).unwrap().finish().unwrap()
    };
    let expected = [&photo, &mirrored].map(|image| ask(&plain, image));
    // Nor within a conversation, where one takes the place of the other.
    let mut conversation = plain.conversation();
    let mut fresh = plain.conversation();
    let question = || Message::user("Describe this image.");
    conversation.push_with_images(question(), std::slice::from_ref(&photo)).unwrap();
    conversation.generate(&options).unwrap().finish().unwrap();
    (0..2).for_each(|_| drop(conversation.pop()));
    let answers = [&mut conversation, &mut fresh].map(|conversation| {
        conversation.push_with_images(question(), std::slice::from_ref(&mirrored)).unwrap();
        conversation.push(Message::assistant("Yes."));
        conversation.push(question());
        conversation.generate(&options).unwrap().finish().unwrap()
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
fn instructed<'e>(engine: &'e Engine, question: &Value) -> Conversation<'e> {
    let mut conversation = engine.conversation();
    conversation.push(Message::system("You look at shapes. ".repeat(12)));
    let prompt = Message::user(question["prompt"].as_str().unwrap());
    conversation.push_with_images(prompt, &sample_images(question)).unwrap();
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
    let expected = questions.each_ref().map(|prompt| {
        instructed(&plain, prompt).generate(&options).unwrap().finish().unwrap().token_ids
    });
    let mut batch = plain.batch();
    let rows = questions
        .each_ref()
        .map(|prompt| batch.join(instructed(&plain, prompt), &options).unwrap());
    while !batch.is_empty() {
        for step in batch.step().unwrap() {
            let Some(finished) = step.finished else { continue };
            let row = rows.iter().position(|&row| row == step.row).unwrap();
            assert_eq!(finished.completion.token_ids, expected[row], "batch, {}", questions[row]);
        }
    }
    let other = Engine::builder(&model).speculation(true).state_cache(64 << 20).build().unwrap();
    let options = GenerationOptions { prompt_lookup_num_tokens: Some(7), ..options };
    for (prompt, expected) in questions.iter().zip(&expected) {
        for _ in 0..2 {
            let answer = instructed(&other, prompt).generate(&options).unwrap().finish().unwrap();
            assert_eq!(&answer.token_ids, expected, "{prompt}");
        }
    }
}
