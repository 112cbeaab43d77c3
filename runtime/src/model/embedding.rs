//! Token embedding, by a graph of its own or by the decoder.

use std::ops::Range;

use lfm2vl_graphs::Graph;
use ndarray::{Array2, Array3, Ix3, s};
use ort::value::{DynTensor, DynTensorValueType, Tensor, TensorElementType};

use super::{features::Features, tokens::Tokens};
use crate::{
    Error,
    backend::{
        DeviceMemory, GraphSession, Location, TensorSlice, copy_part, memory_info, on_host, shape,
        slice, unwritten,
    },
};

const EMBEDDINGS: &str = "inputs_embeds";

/// What looks up the embeddings of tokens.
pub(crate) enum EmbedTokens {
    Graph(EmbedGraph),
    /// The decoder, which is given tokens, and embeddings of `hidden` numbers only of what is none.
    Decoder {
        hidden: usize,
        /// Where its state is; `None` is the host's memory.
        memory: Option<DeviceMemory>,
    },
}

/// The token embedding graph.
pub(crate) struct EmbedGraph {
    session: GraphSession,
    /// Where it puts embeddings that the decoder is given as they are; `None` is the host's memory.
    memory: Option<DeviceMemory>,
    /// Whether that is where the decoder's state is.
    is_beside_state: bool,
}

impl EmbedTokens {
    /// The graph, for a decoder whose state is in `decoder`'s memory.
    pub(crate) fn of_graph(
        session: GraphSession,
        decoder: Option<&DeviceMemory>,
    ) -> Result<Self, Error> {
        let memory = session.ask(|session| {
            let location = Location::of_output(session, EMBEDDINGS)?;
            Ok(location.and_then(|location| DeviceMemory::at(location, session)))
        })?;
        let memory = memory.filter(|memory| Some(memory) == decoder);
        let is_beside_state = memory.as_ref() == decoder;
        Ok(EmbedTokens::Graph(EmbedGraph { session, memory, is_beside_state }))
    }

    /// The session of the graph, if there is one.
    pub(crate) fn session(&self) -> Option<&GraphSession> {
        match self {
            EmbedTokens::Graph(graph) => Some(&graph.session),
            EmbedTokens::Decoder { .. } => None,
        }
    }

    /// Embeddings of the tokens of a prompt.
    pub(crate) fn prompt(&mut self, ids: &[u32]) -> Result<Embeddings, Error> {
        let memory = self.prompt_memory().cloned();
        match self {
            EmbedTokens::Graph(graph) => {
                let tensor = graph.run((1, ids.len()), ids, Place::Memory(memory.as_ref()))?;
                match shape(&tensor)[..] {
                    [1, tokens, _] if tokens == ids.len() => Ok(Embeddings::of(tensor)),
                    _ => {
                        let difference = "inputs_embeds has not one row for each id";
                        Err(graph.session.contract_error(difference))
                    }
                }
            }
            EmbedTokens::Decoder { hidden, .. } => {
                let sizes = [1, ids.len(), *hidden];
                let tensor = unwritten(TensorElementType::Float32, &sizes, memory.as_ref());
                let tensor = tensor.map_err(|error| Error::of_run(Graph::Decoder, error))?;
                let ids = ids.iter().map(|&id| i64::from(id)).collect();
                Ok(Embeddings { tensor, ids: Some(ids) })
            }
        }
    }

    /// Where the embeddings of prompts are: image features cannot be written into a part of memory without
    /// addresses.
    pub(crate) fn prompt_memory(&self) -> Option<&DeviceMemory> {
        let (EmbedTokens::Graph(EmbedGraph { memory, .. }) | EmbedTokens::Decoder { memory, .. }) =
            self;
        memory.as_ref().filter(|memory| memory.has_addresses())
    }

    /// The next tokens of each of `rows` sequences, for the decoder's next step. Their embeddings are written
    /// where it reads them, if that is known.
    ///
    /// # Safety
    /// What was written there must not be used longer than whoever lent the place keeps it.
    pub(crate) unsafe fn step<'i>(
        &mut self,
        rows: usize,
        ids: &'i [u32],
        into: Option<TensorSlice<'_>>,
    ) -> Result<Tokens<'i>, Error> {
        let EmbedTokens::Graph(graph) = self else { return Ok(Tokens::Ids(ids)) };
        let memory = graph.memory.clone();
        let place = match into.filter(|_| graph.is_beside_state) {
            Some(tensor) => Place::Tensor(tensor),
            None => Place::Memory(memory.as_ref()),
        };
        graph.run((rows, ids.len() / rows.max(1)), ids, place).map(Tokens::Embeddings)
    }
}

