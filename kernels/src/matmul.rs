//! Products of rows of inputs with packed weights: what is done by which thread, in which order.

use std::{cell::Cell, ops::Range};

use crate::{
    Bits, Instructions, PackedWeights, Threads,
    buffer::{Buffer, Scratch},
    kernel::{Kernels, Output, PANEL_GROUPS, Panel, Unpacked},
    pack::{LANES, Shared},
    portable,
    quantize::{Form, QuantizedRows},
};

#[cfg(target_arch = "x86_64")]
use crate::{amx, avx2, avx512};

/// Inputs of a panel at a time, where a block is no larger: its integers stay in the first-level cache.
const PANEL_INPUTS: usize = 512;

/// Bytes of quantized inputs at a time, which stay in the second-level cache.
const ROWS_BYTES: usize = 1 << 20;

thread_local! {
    static ROWS: Cell<Buffer> = const { Cell::new(Buffer::empty()) };
    static PANEL: Cell<Buffer> = const { Cell::new(Buffer::empty()) };
}

impl PackedWeights {
    /// `output = input * weights^T + bias`.
    ///
    /// `input` is [rows, inputs] and rounded to 8-bit integers, each block of a row with its own
    /// scale; `bias` is \[outputs\]; `output` is \[rows, outputs\]. A row with a NaN or an infinity gives
    /// NaN. Each row's outputs are the same bits whatever the instructions, the threads and the other
    /// rows.
    ///
    /// # Panics
    /// Where the lengths do not fit, or the processor does not have the instructions.
    pub fn multiply(
        &self,
        instructions: Instructions,
        input: &[f32],
        bias: Option<&[f32]>,
        output: &mut [f32],
        threads: &dyn Threads,
    ) {
        let rows = input.len() / self.inputs();
        assert_eq!(input.len(), rows * self.inputs(), "inputs of whole rows");
        assert_eq!(output.len(), rows * self.outputs(), "outputs of as many rows");
        assert!(bias.is_none_or(|bias| bias.len() == self.outputs()), "a bias for each output");
        assert!(instructions.are_available(), "this processor has no {instructions}");
        let bias = bias.map_or(std::ptr::null_mut(), |bias| bias.as_ptr().cast_mut());
        let to = Output::new(output.as_mut_ptr(), self.outputs(), bias);
        let job = Job { weights: self, input: Shared(input.as_ptr().cast_mut()), rows, to };
        match instructions {
            Instructions::Portable => job.run::<portable::Portable>(threads),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => job.run::<avx2::Avx2<avx2::Maddubs>>(threads),
            #[cfg(target_arch = "x86_64")]
            Instructions::AvxVnni => job.run::<avx2::Avx2<avx2::Vnni>>(threads),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => job.run::<avx512::Avx512>(threads),
            #[cfg(target_arch = "x86_64")]
            Instructions::Amx => job.run::<amx::Amx>(threads),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("checked above"),
        }
    }
}

/// One product.
struct Job<'a> {
    weights: &'a PackedWeights,
    input: Shared<f32>,
    rows: usize,
    to: Output,
}

impl Job<'_> {
    fn run<K: Kernels>(&self, threads: &dyn Threads) {
        if self.rows == 0 {
            return;
        }
        if self.rows <= K::FEW {
            return self.few::<K>(threads);
        }
        // As many rows at a time as stay in the cache, evenly.
        let most = (ROWS_BYTES / QuantizedRows::stride(self.weights)).max(K::TILE_ROWS);
        let pieces = self.rows.div_ceil(most);
        for piece in 0..pieces {
            let start = self.rows * piece / pieces;
            let end = self.rows * (piece + 1) / pieces;
            self.many::<K>(start..end, threads);
        }
    }

    fn few<K: Kernels>(&self, threads: &dyn Threads) {
        let weights = self.weights;
        let form = Form::few(weights.bits(), K::UNSIGNED_FEW);
        let mut scratch = Scratch::take(&ROWS, QuantizedRows::bytes(weights, self.rows));
        let rows = QuantizedRows::within(weights, self.rows, scratch.as_mut_ptr());
        for row in 0..self.rows {
            self.quantize::<K>(row, form, &rows, row);
        }
        // Several groups are read side by side: where that is not possible for the last ones, it
        // costs little. More parts than threads, for a thread that comes late.
        let units = weights.groups().div_ceil(4);
        let parts = units.min(2 * threads.count());
        threads.run(parts, &|part| {
            let start = units * part / parts * 4;
            let end = (units * (part + 1) / parts * 4).min(weights.groups());
            // SAFETY: the instructions were checked, all rows are quantized, and no other part has
            // these groups.
            unsafe { K::few(weights, start..end, &rows, &self.to) };
        });
    }

    fn many<K: Kernels>(&self, range: Range<usize>, threads: &dyn Threads) {
        let weights = self.weights;
        let form = Form::many(weights.bits(), K::UNSIGNED_MANY);
        let count = range.len();
        // Tiles of AMX read whole ones.
        let room = count.next_multiple_of(K::TILE_ROWS);
        let mut scratch = Scratch::take(&ROWS, QuantizedRows::bytes(weights, room));
        let mut rows = QuantizedRows::within(weights, room, scratch.as_mut_ptr());
        rows.rows = count;
        let parts = count.div_ceil(8).min(4 * threads.count());
        threads.run(parts, &|part| {
            for row in count * part / parts..count * (part + 1) / parts {
                self.quantize::<K>(range.start + row, form, &rows, row);
            }
        });
        let to = self.to.starting_at(range.start);
        let panels = weights.groups().div_ceil(PANEL_GROUPS);
        let parts = panels.min(8 * threads.count());
        threads.run(parts, &|part| {
            K::with_tiles(weights.block_size(), || {
                for panel in panels * part / parts..panels * (part + 1) / parts {
                    multiply_panel::<K>(weights, panel * PANEL_GROUPS, &rows, &to);
                }
            });
        });
    }

    fn quantize<K: Kernels>(&self, row: usize, form: Form, to: &QuantizedRows, to_row: usize) {
        let inputs = self.weights.inputs();
        // SAFETY: the instructions were checked; the input has this row, and `to` has room for it.
        unsafe {
            let input = self.input.get().add(row * inputs).cast_const();
            K::quantize(input, inputs, form, to, to_row);
        }
    }
}

