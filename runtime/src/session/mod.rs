//! The graphs of a model, opened in ONNX Runtime and checked against their contract.

mod assignment;
mod check;
mod decoder;
mod embedding;
mod state;
mod vision;

use std::{path::Path, sync::Mutex};

use lfm2vl_graphs::{Graph, Precision, environment, with_cpu};
use ort::{error::ErrorCode, session::Session, value::ValueType};

use crate::{Error, Provider, provider::Unavailable};

pub use assignment::Assignment;
pub(crate) use check::{check, dims_of, state_dtype};
pub(crate) use decoder::Decoder;
pub(crate) use embedding::EmbedTokens;
pub(crate) use state::{Checkpoint, DecoderState};
pub(crate) use vision::Vision;

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
    /// Running needs exclusive access; a model is shared by its conversations.
    session: Mutex<Session>,
    inputs: Vec<Outlet>,
    outputs: Vec<Outlet>,
    providers: Vec<Provider>,
    skipped: Vec<Skipped>,
    assignments: Vec<Assignment>,
}

/// A provider that could not be used and that another one stands in for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// The provider's name.
    pub provider: String,
    /// Why it could not be used, and what to do.
    pub reason: String,
}

/// How sessions are opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionOptions {
    /// What may run the graph, the most wanted first. The CPU is among them only if asked for; nodes
    /// that no provider takes run on it in any case.
    pub(crate) providers: Vec<Provider>,
    /// Threads of one operator; ONNX Runtime's choice when not given.
    pub(crate) threads: Option<usize>,
}

impl GraphSession {
    /// Opens a graph with the providers that start, in their order; the others are skipped as long as
    /// there is one behind them.
    pub(crate) fn open(
        graph: Graph,
        precision: Precision,
        path: &Path,
        options: &SessionOptions,
    ) -> Result<Self, Error> {
        let mut providers = options.providers.clone();
        let mut skipped = Vec::new();
        let session = loop {
            match open(graph, path, &providers, options.threads) {
                Ok(session) => break session,
                Err((Some(index), Error::Provider { provider, cause, remedy }))
                    if index + 1 < providers.len() =>
                {
                    providers.remove(index);
                    skipped.push(Skipped { provider, reason: format!("{cause}; {remedy}") });
                }
                Err((_, error)) => return Err(error),
            }
        };
        let copied = |outlets: &[ort::value::Outlet]| -> Vec<Outlet> {
            let copy = |outlet: &ort::value::Outlet| Outlet {
                name: outlet.name().to_owned(),
                dtype: outlet.dtype().clone(),
            };
            outlets.iter().map(copy).collect()
        };
        let (inputs, outputs) = (copied(session.inputs()), copied(session.outputs()));
        let assignments = assignment::of(&session)
            .map_err(|error| Error::Run { graph, message: error.to_string() })?;
        let session = Mutex::new(session);
        Ok(GraphSession {
            graph,
            precision,
            session,
            inputs,
            outputs,
            providers,
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

    /// The providers that it was opened with.
    pub(crate) fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// Those that could not be used.
    pub(crate) fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Which provider took what.
    pub(crate) fn assignments(&self) -> &[Assignment] {
        &self.assignments
    }

    pub(crate) fn inputs(&self) -> &[Outlet] {
        &self.inputs
    }

    fn has_input(&self, name: &str) -> bool {
        self.inputs.iter().any(|input| input.name() == name)
    }

    fn has_output(&self, name: &str) -> bool {
        self.outputs.iter().any(|output| output.name() == name)
    }

    pub(crate) fn outputs(&self) -> &[Outlet] {
        &self.outputs
    }

    /// Gives the session to `run`, whose errors are told as this graph's.
    fn with<T>(&self, run: impl FnOnce(&mut Session) -> ort::Result<T>) -> Result<T, Error> {
        // A panic while a session ran does not make it unusable.
        let mut session = self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        run(&mut session).map_err(|error| self.run_error(&error))
    }

    fn run_error(&self, error: &ort::Error) -> Error {
        Error::Run { graph: self.graph, message: error.to_string() }
    }

    fn contract_error(&self, difference: impl Into<String>) -> Error {
        Error::Contract { graph: self.graph, difference: difference.into() }
    }
}

/// A session with these providers; with an error of a provider comes which one it is.
fn open(
    graph: Graph,
    path: &Path,
    providers: &[Provider],
    threads: Option<usize>,
) -> Result<Session, (Option<usize>, Error)> {
    let environment = environment().map_err(|error| (None, error.into()))?;
    let run_error = |error: ort::Error| (None, Error::Run { graph, message: error.to_string() });
    let mut builder = Session::builder(environment).map_err(run_error)?;
    if let Some(threads) = threads {
        builder = builder.with_intra_threads(threads).map_err(|e| run_error(e.into()))?;
    }
    let (key, value) = assignment::RECORD;
    builder = builder.with_config_entry(key, value).map_err(|e| run_error(e.into()))?;
    let provider_error = |index: usize, Unavailable { cause, remedy }| {
        let provider = providers[index].name();
        (Some(index), Error::Provider { provider, cause, remedy })
    };
    // What stands behind the CPU has nothing left to run.
    let wanted = providers.iter().take_while(|provider| **provider != Provider::Cpu);
    for (index, provider) in wanted.enumerate() {
        builder = provider
            .register(environment, builder)
            .map_err(|unavailable| provider_error(index, unavailable))?;
    }
    builder = with_cpu(environment, builder).map_err(run_error)?;
    builder.commit_from_file(path).map_err(|error| {
        let of_the_file = matches!(
            error.code(),
            ErrorCode::NoSuchFile | ErrorCode::InvalidProtobuf | ErrorCode::InvalidGraph
        );
        match providers.first().filter(|provider| **provider != Provider::Cpu && !of_the_file) {
            // ONNX Runtime starts some providers only here.
            Some(provider) => provider_error(0, provider.failure(error.message())),
            None => run_error(error),
        }
    })
}
