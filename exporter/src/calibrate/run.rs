//! Running one stage of the model at a time over all samples.

use std::{collections::HashMap, path::Path};

use ndarray::{Array2, Axis, Ix2, concatenate};

use super::Sample;
use crate::{
    checkpoint::{Checkpoint, CheckpointError},
    error::ExportError,
    models::{Build, Stage, build_stage},
    onnx::{Model, Plan, Tap},
    quantize::Quantizer,
    session::{GraphSession, Tensor},
};

/// What it takes to open stages.
pub(crate) struct StageRun<'c> {
    pub(crate) checkpoint: &'c Checkpoint,
    /// Where a stage's files are.
    pub(crate) folder: &'c Path,
}

/// What goes into the next stage, for each view or prompt.
pub(crate) struct Activations {
    items: Vec<Item>,
}

struct Item {
    /// [rows, size]: patches of a view, or tokens of a prompt.
    hidden: Array2<f32>,
    /// Rows and columns of a view.
    grid: Option<(usize, usize)>,
}

impl StageRun<'_> {
    /// A session for a stage, and with `taps` its outputs that linear layers are given.
    pub(crate) fn open(
        &self,
        stage: Stage,
        build: Build<'_>,
        quantizer: &Quantizer,
        taps: bool,
    ) -> Result<(GraphSession, Vec<Tap>), ExportError> {
        let (builder, taps) = build_stage(stage, build, taps);
        let graph = builder.finish();
        let spec = graph.spec.clone();
        let model = Model {
            stem: "stage".to_owned(),
            data: "stage.onnx_data".to_owned(),
            graph,
            metadata: Vec::new(),
        };
        let mut go_on = |_| std::ops::ControlFlow::Continue(());
        Plan::new(vec![model]).write(self.checkpoint, quantizer, self.folder, &mut go_on)?;
        let session = GraphSession::open(spec, &self.folder.join("stage.onnx"))?;
        Ok((session, taps))
    }

    /// A stored weight [rows, columns].
    pub(crate) fn matrix(&self, tensor: &str) -> Result<Array2<f32>, CheckpointError> {
        let missing = |_| CheckpointError::MissingTensor(tensor.to_owned());
        self.checkpoint.load(tensor)?.into_dimensionality::<Ix2>().map_err(missing)
    }
}

impl Activations {
    /// The patches of every view.
    pub(crate) fn of_patches(samples: &[Sample]) -> Self {
        let views = samples.iter().flat_map(|sample| &sample.views);
        let items = views
            .map(|view| Item { hidden: view.patches.clone(), grid: Some((view.rows, view.cols)) });
        Activations { items: items.collect() }
    }

    /// The embeddings of every prompt, with the image features that self has now in their places.
    pub(crate) fn into_prompts(
        self,
        checkpoint: &Checkpoint,
        samples: &[Sample],
    ) -> Result<Self, ExportError> {
        let model = crate::reference::ReferenceModel::new(checkpoint);
        let image_token = checkpoint.config().image_token_id;
        let mut views = self.items.into_iter();
        let items = samples.iter().map(|sample| {
            let features: Vec<Array2<f32>> =
                views.by_ref().take(sample.views.len()).map(|item| item.hidden).collect();
            let mut hidden = model.embed(&sample.ids)?;
            sample.splice(&mut hidden, features.iter(), image_token)?;
            Ok(Item { hidden, grid: None })
        });
        Ok(Activations { items: items.collect::<Result<_, ExportError>>()? })
    }

    /// Runs a stage on each item; `take` is given its outputs.
    pub(crate) fn run(
        &self,
        stage: Stage,
        mut session: GraphSession,
        mut take: impl FnMut(&mut HashMap<String, Array2<f32>>),
    ) -> Result<(), ExportError> {
        for item in &self.items {
            take(&mut item.outputs(stage, &mut session)?);
        }
        Ok(())
    }

    /// Runs a stage on each item, which becomes its output; `rows` at most of each other output.
    pub(crate) fn advance_with_taps(
        &mut self,
        stage: Stage,
        mut session: GraphSession,
        rows: usize,
    ) -> Result<HashMap<String, Array2<f32>>, ExportError> {
        let all: usize = self.items.iter().map(|item| item.hidden.nrows()).sum();
        let step = all.div_ceil(rows).max(1);
        let mut taps: HashMap<String, Vec<Array2<f32>>> = HashMap::new();
        for item in &mut self.items {
            let mut outputs = item.outputs(stage, &mut session)?;
            item.hidden = outputs.remove("hidden_out").unwrap_or_default();
            for (name, values) in outputs {
                let some: Vec<usize> = (0..values.nrows()).step_by(step).collect();
                taps.entry(name).or_default().push(values.select(Axis(0), &some));
            }
        }
        let joined = taps.into_iter().map(|(name, parts)| {
            let parts: Vec<_> = parts.iter().map(|part| part.view()).collect();
            (name, concatenate(Axis(0), &parts).unwrap_or_default())
        });
        Ok(joined.collect())
    }

    /// Runs a stage on each item, which becomes its output.
    pub(crate) fn advance(
        &mut self,
        stage: Stage,
        mut session: GraphSession,
    ) -> Result<(), ExportError> {
        for item in &mut self.items {
            let mut outputs = item.outputs(stage, &mut session)?;
            item.hidden = outputs.remove("hidden_out").unwrap_or_default();
        }
        Ok(())
    }
}

impl Item {
    /// The outputs of a stage that are matrices.
    fn outputs(
        &self,
        stage: Stage,
        session: &mut GraphSession,
    ) -> Result<HashMap<String, Array2<f32>>, ExportError> {
        let rows = self.hidden.nrows();
        let hidden = || Tensor::floats(&self.hidden.view());
        let mask = || Tensor::ints(&Array2::<i64>::ones((1, rows)).view());
        let shapes = || {
            let (rows, cols) = self.grid.unwrap_or_default();
            Tensor::ints(&ndarray::arr2(&[[rows as i64, cols as i64]]).view())
        };
        let named = |name: &str, tensor| (name.to_owned(), tensor);
        let inputs = match stage {
            Stage::PatchEmbeddings => {
                let patches = self.hidden.view().insert_axis(Axis(0));
                vec![
                    named("pixel_values", Tensor::floats(&patches)),
                    named("spatial_shapes", shapes()),
                ]
            }
            Stage::VisionLayer(_) => vec![named("hidden", hidden()), named("mask", mask())],
            Stage::Projector => {
                vec![named("hidden", hidden()), named("spatial_shapes", shapes())]
            }
            Stage::DecoderLayer(_) => {
                let mut inputs = vec![named("hidden", hidden()), named("mask", mask())];
                inputs.extend(session.empty_state());
                inputs
            }
            Stage::Head => vec![named("hidden", hidden())],
        };
        let outputs = session.run(inputs).map_err(ExportError::from)?;
        let matrices = outputs
            .into_iter()
            .filter_map(|(name, array)| Some((name, array.into_dimensionality::<Ix2>().ok()?)));
        Ok(matrices.collect())
    }
}
