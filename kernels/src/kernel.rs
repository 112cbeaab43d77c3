//! What each set of instructions has its own of, and what it is given.

use std::ops::Range;

use crate::{
    PackedWeights,
    pack::{LANES, Shared},
    quantize::{Form, QuantizedRows},
};

/// Groups of a panel: of the weights that many rows are multiplied with at a time.
pub(crate) const PANEL_GROUPS: usize = 2;

/// Results [rows, outputs], and what is added to each row.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    start: Shared<f32>,
    outputs: usize,
    /// [outputs], or null.
    bias: Shared<f32>,
}

impl Output {
    pub(crate) fn new(start: *mut f32, outputs: usize, bias: *mut f32) -> Self {
        Output { start: Shared(start), outputs, bias: Shared(bias) }
    }

    /// One row from the first output of a group on.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize, group: usize) -> *mut f32 {
        self.start.get().wrapping_add(row * self.outputs + group * LANES)
    }

    /// What is added to the outputs from the first of a group on, if there is anything.
    #[inline(always)]
    pub(crate) fn bias(&self, group: usize) -> Option<*const f32> {
        let bias = self.bias.get();
        (!bias.is_null()).then(|| bias.wrapping_add(group * LANES).cast_const())
    }

    /// Outputs of a group that there are: up to 16.
    #[inline(always)]
    pub(crate) fn lanes(&self, group: usize) -> usize {
        self.outputs.saturating_sub(group * LANES).min(LANES)
    }

    /// The same from a later row on.
    pub(crate) fn starting_at(mut self, row: usize) -> Self {
        self.start = Shared(self.row(row, 0));
        self
    }
}

/// Weights that many rows are multiplied with: a few blocks of two groups, as signed integers. Pointers
/// to these are to the first of the blocks.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    /// The first of its groups; the second is the next.
    pub(crate) group: usize,
    /// The blocks of the weights that it has.
    pub(crate) first_block: usize,
    pub(crate) blocks: usize,
    /// Whether these are the last ones.
    pub(crate) is_last: bool,
    /// Results after the blocks before these [rows, groups, 16]. In the output itself they would go
    /// to memory and back, and rows a power of two apart push each other out of the cache.
    pub(crate) sums: *mut f32,
    /// [blocks, block_size / 4, 16, 4] of each group.
    pub(crate) values: [*const i8; PANEL_GROUPS],
    /// [blocks, 16] of each group.
    pub(crate) scales: [*const f32; PANEL_GROUPS],
    /// -128 times the sum of the integers [blocks, 16] of each group: added where 128 was added to
    /// the inputs.
    pub(crate) offsets: [*const i32; PANEL_GROUPS],
    /// Zero points that are not subtracted yet [blocks, 16] of each group, or null.
    pub(crate) points: [*const i8; PANEL_GROUPS],
}

impl Panel {
    /// Results of one row [groups, 16].
    #[inline(always)]
    pub(crate) fn sums(&self, row: usize) -> *mut f32 {
        self.sums.wrapping_add(row * PANEL_GROUPS * LANES)
    }
}

/// Where [`Kernels::unpack`] writes weights of 4 bits, some blocks of one group, as a [`Panel`] has
/// them.
#[derive(Clone, Copy)]
pub(crate) struct Unpacked {
    /// Signed, with the zero points subtracted [blocks, block_size / 4, 16, 4].
    pub(crate) values: *mut i8,
    /// [`Panel::offsets`] [blocks, 16].
    pub(crate) offsets: *mut i32,
    /// [blocks, 16].
    pub(crate) scales: *mut f32,
}

/// The kernels of one set of instructions.
///
/// # Safety
/// Its functions need these instructions, pointers to what their types say, and as many rows and groups
/// as they are told.
pub(crate) unsafe trait Kernels {
    /// Up to how many rows [`few`](Self::few) is the faster one.
    const FEW: usize;
    /// Rows that [`many`](Self::many) computes together.
    const TILE_ROWS: usize;
    /// Whether [`few`](Self::few) takes inputs to which 128 was added, for weights of 8 bits.
    const UNSIGNED_FEW: bool;
    /// Whether [`many`](Self::many) takes inputs to which 128 was added.
    const UNSIGNED_MANY: bool;

    /// Quantizes one row of `inputs` into the row of that index.
    unsafe fn quantize(
        input: *const f32,
        inputs: usize,
        form: Form,
        to: &QuantizedRows,
        row: usize,
    );

    /// Multiplies all rows, at most [`FEW`](Self::FEW), with some groups, which are read once from
    /// memory.
    unsafe fn few(weights: &PackedWeights, groups: Range<usize>, rows: &QuantizedRows, to: &Output);

    /// Unpacks weights of 4 bits.
    unsafe fn unpack(weights: &PackedWeights, group: usize, blocks: Range<usize>, to: Unpacked);

    /// Multiplies some rows, at most [`TILE_ROWS`](Self::TILE_ROWS), with a panel. The results go to
    /// the panel's sums, or to the output where it has the last blocks.
    unsafe fn many(panel: &Panel, rows: &QuantizedRows, range: Range<usize>, to: &Output);

    /// Runs `work` on this thread with what [`many`](Self::many) needs set up.
    fn with_tiles(_block_size: usize, work: impl FnOnce()) {
        work();
    }
}
