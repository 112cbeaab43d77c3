//! Writing models: the `.onnx` files, and the weights beside them in data files, in one pass over
//! the checkpoint however many models use a weight.

use std::{ops::ControlFlow, path::Path, sync::mpsc, thread};

use prost::Message;
use sha2::{Digest, Sha256};

use super::{
    data::{DataFile, WrittenFile},
    graph::FinishedGraph,
    proto::{DataLocation, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto},
    weight::{Encoding, Part},
};
use crate::{
    checkpoint::{Checkpoint, CheckpointError},
    error::ExportError,
    quantize::Quantizer,
};

/// ONNX IR version; the first with opset 21.
const IR_VERSION: i64 = 10;
const OPSET: i64 = 21;
const MICROSOFT_OPSET: i64 = 1;

/// Data of this many bytes and more goes into a data file.
const EXTERNAL_FROM: usize = 1024;
/// Constants of this many bytes and more do, too.
const EXTERNAL_CONSTANTS_FROM: usize = 1 << 16;
/// Elements converted at a time.
const CHUNK: usize = 1 << 19;

/// One model to be written.
pub(crate) struct Model {
    /// File name without `.onnx`.
    pub(crate) stem: String,
    /// Name of its data file. Models that name the same one share the weights in it.
    pub(crate) data: String,
    pub(crate) graph: FinishedGraph,
    /// What the file says of itself.
    pub(crate) metadata: Vec<(String, String)>,
}

/// Models, and the weights that they need.
pub(crate) struct Plan {
    models: Vec<Model>,
    data_files: Vec<String>,
    /// In the order in which they are written.
    jobs: Vec<Job>,
}

/// Tensors that follow each other, in one encoding in one data file.
struct Job {
    tensors: Vec<String>,
    encoding: Encoding,
    data_file: usize,
    /// Which models use it, and as which initializers. Their sizes are the same.
    uses: Vec<(usize, Vec<Part>)>,
}

impl Plan {
    /// Finds out what is to be written for `models`.
    pub(crate) fn new(models: Vec<Model>) -> Self {
        let mut data_files: Vec<String> = Vec::new();
        let mut jobs: Vec<Job> = Vec::new();
        for (index, model) in models.iter().enumerate() {
            let known = data_files.iter().position(|name| *name == model.data);
            let data_file = known.unwrap_or_else(|| {
                data_files.push(model.data.clone());
                data_files.len() - 1
            });
            for weight in &model.graph.weights {
                let (tensors, encoding) = (weight.tensors.clone(), weight.encoding);
                let is_same = |job: &&mut Job| {
                    (&job.tensors, job.encoding, job.data_file) == (&tensors, encoding, data_file)
                };
                let used = (index, weight.parts.clone());
                match jobs.iter_mut().find(is_same) {
                    Some(job) => job.uses.push(used),
                    None => jobs.push(Job { tensors, encoding, data_file, uses: vec![used] }),
                }
            }
        }
        Plan { models, data_files, jobs }
    }

    /// Bytes of the weights that will be written.
    pub(crate) fn bytes(&self) -> u64 {
        let written = self.jobs.iter().filter(|job| !matches!(job.encoding, Encoding::InPlace(_)));
        let weights: u64 =
            written.flat_map(|job| &job.uses[0].1).map(|part| part.bytes() as u64).sum();
        let constants: u64 = self.large_constants().map(|(_, bytes)| bytes.len() as u64).sum();
        weights + constants
    }

    /// Large constants and their data files, each once.
    fn large_constants(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut all = Vec::new();
        for model in &self.models {
            for constant in &model.graph.proto.initializer {
                let bytes = constant.raw_data.as_deref().unwrap_or_default();
                let known = (&*model.data, bytes);
                if bytes.len() >= EXTERNAL_CONSTANTS_FROM && !all.contains(&known) {
                    all.push(known);
                }
            }
        }
        all.into_iter()
    }

