//! The project's own kernels: in the runtime, and as a package that any ONNX Runtime loads.

use lfm2vl::{
    Completion, Conversation, Engine, GenerationOptions, GraphInfo, Kernels, Provider,
    chat::Message,
};
use lfm2vl_graphs::{Graph, Precision};
use lfm2vl_tests::{
    program, sample_images, sample_questions, succeed, tiny_shapes, tiny_shapes_in_all_precisions,
};
use serde_json::Value;

const NAME: &str = "Lfm2VlExecutionProvider";

fn with(instructions: &str) -> Provider {
    let instructions = Some(instructions.to_owned());
    Provider::Kernels(Kernels { instructions, ..Kernels::default() })
}

/// The tokens of an answer, with the two likeliest ones of each place.
fn with_logprobs(engine: &Engine, question: &Value) -> Completion {
    let options = GenerationOptions { logprobs: Some(2), ..GenerationOptions::default() };
    let mut conversation = Conversation::new();
    let prompt = Message::user(question["prompt"].as_str().unwrap());
    conversation.push_with_images(prompt, sample_images(question)).unwrap();
    engine.answer(&mut conversation, &options).unwrap()
}

/// Sums in another order can turn a choice only where two tokens were as good as equally likely.
fn assert_same_or_tied(found: &Completion, expected: &Completion, what: &str) -> bool {
    let differs = |(a, b): (&u32, &u32)| a != b;
    let Some(first) = found.token_ids.iter().zip(&expected.token_ids).position(differs) else {
        assert_eq!(found.token_ids, expected.token_ids, "{what}");
        return true;
    };
    let top = &expected.logprobs[first].top;
    let gap = top[0].logprob - top[1].logprob;
    assert!(top[1].token_id == found.token_ids[first] && gap < 0.02, "{what}: {gap}");
    false
}

#[test]
fn all_instructions_give_the_answers_of_plain_onnx_runtime() {
    let folder = tiny_shapes_in_all_precisions();
    let questions = sample_questions();
    for (precision, step) in [(Precision::Q8, 1), (Precision::Q4, 1), (Precision::Fp32, 5)] {
        let builder = || Engine::builder(&folder).precision(Some(precision));
        let plain = builder().provider(Provider::Cpu).build().unwrap();
        let questions: Vec<_> = questions.iter().step_by(step).collect();
        let expected: Vec<_> = questions.iter().map(|q| with_logprobs(&plain, q)).collect();
        let best = builder().build().unwrap();
        let mut tied = 0;
        for (question, expected) in questions.iter().zip(&expected) {
            let found = with_logprobs(&best, question);
            tied += u32::from(!assert_same_or_tied(&found, expected, &question.to_string()));
        }
        println!("{precision}: {tied} of {} answers turned at a tie", questions.len());
        assert!(tied <= 2, "{precision} {tied}");

        // All instructions multiply to the same bits, as the tests of the kernels show.
        let mut tried = 0;
        for instructions in ["portable", "avx2", "avx-vnni", "avx512-vnni", "amx"] {
            let engine = match builder().provider(with(instructions)).build() {
                Ok(engine) => engine,
                Err(error) => {
                    let error = error.to_string();
                    assert!(error.contains(&format!("has no {instructions}")), "{error}");
                    continue;
                }
            };
            tried += 1;
            for info in engine.graphs().iter() {
                assert_takes_all(info, precision);
            }
            for (question, expected) in questions.iter().zip(&expected).step_by(23) {
                let found = with_logprobs(&engine, question);
                assert_same_or_tied(&found, expected, &format!("{instructions} {question}"));
            }
        }
        assert!(tried > 0);
    }
}

/// All nodes that there are kernels for run with them.
fn assert_takes_all(info: &GraphInfo, precision: Precision) {
    assert_eq!(info.provider, "kernels", "{}", info.graph);
    for assignment in &info.assignments {
        let count =
            |operator: &str| assignment.operators.get(operator).copied().unwrap_or_default();
        let (products, attentions) =
            (count("com.microsoft:MatMulNBits"), count("com.microsoft:MultiHeadAttention"));
        let has_products = info.graph != Graph::EmbedTokens && precision != Precision::Fp32;
        match assignment.provider == NAME {
            true => {
                assert_eq!(products > 10, has_products, "{assignment:?}");
                assert_eq!(attentions > 0, info.graph == Graph::VisionEncoder, "{assignment:?}");
            }
            false => assert_eq!((products, attentions), (0, 0), "{assignment:?}"),
        }
    }
}

/// `cargo xtask test` puts the library beside ONNX Runtime's.
#[test]
fn they_are_the_default_on_the_cpu() {
    let folder = tiny_shapes("default");
    let engine = Engine::builder(&folder).build().unwrap();
    assert!(engine.graphs().iter().all(|info| info.provider == "kernels"), "run cargo xtask test");
    assert!(engine.graphs().iter().all(|info| info.skipped.is_empty()));
    let plain = Engine::builder(&folder).provider(Provider::Cpu).build().unwrap();
    assert!(plain.graphs().iter().all(|info| info.provider == "cpu"));
    // Who names other instructions gets these or an error.
    let error = Engine::builder(&folder).provider(with("sse9")).build().unwrap_err().to_string();
    assert!(error.contains("no kernels for 'sse9'; use portable, avx2"), "{error}");
    let missing = Kernels { library: Some("/nowhere/at/all.so".into()), ..Kernels::default() };
    let error = Engine::builder(&folder).provider(Provider::Kernels(missing)).build();
    assert!(error.unwrap_err().to_string().contains("/nowhere/at/all.so cannot be read"));
    let text = succeed(program("lfm2vl").arg("inspect").arg(&folder)).stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains(&format!("nodes on {NAME}:")), "{text}");
    assert!(!text.contains("warning"), "{text}");
}
