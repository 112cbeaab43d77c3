//! Each graph on the sample, compared with the reference.

use ndarray::{Array2, Array3, Axis, concatenate, s};

use crate::{
    metrics::{Comparison, argmax},
    reference::{ReferenceModel, ReferenceState},
    session::{DecoderSession, GraphSession, Tensor},
};

use super::{
    DECODE_STEPS, VerifyError,
    sample::{Sample, SampleView, padded},
};

fn named(inputs: impl IntoIterator<Item = (&'static str, Tensor)>) -> Vec<(String, Tensor)> {
    inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

/// A row of token ids as the graph takes them, int64 [1, sequence].
fn token_row(ids: &[u32]) -> Array2<i64> {
    Array2::from_shape_fn((1, ids.len()), |(_, i)| i64::from(ids[i]))
}

pub(super) fn embedding(
    session: &mut GraphSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Comparison, VerifyError> {
    let ids = [&sample.before[..], &sample.after].concat();
    let outputs = session.run(named([("input_ids", Tensor::ints(&token_row(&ids).view()))]))?;
    let mut comparison = Comparison::default();
    comparison.add(&outputs["inputs_embeds"], &model.embed(&ids)?);
    Ok(comparison)
}

/// Text, image tokens and text, and then text alone.
pub(super) fn genai_embeddings(
    session: &mut GraphSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Comparison, VerifyError> {
    let features = reference_features(model, sample)?;
    let image = vec![model.config().image_token_id; features.nrows()];
    let (before, after) = (model.embed(&sample.before)?, model.embed(&sample.after)?);
    let mut comparison = Comparison::default();
    for features in [features.view(), features.slice_axis(Axis(0), (0..0).into())] {
        let ids = [&sample.before, &image[..features.nrows()], &sample.after].concat();
        let outputs = session.run(named([
            ("input_ids", Tensor::ints(&token_row(&ids).view())),
            ("image_features", Tensor::floats(&features)),
        ]))?;
        let expected = concatenate(Axis(0), &[before.view(), features, after.view()]);
        comparison.add(&outputs["inputs_embeds"], &expected.unwrap_or_default());
    }
    Ok(comparison)
}

/// The batch of views as the inputs of the vision graphs.
fn vision_inputs(
    (pixels, mask, shapes): (Array3<f32>, Array2<i64>, Array2<i64>),
) -> Vec<(String, Tensor)> {
    named([
        ("pixel_values", Tensor::floats(&pixels.view())),
        ("pixel_attention_mask", Tensor::ints(&mask.view())),
        ("spatial_shapes", Tensor::ints(&shapes.view())),
    ])
}

pub(super) fn vision_encoder(
    session: &mut GraphSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Comparison, VerifyError> {
    let mut comparison = Comparison::default();
    let Some((views, patches)) =
        session.fixed_size("pixel_values", 0).zip(session.fixed_size("pixel_values", 1))
    else {
        let outputs = session.run(vision_inputs(sample.padded()))?;
        comparison.add(&outputs["image_features"], &reference_features(model, sample)?);
        return Ok(comparison);
    };
    let fitting: Vec<&SampleView> =
        sample.views.iter().filter(|view| view.patches.nrows() <= patches).collect();
    if fitting.is_empty() {
        return Err(VerifyError::Views { patches });
    }
    for batch in fitting.chunks(views) {
        let outputs = session.run(vision_inputs(padded(batch, views, patches)))?;
        for (features, view) in outputs["image_features"].outer_iter().zip(batch) {
            let expected = model.image_features(view.patches.view(), view.rows, view.cols)?;
            let valid = features.slice_axis(Axis(0), (..expected.nrows()).into());
            comparison.add(&valid, &expected);
        }
    }
    Ok(comparison)
}

pub(super) fn vision_tower(
    session: &mut GraphSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Comparison, VerifyError> {
    let outputs = session.run(vision_inputs(sample.padded()))?;
    let mut comparison = Comparison::default();
    for (hidden, view) in outputs["last_hidden_state"].outer_iter().zip(&sample.views) {
        let valid = hidden.slice_axis(Axis(0), (..view.rows * view.cols).into());
        let expected = model.vision_tower(view.patches.view(), view.rows, view.cols)?;
        comparison.add(&valid, &expected);
    }
    Ok(comparison)
}

pub(super) fn projector(
    session: &mut GraphSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Comparison, VerifyError> {
    let (_, mask, shapes) = sample.padded();
    let mut hidden = Array3::zeros((mask.nrows(), mask.ncols(), model.config().vision.hidden_size));
    for (mut padded, view) in hidden.outer_iter_mut().zip(&sample.views) {
        let states = model.vision_tower(view.patches.view(), view.rows, view.cols)?;
        padded.slice_axis_mut(Axis(0), (..states.nrows()).into()).assign(&states);
    }
    let outputs = session.run(named([
        ("last_hidden_state", Tensor::floats(&hidden.view())),
        ("spatial_shapes", Tensor::ints(&shapes.view())),
    ]))?;
    let mut comparison = Comparison::default();
    comparison.add(&outputs["image_features"], &reference_features(model, sample)?);
    Ok(comparison)
}

/// The reference's image features of all views in order.
fn reference_features(
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<Array2<f32>, VerifyError> {
    let features = sample
        .views
        .iter()
        .map(|view| model.image_features(view.patches.view(), view.rows, view.cols))
        .collect::<Result<Vec<_>, _>>()?;
    let views: Vec<_> = features.iter().map(|f| f.view()).collect();
    // All features have the width of the language model, so they join.
    Ok(concatenate(Axis(0), &views).unwrap_or_default())
}

/// Prefill of text, image features and text, then cached steps along the reference's greedy
/// tokens; compares logits and every state.
pub(super) fn decoder(
    session: GraphSession,
    model: &ReferenceModel<'_>,
    sample: &Sample,
) -> Result<(Comparison, (usize, usize)), VerifyError> {
    let before = model.embed(&sample.before)?;
    let features = reference_features(model, sample)?;
    let after = model.embed(&sample.after)?;
    let prompt = concatenate(Axis(0), &[before.view(), features.view(), after.view()]);
    let mut embeds = prompt.unwrap_or_default();

    let mut reference_state = ReferenceState::new(model.config());
    let mut session = DecoderSession::new(session);
    let (mut comparison, mut agreeing) = (Comparison::default(), 0);
    for _ in 0..=DECODE_STEPS {
        let outputs = session.run(embeds.view())?;
        let expected = model.forward(embeds.view(), &mut reference_state)?;
        let logits = &outputs["logits"];
        let positions = logits.shape()[1];
        let expected = expected.slice_axis(Axis(0), (embeds.nrows() - positions..).into());
        comparison.add(logits, expected);
        let last = expected.index_axis(Axis(0), positions - 1).to_vec();
        let ours = logits.index_axis(Axis(1), positions - 1).iter().copied().collect::<Vec<_>>();
        if let Some(candidates) = outputs.get("candidate_logits") {
            let mut sorted = last.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted.truncate(candidates.len_of(Axis(2)));
            let candidates = candidates.index_axis(Axis(1), positions - 1);
            comparison.add(&candidates, &ndarray::arr1(&sorted));
        }
        let token = argmax(&last);
        agreeing += usize::from(argmax(&ours) == token);

        for (layer, conv) in reference_state.conv_states() {
            let present = &outputs[&format!("present_conv.{layer}")];
            if present.len_of(Axis(2)) == conv.nrows() {
                // As rows, without the oldest.
                comparison.add(present, conv.slice(s![.., 1..]).reversed_axes());
            } else {
                comparison.add(present, conv);
            }
        }
        for (layer, keys, values) in reference_state.keys_and_values() {
            comparison.add(&outputs[&format!("present.{layer}.key")], keys);
            comparison.add(&outputs[&format!("present.{layer}.value")], values);
        }
        embeds = model.embed(&[token as u32])?;
    }
    Ok((comparison, (agreeing, DECODE_STEPS + 1)))
}
