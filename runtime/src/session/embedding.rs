//! Token embedding.

use ndarray::{Array2, Array3, Axis, Ix3};
use ort::value::Value;

use super::GraphSession;
use crate::Error;

/// The token embedding graph.
pub(crate) struct EmbedTokens(pub(crate) GraphSession);

impl EmbedTokens {
    /// Embeddings [1, ids, hidden].
    pub(crate) fn run(&self, ids: &[u32]) -> Result<Array3<f32>, Error> {
        let row: Array2<i64> = Array2::from_shape_fn((1, ids.len()), |(_, i)| i64::from(ids[i]));
        let embeddings = self.0.with(|session| {
            let ids = Value::from_array(row)?;
            let outputs = session.run(vec![("input_ids", ids)])?;
            Ok(outputs["inputs_embeds"].try_extract_array::<f32>()?.to_owned())
        })?;
        let embeddings = embeddings.into_dimensionality::<Ix3>().ok();
        embeddings
            .filter(|e| e.len_of(Axis(1)) == ids.len())
            .ok_or_else(|| self.0.contract_error("inputs_embeds has not one row for each id"))
    }
}
