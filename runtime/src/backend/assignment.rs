//! Which provider took which nodes of a graph.

use std::{collections::BTreeMap, ffi::CStr, ptr, slice};

use ort::{AsPointer, session::Session, sys};

/// The setting of a session that makes it remember.
pub(super) const RECORD: (&str, &str) = ("session.record_ep_graph_assignment_info", "1");

/// What a provider took of a graph.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Assignment {
    /// ONNX Runtime's name of the provider.
    pub provider: String,
    /// How many parts of the graph it was given; a provider that runs nodes one at a time is given
    /// each by itself.
    pub parts: usize,
    /// Its nodes in all.
    pub nodes: usize,
    /// How many there are of each operator.
    pub operators: BTreeMap<String, usize>,
}

/// What each provider took of a session's graph, after ONNX Runtime's own optimizations.
///
/// # Errors
/// ONNX Runtime's when the session was made without [`RECORD`].
pub(super) fn of(session: &Session) -> ort::Result<Vec<Assignment>> {
    let api = ort::api();
    let mut assignments: BTreeMap<String, Assignment> = BTreeMap::new();
    let (mut parts, mut count) = (ptr::null(), 0);
    // SAFETY: the session is alive, and the outputs are valid for writes. ONNX Runtime keeps what
    // they are set to as long as the session.
    let parts = unsafe {
        let get = api.Session_GetEpGraphAssignmentInfo;
        ort::Error::result_from_status(get(session.ptr(), &raw mut parts, &raw mut count))?;
        list(parts, count)
    };
    for &part in parts {
        let mut name = ptr::null();
        let (mut nodes, mut count) = (ptr::null(), 0);
        // SAFETY: `part` came from ONNX Runtime above, and the outputs are valid for writes.
        let (provider, nodes) = unsafe {
            let get = api.EpAssignedSubgraph_GetEpName;
            ort::Error::result_from_status(get(part, &raw mut name))?;
            let get = api.EpAssignedSubgraph_GetNodes;
            ort::Error::result_from_status(get(part, &raw mut nodes, &raw mut count))?;
            (text(name), list(nodes, count))
        };
        let assignment = assignments.entry(provider.clone()).or_insert_with(|| Assignment {
            provider,
            parts: 0,
            nodes: 0,
            operators: BTreeMap::new(),
        });
        assignment.parts += 1;
        assignment.nodes += nodes.len();
        for &node in nodes {
            *assignment.operators.entry(operator(api, node)?).or_default() += 1;
        }
    }
    Ok(assignments.into_values().collect())
}

/// A node's operator, with its domain where that is not the standard one.
fn operator(api: &sys::OrtApi, node: *const sys::OrtEpAssignedNode) -> ort::Result<String> {
    let (mut domain, mut name) = (ptr::null(), ptr::null());
    // SAFETY: `node` came from ONNX Runtime, and the outputs are valid for writes.
    let (domain, name) = unsafe {
        let get = api.EpAssignedNode_GetDomain;
        ort::Error::result_from_status(get(node, &raw mut domain))?;
        let get = api.EpAssignedNode_GetOperatorType;
        ort::Error::result_from_status(get(node, &raw mut name))?;
        (text(domain), text(name))
    };
    Ok(if domain.is_empty() { name } else { format!("{domain}:{name}") })
}

/// # Safety
/// `items` must be null, or point to `count` values that live as long as what the caller borrows.
unsafe fn list<'a, T>(items: *const T, count: usize) -> &'a [T] {
    if items.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { slice::from_raw_parts(items, count) }
}

/// # Safety
/// `text` must be null or a string that ends with NUL.
unsafe fn text(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
