//! Image features, from one fused graph or from tower and projector.

use ndarray::{Array2, Ix2};
use ort::{
    session::{Session, SessionInputValue},
    value::{DynValue, Value},
};

use super::GraphSession;
use crate::{
    Error,
    image::{PaddedViews, View},
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
    pub(crate) fn run(&self, views: &[View]) -> Result<Vec<Array2<f32>>, Error> {
        let mut features = Vec::new();
        for same in views.chunk_by(|a, b| a.grid == b.grid) {
            for batch in same.chunks(MAX_BATCH) {
                let batch: Vec<&View> = batch.iter().collect();
                features.push(self.run_batch(PaddedViews::new(&batch, 0))?);
            }
        }
        Ok(features)
    }

    fn run_batch(&self, batch: PaddedViews) -> Result<Array2<f32>, Error> {
        let features = match self {
            Vision::Fused(encoder) => encoder.with(|session| {
                let inputs = tower_inputs(batch)?;
                features(session, inputs)
            }),
            Vision::Split { tower, projector } => {
                let shapes = batch.spatial_shapes.clone();
                let hidden = tower.with(|session| {
                    let mut outputs = session.run(tower_inputs(batch)?)?;
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

type Inputs = Vec<(&'static str, SessionInputValue<'static>)>;

fn tower_inputs(batch: PaddedViews) -> ort::Result<Inputs> {
    Ok(vec![
        ("pixel_values", Value::from_array(batch.pixel_values)?.into()),
        ("pixel_attention_mask", Value::from_array(batch.pixel_attention_mask)?.into()),
        ("spatial_shapes", Value::from_array(batch.spatial_shapes)?.into()),
    ])
}

fn features(session: &mut Session, inputs: Inputs) -> ort::Result<ndarray::ArrayD<f32>> {
    let outputs = session.run(inputs)?;
    Ok(outputs["image_features"].try_extract_array::<f32>()?.to_owned())
}
