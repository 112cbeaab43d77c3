//! Image features, from one fused graph or from tower and projector.

use ndarray::{Array2, ArrayView3, Axis, Ix2, s};
use ort::{
    session::{RunOptions, Session, SessionInputValue},
    value::{DynValue, TensorRef, Value},
};

use super::GraphSession;
use crate::{
    Error,
    image::{PatchGrid, ProcessedImage},
};

/// Patches that go through the tower in one run at most, a whole tile's, unless a view has more: it
/// bounds the memory that a run takes, and larger runs are no faster.
const MAX_PATCHES: usize = 1024;
/// Views that share a run at most. In graphs whose inputs have 8 bits and one scale, they share the
/// scale as well.
const MAX_VIEWS: usize = 4;

/// The vision graphs.
pub(crate) enum Vision {
    /// Tower and projector in one graph.
    Fused(GraphSession),
    /// Two graphs.
    Split { tower: GraphSession, projector: GraphSession },
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
    ///
    /// Only views of equal shape share a run, so nothing is ever padded.
    pub(crate) fn run(&self, image: &ProcessedImage) -> Result<Vec<Array2<f32>>, Error> {
        let batches: Vec<_> = image
            .groups()
            .flat_map(|(grid, views)| {
                let batch = (MAX_PATCHES / grid.patches().max(1)).clamp(1, MAX_VIEWS);
                let starts = (0..views.len_of(Axis(0))).step_by(batch);
                starts.map(move |start| {
                    let end = views.len_of(Axis(0)).min(start + batch);
                    (grid, views.slice_move(s![start..end, .., ..]))
                })
            })
            .collect();
        let last = batches.len().saturating_sub(1);
        let (usual, shrinking) = self.run_options()?;
        let run = |(index, (grid, views))| {
            self.run_batch(grid, views, if index == last { &shrinking } else { &usual })
        };
        batches.into_iter().enumerate().map(run).collect()
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

    fn run_batch(
        &self,
        grid: PatchGrid,
        views: ArrayView3<'_, f32>,
        options: &RunOptions,
    ) -> Result<Array2<f32>, Error> {
        let count = views.len_of(Axis(0));
        let shapes = Array2::from_shape_fn((count, 2), |(_, axis)| {
            [grid.rows as i64, grid.cols as i64][axis]
        });
        let mask = Array2::<i64>::ones((count, grid.patches()));
        let tower_inputs = || -> ort::Result<Inputs<'_>> {
            Ok(vec![
                ("pixel_values", TensorRef::from_array_view(views)?.into()),
                ("pixel_attention_mask", Value::from_array(mask)?.into()),
                ("spatial_shapes", Value::from_array(shapes.clone())?.into()),
            ])
        };
        let features = match self {
            Vision::Fused(encoder) => {
                encoder.with(|session| features(session, tower_inputs()?, options))
            }
            Vision::Split { tower, projector } => {
                let hidden = tower.with(|session| {
                    let mut outputs = session.run_with_options(tower_inputs()?, options)?;
                    outputs
                        .remove("last_hidden_state")
                        .ok_or_else(|| ort::Error::new("no output last_hidden_state"))
                })?;
                projector.with(|session| {
                    let shapes: DynValue = Value::from_array(shapes)?.into_dyn();
                    let inputs = vec![
                        ("last_hidden_state", hidden.into()),
                        ("spatial_shapes", shapes.into()),
                    ];
                    features(session, inputs, options)
                })
            }
        }?;
        features
            .into_dimensionality::<Ix2>()
            .map_err(|_| self.sessions()[0].contract_error("image_features is not a matrix"))
    }
}

type Inputs<'v> = Vec<(&'static str, SessionInputValue<'v>)>;

fn features(
    session: &mut Session,
    inputs: Inputs<'_>,
    options: &RunOptions,
) -> ort::Result<ndarray::ArrayD<f32>> {
    let outputs = session.run_with_options(inputs, options)?;
    Ok(outputs["image_features"].try_extract_array::<f32>()?.to_owned())
}
