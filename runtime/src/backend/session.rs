//! One graph in ONNX Runtime, opened with the first provider that can run it.

use std::path::Path;

use lfm2vl_graphs::{Graph, Precision};
use lfm2vl_onnxruntime::{environment, with_cpu};
use ort::{error::ErrorCode, session::Session, value::ValueType};

use super::{
    Assignment, assignment,
    provider::{Provider, Unavailable},
};
use crate::Error;

/// An input or output. That of `ort` cannot go from thread to thread.
#[derive(Debug, Clone)]
pub(crate) struct Outlet {
    name: String,
    dtype: ValueType,
}

impl Outlet {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn dtype(&self) -> &ValueType {
        &self.dtype
    }
}

/// One graph in ONNX Runtime.
pub(crate) struct GraphSession {
    graph: Graph,
    precision: Precision,
    session: Session,
    inputs: Vec<Outlet>,
    outputs: Vec<Outlet>,
    provider: String,
    /// Whether the provider is the CPU.
    is_on_host: bool,
    /// Whether the provider can record runs.
    records: bool,
    skipped: Vec<Skipped>,
    assignments: Vec<Assignment>,
}

/// A provider that could not be used and that another one stands in for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Skipped {
    /// The provider's name.
    pub provider: String,
    /// Why it could not be used, and what to do.
    pub reason: String,
}

/// How sessions are opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionOptions {
    /// What may run the graph, the most wanted first; [`Provider::host`] if there is none. Nodes that a provider
    /// does not take run on the CPU in any case.
    pub(crate) providers: Vec<Provider>,
    /// Threads of one operator; ONNX Runtime's choice when not given.
    pub(crate) threads: Option<usize>,
}

impl GraphSession {
    /// Opens a graph with the first of the providers that can run it.
    pub(crate) fn open(
        graph: Graph,
        precision: Precision,
        path: &Path,
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        let host;
        let wanted = if options.providers.is_empty() {
            host = Provider::host();
            &host
        } else {
            &options.providers
        };
        let (last, others) = wanted.split_last().unwrap_or((&Provider::Cpu, &[]));
        let mut skipped = Vec::new();
        let mut opened = None;
        for candidate in others {
            match open(graph, path, candidate, options.threads) {
                Err(Error::Provider { provider, cause, remedy }) => {
                    skipped.push(Skipped { provider, reason: format!("{cause}; {remedy}") });
                }
                result => {
                    opened = Some((candidate, result?));
                    break;
                }
            }
        }
        let (provider, (session, assignments)) = match opened {
            Some(opened) => opened,
            None => (last, open(graph, path, last, options.threads)?),
        };
        let copied = |outlets: &[ort::value::Outlet]| -> Vec<Outlet> {
            let copy = |outlet: &ort::value::Outlet| Outlet {
                name: outlet.name().to_owned(),
                dtype: outlet.dtype().clone(),
            };
            outlets.iter().map(copy).collect()
        };
        Ok(GraphSession {
            graph,
            precision,
            inputs: copied(session.inputs()),
            outputs: copied(session.outputs()),
            session,
            provider: provider.name(),
            is_on_host: provider.is_host(),
            records: provider.records(),
            skipped,
            assignments,
        })
    }

