//! Prompts, a little at a time: views of their images, then their tokens.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use ndarray::{Array2, Axis, concatenate};

use super::{
    Metrics, Model, cancel::Watchdog, image_cache::ImageCache, images::write_features, slot::Active,
};
use crate::{
    Error,
    generate::{FinishReason, NextError},
    image::ProcessedImage,
    model::{Embeddings, Features},
};

/// Tokens of a prompt whose embeddings are looked up at a time, where a chunk does not have more.
const EMBEDDED_AT_ONCE: usize = 2048;

/// What a chunk of a prompt led to.
pub(super) struct Chunk {
    /// Its tokens.
    pub(super) tokens: usize,
    pub(super) took: Duration,
    /// Whether it was the last one: the answer has its first token.
    pub(super) is_last: bool,
    /// Whether that was its only one.
    pub(super) finished: Option<FinishReason>,
}

/// Puts some views of the next image of a prompt through the vision graphs; false when there are none
/// left.
pub(super) fn run_views(
    model: &mut Model,
    active: &mut Active,
    cache: &mut ImageCache,
    watchdog: &Watchdog,
    done: &mut Metrics,
) -> Result<bool, Error> {
    let start = Instant::now();
    while let Some(next) = active.images.next() {
        if next.view == 0
            && let Some(features) = cache.get(next.image.key)
        {
            done.image_cache_hits += 1;
            active.images.set_features(&next, &features);
            continue;
        }
        let views = model.vision.views_of_run(&next.patches, next.view);
        let options = Arc::new(model.vision.run_options(&next.patches, &views)?);
        let guard = active.sender.cancel().guard(&options, watchdog);
        let features = model.vision.run(&next.patches, views.clone(), &options);
        drop(guard);
        if let Some(features) = active.images.add(&next, views.len(), features?)? {
            done.images += 1;
            let bytes = features.bytes();
            cache.insert(next.image.key, features, bytes);
        }
        let took = start.elapsed();
        done.vision_time += took;
        active.sender.update(|progress| progress.timings.vision += took);
        return Ok(true);
    }
    Ok(false)
}

/// Runs the next tokens of the prompt in a slot, `most` at most. After the last ones, the answer has its
/// first token.
pub(super) fn run_chunk(
    model: &mut Model,
    slot: usize,
    active: &mut Active,
    most: usize,
    watchdog: &Watchdog,
    done: &mut Metrics,
) -> Result<Chunk, Error> {
    let start = Instant::now();
    let covered = model.decoder.tokens(slot);
    let prompt = active.sequence.tokens().len();
    let end = active.ends.iter().copied().find(|&end| end > covered).unwrap_or(prompt);
    let tokens = model.decoder.chunk(slot, end - covered, most);
    let mut embeddings = embed(model, active, covered..covered + tokens)?;
    let from = covered - active.embedded_from;
    let options = Arc::new(model.decoder.run_options()?);
    let guard = active.sender.cancel().guard(&options, watchdog);
    let graph = model.decoder.graph();
    let result = model.decoder.prefill(slot, &mut embeddings, from..from + tokens, &options);
    drop(guard);
    let logits = result?;
    let is_last = covered + tokens == prompt;
    let mut finished = None;
    if is_last {
        let accepted = logits.at(0, 0).map_err(NextError::from);
        let accepted = accepted.and_then(|logits| active.accept(logits, done));
        finished = accepted.map_err(|error| error.of(graph))?.finished;
        active.first_token = Some(Instant::now());
    } else {
        active.embeddings = Some(embeddings);
    }
    if covered + tokens == end {
        active.add_snapshot(model.decoder.snapshot(slot)?);
    }
    let took = start.elapsed();
    done.prompt_tokens += tokens as u64;
    done.prefill_time += took;
    active.sender.update(|progress| progress.timings.prefill += took);
    Ok(Chunk { tokens, took, is_last, finished })
}

/// The embeddings of these tokens of a prompt. Those of many that follow are looked up with them, so that there
/// are fewer runs.
fn embed(
    model: &mut Model,
    active: &mut Active,
    wanted: Range<usize>,
) -> Result<Embeddings, Error> {
    if let Some(embeddings) = active.embeddings.take()
        && wanted.start >= active.embedded_from
        && wanted.end <= active.embedded_from + embeddings.tokens()
    {
        return Ok(embeddings);
    }
    let tokens = active.sequence.tokens();
    let end = wanted.end.max(tokens.len().min(wanted.start + EMBEDDED_AT_ONCE));
    let image_token = model.processor.image_token_id();
    let before = tokens[..wanted.start].iter().filter(|&&id| id == image_token).count();
    let ids = &tokens[wanted.start..end];
    let mut embeddings = model.embed_tokens.prompt(ids)?;
    active.images.write_features(before, ids, image_token, &mut embeddings)?;
    active.embedded_from = wanted.start;
    Ok(embeddings)
}

/// Image features of all views of an image.
pub(super) fn image_features(
    model: &mut Model,
    image: &ProcessedImage,
) -> Result<Array2<f32>, Error> {
    let (mut features, mut view) = (Features::default(), 0);
    while view < image.grids().len() {
        let views = model.vision.views_of_run(image, view);
        let options = model.vision.run_options(image, &views)?;
        view = views.end;
        features.extend(model.vision.run(image, views, &options)?);
    }
    let tokens = image.layout().tokens();
    if features.tokens() != tokens {
        return Err(Error::FeatureCount { features: features.tokens(), tokens });
    }
    features.to_array().map_err(|error| Error::of_run(model.vision.graph(), error))
}

/// Hidden states of a prompt, in a slot that is free.
pub(super) fn hidden_states(
    model: &mut Model,
    slot: usize,
    ids: &[u32],
    features: Vec<Array2<f32>>,
) -> Result<Array2<f32>, Error> {
    let mut embeddings = model.embed_tokens.prompt(ids)?;
    let features = features.into_iter().map(Features::of_array).collect::<ort::Result<Vec<_>>>();
    let features = features.map_err(|error| Error::of_run(model.vision.graph(), error))?;
    let features: Vec<_> = features.iter().map(|all| (all, 0..all.tokens())).collect();
    write_features(ids, model.processor.image_token_id(), &features, &mut embeddings)?;
    model.decoder.state(|cache| {
        cache.clear(slot)?;
        cache.reserve(ids.len())
    })?;
    let (mut states, mut start) = (Vec::new(), 0);
    while start < ids.len() {
        let size = model.decoder.chunk(slot, ids.len() - start, usize::MAX);
        let tokens = start..start + size;
        states.push(model.decoder.hidden_states(slot, &mut embeddings, tokens)?);
        start += size;
    }
    let views: Vec<_> = states.iter().map(|states| states.view()).collect();
    match concatenate(Axis(0), &views) {
        Ok(states) if states.nrows() == ids.len() => Ok(states),
        _ => Err(Error::Contract {
            graph: model.decoder.graph(),
            difference: "last_hidden_state has not one row for each token".into(),
        }),
    }
}
