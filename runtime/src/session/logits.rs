//! What a run of the decoder says of the next token.

use std::sync::Arc;

use ndarray::{Ix3, s};
use ort::{
    session::SessionOutputs,
    value::{DynTensor, DynTensorValueType},
};

use super::memory::on_host;

pub(super) const LOGITS: &str = "logits";
/// The largest logits in order, and the tokens that have them, where a graph tells.
pub(super) const CANDIDATES: [&str; 2] = ["candidate_logits", "candidate_ids"];

/// Logits after one position. On a device they stay there until they are asked for.
pub(crate) struct Logits {
    /// [rows, positions, vocab].
    run: Arc<DynTensor>,
    row: usize,
    position: usize,
    /// The most likely tokens and their logits, the largest first.
    candidates: Option<Vec<(u32, f32)>>,
}

impl Logits {
    /// Those of the last `keep` positions, row after row.
    pub(super) fn of_run(
        outputs: &mut SessionOutputs<'_>,
        keep: usize,
        has_candidates: bool,
    ) -> ort::Result<Vec<Self>> {
        let mut tensor = |name: &str| -> ort::Result<DynTensor> {
            let output = outputs.remove(name);
            output
                .ok_or_else(|| ort::Error::new(format!("no output {name}")))?
                .downcast::<DynTensorValueType>()
        };
        let run = tensor(LOGITS)?;
        let &[rows, positions, _] = &run.shape()[..] else {
            return Err(ort::Error::new("logits are not [batch, positions, vocab]"));
        };
        let (rows, positions) = (rows.max(0) as usize, positions.max(0) as usize);
        let first = positions.checked_sub(keep);
        let first = first.ok_or_else(|| ort::Error::new("logits have too few positions"))?;
        let candidates = match has_candidates {
            true => Some((tensor(CANDIDATES[0])?, tensor(CANDIDATES[1])?)),
            false => None,
        };
        let candidates = match &candidates {
            Some((logits, ids)) => Some((on_host(logits)?, on_host(ids)?)),
            None => None,
        };
        let run = Arc::new(run);
        let places = (0..rows).flat_map(|row| (first..positions).map(move |at| (row, at)));
        places
            .map(|(row, position)| {
                let candidates = match &candidates {
                    Some((logits, ids)) => Some(candidates_at(row, position, logits, ids)?),
                    None => None,
                };
                Ok(Logits { run: Arc::clone(&run), row, position, candidates })
            })
            .collect()
    }

    /// Those of the whole vocabulary.
    pub(crate) fn all(&self) -> ort::Result<Vec<f32>> {
        let run = on_host(&self.run)?;
        let run = run.try_extract_array::<f32>()?.into_dimensionality::<Ix3>();
        let run = run.map_err(|_| ort::Error::new("logits are not [batch, positions, vocab]"))?;
        Ok(run.slice(s![self.row, self.position, ..]).to_vec())
    }

    /// The most likely tokens and their logits, the largest first, where the graph tells.
    pub(crate) fn candidates(&self) -> Option<&[(u32, f32)]> {
        self.candidates.as_deref()
    }
}

/// Of candidates [rows, positions, count], those after one position.
fn candidates_at(
    row: usize,
    position: usize,
    logits: &DynTensor,
    ids: &DynTensor,
) -> ort::Result<Vec<(u32, f32)>> {
    let (logits, ids) = (logits.try_extract_array::<f32>()?, ids.try_extract_array::<i64>()?);
    let has_place = |shape: &[usize]| matches!(*shape, [rows, positions, _] if row < rows && position < positions);
    if !has_place(logits.shape()) || logits.shape() != ids.shape() {
        return Err(ort::Error::new("candidates are not [batch, positions, count]"));
    }
    let logits = logits.slice(s![row, position, ..]);
    let ids = ids.slice(s![row, position, ..]);
    Ok(ids.iter().map(|&id| id as u32).zip(logits.iter().copied()).collect())
}