/// Multiplies all rows with two groups.
fn multiply_panel<K: Kernels>(
    weights: &PackedWeights,
    group: usize,
    rows: &QuantizedRows,
    to: &Output,
) {
    let (blocks, block_size) = (weights.blocks(), weights.block_size());
    let at_once = (PANEL_INPUTS / block_size).clamp(1, blocks);
    let sums_bytes = rows.rows * PANEL_GROUPS * LANES * size_of::<f32>();
    let values_bytes = at_once * block_size * LANES;
    let floats_bytes = at_once * LANES * size_of::<f32>();
    let unpacked_bytes = values_bytes + 2 * floats_bytes;
    let unpacked = match weights.bits() {
        Bits::Four => PANEL_GROUPS * unpacked_bytes,
        Bits::Eight => 0,
    };
    let mut scratch = Scratch::take(&PANEL, sums_bytes + unpacked);
    let sums = scratch.as_mut_ptr().cast();
    let memory = scratch.as_mut_ptr().wrapping_add(sums_bytes);
    let mut first = 0;
    while first < blocks {
        let last = (first + at_once).min(blocks);
        let mut panel = Panel {
            group,
            first_block: first,
            blocks: last - first,
            is_last: last == blocks,
            sums,
            values: [std::ptr::null(); PANEL_GROUPS],
            scales: [std::ptr::null(); PANEL_GROUPS],
            offsets: [std::ptr::null(); PANEL_GROUPS],
            points: [std::ptr::null(); PANEL_GROUPS],
        };
        for slot in 0..PANEL_GROUPS {
            // A group that is not there is computed as the one before, and not written.
            let group = (group + slot).min(weights.groups() - 1);
            let (start, record) = (weights.group(group), weights.record());
            let at = first * LANES;
            match weights.bits() {
                // SAFETY: there is room for each group's integers, offsets and scales.
                Bits::Four => unsafe {
                    let values = memory.add(slot * unpacked_bytes);
                    let offsets = values.add(values_bytes);
                    let to = Unpacked {
                        values: values.cast(),
                        offsets: offsets.cast(),
                        scales: offsets.add(floats_bytes).cast(),
                    };
                    K::unpack(weights, group, first..last, to);
                    panel.values[slot] = to.values;
                    panel.offsets[slot] = to.offsets;
                    panel.scales[slot] = to.scales;
                },
                // SAFETY: within the group's record.
                Bits::Eight => unsafe {
                    panel.values[slot] = start.add(first * block_size * LANES).cast();
                    panel.scales[slot] = start.add(record.scales).cast::<f32>().add(at);
                    panel.offsets[slot] = start.add(record.offsets).cast::<i32>().add(at);
                    if record.points > 0 {
                        panel.points[slot] = start.add(record.points).cast::<i8>().add(at);
                    }
                },
            }
        }
        for start in (0..rows.rows).step_by(K::TILE_ROWS) {
            let end = (start + K::TILE_ROWS).min(rows.rows);
            // SAFETY: the instructions were checked, and no other part has this panel's groups.
            unsafe { K::many(&panel, rows, start..end, to) };
        }
        first = last;
    }
}
