//! Image features, from one fused graph or from tower and projector.

use ndarray::{Array2, ArrayView3, Axis, Ix2};
use ort::{
    session::{Session, SessionInputValue},
    value::{DynValue, TensorRef, Value},
};

use super::GraphSession;
use crate::{
    Error,
    image::{PatchGrid, ProcessedImage},
};

/// Views that go through the tower in one run at most: it bounds the memory that a run takes.
const MAX_BATCH: usize = 4;

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
        let mut features = Vec::new();
        for (grid, views) in image.groups() {
            for views in views.axis_chunks_iter(Axis(0), MAX_BATCH) {
                features.push(self.run_batch(grid, views)?);
            }
        }
        Ok(features)
    }

    fn run_batch(&self, grid: PatchGrid, views: ArrayView3<'_, f32>) -> Result<Array2<f32>, Error> {
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
            Vision::Fused(encoder) => encoder.with(|session| features(session, tower_inputs()?)),
            Vision::Split { tower, projector } => {
                let hidden = tower.with(|session| {
                    let mut outputs = session.run(tower_inputs()?)?;
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
                    features(session, inputs)
                })
            }
        }?;
        features
            .into_dimensionality::<Ix2>()
            .map_err(|_| self.sessions()[0].contract_error("image_features is not a matrix"))
    }
}

type Inputs<'v> = Vec<(&'static str, SessionInputValue<'v>)>;

fn features(session: &mut Session, inputs: Inputs<'_>) -> ort::Result<ndarray::ArrayD<f32>> {
    let outputs = session.run(inputs)?;
    Ok(outputs["image_features"].try_extract_array::<f32>()?.to_owned())
}
