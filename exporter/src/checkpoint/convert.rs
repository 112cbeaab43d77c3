//! Reading stored weights and converting them to float32.

use std::{fs::File, io, ops::Range};

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::{CHUNK, CheckpointError, StoredDtype, StoredTensor};

impl StoredTensor {
    /// Reads elements `range`, converted to float32, into `out`.
    pub(super) fn read(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
        let size = self.dtype.size();
        let read_error = |source| CheckpointError::Read { path: self.source.path.clone(), source };
        let mut bytes = vec![0; range.len().min(CHUNK) * size];
        for (i, out) in out[..range.len()].chunks_mut(CHUNK).enumerate() {
            let first = range.start + i * CHUNK;
            let bytes = &mut bytes[..out.len() * size];
            let position = self.offset + (first * size) as u64;
            read_exact_at(&self.source.file, bytes, position).map_err(read_error)?;
            to_f32(self.dtype, bytes, out);
            if let Some(at) = first_not_finite(out) {
                return Err(CheckpointError::NotFinite {
                    tensor: self.name.clone(),
                    value: out[at],
                    index: first + at,
                });
            }
        }
        Ok(())
    }
}

/// Fills `bytes` from `position` of the file, whose cursor does not matter.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], position: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, position)
}

/// Fills `bytes` from `position` of the file, whose cursor does not matter.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], position: u64) -> io::Result<()> {
    let mut read = 0;
    while read < bytes.len() {
        let at = position + read as u64;
        match std::os::windows::fs::FileExt::seek_read(file, &mut bytes[read..], at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => read += count,
        }
    }
    Ok(())
}

/// Converts little-endian stored elements to float32.
fn to_f32(dtype: StoredDtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        // The upper half of a float32.
        StoredDtype::Bf16 => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = bf16::from_le_bytes([b[0], b[1]]).to_f32_const();
            }
        }
        StoredDtype::F16 => {
            let halves: Vec<f16> =
                bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            halves.convert_to_f32_slice(out);
        }
        StoredDtype::F32 => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
    }
}

/// Index of the first NaN or infinity.
pub(super) fn first_not_finite(values: &[f32]) -> Option<usize> {
    // Without an early exit this is a few instructions for many values at once.
    let all_finite = values.iter().fold(true, |all, value| all & value.is_finite());
    if all_finite { None } else { values.iter().position(|value| !value.is_finite()) }
}