    /// Writes everything into `dir`: for each model its `.onnx` file, and the data file that has its
    /// name.
    ///
    /// `on_bytes` is told of every run of bytes written, and may stop the export.
    pub(crate) fn write(
        mut self,
        checkpoint: &Checkpoint,
        quantizer: &Quantizer,
        dir: &Path,
        on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<WrittenFile>>, ExportError> {
        let mut data_files: Vec<DataFile> =
            self.data_files.iter().map(|name| DataFile::new(dir, name)).collect();
        let mut rounds = Vec::new();
        for round in into_rounds(std::mem::take(&mut self.jobs)) {
            match round[0].encoding {
                Encoding::InPlace(_) => round.iter().for_each(|job| self.refer(job, checkpoint)),
                _ => rounds.push(Round::new(round, checkpoint)),
            }
        }
        let reads: Vec<Read> = rounds.iter().flat_map(|round| round.reads.clone()).collect();
        thread::scope(|scope| {
            let (filled, to_take) = mpsc::sync_channel(1);
            let (give_back, emptied) = mpsc::channel();
            scope.spawn(move || read_ahead(checkpoint, &reads, &filled, &emptied));
            let mut chunks = Chunks { to_take, give_back };
            rounds.into_iter().try_for_each(|round| {
                self.write_round(round, quantizer, &mut chunks, &mut data_files, on_bytes)
            })
        })?;

        self.write_constants(&mut data_files, on_bytes)?;

        let mut written = Vec::new();
        let mut data_files: Vec<Option<DataFile>> = data_files.into_iter().map(Some).collect();
        for model in self.models {
            let content = model_proto(model.graph, model.metadata).encode_to_vec();
            let mut files = vec![write_file(dir, &format!("{}.onnx", model.stem), &content)?];
            let own = format!("{}.onnx_data", model.stem);
            let data_file = self.data_files.iter().position(|name| *name == own);
            if let Some(file) = data_file.and_then(|index| data_files[index].take()) {
                files.extend(file.finish()?);
            }
            written.push(files);
        }
        Ok(written)
    }

    /// Writes the tensors of a round for all of its jobs.
    fn write_round(
        &mut self,
        round: Round,
        quantizer: &Quantizer,
        chunks: &mut Chunks,
        data_files: &mut [DataFile],
        on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), ExportError> {
        let mut outlets: Vec<Outlet> = Vec::new();
        for job in round.jobs {
            let encoding = job.encoding;
            let sink = Sink { job, parts: Vec::new() };
            match outlets.iter_mut().find(|outlet| outlet.encoding == encoding) {
                Some(outlet) => outlet.sinks.push(sink),
                None => outlets.push(Outlet { encoding, sinks: vec![sink], others: Vec::new() }),
            }
        }
        let mut buffer = Vec::new();
        for read in &round.reads {
            let encoder = |outlet: &Outlet| {
                let Read { tensor, columns, .. } = read;
                quantizer.encoder(tensor, outlet.encoding, *columns)
            };
            let mut encoders = outlets.iter().map(encoder).collect::<Result<Vec<_>, _>>()?;
            for _ in 0..read.chunks() {
                let values = chunks.next()?;
                for (encoder, outlet) in encoders.iter_mut().zip(&mut outlets) {
                    let bytes = encoder.encode(&values, &mut buffer)?;
                    outlet.append(0, bytes, data_files, on_bytes)?;
                }
                chunks.give_back(values);
            }
            for (encoder, outlet) in encoders.into_iter().zip(&mut outlets) {
                let mut parts = encoder.finish().into_iter();
                outlet.append(0, &parts.next().unwrap_or_default(), data_files, on_bytes)?;
                outlet.keep(parts);
            }
        }
        for mut outlet in outlets {
            for (index, bytes) in std::mem::take(&mut outlet.others).iter().enumerate() {
                outlet.append(1 + index, bytes, data_files, on_bytes)?;
            }
            for sink in outlet.sinks {
                let file = &self.data_files[sink.job.data_file];
                for (model, parts) in &sink.job.uses {
                    let initializers = &mut self.models[*model].graph.proto.initializer;
                    let places = parts.iter().zip(&sink.parts);
                    initializers.extend(places.map(|(part, place)| place.initializer(part, file)));
                }
            }
        }
        Ok(())
    }

    /// Moves large constants to the data files.
    fn write_constants(
        &mut self,
        data_files: &mut [DataFile],
        on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), ExportError> {
        let mut moved: Vec<(usize, Vec<u8>, Place)> = Vec::new();
        for model in &mut self.models {
            let Some(file) = self.data_files.iter().position(|name| *name == model.data) else {
                continue;
            };
            for constant in &mut model.graph.proto.initializer {
                let is_large = |bytes: &mut Vec<u8>| bytes.len() >= EXTERNAL_CONSTANTS_FROM;
                let Some(bytes) = constant.raw_data.take_if(is_large) else { continue };
                let known = moved.iter().position(|(of, other, _)| (*of, other) == (file, &bytes));
                let index = match known {
                    Some(index) => index,
                    None => {
                        let length = bytes.len();
                        let offset = data_files[file].start(length)?;
                        data_files[file].append(&bytes)?;
                        told(on_bytes, length)?;
                        moved.push((file, bytes, Place::External { offset, length }));
                        moved.len() - 1
                    }
                };
                moved[index].2.fill(constant, &model.data);
            }
        }
        Ok(())
    }

    /// Points models to where the checkpoint itself has a tensor.
    fn refer(&mut self, job: &Job, checkpoint: &Checkpoint) {
        let Some(stored) = checkpoint.tensor(&job.tensors[0]) else { return };
        for (model, parts) in &job.uses {
            for part in parts {
                let place = Place::External { offset: stored.offset, length: part.bytes() };
                let file = stored.file_name();
                let initializer = place.initializer(part, &file);
                self.models[*model].graph.proto.initializer.push(initializer);
            }
        }
    }
}

/// The jobs of the same tensors that are done at a time: one for each data file, which is written front
/// to back.
struct Round {
    reads: Vec<Read>,
    jobs: Vec<Job>,
}

impl Round {
    fn new(jobs: Vec<Job>, checkpoint: &Checkpoint) -> Self {
        let read = |tensor: &String| {
            let shape = checkpoint.tensor(tensor).map_or(&[][..], |stored| &stored.shape);
            let (elements, columns) = (shape.iter().product(), shape.last().copied().unwrap_or(1));
            Read { tensor: tensor.clone(), elements, columns: columns.max(1) }
        };
        Round { reads: jobs[0].tensors.iter().map(read).collect(), jobs }
    }
}

/// Puts jobs into rounds, in order.
fn into_rounds(mut jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut rounds = Vec::new();
    while !jobs.is_empty() {
        let tensors = jobs[0].tensors.clone();
        let mut files = Vec::new();
        let (round, rest) = jobs.into_iter().partition(|job: &Job| {
            let now = job.tensors == tensors && !files.contains(&job.data_file);
            if now {
                files.push(job.data_file);
            }
            now
        });
        rounds.push(round);
        jobs = rest;
    }
    rounds
}

/// A tensor that is to be read.
#[derive(Clone)]
struct Read {
    tensor: String,
    elements: usize,
    columns: usize,
}

impl Read {
    /// Elements that are read at a time: whole rows.
    fn step(&self) -> usize {
        (CHUNK / self.columns).max(1) * self.columns
    }