    pub(crate) fn graph(&self) -> Graph {
        self.graph
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Name of the provider that it was opened with.
    pub(crate) fn provider(&self) -> &str {
        &self.provider
    }

    /// Whether the provider is the CPU.
    pub(crate) fn is_on_host(&self) -> bool {
        self.is_on_host
    }

    /// Those that could not be used.
    pub(crate) fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Which provider took what.
    pub(crate) fn assignments(&self) -> &[Assignment] {
        &self.assignments
    }

    /// Whether the CPU has a node of this operator.
    pub(crate) fn has_on_cpu(&self, operator: &str) -> bool {
        let cpu = Provider::Cpu.ep_names();
        let mut on_cpu = self.assignments.iter().filter(|a| cpu.contains(&a.provider));
        on_cpu.any(|assignment| assignment.operators.contains_key(operator))
    }

    pub(crate) fn inputs(&self) -> &[Outlet] {
        &self.inputs
    }

    pub(crate) fn has_input(&self, name: &str) -> bool {
        self.inputs.iter().any(|input| input.name() == name)
    }

    /// The size of one axis of an input, where the graph fixes it.
    pub(crate) fn fixed_size(&self, input: &str, axis: usize) -> Option<usize> {
        let input = self.inputs.iter().find(|outlet| outlet.name() == input)?;
        let size = usize::try_from(*input.dtype().tensor_shape()?.get(axis)?).ok();
        size.filter(|&size| size > 0)
    }

    pub(crate) fn has_output(&self, name: &str) -> bool {
        self.outputs.iter().any(|output| output.name() == name)
    }

    pub(crate) fn outputs(&self) -> &[Outlet] {
        &self.outputs
    }

    /// Whether the provider is to record runs and replay them.
    pub(crate) fn records(&self) -> bool {
        self.records
    }

    /// The result of `ask`, with its error told as this graph's.
    pub(crate) fn ask<T>(&self, ask: impl FnOnce(&Session) -> ort::Result<T>) -> Result<T, Error> {
        ask(&self.session).map_err(|error| Error::of_run(self.graph, error))
    }

    /// The result of `run`, with its error told as this graph's.
    pub(crate) fn run<T>(
        &mut self,
        run: impl FnOnce(&mut Session) -> ort::Result<T>,
    ) -> Result<T, Error> {
        run(&mut self.session).map_err(|error| Error::of_run(self.graph, error))
    }

    pub(crate) fn contract_error(&self, difference: impl Into<String>) -> Error {
        Error::Contract { graph: self.graph, difference: difference.into() }
    }
}

/// Threads wait for work by spinning in a run, but not after it: the next run is often another graph's, whose
/// threads want the same processors.
const STOP_SPINNING: (&str, &str) = ("session.force_spinning_stop", "1");

/// A session with a provider, and what each provider took.
fn open(
    graph: Graph,
    path: &Path,
    provider: &Provider,
    threads: Option<usize>,
) -> Result<(Session, Vec<Assignment>), Error> {
    let environment = environment()?;
    let load_error = |error: ort::Error| Error::of_loading(graph, error);
    let mut builder = Session::builder(environment).map_err(load_error)?;
    if let Some(threads) = threads {
        builder = builder.with_intra_threads(threads).map_err(|e| load_error(e.into()))?;
    }
    for (key, value) in [assignment::RECORD, STOP_SPINNING] {
        builder = builder.with_config_entry(key, value).map_err(|e| load_error(e.into()))?;
    }
    let provider_error = |Unavailable { cause, remedy }| Error::Provider {
        provider: provider.name(),
        cause,
        remedy,
    };
    let is_cpu = *provider == Provider::Cpu;
    if !is_cpu {
        builder = provider.register(environment, builder).map_err(provider_error)?;
    }
    builder = with_cpu(environment, builder).map_err(load_error)?;
    let session = builder.commit_from_file(path).map_err(|error| match error.code() {
        ErrorCode::NoSuchFile | ErrorCode::InvalidProtobuf | ErrorCode::InvalidGraph => {
            load_error(error)
        }
        // ONNX Runtime starts some providers only here.
        _ if !is_cpu => provider_error(provider.failure(error.message())),
        _ => load_error(error),
    })?;
    let assignments = assignment::of(&session).map_err(load_error)?;
    let names = provider.ep_names();
    // Looking up embeddings is little work wherever it is done, and what the project's own kernels leave
    // is where it would be without them.
    let may_take_none = graph == Graph::EmbedTokens || provider.is_host();
    let takes_any = assignments.iter().any(|assignment| names.contains(&assignment.provider));
    if !takes_any && !may_take_none {
        return Err(provider_error(Unavailable {
            cause: format!("it takes no node of {graph}"),
            remedy: "export with a recipe whose operators it has, or let the CPU run this graph",
        }));
    }
    Ok((session, assignments))
}
