//! The engine: answers that wait, are given up, come too late or fail, and what they leave to others.

use std::{collections::BTreeMap, path::Path, sync::Arc, thread, time::Duration};

use futures_core::Stream;
use lfm2vl::image::Overrides;
use lfm2vl::{
    Completion, Conversation, Engine, Error, ErrorKind, GenerationOptions, History,
    LogitsProcessor, Part, chat::Message,
};
use lfm2vl_graphs::{FixedSizes, Graph, Precision, Recipe};
use lfm2vl_tests::{
    copy_folder, export_from, export_with, sample_images, sample_questions, succeed, testdata,
    tiny_shapes,
};
use safetensors::SafeTensors;
use serde_json::Value;

pub(crate) fn conversation(question: &Value) -> Conversation {
    let mut conversation = Conversation::new();
    let prompt = Message::user(question["prompt"].as_str().unwrap());
    conversation.push_with_images(prompt, sample_images(question)).unwrap();
    conversation
}

fn text(prompt: &str) -> Conversation {
    let mut conversation = Conversation::new();
    conversation.push(Message::user(prompt));
    conversation
}

pub(crate) fn greedy(max_new_tokens: usize) -> GenerationOptions {
    GenerationOptions { max_new_tokens, ignore_eos: true, ..GenerationOptions::default() }
}

/// A folder whose embedding of one token is not a number: whoever writes it fails with the next token.
/// Gives the token.
pub(crate) fn poisoned(folder: &Path, recipe: &'static str) -> u32 {
    let token = 1000;
    let checkpoint = with_a_head(&testdata("tiny-shapes"));
    let recipe = Recipe::builtin(recipe).unwrap();
    let looks_up_tokens = recipe.feedback;
    export_from(checkpoint.path(), &folder.join("m"), recipe, &[Precision::Fp32]);
    // float32 [vocabulary, 128]; where the decoder looks tokens up, it has a table of its own.
    let row = token as usize * 128 * 4..(token as usize + 1) * 128 * 4;
    let embed_tokens = folder.join("m/onnx/embed_tokens.onnx_data");
    let table = std::fs::read(&embed_tokens).unwrap();
    assert_eq!(table.len(), 1501 * 128 * 4);
    let mut files = vec![embed_tokens];
    if looks_up_tokens {
        files.push(folder.join("m/onnx/decoder_model_merged.onnx_data"));
    }
    for file in files {
        let mut bytes = std::fs::read(&file).unwrap();
        let start = bytes.windows(table.len()).position(|window| window == table).unwrap();
        let row = &mut bytes[start + row.start..start + row.end];
        row.chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&f32::NAN.to_le_bytes()));
        std::fs::write(file, bytes).unwrap();
    }
    token
}

/// A copy of a checkpoint whose head is another tensor than its embedding, with the same values.
fn with_a_head(checkpoint: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(checkpoint, copy.path());
    let config = std::fs::read_to_string(checkpoint.join("config.json")).unwrap();
    let config = config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    std::fs::write(copy.path().join("config.json"), config).unwrap();
    let bytes = std::fs::read(checkpoint.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<_, _> = tensors.iter().map(|(n, t)| (n.to_owned(), t)).collect();
    let embedding = tensors.iter().find(|(name, _)| name.ends_with("embed_tokens.weight"));
    let head = embedding.unwrap().1.clone();
    tensors.insert("lm_head.weight".into(), head);
    let file = copy.path().join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &file).unwrap();
    copy
}

/// A folder whose embedding lacks the last token of the vocabulary: a run over it fails.
/// Gives the token.
fn shortened(folder: &std::path::Path) -> u32 {
    copy_folder(&tiny_shapes("default"), folder);
    let path = folder.join("onnx/embed_tokens.onnx");
    let mut bytes = std::fs::read(&path).unwrap();
    // The sizes [1501, 128] as protobuf writes them, and the bytes of the data.
    for (old, new) in [
        (&[0x08, 0xdd, 0x0b, 0x08, 0x80, 0x01][..], &[0x08, 0xdc, 0x0b, 0x08, 0x80, 0x01][..]),
        (b"768512", b"768000"),
    ] {
        let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
        bytes[at..at + new.len()].copy_from_slice(new);
    }
    std::fs::write(path, bytes).unwrap();
    1500
}