    fn chunks(&self) -> usize {
        self.elements.div_ceil(self.step())
    }
}

type Chunk = Result<Vec<f32>, CheckpointError>;

/// Reads all tensors, some rows at a time, ahead of those who take them.
fn read_ahead(
    checkpoint: &Checkpoint,
    reads: &[Read],
    filled: &mpsc::SyncSender<Chunk>,
    emptied: &mpsc::Receiver<Vec<f32>>,
) {
    for read in reads {
        for start in (0..read.elements).step_by(read.step()) {
            let end = read.elements.min(start + read.step());
            let mut values = emptied.try_recv().unwrap_or_default();
            values.resize(end - start, 0.0);
            let chunk = checkpoint.read(&read.tensor, start..end, &mut values).map(|()| values);
            // After an error nobody takes any more.
            if filled.send(chunk).is_err() {
                return;
            }
        }
    }
}

/// What was read ahead.
struct Chunks {
    to_take: mpsc::Receiver<Chunk>,
    give_back: mpsc::Sender<Vec<f32>>,
}

impl Chunks {
    fn next(&mut self) -> Result<Vec<f32>, ExportError> {
        let stopped = |_| ExportError::Read {
            path: "the checkpoint".into(),
            source: std::io::Error::other("the reading thread stopped"),
        };
        Ok(self.to_take.recv().map_err(stopped)??)
    }

