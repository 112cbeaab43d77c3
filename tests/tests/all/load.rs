//! The engine under load: many answers from many threads, some of which are given up, come too late or
//! fail. Each that ends has the tokens that it has alone.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use lfm2vl::{Conversation, Engine, Error, GenerationOptions};
use lfm2vl_tests::{sample_questions, tiny_shapes};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::engine::{conversation, greedy, poisoned};

/// What happens to an answer.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Finishes,
    IsCancelled { after: usize },
    IsDropped { after: usize },
    IsLate { after: Duration },
    Fails { token: u32 },
}

/// The tokens of sample questions alone, as far as they have been asked.
struct Alone {
    engine: Engine,
    known: Mutex<BTreeMap<(usize, u64), Vec<u32>>>,
}

impl Alone {
    fn tokens(&self, questions: &[Value], question: usize, kind: u64) -> Vec<u32> {
        let mut known = self.known.lock().unwrap();
        let tokens = known.entry((question, kind)).or_insert_with(|| {
            let mut conversation = conversation(&questions[question]);
            self.engine.answer(&mut conversation, &options(kind)).unwrap().token_ids
        });
        tokens.clone()
    }
}

/// Greedy, or one of some seeds.
fn options(kind: u64) -> GenerationOptions {
    match kind {
        0 => GenerationOptions::default(),
        1 => greedy(40),
        seed => GenerationOptions {
            temperature: 1.5,
            top_p: (seed % 2 == 0).then_some(0.9),
            seed: Some(seed),
            max_new_tokens: 30,
            ..GenerationOptions::default()
        },
    }
}

/// Asks `count` questions from 8 threads.
/// One in ten fails, where there is a token to make it fail.
fn stress(engine: &Engine, alone: &Alone, poison: Option<u32>, seed: u64, count: usize) {
    let questions = sample_questions();
    let next = Mutex::new(0..count);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (questions, next) = (&questions, &next);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed * 8 + thread);
                while next.lock().unwrap().next().is_some() {
                    let question = random.random_range(0..questions.len());
                    let kind = random.random_range(0..5);
                    let fate = match random.random_range(0..10) {
                        0 => Fate::IsCancelled { after: random.random_range(0..6) },
                        1 => Fate::IsDropped { after: random.random_range(0..6) },
                        2 => {
                            let after = Duration::from_micros(random.random_range(0..60_000));
                            Fate::IsLate { after }
                        }
                        3 => poison.map_or(Fate::Finishes, |token| Fate::Fails { token }),
                        _ => Fate::Finishes,
                    };
                    let case = format!("seed {seed}: question {question}, {kind}, {fate:?}");
                    let mut conversation = conversation(&questions[question]);
                    let tokens = live(engine, &mut conversation, kind, fate, &case);
                    let Some(tokens) = tokens else { continue };
                    assert_eq!(tokens, alone.tokens(questions, question, kind), "{case}");
                }
            });
        }
    });
    // Those that were dropped may be among them for a moment.
    let start = Instant::now();
    while engine.metrics().active + engine.metrics().waiting > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", engine.metrics());
        thread::sleep(Duration::from_millis(1));
    }
}

/// The tokens of an answer that comes to its end.
fn live(
    engine: &Engine,
    conversation: &mut Conversation,
    kind: u64,
    fate: Fate,
    case: &str,
) -> Option<Vec<u32>> {
    let mut options = options(kind);
    match fate {
        Fate::IsLate { after } => options.timeout = Some(after),
        Fate::Fails { token } => options.logit_bias = [(token, 1e4)].into(),
        _ => {}
    }
    let mut answer = match engine.generate(conversation, &options) {
        Ok(answer) => answer,
        Err(error) => panic!("{case}: {error}"),
    };
    match fate {
        Fate::Finishes => Some(answer.finish().unwrap_or_else(|e| panic!("{case}: {e}")).token_ids),
        Fate::IsDropped { after } => {
            answer.by_ref().take(after).for_each(|event| drop(event.unwrap()));
            None
        }
        Fate::IsCancelled { after } => {
            answer.by_ref().take(after).for_each(|event| drop(event.unwrap()));
            answer.cancel();
            // It may have ended before.
            match answer.finish() {
                Err(Error::Cancelled) => None,
                result => Some(result.unwrap_or_else(|e| panic!("{case}: {e}")).token_ids),
            }
        }
        Fate::IsLate { .. } => match answer.finish() {
            Err(Error::TimedOut(_)) => None,
            result => Some(result.unwrap_or_else(|e| panic!("{case}: {e}")).token_ids),
        },
        Fate::Fails { .. } => {
            let error = answer.finish().expect_err(case);
            assert!(matches!(error, Error::NotFinite { .. }), "{case}: {error}");
            None
        }
    }
}

/// `LFM2VL_STRESS` is for how many seeds; 2 when it is not set.
#[test]
fn answers_under_load_have_the_tokens_that_they_have_alone() {
    let seeds = std::env::var("LFM2VL_STRESS").ok().and_then(|seeds| seeds.parse().ok());
    let engine = Engine::builder(tiny_shapes("default")).slots(1).image_cache(0).build().unwrap();
    let alone = Alone { engine, known: Mutex::default() };
    for (recipe, slots, capacity, sequences) in [
        ("default", 7, None, 80),
        ("cuda", 5, None, 64),
        // Steps keep their bindings, and begin ahead.
        ("cuda", 6, Some(4096), 64),
        ("features", 6, None, 64),
        ("split", 32, None, 64),
        // One at a time.
        ("portable", 4, None, 32),
        ("cuda-graph", 3, None, 32),
        ("coreml", 3, None, 16),
        ("tensorrt", 2, None, 16),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let poison = poisoned(folder.path(), recipe);
        let engine =
            Engine::builder(folder.path().join("m")).slots(slots).share_prefixes(recipe == "split");
        let engine = engine.run_ahead(true);
        let engine = match capacity {
            Some(tokens) => engine.capacity(tokens),
            None => engine,
        };
        let engine = engine.build().unwrap();
        for seed in 0..seeds.unwrap_or(2) {
            stress(&engine, &alone, Some(poison), seed, sequences);
        }
        let metrics = engine.metrics();
        let runs_ahead = recipe == "cuda" && capacity.is_some();
        assert_eq!(metrics.steps_ahead > 0, runs_ahead, "{recipe} {metrics:?}");
        assert!(metrics.finished > 0 && metrics.failed > 0 && metrics.cancelled > 0, "{metrics:?}");
    }
}

/// As under load above, with a random model of the 450M shape (some minutes).
#[test]
#[ignore = "takes some minutes; LFM2VL_450M names the folder of an export"]
fn answers_of_a_450m_model_under_load_have_the_tokens_that_they_have_alone() {
    let folder = std::env::var("LFM2VL_450M").expect("LFM2VL_450M names a folder");
    let engine = Engine::builder(&folder).slots(1).image_cache(0).build().unwrap();
    let alone = Alone { engine, known: Mutex::default() };
    let engine = Engine::builder(&folder).slots(16).build().unwrap();
    stress(&engine, &alone, None, 0, 64);
    println!("{:#?}", engine.metrics());
}