/// A prompt whose last run has one token used to leave its logits in buffers that the next step of any
/// conversation writes to.
#[test]
fn nobody_is_given_the_logits_of_another() {
    let mut recipe = Recipe::builtin("cuda-graph").unwrap();
    recipe.sizes =
        Some(FixedSizes { views: None, patches: None, past_sequence: 300, sequence: 32 });
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("m");
    export_with(&folder, "tiny-shapes", recipe, &[Precision::Fp32]);
    let engine = Engine::builder(&folder).slots(2).build().unwrap();
    // 32 + 1 tokens: the last run is a step.
    let mut words = 0;
    let prompt = loop {
        let prompt = format!("Tell me a story. {}", "a".repeat(words));
        let completion = engine.answer(&mut text(&prompt), &greedy(1)).unwrap();
        if completion.prompt_tokens % 32 == 1 && completion.prompt_tokens > 32 {
            break prompt;
        }
        words += 1;
        assert!(words < 200);
    };
    let expected = engine.answer(&mut text(&prompt), &greedy(8)).unwrap().token_ids;
    for _ in 0..20 {
        let other = engine.generate(&mut text("Describe a shape."), &greedy(60)).unwrap();
        let answer = engine.generate(&mut text(&prompt), &greedy(8)).unwrap();
        assert!(other.finish().is_ok());
        // Read when the other one has long stepped.
        assert_eq!(answer.finish().unwrap().token_ids, expected);
    }
}

#[test]
fn answers_can_be_cancelled_before_their_first_token() {
    let engine = Engine::builder(tiny_shapes("default")).slots(1).build().unwrap();
    let busy = engine.generate(&mut text("Tell me a story."), &greedy(3000)).unwrap();
    // This one waits for the slot.
    let waiting = engine.generate(&mut text("Hello"), &greedy(10)).unwrap();
    waiting.cancel();
    assert_eq!(waiting.finish().unwrap_err().kind(), ErrorKind::Cancelled);
    let late = GenerationOptions { timeout: Some(Duration::from_millis(20)), ..greedy(10) };
    let error = engine.generate(&mut text("Hello"), &late).unwrap().finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    // From another thread, while this one reads.
    let handle = busy.cancel_handle();
    thread::spawn(move || handle.cancel());
    let error = busy.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let metrics = engine.metrics();
    assert_eq!((metrics.cancelled, metrics.finished), (3, 0));
    // In a long prompt, in which pieces are the first thing that can be ended.
    let answer = engine.generate(&mut text(&"word ".repeat(900)), &greedy(10)).unwrap();
    answer.cancel();
    assert!(answer.finish().is_err());
    let prompt_tokens = engine.metrics().prompt_tokens;
    assert!(prompt_tokens < metrics.prompt_tokens + 900, "{prompt_tokens}");
}

#[test]
fn what_was_made_is_there_after_a_deadline() {
    let engine = Engine::builder(tiny_shapes("default")).build().unwrap();
    let options = GenerationOptions { timeout: Some(Duration::from_millis(900)), ..greedy(4000) };
    let mut conversation = text("Tell me a story.");
    let mut answer = engine.generate(&mut conversation, &options).unwrap();
    let mut read = String::new();
    let error = loop {
        match answer.next().expect("it does not end by itself") {
            Ok(event) => read += &event.text,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::TimedOut(_)), "{error}");
    assert!(answer.next().is_none());
    let completion = answer.completion().unwrap();
    assert_eq!((completion.text.as_str(), completion.finish_reason), (read.as_str(), None));
    assert!(completion.prompt_tokens > 0 && !completion.token_ids.is_empty());
    // The conversation goes on from there.
    conversation.push_answer(&completion);
    conversation.push(Message::user("Hello"));
    let next = engine.answer(&mut conversation, &greedy(4)).unwrap();
    assert!(next.reused_tokens > completion.prompt_tokens, "{}", next.reused_tokens);
}

