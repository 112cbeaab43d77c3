//! A plain float32 implementation of the model with `ndarray`, written from the reference
//! implementation's definition and from no graph. It is what exported graphs are verified
//! against, so it is short and slow rather than fast: weights are read when they are needed.

mod decoder;
mod ops;
mod projector;
mod vision;

pub use decoder::ReferenceState;

use ndarray::{Array1, Array2, Ix1, Ix2};

use crate::{
    checkpoint::{Checkpoint, CheckpointError, Config},
    exported::{ExportedWeight, ExportedWeights},
};

/// The model of a checkpoint.
pub struct ReferenceModel<'c> {
    checkpoint: &'c Checkpoint,
    /// Weights that take the place of the checkpoint's.
    quantized: Option<&'c ExportedWeights>,
}

impl<'c> ReferenceModel<'c> {
    /// The model whose weights are in `checkpoint`.
    pub fn new(checkpoint: &'c Checkpoint) -> Self {
        ReferenceModel { checkpoint, quantized: None }
    }

    /// The same model with the weights that an exported graph has quantized.
    pub(crate) fn with_quantized(
        checkpoint: &'c Checkpoint,
        weights: Option<&'c ExportedWeights>,
    ) -> Self {
        ReferenceModel { checkpoint, quantized: weights }
    }

    /// The model's config.
    pub fn config(&self) -> &'c Config {
        self.checkpoint.config()
    }

    fn matrix(&self, name: &str) -> Result<Array2<f32>, CheckpointError> {
        if let Some(weight) = self.quantized(name)? {
            return Ok(weight.matrix());
        }
        let array = self.checkpoint.load(name)?;
        array.into_dimensionality::<Ix2>().map_err(|_| missing(name))
    }

    fn quantized(&self, name: &str) -> Result<Option<ExportedWeight>, CheckpointError> {
        let (Some(weights), Some(stored)) = (self.quantized, self.checkpoint.tensor(name)) else {
            return Ok(None);
        };
        let [rows, columns] = stored.shape[..] else { return Ok(None) };
        let read = weights.quantized(name, [rows, columns]);
        read.map_err(|source| CheckpointError::Read { path: stored.path().to_owned(), source })
    }

    fn vector(&self, name: &str) -> Result<Array1<f32>, CheckpointError> {
        let array = self.checkpoint.load(name)?;
        array.into_dimensionality::<Ix1>().map_err(|_| missing(name))
    }

    /// `x W^T + b` with the weights of the linear layer `name`; the bias only where it is stored.
    fn linear(&self, name: &str, x: &Array2<f32>) -> Result<Array2<f32>, CheckpointError> {
        let mut y = x.dot(&self.matrix(&format!("{name}.weight"))?.t());
        let bias = format!("{name}.bias");
        if self.checkpoint.tensor(&bias).is_some() {
            y += &self.vector(&bias)?;
        }
        Ok(y)
    }

    fn layer_norm(
        &self,
        name: &str,
        x: &Array2<f32>,
        epsilon: f32,
    ) -> Result<Array2<f32>, CheckpointError> {
        let weight = self.vector(&format!("{name}.weight"))?;
        let bias = self.vector(&format!("{name}.bias"))?;
        Ok(ops::layer_norm(x, &weight, &bias, epsilon))
    }

    fn rms_norm(
        &self,
        name: &str,
        x: &Array2<f32>,
        epsilon: f32,
    ) -> Result<Array2<f32>, CheckpointError> {
        Ok(ops::rms_norm(x, &self.vector(&format!("{name}.weight"))?, epsilon))
    }
}

fn missing(name: &str) -> CheckpointError {
    CheckpointError::MissingTensor(name.to_owned())
}
