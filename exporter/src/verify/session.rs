//! One exported graph, opened in ONNX Runtime with its contract at hand.

use std::{collections::HashMap, path::Path};

use half::f16;
use lfm2vl_graphs::{Dtype, Graph, GraphSpec, environment};
use ndarray::{ArrayD, ArrayView, Dimension};
use ort::{
    session::{Session, SessionInputValue},
    value::Value,
};

use super::VerifyError;

/// An input of a graph.
pub(super) enum Tensor {
    Floats(ArrayD<f32>),
    Ints(ArrayD<i64>),
}

impl Tensor {
    /// A copy of a float array.
    pub(super) fn floats<D: Dimension>(array: &ArrayView<'_, f32, D>) -> Self {
        Tensor::Floats(array.to_owned().into_dyn())
    }

    /// A copy of an integer array.
    pub(super) fn ints<D: Dimension>(array: &ArrayView<'_, i64, D>) -> Self {
        Tensor::Ints(array.to_owned().into_dyn())
    }
}

/// A session for one graph.
pub(super) struct TestSession {
    spec: GraphSpec,
    session: Session,
}

impl TestSession {
    pub(super) fn open(spec: GraphSpec, path: &Path) -> Result<Self, VerifyError> {
        let environment = environment()?;
        let session = Session::builder(environment)
            .and_then(|mut builder| builder.commit_from_file(path))
            .map_err(run_error(spec.graph))?;
        Ok(TestSession { spec, session })
    }

    pub(super) fn spec(&self) -> &GraphSpec {
        &self.spec
    }

    /// Runs the graph; all outputs of the contract by name.
    pub(super) fn run(
        &mut self,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<HashMap<String, ArrayD<f32>>, VerifyError> {
        let run_error = run_error(self.spec.graph);
        let inputs = inputs
            .into_iter()
            .map(|(name, tensor)| {
                let is_half =
                    self.spec.inputs.iter().any(|t| t.name == name && t.dtype == Dtype::Float16);
                let value: SessionInputValue<'static> = match tensor {
                    Tensor::Floats(array) if is_half => {
                        Value::from_array(array.mapv(f16::from_f32)).map_err(&run_error)?.into()
                    }
                    Tensor::Floats(array) => Value::from_array(array).map_err(&run_error)?.into(),
                    Tensor::Ints(array) => Value::from_array(array).map_err(&run_error)?.into(),
                };
                Ok((name, value))
            })
            .collect::<Result<Vec<_>, VerifyError>>()?;
        let outputs = self.session.run(inputs).map_err(&run_error)?;
        self.spec
            .outputs
            .iter()
            .map(|tensor| {
                let output = &outputs[tensor.name.as_str()];
                let array = match tensor.dtype {
                    Dtype::Float16 => {
                        let halves = output.try_extract_array::<f16>().map_err(&run_error)?;
                        halves.mapv(f16::to_f32)
                    }
                    _ => output.try_extract_array::<f32>().map_err(&run_error)?.to_owned(),
                };
                Ok((tensor.name.clone(), array))
            })
            .collect()
    }
}

fn run_error(graph: Graph) -> impl Fn(ort::Error) -> VerifyError {
    move |error| VerifyError::Run { graph, message: error.to_string() }
}
