//! The plain implementation that graphs are verified against, itself against transformers.

use lfm2vl_exporter::{
    checkpoint::Checkpoint,
    reference::{ReferenceModel, ReferenceState},
};
use ndarray::{Array2, Axis, concatenate, s};

use crate::common::{Golden, VARIANTS, scaled_error, testdata};

/// About ten times what is measured.
const BAR: f32 = 2e-5;

fn argmax(values: &[f32]) -> i64 {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter().position(|&v| v == largest).unwrap() as i64
}

/// One row of a golden, without the padding that it may have on the left.
fn check(checkpoint: &str, golden: &str, row: usize) {
    let checkpoint = Checkpoint::open(&testdata(checkpoint)).unwrap();
    let golden = Golden::open(golden);
    let model = ReferenceModel::new(&checkpoint);

    let pixels = golden.ints("pixels_uint8").mapv(|v| (v as f32 / 255.0 - 0.5) / 0.5);
    let pixels = pixels.into_dimensionality::<ndarray::Ix2>().unwrap();
    let (mut start, mut features) = (0, Vec::new());
    for shape in golden.ints("spatial_shapes").outer_iter() {
        let (rows, cols) = (shape[0] as usize, shape[1] as usize);
        let valid = start..start + rows * cols;
        let patches = pixels.slice(s![valid.clone(), ..]);
        if golden.has("position_embeddings") {
            let expected = golden.floats("position_embeddings");
            let expected = expected.slice_axis(Axis(0), valid.clone().into());
            let ours = model.position_embeddings(rows, cols).unwrap();
            assert!(scaled_error(&ours, &expected) < 1e-5);
        }
        if golden.has("vision_last_hidden_state") {
            let expected = golden.floats("vision_last_hidden_state");
            let expected = expected.slice_axis(Axis(0), valid.clone().into());
            let ours = model.vision_tower(patches, rows, cols).unwrap();
            assert!(scaled_error(&ours, &expected) < BAR);
        }
        features.push(model.image_features(patches, rows, cols).unwrap());
        start = valid.end;
    }
    let features =
        concatenate(Axis(0), &features.iter().map(|f| f.view()).collect::<Vec<_>>()).unwrap();
    assert!(scaled_error(&features, &golden.floats("image_features")) < BAR);

    let all_ids = golden.ints("input_ids");
    let padding = golden
        .ints("attention_mask")
        .index_axis(Axis(0), row)
        .iter()
        .take_while(|&&mask| mask == 0)
        .count();
    let ids: Vec<u32> =
        all_ids.index_axis(Axis(0), row).iter().skip(padding).map(|&id| id as u32).collect();
    let mut embeds = model.embed(&ids).unwrap();
    let image_token = checkpoint.config().image_token_id;
    // Features belong to the rows of the batch in order.
    let earlier = all_ids.iter().take(row * all_ids.len_of(Axis(1)));
    let skip = earlier.filter(|&&id| id as u32 == image_token).count();
    let places = (0..ids.len()).filter(|&i| ids[i] == image_token);
    for (place, feature) in places.zip(features.rows().into_iter().skip(skip)) {
        embeds.row_mut(place).assign(&feature);
    }

    let mut state = ReferenceState::new(checkpoint.config());
    let mut logits = model.forward(embeds.view(), &mut state).unwrap();
    let expected = golden.floats("logits");
    for (i, &position) in golden.ints("logits_positions").iter().enumerate() {
        let Some(position) = (position as usize).checked_sub(padding) else { continue };
        let expected = expected.slice(s![row, i, ..]);
        assert!(scaled_error(logits.row(position), expected) < BAR, "position {position}");
    }
    // The goldens hold the state of the first layer of each kind.
    let mut states = 0;
    for (layer, conv) in state.conv_states() {
        let name = format!("cache.{layer}.conv");
        if !golden.has(&name) {
            continue;
        }
        states += 1;
        let expected = golden.floats(&name);
        assert!(scaled_error(conv, expected.index_axis(Axis(0), row)) < BAR);
    }
    for (layer, keys, values) in state.keys_and_values() {
        let name = format!("cache.{layer}.value");
        if !golden.has(&name) {
            continue;
        }
        states += 1;
        let expected = golden.floats(&name);
        let expected = expected.slice(s![row, .., padding.., ..]);
        assert!(scaled_error(values, expected) < BAR);
        if padding == 0 {
            // With padding the golden's positions start later, so its keys are rotated further.
            let expected = golden.floats(&format!("cache.{layer}.key"));
            assert!(scaled_error(keys, expected.slice(s![row, .., .., ..])) < BAR);
        }
    }
    assert!(states >= 2, "{states}");
    for (step, &greedy) in golden.ints("greedy_ids").index_axis(Axis(0), row).iter().enumerate() {
        let last = logits.row(logits.nrows() - 1).to_vec();
        assert_eq!(argmax(&last), greedy, "step {step}");
        let next: Array2<f32> = model.embed(&[greedy as u32]).unwrap();
        logits = model.forward(next.view(), &mut state).unwrap();
        if golden.has("step_logits") {
            let expected = golden.floats("step_logits");
            let expected = expected.slice(s![row, step, ..]);
            assert!(scaled_error(logits.row(0), expected) < BAR, "step {step}");
        }
    }
}

#[test]
fn tiny_shapes() {
    for golden in ["plain", "tiled", "rgba", "tall", "two-images"] {
        check("tiny-shapes", &format!("tiny-shapes/goldens/{golden}.safetensors"), 0);
    }
}

#[test]
fn rows_of_a_padded_batch() {
    for row in 0..2 {
        check("tiny-shapes", "tiny-shapes/goldens/padded-batch.safetensors", row);
    }
}

#[test]
fn variants() {
    for variant in VARIANTS {
        let folder = format!("variants/{variant}");
        check(&folder, &format!("{folder}/golden.safetensors"), 0);
    }
}
