//! ONNX Runtime: sessions, execution providers, and tensors in the memory of a device. Nothing here
//! knows what a graph is for.

mod assignment;
mod copies;
mod memory;
pub(crate) mod provider;
mod session;
mod tensors;

pub use assignment::Assignment;
pub(crate) use memory::{
    DeviceMemory, HOST, Location, has_parts, inputs_on_host, memory_info, new_tensor, on_host,
    overwrite, reads_in_place,
};
pub use session::Skipped;
pub(crate) use session::{GraphSession, Outlet, SessionOptions};
pub(crate) use tensors::{
    Copies, Piece, TensorSlice, TensorView, alias, axis_2, bytes, copy_of, copy_part, cut,
    read_part, shape, slice, swap_within, unwritten, view,
};