#[test]
fn requests_beyond_the_queue_are_refused_at_once() {
    let engine = Engine::builder(tiny_shapes("default")).slots(1).queue(2).build().unwrap();
    let ask = || engine.generate(&mut text("Tell me a story."), &greedy(2000));
    let first = ask().unwrap();
    while engine.metrics().active == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let waiting = [ask().unwrap(), ask().unwrap()];
    let error = ask().map(drop).unwrap_err();
    assert!(matches!(error, Error::Busy { waiting: 2 }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(engine.metrics().refused, 1);
    drop(first);
    drop(waiting);
    assert!(engine.answer(&mut text("Hello"), &greedy(2)).is_ok());
}

/// Joining copies nothing but its own row, and leaving no more than that and the last one.
#[test]
fn rows_are_copied_one_at_a_time() {
    let (slots, capacity) = (32, 4000);
    let engine = Engine::builder(tiny_shapes("default")).slots(slots).capacity(capacity);
    let engine = engine.build().unwrap();
    let token = engine.metrics().state_bytes / slots / capacity;
    let mut copied = 0;
    let mut check = |engine: &Engine, rows: usize| {
        let metrics = engine.metrics();
        let now = metrics.copied_bytes;
        // No answer has more tokens than there were steps, besides its prompt; conv states are 6 kB.
        let row = token * (metrics.steps as usize + 40) + 6144;
        assert!(
            now - copied <= (rows * row) as u64,
            "{} of rows of {row}: {:?}",
            now - copied,
            engine.metrics()
        );
        copied = now;
    };
    let wait = |active: usize| {
        while engine.metrics().active != active || engine.metrics().in_prompt > 0 {
            thread::sleep(Duration::from_millis(1));
        }
    };
    let mut answers = Vec::new();
    for active in 1..=slots {
        answers.push(engine.generate(&mut text("Tell me a story."), &greedy(3900)).unwrap());
        wait(active);
        check(&engine, 0);
    }
    for left in (0..slots).rev() {
        // In the middle, or what is there of it.
        drop(answers.remove(left / 2));
        wait(left);
        check(&engine, 2);
    }
    // A slot that is used again.
    let again = engine.generate(&mut text("Tell me a story."), &greedy(100)).unwrap();
    wait(1);
    check(&engine, 1);
    drop(again);
}

#[test]
fn logits_that_are_not_finite_end_only_their_own_answer() {
    let folder = tempfile::tempdir().unwrap();
    let poison = poisoned(folder.path(), "default");
    let engine = Engine::builder(folder.path().join("m")).build().unwrap();
    let expected = engine.answer(&mut text("Tell me a story."), &greedy(50)).unwrap().token_ids;
    let other = engine.generate(&mut text("Tell me a story."), &greedy(50)).unwrap();
    let options = GenerationOptions { logit_bias: [(poison, 1e4)].into(), ..greedy(50) };
    let answer = engine.generate(&mut text("Tell me a story."), &options).unwrap();
    let mut answer = answer.into_iter();
    assert_eq!(answer.next().unwrap().unwrap().token_id, Some(poison));
    let error = answer.next().unwrap().unwrap_err();
    assert!(error.to_string().contains("decoder_model_merged"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(other.finish().unwrap().token_ids, expected);
    // Nor whoever has the slot next.
    for _ in 0..9 {
        let tokens = engine.answer(&mut text("Tell me a story."), &greedy(50)).unwrap().token_ids;
        assert_eq!(tokens, expected);
    }
}

#[test]
fn a_run_that_fails_ends_only_the_answers_that_it_fails_for() {
    let folder = tempfile::tempdir().unwrap();
    let missing = shortened(folder.path());
    let engine = Engine::builder(folder.path()).build().unwrap();
    let ask = |options: &GenerationOptions| {
        engine.generate(&mut text("Tell me a story."), options).unwrap()
    };
    let expected = ask(&greedy(60)).finish().unwrap().token_ids;
    let others = [ask(&greedy(60)), ask(&greedy(60))];
    let failing = ask(&GenerationOptions { logit_bias: [(missing, 1e4)].into(), ..greedy(60) });
    let last = ask(&greedy(60));
    let error = failing.finish().unwrap_err();
    assert!(matches!(error, Error::Run { graph: Graph::EmbedTokens, .. }), "{error}");
    // With ONNX Runtime's code.
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.to_string().contains(&source) && source.contains("1500"), "{source}");
    for answer in others.into_iter().chain([last]) {
        assert_eq!(answer.finish().unwrap().token_ids, expected);
    }
    let metrics = engine.metrics();
    assert_eq!((metrics.finished, metrics.failed), (4, 1));
}

/// In a process of its own, whose memory is limited once the engine is loaded.
#[cfg(target_os = "linux")]
#[test]
fn memory_that_runs_out_ends_only_the_answers_that_need_it() {
    const CHILD: &str = "LFM2VL_LIMITED";
    let name = "engine::memory_that_runs_out_ends_only_the_answers_that_need_it";
    if std::env::var_os(CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        succeed(child.args(["--exact", name]).env(CHILD, "1"));
        return;
    }
    // Room for 1,000 tokens of each slot takes some gigabytes of addresses, for 4,000 four times that.
    let engine = Engine::builder(tiny_shapes("default")).slots(2000).build().unwrap();
    let ask = |tokens| engine.generate(&mut text("Tell me a story."), &greedy(tokens)).unwrap();
    let expected = ask(200).finish().unwrap().token_ids;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let most = (size << 10) + (1 << 30);
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the limit is valid for reads.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);

    let others = [ask(200), ask(200)];
    // A prompt that does not fit, and an answer that outgrows what there is room for.
    let prompt = engine.generate(&mut text(&"word ".repeat(1500)), &greedy(10)).unwrap();
    let error = prompt.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert!(!error.to_string().contains("export"), "{error}");
    let mut longer = ask(3000);
    let error = longer.by_ref().find_map(Result::err).unwrap();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    let tokens = longer.completion().unwrap().token_ids;
    assert!(tokens.len() > 900 && tokens.starts_with(&expected), "{}", tokens.len());
    for answer in others.into_iter().chain([ask(200)]) {
        assert_eq!(answer.finish().unwrap().token_ids, expected);
    }
    assert_eq!(engine.metrics().failed, 2);
}

#[test]
fn answers_are_streams_as_well() {
    use std::task::{Context, Poll, Wake};
    struct Thread(thread::Thread);
    impl Wake for Thread {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let engine = Engine::builder(tiny_shapes("default")).build().unwrap();
    let expected = engine.answer(&mut text("Tell me a story."), &greedy(30)).unwrap();
    let answer = engine.generate(&mut text("Tell me a story."), &greedy(30)).unwrap();
    let mut stream = std::pin::pin!(answer.into_stream());
    let waker = Arc::new(Thread(thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let (mut text, mut waited) = (String::new(), 0);
    loop {
        match stream.as_mut().poll_next(&mut context) {
            Poll::Ready(Some(event)) => text += &event.unwrap().text,
            Poll::Ready(None) => break,
            Poll::Pending => {
                waited += 1;
                thread::park();
            }
        }
    }
    assert!(waited > 0);
    assert_eq!(text, expected.text);
    assert_eq!(stream.answer().completion().unwrap().token_ids, expected.token_ids);
}

#[test]
fn a_refused_prompt_costs_no_state() {
    let engine = Engine::builder(tiny_shapes("default")).build().unwrap();
    let mut conversation = text("Tell me a story.");
    let first = engine.answer(&mut conversation, &greedy(40)).unwrap();
    conversation.push(Message::user("word ".repeat(5000)));
    let error = engine.generate(&mut conversation, &greedy(4)).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLong);
    conversation.pop();
    // An image and its question are taken back as well.
    let question = &sample_questions()[0];
    let images = sample_images(question);
    conversation.push_with_images(Message::user("What is this?"), images).unwrap();
    engine.answer(&mut conversation, &greedy(4)).unwrap();
    (0..2).for_each(|_| drop(conversation.pop()));
    conversation.push(Message::user("Hello"));
    let next = engine.answer(&mut conversation, &greedy(4)).unwrap();
    assert!(next.reused_tokens >= first.prompt_tokens, "{}", next.reused_tokens);
}

#[test]
fn idle_conversations_give_their_slots_to_others() {
    let engine = Engine::builder(tiny_shapes("default")).slots(2).build().unwrap();
    let prompts = ["Tell me a story.", "Hello", "Describe a shape.", "Say something."];
    let mut conversations = prompts.map(text);
    let ask = |conversation: &mut Conversation| engine.answer(conversation, &greedy(6)).unwrap();
    conversations.iter_mut().for_each(|conversation| drop(ask(conversation)));
    assert_eq!((engine.metrics().cached_slots, engine.metrics().active), (2, 0));
    let reused = conversations.each_mut().map(|conversation| {
        conversation.push(Message::user("And now?"));
        ask(conversation).reused_tokens
    });
    // The state of the first two was the least recently used; then theirs took that of the others.
    assert_eq!(reused[0], 0);
    conversations[0].push(Message::user("And then?"));
    assert!(engine.metrics().cached_slots == 2);
    // Another conversation does not get it, not even a clone.
    let mut other = conversations[3].clone();
    for (conversation, has_state) in [(&mut other, false), (&mut conversations[3], true)] {
        conversation.push(Message::user("More."));
        assert_eq!(ask(conversation).reused_tokens > 0, has_state);
    }
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    for recipe in ["default", "cuda"] {
        let engine = Engine::builder(tiny_shapes(recipe)).build().unwrap();
        let options = GenerationOptions { logprobs: Some(3), ..greedy(12) };
        let answer = engine.generate(&mut text("Tell me a story."), &options).unwrap();
        let completion = answer.finish().unwrap();
        assert_eq!(completion.logprobs.len(), 12);
        for (token, logprobs) in completion.token_ids.iter().zip(&completion.logprobs) {
            // Greedy: the first of the most likely ones.
            assert_eq!(logprobs.chosen.token_id, *token);
            assert_eq!(logprobs.top[0], logprobs.chosen);
            assert_eq!(logprobs.top.len(), 3);
            let sum: f32 = logprobs.top.iter().map(|token| token.logprob.exp()).sum();
            assert!(sum <= 1.0 + 1e-5, "{sum}");
        }
    }
}

#[test]
fn stages_of_the_caller_decide() {
    struct Only(u32);
    impl LogitsProcessor for Only {
        fn process(&mut self, history: &History, logits: &mut [f32]) {
            assert!(history.tokens().len() > history.answer().len());
            let others = (0..).zip(logits).filter(|(id, _)| *id != self.0);
            others.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
    }
    let engine = Engine::builder(tiny_shapes("cuda")).build().unwrap();
    let answer =
        engine.generate_with(&mut text("Hello"), &greedy(5), vec![Box::new(Only(70))]).unwrap();
    assert_eq!(answer.finish().unwrap().token_ids, [70; 5]);
}

#[test]
fn events_tell_tokens_and_parts() {
    let engine = Engine::builder(tiny_shapes("default")).build().unwrap();
    let tokenizer = engine.processor().tokenizer();
    // The model is made to write these.
    struct Script(std::vec::IntoIter<u32>);
    impl LogitsProcessor for Script {
        fn process(&mut self, _: &History, logits: &mut [f32]) {
            logits.fill(f32::NEG_INFINITY);
            logits[self.0.next().unwrap() as usize] = 0.0;
        }
    }
    let mut script = tokenizer.encode("<think>Hm.</think>Yes").unwrap();
    script.extend(tokenizer.encode("<|tool_call_start|>[f()]<|tool_call_end|>Done").unwrap());
    let count = script.len();
    let processors: Vec<Box<dyn LogitsProcessor>> = vec![Box::new(Script(script.into_iter()))];
    let answer = engine.generate_with(&mut text("Hello"), &greedy(count), processors).unwrap();
    let mut parts: Vec<(Part, String)> = Vec::new();
    let mut tokens = 0;
    let mut answer = answer.into_iter();
    for event in answer.by_ref() {
        let event = event.unwrap();
        tokens += usize::from(event.token_id.is_some());
        match parts.last_mut() {
            Some((part, text)) if *part == event.part => *text += &event.text,
            _ if event.text.is_empty() => {}
            _ => parts.push((event.part, event.text)),
        }
    }
    let expected = [
        (Part::Thinking, "<think>Hm.</think>"),
        (Part::Text, "Yes"),
        (Part::ToolCall, "[f()]"),
        (Part::Text, "Done"),
    ];
    assert_eq!(parts, expected.map(|(part, text)| (part, text.to_owned())));
    assert_eq!(tokens, count);
    let completion: Completion = answer.completion().unwrap();
    assert_eq!(completion.reply.tool_calls[0].name, "f");
    assert_eq!(completion.reply.thinking.as_deref(), Some("Hm."));
}

#[test]
fn an_engine_goes_on_as_long_as_its_answers() {
    let engine = Engine::builder(tiny_shapes("default")).build().unwrap();
    let answer = engine.clone().generate(&mut text("Hello"), &greedy(30)).unwrap();
    drop(engine);
    assert_eq!(answer.finish().unwrap().token_ids.len(), 30);
}

/// Two answers of one conversation at a time share its images, which go through vision a view at a time.
#[test]
fn answers_of_one_conversation_do_not_mix_its_images() {
    let photo = || sample_images(&serde_json::json!({"images": ["tiled.jpg"]})).remove(0);
    let mirrored = image::imageops::flip_horizontal(&photo());
    let ask = || {
        let mut conversation = Conversation::new();
        let images = [photo(), mirrored.clone()];
        conversation.push_with_images(Message::user("Which has more shapes?"), images).unwrap();
        conversation
    };
    let engine = || Engine::builder(tiny_shapes("default")).image_cache(1 << 20).build().unwrap();
    let expected = engine().answer(&mut ask(), &greedy(30)).unwrap().token_ids;
    for _ in 0..5 {
        let (engine, mut conversation) = (engine(), ask());
        let answers = [0; 3].map(|_| engine.generate(&mut conversation, &greedy(30)).unwrap());
        for answer in answers {
            assert_eq!(answer.finish().unwrap().token_ids, expected);
        }
        // Nor are the features that others are given by the cache another image's.
        assert_eq!(engine.answer(&mut ask(), &greedy(30)).unwrap().token_ids, expected);
    }
}

/// Beside a stream, chunks of a long prompt end elsewhere than alone.
#[test]
fn long_prompts_with_many_images_are_the_same_in_any_chunks() {
    let photo = sample_images(&serde_json::json!({"images": ["tiled.jpg"]})).remove(0);
    let images = [photo.clone(), image::imageops::flip_horizontal(&photo)];
    let ask = || {
        let mut conversation = Conversation::new();
        let many = images.iter().cycle().take(20).cloned();
        conversation.push_with_images(Message::user("Which has more shapes?"), many).unwrap();
        conversation
    };
    let plain = Engine::builder(tiny_shapes("default")).build().unwrap();
    let expected = plain.answer(&mut ask(), &greedy(30)).unwrap();
    assert!(expected.prompt_tokens > 2100, "{}", expected.prompt_tokens);
    for tokens in [30, 34] {
        let engine = Engine::builder(tiny_shapes("default")).prompt_tokens_per_step(tokens);
        let engine = engine.build().unwrap();
        let stream = engine.generate(&mut text("Tell me a story."), &greedy(4000)).unwrap();
        while engine.metrics().steps < 3 {
            thread::sleep(Duration::from_millis(1));
        }
        let answer = engine.answer(&mut ask(), &greedy(30)).unwrap();
        assert_eq!(answer.token_ids, expected.token_ids, "{tokens}");
        assert!(stream.completion().unwrap().finish_reason.is_none(), "the stream has ended");
    }
}

/// Each engine has features of its own.
#[test]
fn a_conversation_can_be_answered_by_several_engines() {
    let question = &sample_questions()[0];
    let engines = ["default", "split"].map(|recipe| {
        let overrides = Overrides {
            do_image_splitting: Some(recipe == "split"),
            max_image_tokens: Some(if recipe == "split" { 16 } else { 64 }),
            min_image_tokens: Some(4),
            ..Overrides::default()
        };
        Engine::builder(tiny_shapes(recipe)).image_overrides(overrides).build().unwrap()
    });
    let mut both = conversation(question);
    let tokens = engines.each_ref().map(|engine| {
        let expected = engine.answer(&mut conversation(question), &greedy(12)).unwrap();
        let mut copy = both.clone();
        for conversation in [&mut both, &mut copy] {
            let answer = engine.generate(conversation, &greedy(12)).unwrap().finish().unwrap();
            assert_eq!(answer.token_ids, expected.token_ids);
            assert_eq!(answer.image_tokens, expected.image_tokens);
        }
        expected.image_tokens
    });
    assert_ne!(tokens[0], tokens[1]);
}

#[test]
fn stages_that_panic_or_leave_nothing_end_only_their_own_answer() {
    struct Panics;
    impl LogitsProcessor for Panics {
        fn process(&mut self, _: &History, _: &mut [f32]) {
            panic!("a fault of the caller's");
        }
    }
    struct LeavesNothing;
    impl LogitsProcessor for LeavesNothing {
        fn process(&mut self, _: &History, logits: &mut [f32]) {
            logits.fill(f32::NEG_INFINITY);
        }
    }
    /// Which holds the engine itself.
    struct Holds(Option<Engine>);
    impl LogitsProcessor for Holds {
        fn process(&mut self, _: &History, logits: &mut [f32]) {
            assert!(logits.len() > 1000 && self.0.is_some());
        }
    }
    let engine = Engine::builder(tiny_shapes("default")).build().unwrap();
    let other = engine.generate(&mut text("Tell me a story."), &greedy(50)).unwrap();
    let failing = [Box::new(Panics) as Box<dyn LogitsProcessor>, Box::new(LeavesNothing)];
    for processor in failing {
        let answer = engine.generate_with(&mut text("Hello"), &greedy(5), vec![processor]).unwrap();
        assert_eq!(answer.finish().unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
    assert_eq!(other.finish().unwrap().token_ids.len(), 50);
    let holds: Vec<Box<dyn LogitsProcessor>> = vec![Box::new(Holds(Some(engine.clone())))];
    let answer = engine.generate_with(&mut text("Hello"), &greedy(3000), holds).unwrap();
    drop(engine);
    drop(answer);
}

#[test]
fn answers_may_be_longer_than_buffers_were_made_for() {
    let engine = Engine::builder(tiny_shapes("default")).slots(3).build().unwrap();
    let bytes = engine.metrics().state_bytes;
    let long = engine.generate(&mut text("Tell me a story."), &greedy(2500)).unwrap();
    let short = engine.answer(&mut text("Tell me a story."), &greedy(60)).unwrap();
    let long = long.finish().unwrap();
    assert_eq!(long.token_ids[..60], short.token_ids);
    assert_eq!(long.token_ids.len(), 2500);
    assert!(engine.metrics().state_bytes > bytes);
    let alone = Engine::builder(tiny_shapes("default")).slots(1).capacity(3000).build().unwrap();
    let expected = alone.answer(&mut text("Tell me a story."), &greedy(2500)).unwrap();
    assert_eq!(long.token_ids, expected.token_ids);
}

#[test]
fn settings_that_make_no_sense_are_told() {
    let builder = || Engine::builder(tiny_shapes("default"));
    for (engine, name) in [
        (builder().slots(0).build(), "slots"),
        (builder().slots(usize::MAX).build(), "slots"),
        (builder().queue(0).build(), "queue"),
        (builder().prompt_tokens_per_step(0).build(), "prompt_tokens_per_step"),
        (builder().kv_cache_memory(10).build(), "kv_cache_memory"),
        (builder().capacity(1).build(), "capacity"),
    ] {
        let error = engine.map(drop).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    let engine = builder().capacity(100).build().unwrap();
    assert_eq!(engine.context(), 100);
    let error = engine.generate(&mut text(&"word ".repeat(100)), &greedy(5)).map(drop);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::TooLong);
    let completion = engine.answer(&mut text("Tell me a story."), &greedy(500)).unwrap();
    assert_eq!(completion.prompt_tokens + completion.token_ids.len(), 100);
}