    /// Lets the memory be used again.
    fn give_back(&self, values: Vec<f32>) {
        // The reader may be done.
        let _ = self.give_back.send(values);
    }
}

/// Where the data of a part is.
enum Place {
    Inline(Vec<u8>),
    External { offset: u64, length: usize },
}

impl Place {
    fn initializer(&self, part: &Part, file: &str) -> TensorProto {
        let mut proto = TensorProto {
            dims: part.shape.iter().map(|&d| d as i64).collect(),
            data_type: part.data_type as i32,
            name: part.name.clone(),
            ..TensorProto::default()
        };
        self.fill(&mut proto, file);
        proto
    }

    /// Says in a tensor where its data is.
    fn fill(&self, proto: &mut TensorProto, file: &str) {
        match self {
            Place::Inline(bytes) => proto.raw_data = Some(bytes.clone()),
            Place::External { offset, length } => {
                let entry = |key: &str, value: String| StringStringEntryProto {
                    key: key.to_owned(),
                    value,
                };
                proto.external_data = vec![
                    entry("location", file.to_owned()),
                    entry("offset", offset.to_string()),
                    entry("length", length.to_string()),
                ];
                proto.data_location = Some(DataLocation::External as i32);
            }
        }
    }
}

/// The jobs of a round that write the same bytes.
struct Outlet {
    encoding: Encoding,
    sinks: Vec<Sink>,
    /// What there is of the initializers after the first, which come behind it in the data files.
    others: Vec<Vec<u8>>,
}

impl Outlet {
    fn append(
        &mut self,
        index: usize,
        bytes: &[u8],
        data_files: &mut [DataFile],
        on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), ExportError> {
        let mut sinks = self.sinks.iter_mut();
        sinks.try_for_each(|sink| sink.append(index, bytes, data_files, on_bytes))
    }

    /// Keeps the initializers of one tensor after the first, behind those of the tensors before it.
    fn keep(&mut self, parts: impl ExactSizeIterator<Item = Vec<u8>>) {
        self.others.resize(parts.len(), Vec::new());
        for (kept, part) in self.others.iter_mut().zip(parts) {
            if kept.is_empty() {
                *kept = part;
            } else {
                kept.extend_from_slice(&part);
            }
        }
    }
}

/// A job while its bytes come.
struct Sink {
    job: Job,
    parts: Vec<Place>,
}

impl Sink {
    /// Adds bytes to the part `index`, the current or the next one.
    fn append(
        &mut self,
        index: usize,
        bytes: &[u8],
        data_files: &mut [DataFile],
        on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), ExportError> {
        let Some(part) = self.job.uses[0].1.get(index) else { return Ok(()) };
        let file = &mut data_files[self.job.data_file];
        if self.parts.len() == index {
            let length = part.bytes();
            self.parts.push(if length < EXTERNAL_FROM {
                Place::Inline(Vec::new())
            } else {
                Place::External { offset: file.start(length)?, length }
            });
        }
        match &mut self.parts[index] {
            Place::Inline(inline) => inline.extend_from_slice(bytes),
            Place::External { .. } => file.append(bytes)?,
        }
        told(on_bytes, bytes.len())
    }
}

/// Tells of bytes that were written.
fn told(on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>, bytes: usize) -> Result<(), ExportError> {
    match on_bytes(bytes as u64) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ExportError::Interrupted),
    }
}

fn model_proto(graph: FinishedGraph, metadata: Vec<(String, String)>) -> ModelProto {
    let mut opset_import = vec![OperatorSetIdProto { domain: String::new(), version: OPSET }];
    if graph.uses_microsoft {
        let domain = "com.microsoft".to_owned();
        opset_import.push(OperatorSetIdProto { domain, version: MICROSOFT_OPSET });
    }
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "lfm2vl-export".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(graph.proto),
        opset_import,
        metadata_props: metadata
            .into_iter()
            .map(|(key, value)| StringStringEntryProto { key, value })
            .collect(),
    }
}

/// Writes a whole file.
pub(crate) fn write_file(
    dir: &Path,
    name: &str,
    content: &[u8],
) -> Result<WrittenFile, ExportError> {
    let path = dir.join(name);
    std::fs::write(&path, content).map_err(|source| ExportError::Write { path, source })?;
    Ok(WrittenFile {
        name: name.to_owned(),
        bytes: content.len() as u64,
        sha256: hex::encode(Sha256::digest(content)),
    })
}
