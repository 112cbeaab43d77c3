//! Image features, from one fused graph or from tower and projector.

use std::iter::repeat_n;

use ndarray::{Array2, ArrayD, ArrayView3, Axis, Ix2, Ix3, s};
use ort::{
    session::{RunOptions, Session, SessionInputValue},
    value::{DynValue, TensorRef},
};

use super::GraphSession;
use crate::{
    Error, Provider,
    image::{PaddedViews, PatchGrid, ProcessedImage, View},
};

/// What goes through the tower in one run at most, unless a single view has more: it bounds the memory
/// that a run takes.
#[derive(Debug, Clone, Copy)]
struct Limits {
    patches: usize,
    /// In graphs whose inputs have 8 bits and one scale, views that share a run share the scale.
    views: usize,
}

/// A whole tile; larger runs are no faster.
const ON_CPU: Limits = Limits { patches: 1024, views: 4 };
/// Eight tiles, to keep a device busy.
const ELSEWHERE: Limits = Limits { patches: 8192, views: 8 };

/// The vision graphs.
pub(crate) enum Vision {
    /// Tower and projector in one graph.
    Fused(GraphSession),
    /// Two graphs.
    Split { tower: GraphSession, projector: GraphSession },
}

/// The inputs of one run.
struct Batch<'v> {
    /// float32 [views, patches, values].
    pixel_values: ArrayView3<'v, f32>,
    /// int64 [views, patches].
    pixel_attention_mask: Array2<i64>,
    /// int64 [views, 2].
    spatial_shapes: Array2<i64>,
}

impl<'v> Batch<'v> {
    /// Views of one shape, without padding.
    fn of_equals(grid: PatchGrid, views: ArrayView3<'v, f32>) -> Self {
        let count = views.len_of(Axis(0));
        let shape = [grid.rows as i64, grid.cols as i64];
        Batch {
            pixel_values: views,
            pixel_attention_mask: Array2::ones((count, grid.patches())),
            spatial_shapes: Array2::from_shape_fn((count, 2), |(_, axis)| shape[axis]),
        }
    }

    fn inputs(&self) -> ort::Result<Inputs<'_>> {
        Ok(vec![
            ("pixel_values", TensorRef::from_array_view(self.pixel_values)?.into()),
            (
                "pixel_attention_mask",
                TensorRef::from_array_view(&self.pixel_attention_mask)?.into(),
            ),
            ("spatial_shapes", TensorRef::from_array_view(&self.spatial_shapes)?.into()),
        ])
    }
}

impl Vision {
    /// Every session.
    pub(crate) fn sessions(&self) -> Vec<&GraphSession> {
        match self {
            Vision::Fused(encoder) => vec![encoder],
            Vision::Split { tower, projector } => vec![tower, projector],
        }
    }

    /// Image features [tokens, hidden] of all views in order.
    pub(crate) fn run(&self, image: &ProcessedImage) -> Result<Vec<Array2<f32>>, Error> {
        let fixed_size = |axis| self.sessions()[0].fixed_size("pixel_values", axis);
        match (fixed_size(0), fixed_size(1)) {
            (Some(views), Some(patches)) => self.run_padded(image, views, patches),
            _ => self.run_as_they_are(image),
        }
    }

    /// Only views of equal shape share a run, so nothing is padded.
    fn run_as_they_are(&self, image: &ProcessedImage) -> Result<Vec<Array2<f32>>, Error> {
        let on_cpu = self.sessions()[0].provider() == Provider::Cpu.name();
        let limits = if on_cpu { ON_CPU } else { ELSEWHERE };
        let batches: Vec<_> = image
            .groups()
            .flat_map(|(grid, views)| {
                let batch = (limits.patches / grid.patches().max(1)).clamp(1, limits.views);
                let starts = (0..views.len_of(Axis(0))).step_by(batch);
                starts.map(move |start| {
                    let end = views.len_of(Axis(0)).min(start + batch);
                    Batch::of_equals(grid, views.slice_move(s![start..end, .., ..]))
                })
            })
            .collect();
        let last = batches.len().saturating_sub(1);
        let (usual, shrinking) = self.run_options()?;
        let run = |(index, batch): (usize, &Batch<'_>)| {
            let features =
                self.run_batch(batch, if index == last { &shrinking } else { &usual })?;
            features.into_dimensionality::<Ix2>().map_err(|_| self.shape_error("a matrix"))
        };
        batches.iter().enumerate().map(run).collect()
    }

