//! What the precisions cost: the sample questions in each of them.

use lfm2vl::Engine;
use lfm2vl_graphs::Precision;
use lfm2vl_tests::{answer, sample_questions, tiny_shapes_in_all_precisions};

#[test]
fn answers_stay_what_they_are_in_float32() {
    let folder = tiny_shapes_in_all_precisions();
    let questions = sample_questions();
    for (precision, least) in [
        (Precision::Fp16, 1.0),
        (Precision::Q8, 0.99),
        (Precision::Q4, 0.95),
        (Precision::Q4F16, 0.95),
    ] {
        let engine = Engine::builder(&folder).precision(Some(precision)).build().unwrap();
        let same = questions.iter().filter(|q| answer(&engine, q).text == q["answer"]).count();
        let share = same as f64 / questions.len() as f64;
        println!("{precision:<6} {same} of {} answers unchanged", questions.len());
        assert!(share >= least, "{precision}: {same} of {}", questions.len());
    }
}
