//! Folders as others publish them: no manifest, other inputs, another type of state.

use lfm2vl::{Conversation, Engine, GenerationOptions, chat::Message};
use lfm2vl_graphs::{Operators, Precision, Recipe};
use lfm2vl_tests::{
    answer, export_with, python, sample_images, sample_questions, succeed, tiny_shapes,
};
use serde_json::json;

#[test]
fn graphs_of_the_community_give_the_same_answers() {
    let out = tempfile::tempdir().unwrap();
    let (export, folder) = (out.path().join("export"), out.path().join("published"));
    let recipe = Recipe { operators: Operators::Standard, ..Recipe::builtin("features").unwrap() };
    export_with(&export, "tiny-shapes", recipe, &[Precision::Fp32]);
    succeed(python("community_folder.py").arg(&export).arg(&folder));
    assert!(!folder.join("lfm2vl.yaml").exists());

    let ours = Engine::builder(tiny_shapes("default")).build().unwrap();
    for precision in [None, Some(Precision::Fp32), Some(Precision::Fp16)] {
        let theirs = Engine::builder(&folder).precision(precision).build().unwrap();
        let inputs = theirs.graphs().iter().flat_map(|graph| &graph.inputs);
        let names: Vec<&String> = inputs.map(|input| &input.name).collect();
        let extra =
            if precision == Some(Precision::Fp16) { "num_logits_to_keep" } else { "position_ids" };
        assert!(names.iter().any(|name| *name == extra), "{names:?}");
        for question in sample_questions().iter().step_by(3) {
            assert_eq!(
                answer(&theirs, question).token_ids,
                answer(&ours, question).token_ids,
                "{precision:?} {question}"
            );
        }
    }

    // The second turn goes on from a state in float16, and from one that was gone back to.
    let theirs = Engine::builder(&folder).precision(Some(Precision::Fp16)).build().unwrap();
    let tokens = |engine: &Engine| {
        let mut conversation = Conversation::new();
        let images = sample_images(&json!({"images": ["tall.png"]}));
        conversation.push_with_images(Message::user("What is on top?"), images).unwrap();
        let options = GenerationOptions { max_new_tokens: 12, ..GenerationOptions::default() };
        let mut tokens = Vec::new();
        for question in ["What is below?", "How many shapes are in this image?"] {
            tokens.push(engine.answer(&mut conversation, &options).unwrap().token_ids);
            conversation.push(Message::user(question));
        }
        conversation.pop();
        conversation.push(Message::user("Is there a star?"));
        tokens.push(engine.answer(&mut conversation, &options).unwrap().token_ids);
        tokens
    };
    assert_eq!(tokens(&theirs), tokens(&ours));
}