    /// Batches of `count` views of `patches` patches, for graphs that take no others. Where views are
    /// missing, the last one comes again.
    fn run_padded(
        &self,
        image: &ProcessedImage,
        count: usize,
        patches: usize,
    ) -> Result<Vec<Array2<f32>>, Error> {
        let views: Vec<View<'_>> = image.views().collect();
        if let Some(view) = views.iter().find(|view| view.grid.patches() > patches) {
            return Err(Error::TooManyPatches { view: view.grid.patches(), graph: patches });
        }
        let options = self.sessions()[0].with(|_| RunOptions::new())?;
        let mut all = Vec::new();
        for batch in views.chunks(count) {
            let again = repeat_n(batch.last(), count).flatten();
            let filled: Vec<View<'_>> = batch.iter().chain(again).take(count).copied().collect();
            let padded = PaddedViews::new(&filled, patches);
            let features = self.run_batch(
                &Batch {
                    pixel_values: padded.pixel_values.view(),
                    pixel_attention_mask: padded.pixel_attention_mask,
                    spatial_shapes: padded.spatial_shapes,
                },
                &options,
            )?;
            let features = features.into_dimensionality::<Ix3>();
            let features = features.map_err(|_| self.shape_error("[views, tokens, size]"))?;
            for (view, features) in batch.iter().zip(features.outer_iter()) {
                // Tokens are to patches as in the whole graph.
                let tokens = view.grid.patches() * features.nrows() / patches;
                all.push(features.slice(s![..tokens, ..]).to_owned());
            }
        }
        Ok(all)
    }

    /// Options of all runs but the last, and of the last one: its memory goes back to the system,
    /// since the decoder needs some next.
    fn run_options(&self) -> Result<(RunOptions, RunOptions), Error> {
        self.sessions()[0].with(|_| {
            let mut shrinking = RunOptions::new()?;
            shrinking.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
            Ok((RunOptions::new()?, shrinking))
        })
    }

    /// Image features as the graph gives them.
    fn run_batch(&self, batch: &Batch<'_>, options: &RunOptions) -> Result<ArrayD<f32>, Error> {
        match self {
            Vision::Fused(encoder) => {
                encoder.with(|session| features(session, batch.inputs()?, options))
            }
            Vision::Split { tower, projector } => {
                let hidden: DynValue = tower.with(|session| {
                    let mut outputs = session.run_with_options(batch.inputs()?, options)?;
                    outputs
                        .remove("last_hidden_state")
                        .ok_or_else(|| ort::Error::new("no output last_hidden_state"))
                })?;
                projector.with(|session| {
                    let shapes = TensorRef::from_array_view(&batch.spatial_shapes)?;
                    let inputs = vec![
                        ("last_hidden_state", hidden.into()),
                        ("spatial_shapes", shapes.into()),
                    ];
                    features(session, inputs, options)
                })
            }
        }
    }

    fn shape_error(&self, expected: &str) -> Error {
        self.sessions()[0].contract_error(format!("image_features is not {expected}"))
    }
}

type Inputs<'v> = Vec<(&'static str, SessionInputValue<'v>)>;

fn features(
    session: &mut Session,
    inputs: Inputs<'_>,
    options: &RunOptions,
) -> ort::Result<ArrayD<f32>> {
    let outputs = session.run_with_options(inputs, options)?;
    Ok(outputs["image_features"].try_extract_array::<f32>()?.to_owned())
}
