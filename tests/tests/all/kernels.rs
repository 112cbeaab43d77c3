//! The project's own kernels: in the runtime, and as a package that any ONNX Runtime loads.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use lfm2vl::{
    Completion, Conversation, Engine, GenerationOptions, GraphInfo, Kernels, Provider,
    chat::Message,
};
use lfm2vl_graphs::{Graph, Precision};
use lfm2vl_tests::{
    program, python, root, sample_images, sample_questions, set_up, succeed, testdata, tiny_shapes,
    tiny_shapes_in_all_precisions,
};
use serde_json::{Value, json};

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
        if assignment.provider == NAME {
            assert_eq!(products > 10, has_products, "{assignment:?}");
            assert_eq!(attentions > 0, info.graph == Graph::VisionEncoder, "{assignment:?}");
        } else {
            assert_eq!((products, attentions), (0, 0), "{assignment:?}")
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

/// A script of `tests/python` with the package that `cargo xtask test` has built and installed, and
/// perhaps another ONNX Runtime; nothing where there is none for the platform.
fn packaged(script: &str, onnxruntime: Option<&str>) -> Option<Command> {
    let package = set_up("LFM2VL_WHEEL")?;
    let others = std::env::var_os("PYTHONPATH").unwrap_or_else(|| root().join(".python").into());
    let onnxruntime = onnxruntime.map(|name| std::env::var_os(name).expect("it is set as well"));
    let paths = onnxruntime.into_iter().chain([package]).map(PathBuf::from);
    let paths = paths.chain(std::env::split_paths(&others));
    let mut command = python(script);
    command.env("PYTHONPATH", std::env::join_paths(paths).unwrap());
    Some(command)
}

fn report(command: &mut Command) -> Value {
    serde_json::from_slice(&succeed(command).stdout).unwrap()
}

#[test]
fn operators_of_the_package_give_what_onnx_runtime_gives() {
    for (onnxruntime, version) in [(None, "1.32"), (Some("LFM2VL_OLDEST_ORT"), "1.24")] {
        let Some(mut command) = packaged("provider_operators.py", onnxruntime) else { return };
        let report = report(&mut command);
        assert!(report["onnxruntime"].as_str().unwrap().starts_with(version), "{report}");
        let differences = |key: &str| report[key].as_object().unwrap().clone();
        assert_eq!(differences("products").len(), 20);
        for (format, difference) in differences("products") {
            assert!(difference.as_f64().unwrap() < 2e-6, "{format} {difference}");
        }
        for (case, difference) in differences("attention") {
            // ONNX Runtime adds -10,000 where no key is seen, which takes digits from the scores.
            let bar = if case == "no keys" { 1e-3 } else { 2e-6 };
            assert!(difference.as_f64().unwrap() < bar, "{case} {difference}");
        }
        assert_eq!(report["not_a_number"], json!([false, true, false]));
        assert_eq!(report["wrongly_taken"], json!([]));
        // Each session has 11 MB of weights.
        assert!(report["megabytes_kept_by_20_sessions"].as_f64().unwrap() < 20.0, "{report}");
        assert_eq!(report["same_in_threads"], json!(true));
    }
}

#[test]
fn groups_of_nodes_give_what_onnx_runtime_gives() {
    for (onnxruntime, cases) in [(None, 106), (Some("LFM2VL_OLDEST_ORT"), 86)] {
        let Some(mut command) = packaged("provider_groups.py", onnxruntime) else { return };
        let report = report(&mut command);
        let differences = report["differences"].as_object().unwrap();
        assert_eq!(differences.len(), cases, "{report}");
        for (case, difference) in differences {
            assert!(difference.as_f64().unwrap() < 1e-6, "{case} {difference}");
        }
        assert_eq!(report["wrongly_taken"], json!([]));
        assert_eq!(report["same_behind_tokens"], json!(true));
        let refused = report["refused"].as_array().unwrap();
        assert_eq!(refused.len(), 9);
        for refusal in refused {
            assert!(refusal.as_str().unwrap().contains("lfm2vl provider: attention "), "{refusal}");
        }
    }
}

#[test]
fn an_older_onnx_runtime_is_refused() {
    let older = Some("LFM2VL_OLDER_ORT");
    let Some(mut command) = packaged("provider_operators.py", older) else { return };
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("needs ONNX Runtime 1.24 or newer, this is 1.23"), "{error}");
}

#[test]
fn the_package_runs_exported_decoders_and_those_of_others() {
    let folder = tiny_shapes_in_all_precisions().join("onnx");
    let check = |decoder: &Path, arguments: &[&str], share: f64, bar: f64| {
        let Some(mut command) = packaged("provider_wheel.py", None) else { return };
        let report = report(command.arg(decoder).args(arguments));
        let best = &report["best"];
        assert_eq!(best["tokens"], report["plain"], "{}", decoder.display());
        assert!(best["difference"].as_f64().unwrap() < bar, "{best}");
        let nodes = |name: &str| best["nodes"][name].as_f64().unwrap();
        let (taken, left) = (nodes(NAME), nodes("CPUExecutionProvider"));
        println!("{}: {taken} nodes of {}", decoder.display(), taken + left);
        assert!(taken / (taken + left) > share, "{best}");
    };
    for (suffix, embedding) in [("q4", "q4"), ("quantized", "quantized")] {
        let embedding = folder.join(format!("embed_tokens_{embedding}.onnx"));
        let arguments = ["--embed-tokens", embedding.to_str().unwrap()];
        let decoder = folder.join(format!("decoder_model_merged_{suffix}.onnx"));
        check(&decoder, &arguments, 0.15, 1e-5);
    }
    // The card tells how, where there is something to run faster.
    let card = |folder: &Path| std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card(folder.parent().unwrap()).contains("import onnxruntime_ep_lfm2vl"));
    assert!(!card(&tiny_shapes("default")).contains("onnxruntime_ep_lfm2vl"));
    // By the model builder of onnxruntime-genai; `testdata/README.md` tells how.
    let genai = testdata("genai-int4").join("model.onnx");
    check(&genai, &["--head-size", "32"], 0.25, 1e-5);
    // Without packing ahead ONNX Runtime does not round inputs, so only the tokens are the same.
    check(&genai, &["--head-size", "32", "--no-prepacking"], 0.25, 0.02);
}
