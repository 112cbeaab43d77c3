//! The graphs of a model, opened in ONNX Runtime and checked against their contract.

mod check;
mod decoder;
mod embedding;
mod state;
mod vision;

use std::{path::Path, sync::Mutex};

use lfm2vl_graphs::{Graph, Precision, environment};
use ort::{session::Session, value::Outlet};

use crate::{Error, Provider};

pub(crate) use check::{check, dims_of, state_dtype};
pub(crate) use decoder::Decoder;
pub(crate) use embedding::EmbedTokens;
pub(crate) use state::{Checkpoint, DecoderState};
pub(crate) use vision::Vision;

/// One graph in ONNX Runtime.
pub(crate) struct GraphSession {
    graph: Graph,
    precision: Precision,
    /// Running needs exclusive access; a model is shared by its conversations.
    session: Mutex<Session>,
    inputs: Vec<Outlet>,
    outputs: Vec<Outlet>,
}

/// How sessions are opened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SessionOptions {
    pub(crate) provider: Provider,
    /// Threads of one operator; ONNX Runtime's choice when not given.
    pub(crate) threads: Option<usize>,
}

impl GraphSession {
    pub(crate) fn open(
        graph: Graph,
        precision: Precision,
        path: &Path,
        options: SessionOptions,
    ) -> Result<Self, Error> {
        let environment = environment()?;
        let run_error = |error: ort::Error| Error::Run { graph, message: error.to_string() };
        let mut builder = Session::builder(environment).map_err(run_error)?;
        if let Some(threads) = options.threads {
            builder = builder.with_intra_threads(threads).map_err(|e| run_error(e.into()))?;
        }
        let provider_error = |message| Error::Provider { provider: options.provider, message };
        if let Some(dispatch) = options.provider.dispatch().map_err(provider_error)? {
            builder = builder
                .with_execution_providers([dispatch])
                .map_err(|error| provider_error(error.to_string()))?;
        }
        let session = builder.commit_from_file(path).map_err(run_error)?;
        let copied = |outlets: &[Outlet]| -> Vec<Outlet> {
            outlets
                .iter()
                .map(|outlet| Outlet::new(outlet.name(), outlet.dtype().clone()))
                .collect()
        };
        let (inputs, outputs) = (copied(session.inputs()), copied(session.outputs()));
        Ok(GraphSession { graph, precision, session: Mutex::new(session), inputs, outputs })
    }

    pub(crate) fn graph(&self) -> Graph {
        self.graph
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
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
