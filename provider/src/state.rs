//! What the kernels of a session are created with.

use std::sync::atomic::AtomicBool;

use lfm2vl_kernels::Instructions;

pub(crate) struct State {
    pub(crate) instructions: Instructions,
    /// Whether products round their inputs to 8 bits, in any graph of the session. All graphs are claimed
    /// before kernels are created.
    pub(crate) rounds_inputs: AtomicBool,
}
