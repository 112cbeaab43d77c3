//! The sample questions, and the reference's greedy tokens, through the library.

use lfm2vl::{Conversation, Engine, FinishReason, GenerationOptions, chat::Message};
use lfm2vl_graphs::Recipe;
use lfm2vl_tests::{answer, sample_images, sample_questions, testdata, tiny_shapes};
use ndarray::ArrayD;
use safetensors::SafeTensors;
use serde_json::{Value, json};

#[test]
fn every_sample_question_is_answered_rightly() {
    let engine = Engine::builder(tiny_shapes("default")).build().unwrap();
    let questions = sample_questions();
    assert!(questions.len() > 100);
    for question in &questions {
        let completion = answer(&engine, question);
        assert_eq!(completion.text, question["answer"], "{question}");
        assert_eq!(completion.finish_reason, Some(FinishReason::Stop));
    }
}

#[test]
fn greedy_tokens_and_image_features_are_the_reference_s() {
    for recipe in Recipe::BUILTIN {
        let engine = Engine::builder(tiny_shapes(recipe)).build().unwrap();
        for name in ["plain", "tiled", "rgba", "tall", "two-images"] {
            let bytes = std::fs::read(testdata(&format!("tiny-shapes/goldens/{name}.safetensors")))
                .unwrap();
            let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
            let metadata = metadata.metadata().clone().unwrap();
            let golden = SafeTensors::deserialize(&bytes).unwrap();
            let files: Value = serde_json::from_str(&metadata["images"]).unwrap();
            let images = sample_images(&json!({ "images": files }));

            let tensor = golden.tensor("image_features").unwrap();
            let values =
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            let expected = ArrayD::from_shape_vec(tensor.shape(), values.collect()).unwrap();
            let ours: Vec<f32> = images
                .iter()
                .flat_map(|image| {
                    let processed = engine.image_processor().process(image).unwrap();
                    engine.image_features(&processed).unwrap().into_iter()
                })
                .collect();
            assert_eq!(ours.len(), expected.len(), "{recipe} {name}");
            // Another JPEG decoder moves the features of JPEG files by more than the graphs do.
            if !metadata["images"].contains(".jpg") {
                let scale = expected.iter().fold(1.0_f32, |scale, v| scale.max(v.abs()));
                let error =
                    ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error <= 2e-5 * scale, "{recipe} {name}: {error}");
            }

            let mut conversation = Conversation::new();
            conversation.push_with_images(Message::user(&metadata["prompt"]), images).unwrap();
            // The goldens go on after the end token.
            let options = GenerationOptions {
                max_new_tokens: 16,
                ignore_eos: true,
                ..GenerationOptions::default()
            };
            let completion = engine.answer(&mut conversation, &options).unwrap();
            let greedy = golden.tensor("greedy_ids").unwrap();
            let greedy: Vec<u32> = greedy
                .data()
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
                .collect();
            assert_eq!(completion.token_ids, greedy, "{recipe} {name}");
        }
    }
}
