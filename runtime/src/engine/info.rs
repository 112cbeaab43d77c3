//! What is known of the graphs that an engine has loaded.

use lfm2vl_graphs::{Graph, Precision};

use super::Model;
use crate::backend::{Assignment, DeviceMemory, GraphSession, HOST, Outlet, Skipped};

/// One input or output of a loaded graph.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type and shape, as ONNX Runtime prints them.
    pub r#type: String,
}

/// A loaded graph.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct GraphInfo {
    /// Which graph.
    pub graph: Graph,
    /// The precision that was loaded.
    pub precision: Precision,
    /// Its inputs.
    pub inputs: Vec<TensorInfo>,
    /// Its outputs.
    pub outputs: Vec<TensorInfo>,
    /// Name of the provider that it was opened with.
    pub provider: String,
    /// Providers that were wanted more and could not be used.
    pub skipped: Vec<Skipped>,
    /// What each provider took of it. Nodes that no wanted provider takes run on the CPU.
    pub assignments: Vec<Assignment>,
    /// Where a decoder's state lies between runs, by ONNX Runtime's name of the memory (`Cpu`,
    /// `Cuda`); none for graphs without state.
    pub state_memory: Option<String>,
}

/// All graphs of a model.
pub(super) fn of(model: &Model) -> Vec<GraphInfo> {
    let memory = model.decoder.memory().map_or(HOST, DeviceMemory::name);
    let mut sessions = model.vision.sessions();
    sessions.extend(model.embed_tokens.session());
    sessions.extend(model.decoder.sessions());
    let has_state = |session: &GraphSession| session.graph().weights() == Graph::Decoder;
    let info = |session: &GraphSession| GraphInfo {
        graph: session.graph(),
        precision: session.precision(),
        inputs: tensors(session.inputs()),
        outputs: tensors(session.outputs()),
        provider: session.provider().to_owned(),
        skipped: session.skipped().to_vec(),
        assignments: session.assignments().to_vec(),
        state_memory: has_state(session).then(|| memory.to_owned()),
    };
    sessions.into_iter().map(info).collect()
}

fn tensors(outlets: &[Outlet]) -> Vec<TensorInfo> {
    let info = |outlet: &Outlet| TensorInfo {
        name: outlet.name().to_owned(),
        r#type: outlet.dtype().to_string(),
    };
    outlets.iter().map(info).collect()
}
