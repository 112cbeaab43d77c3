//! Image features, from one fused graph or from tower and projector.

use std::{iter::repeat_n, ops::Range};

use ndarray::{Array2, ArrayD, ArrayView2, ArrayView3, Axis, Ix2, Ix3, s};
use ort::{
    session::{RunOptions, Session, SessionInputValue},
    value::{DynValue, TensorRef},
};

use crate::{
    Error,
    backend::GraphSession,
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

    /// The views from number `start` on that go through the graphs in one run: views of equal shape, so
    /// that nothing is padded; or as many as graphs of a fixed size take.
    pub(crate) fn views_of_run(&self, image: &ProcessedImage, start: usize) -> Range<usize> {
        let session = self.sessions()[0];
        if let Some(views) = self.fixed_sizes().map(|(views, _)| views) {
            return start..(start + views).min(image.grids().len());
        }
        let limits = if session.is_on_host() { ON_CPU } else { ELSEWHERE };
        let Some(grid) = image.grids().get(start) else { return start..start };
        let equal = image.grids()[start..].iter().take_while(|other| *other == grid).count();
        // Always counted from the first of them, so that an image has the same runs each time.
        let most = (limits.patches / grid.patches().max(1)).clamp(1, limits.views);
        start..start + equal.min(most)
    }

    /// Options of a run over `views`. After the last one its memory goes back to the system, since the
    /// decoder needs some next.
    pub(crate) fn run_options(
        &self,
        image: &ProcessedImage,
        views: &Range<usize>,
    ) -> Result<RunOptions, Error> {
        self.sessions()[0].ask(|_| {
            let mut options = RunOptions::new()?;
            if views.end >= image.grids().len() && self.fixed_sizes().is_none() {
                options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
            }
            Ok(options)
        })
    }

    /// Image features [tokens, hidden] of these views in order.
    pub(crate) fn run(
        &mut self,
        image: &ProcessedImage,
        views: Range<usize>,
        options: &RunOptions,
    ) -> Result<Vec<Array2<f32>>, Error> {
        match self.fixed_sizes() {
            Some((count, patches)) => self.run_padded(image, views, (count, patches), options),
            None => self.run_equal(image, views, options),
        }
    }

    fn fixed_sizes(&self) -> Option<(usize, usize)> {
        let fixed_size = |axis| self.sessions()[0].fixed_size("pixel_values", axis);
        fixed_size(0).zip(fixed_size(1))
    }

    /// Views of equal shape.
    fn run_equal(
        &mut self,
        image: &ProcessedImage,
        views: Range<usize>,
        options: &RunOptions,
    ) -> Result<Vec<Array2<f32>>, Error> {
        let Some(&grid) = image.grids().get(views.start) else { return Ok(Vec::new()) };
        let first: usize = image.grids()[..views.start].iter().map(|grid| grid.patches()).sum();
        let patches = first..first + views.len() * grid.patches();
        let shape = (views.len(), grid.patches(), image.patches().ncols());
        let patches = image.patches().slice(s![patches, ..]).into_shape_with_order(shape);
        let patches = patches.map_err(|_| self.shape_error("of contiguous patches"))?;
        let features = self.run_batch(&Batch::of_equals(grid, patches), options)?;
        let features = features.into_dimensionality::<Ix2>();
        Ok(vec![features.map_err(|_| self.shape_error("a matrix"))?])
    }

    /// Views in a batch of `count` views of `patches` patches, for graphs that take no others. Where
    /// views are missing, the last one comes again.
    fn run_padded(
        &mut self,
        image: &ProcessedImage,
        views: Range<usize>,
        (count, patches): (usize, usize),
        options: &RunOptions,
    ) -> Result<Vec<Array2<f32>>, Error> {
        let batch: Vec<View<'_>> = image.views().skip(views.start).take(views.len()).collect();
        if let Some(view) = batch.iter().find(|view| view.grid.patches() > patches) {
            return Err(Error::TooManyPatches { view: view.grid.patches(), graph: patches });
        }
        let again = repeat_n(batch.last(), count).flatten();
        let filled: Vec<View<'_>> = batch.iter().chain(again).take(count).copied().collect();
        let padded = PaddedViews::new(&filled, patches)?;
        let inputs = Batch {
            pixel_values: padded.pixel_values.view(),
            pixel_attention_mask: padded.pixel_attention_mask,
            spatial_shapes: padded.spatial_shapes,
        };
        let features = self.run_batch(&inputs, options)?.into_dimensionality::<Ix3>();
        let features = features.map_err(|_| self.shape_error("[views, tokens, size]"))?;
        let of_view = |(view, features): (&View<'_>, ArrayView2<'_, f32>)| {
            // Tokens are to patches as in the whole graph.
            let tokens = view.grid.patches() * features.nrows() / patches;
            features.slice(s![..tokens, ..]).to_owned()
        };
        Ok(batch.iter().zip(features.outer_iter()).map(of_view).collect())
    }

    /// Image features as the graph gives them.
    fn run_batch(&mut self, batch: &Batch<'_>, options: &RunOptions) -> Result<ArrayD<f32>, Error> {
        match self {
            Vision::Fused(encoder) => {
                encoder.run(|session| features(session, batch.inputs()?, options))
            }
            Vision::Split { tower, projector } => {
                let hidden: DynValue = tower.run(|session| {
                    let mut outputs = session.run_with_options(batch.inputs()?, options)?;
                    outputs
                        .remove("last_hidden_state")
                        .ok_or_else(|| ort::Error::new("no output last_hidden_state"))
                })?;
                projector.run(|session| {
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
