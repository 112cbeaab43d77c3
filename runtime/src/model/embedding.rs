//! Token embedding.

use ndarray::{Array2, Axis, Ix3};
use ort::value::{DynTensor, DynTensorValueType, Tensor};

use crate::{
    Error,
    backend::{DeviceMemory, GraphSession, Location, memory_info},
};

const EMBEDDINGS: &str = "inputs_embeds";

/// The token embedding graph.
pub(crate) struct EmbedTokens {
    session: GraphSession,
    /// Where it puts embeddings that the decoder is given as they are; `None` is the host's memory.
    memory: Option<DeviceMemory>,
}

impl EmbedTokens {
    /// The graph, for a decoder whose state is in `decoder`'s memory.
    pub(crate) fn new(
        session: GraphSession,
        decoder: Option<&DeviceMemory>,
    ) -> Result<Self, Error> {
        let memory = session.ask(|session| {
            let location = Location::of_output(session, EMBEDDINGS)?;
            Ok(location.and_then(|location| DeviceMemory::at(location, session)))
        })?;
        Ok(EmbedTokens { session, memory: memory.filter(|memory| Some(memory) == decoder) })
    }

    /// Its session.
    pub(crate) fn session(&self) -> &GraphSession {
        &self.session
    }

    /// Embeddings [ids, hidden], on the host.
    pub(crate) fn run(&mut self, ids: &[u32]) -> Result<Array2<f32>, Error> {
        let embeddings = self.run_in((1, ids.len()), ids, None)?;
        let embeddings = embeddings.try_extract_array::<f32>().ok();
        let embeddings = embeddings.and_then(|e| e.into_dimensionality::<Ix3>().ok());
        embeddings
            .filter(|e| e.len_of(Axis(1)) == ids.len())
            .map(|e| e.index_axis(Axis(0), 0).to_owned())
            .ok_or_else(|| self.session.contract_error("inputs_embeds has not one row for each id"))
    }

    /// Embeddings [rows, ids / rows, hidden] for the decoder.
    pub(crate) fn rows(&mut self, rows: usize, ids: &[u32]) -> Result<DynTensor, Error> {
        let memory = self.memory.clone();
        self.run_in((rows, ids.len() / rows.max(1)), ids, memory.as_ref())
    }

    fn run_in(
        &mut self,
        shape: (usize, usize),
        ids: &[u32],
        memory: Option<&DeviceMemory>,
    ) -> Result<DynTensor, Error> {
        let ids = ids.iter().map(|&id| i64::from(id)).collect();
        let ids = Array2::from_shape_vec(shape, ids);
        let ids = ids.map_err(|_| self.session.contract_error("rows of one length"))?;
        self.session.run(|session| {
            let mut binding = session.create_binding()?;
            binding.bind_input("input_ids", &Tensor::from_array(ids)?)?;
            binding.bind_output_to_device(EMBEDDINGS, &memory_info(memory)?)?;
            let mut outputs = session.run_binding(&binding)?;
            let embeddings = outputs.remove(EMBEDDINGS);
            embeddings
                .ok_or_else(|| ort::Error::new(format!("no output {EMBEDDINGS}")))?
                .downcast::<DynTensorValueType>()
        })
    }
}
