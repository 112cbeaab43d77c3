//! From float32 rows to the bytes of a graph's initializers.

use std::{
    collections::HashMap,
    fs::File,
    io::{Seek, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use half::{f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::BlockEncoder;
use crate::{checkpoint::read_exact_at, error::ExportError, onnx::Encoding};

/// Makes the encoders of an export, and keeps the results of calibration for them.
pub(crate) struct Quantizer {
    /// Where the scratch file is made: on the disk that has room for the export.
    folder: PathBuf,
    /// Where the parts of a calibrated weight are in the scratch file.
    kept: HashMap<(String, Encoding), Vec<Range<u64>>>,
    /// A file without a name, which goes when this does.
    scratch: Option<File>,
}

/// A weight on its way to one encoding, some rows at a time.
pub(crate) enum Encoder {
    Float32,
    Float16 {
        tensor: String,
        halves: Vec<f16>,
    },
    Blocks(BlockEncoder),
    Columns(ColumnEncoder),
    /// Calibrated before: the initializers.
    Kept(Vec<Vec<u8>>),
}

impl Quantizer {
    pub(crate) fn new(folder: &Path) -> Self {
        Quantizer { folder: folder.to_owned(), kept: HashMap::new(), scratch: None }
    }

    /// Keeps the initializers of a calibrated weight until it is written.
    pub(crate) fn keep(
        &mut self,
        tensor: &str,
        encoding: Encoding,
        parts: Vec<Vec<u8>>,
    ) -> Result<(), ExportError> {
        let path = self.folder.clone();
        let scratch_error = |source| ExportError::Write { path: path.clone(), source };
        let scratch = match self.scratch.take() {
            Some(scratch) => scratch,
            None => tempfile::tempfile_in(&path).map_err(scratch_error)?,
        };
        let file = self.scratch.insert(scratch);
        let mut places = Vec::new();
        for part in parts {
            let start = file.stream_position().map_err(scratch_error)?;
            file.write_all(&part).map_err(scratch_error)?;
            places.push(start..start + part.len() as u64);
        }
        self.kept.insert((tensor.to_owned(), encoding), places);
        Ok(())
    }

    fn kept(&self, tensor: &str, encoding: Encoding) -> Result<Option<Vec<Vec<u8>>>, ExportError> {
        let places = self.kept.get(&(tensor.to_owned(), encoding));
        let (Some(places), Some(file)) = (places, &self.scratch) else { return Ok(None) };
        let read = |place: &Range<u64>| {
            let mut bytes = vec![0; (place.end - place.start) as usize];
            read_exact_at(file, &mut bytes, place.start)
                .map_err(|source| ExportError::Write { path: self.folder.clone(), source })?;
            Ok(bytes)
        };
        places.iter().map(read).collect::<Result<_, ExportError>>().map(Some)
    }

    /// Starts a weight whose rows have `columns` values.
    pub(crate) fn encoder(
        &self,
        tensor: &str,
        encoding: Encoding,
        columns: usize,
    ) -> Result<Encoder, ExportError> {
        if let Some(parts) = self.kept(tensor, encoding)? {
            return Ok(Encoder::Kept(parts));
        }
        Ok(match encoding {
            Encoding::Float32 | Encoding::InPlace(_) => Encoder::Float32,
            Encoding::Float16 => Encoder::Float16 { tensor: tensor.to_owned(), halves: Vec::new() },
            Encoding::Blocks(format) => Encoder::Blocks(BlockEncoder::new(format, columns)),
            Encoding::Columns => Encoder::Columns(ColumnEncoder::new(columns)),
        })
    }
}

impl Encoder {
    /// Takes in whole rows; the bytes that they make of the first initializer, in `buffer` if
    /// need be.
    pub(crate) fn encode<'b>(
        &'b mut self,
        rows: &'b [f32],
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], ExportError> {
        buffer.clear();
        match self {
            Encoder::Float32 => return Ok(little_endian(rows)),
            Encoder::Float16 { tensor, halves } => {
                halves.resize(rows.len(), f16::ZERO);
                halves.convert_from_f32_slice(rows);
                let finite = halves.iter().fold(true, |all, half| all & half.is_finite());
                if !finite {
                    let too_large = rows.iter().zip(&*halves).find(|(_, half)| !half.is_finite());
                    let value = too_large.map_or(0.0, |(value, _)| *value);
                    return Err(ExportError::HalfRange { tensor: tensor.clone(), value });
                }
                return Ok(bytemuck::cast_slice(halves));
            }
            Encoder::Blocks(blocks) => blocks.push(rows, buffer),
            Encoder::Columns(columns) => columns.push(rows),
            Encoder::Kept(_) => {}
        }
        Ok(buffer)
    }

    /// What is left of the first initializer, and the others.
    pub(crate) fn finish(self) -> Vec<Vec<u8>> {
        match self {
            Encoder::Float32 | Encoder::Float16 { .. } => Vec::new(),
            Encoder::Blocks(blocks) => blocks.finish(),
            Encoder::Columns(columns) => columns.finish(),
            Encoder::Kept(parts) => parts,
        }
    }
}

#[cfg(target_endian = "little")]
fn little_endian(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// 8-bit integers with one scale for each row [rows, columns], which become columns.
pub(crate) struct ColumnEncoder {
    columns: usize,
    integers: Vec<i8>,
    scales: Vec<f32>,
}

impl ColumnEncoder {
    fn new(columns: usize) -> Self {
        ColumnEncoder { columns, integers: Vec::new(), scales: Vec::new() }
    }

    fn push(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.columns) {
            let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let scale = largest / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            self.integers.extend(row.iter().map(|x| (x * inverse).round_ties_even() as i8));
            self.scales.push(scale);
        }
    }

    fn finish(self) -> Vec<Vec<u8>> {
        let rows = self.scales.len();
        let mut transposed = vec![0; self.integers.len()];
        transposed.par_chunks_exact_mut(rows.max(1)).enumerate().for_each(|(column, out)| {
            for (row, out) in out.iter_mut().enumerate() {
                *out = self.integers[row * self.columns + column] as u8;
            }
        });
        vec![transposed, little_endian(&self.scales).to_vec()]
    }
}
