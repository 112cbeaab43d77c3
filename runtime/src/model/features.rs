//! Image features, where the vision graphs give them.

use std::ops::Range;

use ndarray::{Array2, Axis, Ix2, concatenate};
use ort::value::{DynTensor, Tensor};

use crate::backend::{bytes, on_host, shape};

/// Features [tokens, hidden] of an image or of some of its views, in parts [tokens, hidden] of float32 in the
/// host's memory or a device's.
#[derive(Debug, Default)]
pub(crate) struct Features(Vec<DynTensor>);

impl Features {
    /// Those of one tensor [tokens, hidden].
    pub(crate) fn of(tensor: DynTensor) -> Self {
        Features(vec![tensor])
    }

    /// Those of an array [tokens, hidden].
    ///
    /// # Errors
    /// ONNX Runtime's.
    pub(crate) fn of_array(array: Array2<f32>) -> ort::Result<Self> {
        Ok(Features::of(Tensor::from_array(array)?.upcast()))
    }

    /// Adds those of the views that follow.
    pub(crate) fn extend(&mut self, others: Features) {
        self.0.extend(others.0);
    }

    /// How many there are.
    pub(crate) fn tokens(&self) -> usize {
        self.0.iter().map(tokens).sum()
    }

    /// Whether each has so many numbers.
    pub(crate) fn are_of(&self, hidden: usize) -> bool {
        self.0.iter().all(|part| matches!(shape(part)[..], [_, size] if size == hidden))
    }

    /// Whether they are in the host's memory.
    pub(crate) fn are_on_host(&self) -> bool {
        self.0.iter().all(|part| part.memory_info().is_cpu_accessible())
    }

    /// Bytes of all.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(bytes).sum()
    }

    /// The parts that some of them are in, each with the place of the first in its part and how many there are.
    pub(super) fn within(
        &self,
        rows: Range<usize>,
    ) -> impl Iterator<Item = (&DynTensor, usize, usize)> {
        let mut first = 0;
        self.0.iter().filter_map(move |part| {
            let own = first..first + tokens(part);
            first = own.end;
            let (start, end) = (rows.start.max(own.start), rows.end.min(own.end));
            (start < end).then(|| (part, start - own.start, end - start))
        })
    }

    /// A copy on the host.
    ///
    /// # Errors
    /// ONNX Runtime's.
    pub(crate) fn to_array(&self) -> ort::Result<Array2<f32>> {
        let wrong = || ort::Error::new("image features of another shape");
        let part = |part: &DynTensor| {
            let part = on_host(part)?;
            let part = part.try_extract_array::<f32>()?.to_owned();
            part.into_dimensionality::<Ix2>().map_err(|_| wrong())
        };
        let parts = self.0.iter().map(part).collect::<ort::Result<Vec<_>>>()?;
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        concatenate(Axis(0), &views).map_err(|_| wrong())
    }
}

fn tokens(part: &DynTensor) -> usize {
    shape(part).first().copied().unwrap_or_default()
}