impl EmbedGraph {
    /// Embeddings of ids of that shape.
    fn run(
        &mut self,
        shape: (usize, usize),
        ids: &[u32],
        mut place: Place<'_>,
    ) -> Result<DynTensor, Error> {
        let ids = ids.iter().map(|&id| i64::from(id)).collect();
        let ids = Array2::from_shape_vec(shape, ids);
        let ids = ids.map_err(|_| self.session.contract_error("rows of one length"))?;
        self.session.run(|session| {
            let mut binding = session.create_binding()?;
            binding.bind_input("input_ids", &Tensor::from_array(ids)?)?;
            match &mut place {
                Place::Memory(memory) => {
                    binding.bind_output_to_device(EMBEDDINGS, &memory_info(*memory)?)?;
                }
                // What comes back is the same memory.
                Place::Tensor(tensor) => {
                    binding.bind_output(EMBEDDINGS, tensor.tensor_mut())?;
                }
            }
            let mut outputs = session.run_binding(&binding)?;
            let embeddings = outputs.remove(EMBEDDINGS);
            embeddings
                .ok_or_else(|| ort::Error::new(format!("no output {EMBEDDINGS}")))?
                .downcast::<DynTensorValueType>()
        })
    }
}

/// Where embeddings are wanted.
enum Place<'p> {
    /// In a new tensor there; `None` is the host's memory.
    Memory(Option<&'p DeviceMemory>),
    Tensor(TensorSlice<'p>),
}

/// Embeddings of the tokens of a prompt, where the decoder reads them.
pub(crate) struct Embeddings {
    /// [1, tokens, hidden].
    tensor: DynTensor,
    /// Those that the decoder looks up, whose rows of the tensor were not written; the others are -1.
    ids: Option<Vec<i64>>,
}

impl Embeddings {
    /// Those of a tensor [1, tokens, hidden].
    pub(crate) fn of(tensor: DynTensor) -> Self {
        Embeddings { tensor, ids: None }
    }

    /// How many tokens there are.
    pub(crate) fn tokens(&self) -> usize {
        shape(&self.tensor).get(1).copied().unwrap_or_default()
    }

    /// Numbers of a token.
    pub(crate) fn hidden(&self) -> usize {
        shape(&self.tensor).get(2).copied().unwrap_or_default()
    }

    /// Writes some image features in place of the tokens from `first` on.
    ///
    /// # Errors
    /// When there are not so many tokens or features, or ONNX Runtime's.
    pub(crate) fn write(
        &mut self,
        mut first: usize,
        features: &Features,
        rows: Range<usize>,
    ) -> ort::Result<()> {
        let hidden = self.hidden();
        if rows.end > features.tokens() {
            return Err(ort::Error::new("image features of fewer tokens"));
        }
        for (part, start, count) in features.within(rows) {
            copy_part(part, start * hidden, &mut self.tensor, first * hidden, count * hidden)?;
            if let Some(ids) = &mut self.ids {
                ids[first..first + count].fill(-1);
            }
            first += count;
        }
        Ok(())
    }

    /// Those of some tokens, where they are.
    ///
    /// # Errors
    /// When there are not so many tokens, or ONNX Runtime's.
    ///
    /// # Safety
    /// A binding that they are bound to must not be used longer than these embeddings live.
    pub(super) unsafe fn part(&mut self, tokens: Range<usize>) -> ort::Result<Tokens<'_>> {
        let hidden = self.hidden();
        let sizes = [1, tokens.len(), hidden];
        // SAFETY: the caller's.
        let part = unsafe { slice(&mut self.tensor, tokens.start * hidden, &sizes)?.into_tensor() };
        Ok(match &self.ids {
            Some(ids) => Tokens::Mixed(&ids[tokens], part),
            None => Tokens::Embeddings(part),
        })
    }

    /// A copy of those of some tokens on the host, followed by zeros: [1, padded, hidden].
    ///
    /// # Errors
    /// When there are not so many tokens, or ONNX Runtime's.
    pub(super) fn padded(&self, tokens: Range<usize>, padded: usize) -> ort::Result<DynTensor> {
        let all = on_host(&self.tensor)?;
        let all = all.try_extract_array::<f32>()?.into_dimensionality::<Ix3>();
        let all = all.map_err(|_| ort::Error::new("embeddings of another rank"))?;
        if tokens.end > all.dim().1 || tokens.len() > padded {
            return Err(ort::Error::new("embeddings of fewer tokens"));
        }
        let mut copy = Array3::zeros((1, padded, all.dim().2));
        copy.slice_mut(s![.., ..tokens.len(), ..]).assign(&all.slice(s![.., tokens, ..]));
        Ok(Tensor::from_array(copy)?.upcast())
    }
}
