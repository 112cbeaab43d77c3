//! What a run of the decoder says of the next tokens.

use std::{borrow::Cow, cell::OnceCell, marker::PhantomData};

use ort::value::DynTensor;

use crate::{
    backend::{has_parts, on_host, read_part, shape},
    kv_cache::Outputs,
};

pub(super) const LOGITS: &str = "logits";
/// The largest logits in order, and the tokens that have them, where a graph tells.
pub(super) const CANDIDATES: [&str; 2] = ["candidate_logits", "candidate_ids"];

/// Logits of a run. They may lie in memory that the decoder's next run writes to, so they borrow the
/// decoder: nobody can be given the logits of another run.
pub(crate) struct RunLogits<'d> {
    /// [rows, positions, vocab]. On a device they stay there until they are asked for.
    logits: DynTensor,
    sizes: [usize; 3],
    /// The most likely tokens [rows, positions, count] and their logits, the largest first.
    candidates: Option<[DynTensor; 2]>,
    /// Copies of these on the host, once they were asked for.
    copies: OnceCell<[DynTensor; 2]>,
    decoder: PhantomData<&'d mut ()>,
}

/// Logits after one position.
#[derive(Clone, Copy)]
pub(crate) struct Logits<'r> {
    run: &'r RunLogits<'r>,
    row: usize,
    position: usize,
}

impl RunLogits<'_> {
    pub(super) fn of(mut outputs: Outputs) -> ort::Result<Self> {
        let mut take = |name: &str| outputs.remove(name);
        let logits = take(LOGITS).ok_or_else(|| ort::Error::new("no logits"))?;
        let &[rows, positions, vocab] = &shape(&logits)[..] else {
            return Err(ort::Error::new("logits are not [batch, positions, vocab]"));
        };
        let candidates = take(CANDIDATES[0]).zip(take(CANDIDATES[1]));
        let candidates = candidates.map(|(logits, ids)| match shape(&logits)[..] {
            [r, p, _] if (r, p) == (rows, positions) && shape(&logits) == shape(&ids) => {
                Ok([logits, ids])
            }
            _ => Err(ort::Error::new("candidates are not [batch, positions, count]")),
        });
        Ok(RunLogits {
            logits,
            sizes: [rows, positions, vocab],
            candidates: candidates.transpose()?,
            copies: OnceCell::new(),
            decoder: PhantomData,
        })
    }

    /// Candidates on the host: logits and tokens.
    fn candidates_on_host(&self) -> ort::Result<Option<&[DynTensor; 2]>> {
        let Some(candidates) = &self.candidates else { return Ok(None) };
        if self.copies.get().is_none() {
            let [logits, ids] = candidates.each_ref().map(on_host);
            match [logits?, ids?] {
                [Cow::Owned(logits), Cow::Owned(ids)] => drop(self.copies.set([logits, ids])),
                _ => return Ok(Some(candidates)),
            }
        }
        Ok(self.copies.get())
    }

    /// Those of a row, `before_last` positions before the last one.
    ///
    /// # Errors
    /// When the run did not give them.
    pub(crate) fn at(&self, row: usize, before_last: usize) -> ort::Result<Logits<'_>> {
        let [rows, positions, _] = self.sizes;
        match positions.checked_sub(before_last + 1).filter(|_| row < rows) {
            Some(position) => Ok(Logits { run: self, row, position }),
            None => Err(ort::Error::new("logits have too few rows or positions")),
        }
    }
}

impl<'r> Logits<'r> {
    /// Those of the whole vocabulary.
    pub(crate) fn all(&self) -> ort::Result<Cow<'r, [f32]>> {
        let [_, positions, vocab] = self.run.sizes;
        let start = (self.row * positions + self.position) * vocab;
        let range = start..start + vocab;
        if has_parts(&self.run.logits) {
            let mut numbers = vec![0.0; vocab];
            read_part(&self.run.logits, start, &mut numbers)?;
            return Ok(Cow::Owned(numbers));
        }
        match on_host(&self.run.logits)? {
            Cow::Borrowed(tensor) => {
                Ok(Cow::Borrowed(&tensor.try_extract_tensor::<f32>()?.1[range]))
            }
            Cow::Owned(copy) => Ok(Cow::Owned(copy.try_extract_tensor::<f32>()?.1[range].to_vec())),
        }
    }

    /// The most likely token, where the graph tells.
    pub(crate) fn most_likely(&self) -> ort::Result<Option<u32>> {
        let Some([_, ids]) = self.run.candidates_on_host()? else { return Ok(None) };
        let [_, positions, _] = self.run.sizes;
        let start = (self.row * positions + self.position) * shape(ids)[2];
        let (_, ids) = ids.try_extract_tensor::<i64>()?;
        Ok(ids.get(start).map(|&id| id as u32))
    }

    /// The most likely tokens and their logits, the largest first, where the graph tells.
    pub(crate) fn candidates(&self) -> ort::Result<Option<Vec<(u32, f32)>>> {
        let Some([logits, ids]) = self.run.candidates_on_host()? else { return Ok(None) };
        let [_, positions, _] = self.run.sizes;
        let count = shape(ids)[2];
        let start = (self.row * positions + self.position) * count;
        let (_, logits) = logits.try_extract_tensor::<f32>()?;
        let (_, ids) = ids.try_extract_tensor::<i64>()?;
        let of = start..start + count;
        let ids = ids[of.clone()].iter().map(|&id| id as u32);
        Ok(Some(ids.zip(logits[of].iter().copied()).collect()))
    }
}
