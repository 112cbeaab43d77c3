//! `OrtEp`: the provider of one session.

use std::{
    ffi::{CString, c_char},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use lfm2vl_kernels::Instructions;
use ort_sys::{OrtGraph, OrtLogger, OrtLoggingLevel, OrtNode, OrtStatusPtr};

use crate::{
    NAME, NONE,
    api::{Api, CreateKernel, Opaque, ProviderTable, VERSION},
    attention,
    compiled::Compiled,
    groups::{self, Group},
    matmul,
    node::{Node, Operator},
    norm,
    state::State,
    status::{self, check},
};

#[repr(C)]
pub(crate) struct Provider {
    table: ProviderTable<Provider>,
    registry: Registry,
    /// What kernels are created with; nothing is claimed without.
    state: Option<Box<State>>,
    logger: *const OrtLogger,
    /// Whether groups of nodes are claimed, and those that were.
    takes_groups: bool,
    groups: Vec<Group>,
}

/// ONNX Runtime's list of the kernels.
struct Registry(*mut Opaque);

impl Provider {
    pub(crate) fn new(
        instructions: Option<Instructions>,
        takes_groups: bool,
        logger: *const OrtLogger,
    ) -> Result<Box<Self>, OrtStatusPtr> {
        let state = instructions.map(|instructions| {
            Box::new(State { instructions, rounds_inputs: AtomicBool::new(false) })
        });
        let registry = Registry::new()?;
        if let Some(state) = &state {
            let state = ptr::from_ref(&**state).cast_mut();
            registry.add(&matmul::OPERATOR, matmul::create, state)?;
            registry.add(&attention::OPERATOR, attention::create, state)?;
            registry.add(&norm::OPERATOR, norm::create, state)?;
        }
        Ok(Box::new(Provider {
            table: ProviderTable {
                version: VERSION,
                name,
                capability,
                compile,
                release_compiled,
                others: [NONE; 8],
                kernel_registry,
                is_concurrent_run_supported,
                newer: [NONE; 16],
            },
            registry,
            state,
            logger,
            takes_groups,
            groups: Vec::new(),
        }))
    }

    /// Claims the nodes of a graph that there are kernels for.
    unsafe fn claim(
        &mut self,
        graph: *const OrtGraph,
        info: *mut Opaque,
    ) -> Result<(), OrtStatusPtr> {
        let Some(state) = &self.state else { return Ok(()) };
        let api = Api::get();
        // SAFETY: ONNX Runtime's.
        unsafe {
            let nodes = Node::all(graph)?;
            let mut claimed = 0;
            for node in &nodes {
                let is_product = matmul::is_supported(node)?;
                if !is_product && !attention::is_supported(node)? && !norm::is_supported(node)? {
                    continue;
                }
                let mut kernel = ptr::null();
                check(((*api.ep).look_up_kernel)(info, node.as_ptr(), &mut kernel))?;
                if !kernel.is_null() {
                    check(((*api.ep).add_single_node)(info, node.as_ptr()))?;
                    claimed += 1;
                    state.rounds_inputs.fetch_or(is_product, Ordering::Relaxed);
                }
            }
            if self.takes_groups && is_main(graph)? {
                for group in groups::find(&nodes)? {
                    let own: Vec<_> = group.nodes.iter().map(|&at| nodes[at].as_ptr()).collect();
                    let add = (*api.ep).add_nodes_to_fuse;
                    check(add(info, own.as_ptr(), own.len(), ptr::null()))?;
                    claimed += own.len();
                    self.groups.push(group);
                }
            }
            if claimed > 0 {
                let (count, instructions) = (nodes.len(), state.instructions);
                self.log(&format!("{claimed} of {count} nodes run with {instructions}"))?;
            }
        }
        Ok(())
    }

    fn log(&self, message: &str) -> Result<(), OrtStatusPtr> {
        if self.logger.is_null() {
            return Ok(());
        }
        let message = CString::new(message).unwrap_or_default();
        // A path's characters have two bytes on Windows; an empty one is the same in both.
        let nowhere = [0u16; 1];
        // SAFETY: ONNX Runtime's logger lives as long as the session.
        check(unsafe {
            ((*Api::get().ort).Logger_LogMessage)(
                self.logger,
                OrtLoggingLevel::ORT_LOGGING_LEVEL_INFO,
                message.as_ptr(),
                nowhere.as_ptr().cast(),
                0,
                c"GetCapability".as_ptr(),
            )
        })
    }
}

/// Whether a graph is in no node of another: ONNX Runtime gives groups of several graphs the same names.
unsafe fn is_main(graph: *const OrtGraph) -> Result<bool, OrtStatusPtr> {
    let mut parent = ptr::null();
    // SAFETY: the caller's; the graph is ONNX Runtime's.
    check(unsafe { ((*Api::get().ort).Graph_GetParentNode)(graph, &mut parent) })?;
    Ok(parent.is_null())
}

unsafe extern "system" fn name(_: *const Provider) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "system" fn capability(
    provider: *mut Provider,
    graph: *const OrtGraph,
    info: *mut Opaque,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's.
    status::of(|| unsafe { (*provider).claim(graph, info) })
}

/// Makes what computes each of the groups that were claimed.
unsafe extern "system" fn compile(
    provider: *mut Provider,
    _graphs: *const *const OrtGraph,
    fused: *const *const OrtNode,
    count: usize,
    out: *mut *mut Opaque,
    _contexts: *mut *mut OrtNode,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's, which releases what was made before a failure.
    status::of(|| unsafe {
        let Some(state) = &(*provider).state else { return Ok(()) };
        for index in 0..count {
            let fused = *fused.add(index);
            let compiled = Compiled::new(state.instructions, &(*provider).groups, fused)?;
            *out.add(index) = Box::into_raw(compiled).cast();
        }
        Ok(())
    })
}

unsafe extern "system" fn release_compiled(
    _: *mut Provider,
    compiled: *mut *mut Opaque,
    count: usize,
) {
    for index in 0..count {
        // SAFETY: from `compile`, and released once.
        unsafe {
            let compiled = (*compiled.add(index)).cast::<Compiled>();
            if !compiled.is_null() {
                drop(Box::from_raw(compiled));
            }
        }
    }
}

unsafe extern "system" fn kernel_registry(
    provider: *mut Provider,
    out: *mut *const Opaque,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's.
    unsafe { *out = (*provider).registry.0 };
    status::OK
}

/// Kernels only read what they have packed.
unsafe extern "system" fn is_concurrent_run_supported(
    _: *mut Provider,
    out: *mut bool,
) -> OrtStatusPtr {
    // SAFETY: ONNX Runtime's.
    unsafe { *out = true };
    status::OK
}

impl Registry {
    fn new() -> Result<Self, OrtStatusPtr> {
        let mut registry = ptr::null_mut();
        // SAFETY: ONNX Runtime's.
        check(unsafe { ((*Api::get().ep).create_kernel_registry)(&mut registry) })?;
        Ok(Registry(registry))
    }

    /// Adds a kernel that is created with `state`, which outlives the registry.
    fn add(
        &self,
        operator: &Operator,
        create: CreateKernel,
        state: *mut State,
    ) -> Result<(), OrtStatusPtr> {
        let ep = Api::get().ep;
        let mut builder = ptr::null_mut();
        let mut definition = ptr::null_mut();
        // SAFETY: ONNX Runtime's; what was made is released on the way out.
        unsafe {
            check(((*ep).create_kernel_def_builder)(&mut builder))?;
            let built = (|| {
                check(((*ep).set_operator_type)(builder, operator.name.as_ptr()))?;
                check(((*ep).set_domain)(builder, operator.domain.as_ptr()))?;
                check(((*ep).set_since_version)(builder, operator.version, operator.version))?;
                check(((*ep).set_execution_provider)(builder, NAME.as_ptr()))?;
                for (name, element) in operator.types {
                    let mut kind = ptr::null();
                    check(((*ep).get_tensor_data_type)(*element, &mut kind))?;
                    check(((*ep).add_type_constraint)(builder, name.as_ptr(), &kind, 1))?;
                }
                check(((*ep).build_kernel_def)(builder, &mut definition))
            })();
            ((*ep).release_kernel_def_builder)(builder);
            built?;
            let added = check(((*ep).add_kernel)(self.0, definition, create, state.cast()));
            ((*ep).release_kernel_def)(definition);
            added
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // SAFETY: made by ONNX Runtime, and released once.
        unsafe { ((*Api::get().ep).release_kernel_registry)(self.0) };
    }
}
