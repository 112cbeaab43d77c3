//! `W' = W + scale * (B A)`, some rows at a time. (`Linear` and `Embedding` in peft's
//! `tuners/lora/layer.py`, `DoraLinearVariant` in its `tuners/lora/variants.py`, 0.21.2.)

use std::ops::Range;

use ndarray::Array2;

use super::super::{CHUNK, CheckpointError, StoredTensor, convert};

/// What is added to a tensor as it is read.
#[derive(Debug)]
pub(in super::super) enum Merge {
    /// A product of two factors, for a weight.
    Product(Product),
    /// The second factor's bias, for a bias.
    Bias {
        /// As long as the bias.
        addition: StoredTensor,
        /// What it is multiplied with.
        scale: f32,
    },
}

/// A product of two factors.
#[derive(Debug)]
pub(in super::super) struct Product {
    pub(super) factors: Factors,
    pub(super) rank: usize,
    /// Columns of the weight.
    pub(super) columns: usize,
    /// What the product is multiplied with.
    pub(super) scale: f32,
    /// What each row's length becomes (DoRA, <https://arxiv.org/abs/2402.09353>).
    pub(super) magnitude: Option<StoredTensor>,
}

/// The factors, as they are stored.
#[derive(Debug)]
pub(super) enum Factors {
    /// `B A`: a [rank, columns], b [rows, rank].
    Linear { a: StoredTensor, b: StoredTensor },
    /// `(B A)^T`: a [rank, rows], b [columns, rank].
    Embedding { a: StoredTensor, b: StoredTensor },
}

impl Merge {
    /// Reads elements `range` of the tensor `base`, merged, into `out`.
    pub(in super::super) fn read(
        &self,
        base: &StoredTensor,
        range: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let out = &mut out[..range.len()];
        match self {
            Merge::Product(product) => product.read(base, range.clone(), out)?,
            Merge::Bias { addition, scale } => {
                base.read(range.clone(), out)?;
                let mut values = vec![0.0; range.len()];
                addition.read(range.clone(), &mut values)?;
                for (value, addition) in out.iter_mut().zip(values) {
                    *value += addition * scale;
                }
            }
        }
        match convert::first_not_finite(out) {
            None => Ok(()),
            Some(at) => Err(CheckpointError::NotFinite {
                tensor: format!("{} with its adapter", base.name),
                value: out[at],
                index: range.start + at,
            }),
        }
    }
}

impl Product {
    fn read(
        &self,
        base: &StoredTensor,
        range: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let columns = self.columns;
        let right = self.right()?;
        let rows = range.start / columns..range.end.div_ceil(columns);
        let step = (CHUNK / columns).max(1);
        for first in rows.clone().step_by(step) {
            let block = first..rows.end.min(first + step);
            let elements = block.start * columns..block.end * columns;
            let mut values = matrix(base, elements.clone(), columns)?;
            values += &(self.left(block.clone())?.dot(&right) * self.scale);
            if let Some(magnitude) = &self.magnitude {
                scale_rows(&mut values, magnitude, block)?;
            }
            // The range may begin and end within rows.
            let wanted = elements.start.max(range.start)..elements.end.min(range.end);
            let skipped = wanted.start - elements.start;
            let out = &mut out[wanted.start - range.start..wanted.end - range.start];
            for (out, value) in out.iter_mut().zip(values.iter().skip(skipped)) {
                *out = *value;
            }
        }
        Ok(())
    }

    /// Some rows of the left factor, [rows, rank].
    fn left(&self, rows: Range<usize>) -> Result<Array2<f32>, CheckpointError> {
        match &self.factors {
            Factors::Linear { b, .. } => {
                matrix(b, rows.start * self.rank..rows.end * self.rank, self.rank)
            }
            Factors::Embedding { a, .. } => {
                let mut values = Array2::zeros((rows.len(), self.rank));
                for (i, mut column) in values.columns_mut().into_iter().enumerate() {
                    let start = i * a.shape[1];
                    let row = matrix(a, start + rows.start..start + rows.end, rows.len())?;
                    column.assign(&row.row(0));
                }
                Ok(values)
            }
        }
    }

    /// The right factor, [rank, columns].
    fn right(&self) -> Result<Array2<f32>, CheckpointError> {
        let all = 0..self.rank * self.columns;
        match &self.factors {
            Factors::Linear { a, .. } => matrix(a, all, self.columns),
            Factors::Embedding { b, .. } => {
                Ok(matrix(b, all, self.rank)?.t().as_standard_layout().into_owned())
            }
        }
    }
}

/// Gives each row the length that `magnitude` has for it.
fn scale_rows(
    values: &mut Array2<f32>,
    magnitude: &StoredTensor,
    rows: Range<usize>,
) -> Result<(), CheckpointError> {
    let mut lengths = vec![0.0; rows.len()];
    magnitude.read(rows, &mut lengths)?;
    for (mut row, length) in values.rows_mut().into_iter().zip(lengths) {
        let squares: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
        let factor = length / squares.sqrt() as f32;
        row.mapv_inplace(|value| factor * value);
    }
    Ok(())
}

/// Elements of a tensor as rows of so many columns.
fn matrix(
    tensor: &StoredTensor,
    range: Range<usize>,
    columns: usize,
) -> Result<Array2<f32>, CheckpointError> {
    let mut values = vec![0.0; range.len()];
    tensor.read(range.clone(), &mut values)?;
    Array2::from_shape_vec((range.len() / columns, columns), values)
        .map_err(|_| CheckpointError::MissingTensor(tensor.name.clone()))
}
