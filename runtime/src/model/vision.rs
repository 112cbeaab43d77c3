//! Image features, from one fused graph or from tower and projector.

use std::{iter::repeat_n, ops::Range};

use lfm2vl_graphs::Graph;
use ndarray::{Array2, ArrayView3, Axis, Ix3, s};
use ort::{
    session::{IoBinding, RunOptions, Session},
    value::{DynTensor, DynTensorValueType, Tensor},
};

use super::features::Features;
use crate::{
    Error,
    backend::{
        DeviceMemory, GraphSession, Location, TensorView, copy_of, memory_info, shape, view,
    },
    image::{PaddedViews, PatchGrid, ProcessedImage, View},
};

/// What goes through the tower in one run at most, unless a single view has more: it bounds the memory
/// that a run takes.
#[derive(Debug, Clone, Copy)]
struct Limits {
    patches: usize,
    /// In graphs whose inputs have 8 bits and one scale, views that share a run share the scale.
    views: usize,
}

/// A whole tile; larger runs are no faster.
const ON_CPU: Limits = Limits { patches: 1024, views: 4 };
/// Eight tiles, to keep a device busy.
const ELSEWHERE: Limits = Limits { patches: 8192, views: 8 };

const FEATURES: &str = "image_features";
const HIDDEN_STATE: &str = "last_hidden_state";

/// The vision graphs.
pub(crate) struct Vision {
    graphs: Graphs,
    /// Where features are wanted; `None` is the host's memory.
    memory: Option<DeviceMemory>,
}

enum Graphs {
    /// Tower and projector in one graph.
    Fused(GraphSession),
    /// Two graphs.
    Split { tower: GraphSession, projector: GraphSession },
}

/// The inputs of one run.
struct Batch<'v> {
    /// float32 [views, patches, values].
    pixel_values: ArrayView3<'v, f32>,
    /// int64 [views, patches].
    pixel_attention_mask: Array2<i64>,
    /// int64 [views, 2].
    spatial_shapes: Array2<i64>,
}

impl<'v> Batch<'v> {
    /// Views of one shape, without padding.
    fn of_equals(grid: PatchGrid, views: ArrayView3<'v, f32>) -> Self {
        let count = views.len_of(Axis(0));
        let shape = [grid.rows as i64, grid.cols as i64];
        Batch {
            pixel_values: views,
            pixel_attention_mask: Array2::ones((count, grid.patches())),
            spatial_shapes: Array2::from_shape_fn((count, 2), |(_, axis)| shape[axis]),
        }
    }

    /// # Safety
    /// As of [`view`].
    unsafe fn pixels(&self) -> ort::Result<TensorView<'_>> {
        let values = self.pixel_values.as_slice();
        let values = values.ok_or_else(|| ort::Error::new("patches in another order"))?;
        // SAFETY: the caller's.
        unsafe { view(values, self.pixel_values.shape()) }
    }

    /// Binds them to the inputs of a session, for no longer than `pixels` lives.
    fn bind(&self, pixels: &TensorView<'_>, binding: &mut IoBinding) -> ort::Result<()> {
        binding.bind_input("pixel_values", &**pixels)?;
        let mask = Tensor::from_array(self.pixel_attention_mask.clone())?;
        binding.bind_input("pixel_attention_mask", &mask)?;
        self.bind_shapes(binding)
    }

    fn bind_shapes(&self, binding: &mut IoBinding) -> ort::Result<()> {
        binding.bind_input("spatial_shapes", &Tensor::from_array(self.spatial_shapes.clone())?)
    }
}

impl Vision {
    /// Tower and projector in one graph.
    pub(crate) fn fused(encoder: GraphSession) -> Self {
        Vision { graphs: Graphs::Fused(encoder), memory: None }
    }

    /// Tower and projector.
    pub(crate) fn split(tower: GraphSession, projector: GraphSession) -> Self {
        Vision { graphs: Graphs::Split { tower, projector }, memory: None }
    }

    /// Leaves features in this memory, if that is where the graph gives them. With fixed sizes they are cut out on
    /// the host.
    pub(crate) fn leave_features(&mut self, memory: Option<&DeviceMemory>) -> Result<(), Error> {
        let last = match &self.graphs {
            Graphs::Fused(encoder) => encoder,
            Graphs::Split { projector, .. } => projector,
        };
        let location = last.ask(|session| Location::of_output(session, FEATURES))?;
        let is_there =
            |memory: &&DeviceMemory| location.as_ref().is_some_and(|at| memory.is_at(at));
        let has_sizes = self.fixed_sizes().is_some();
        self.memory = memory.filter(is_there).filter(|_| !has_sizes).cloned();
        Ok(())
    }

    /// Every session.
    pub(crate) fn sessions(&self) -> Vec<&GraphSession> {
        match &self.graphs {
            Graphs::Fused(encoder) => vec![encoder],
            Graphs::Split { tower, projector } => vec![tower, projector],
        }
    }

    /// Which graph gives features.
    pub(crate) fn graph(&self) -> Graph {
        match &self.graphs {
            Graphs::Fused(encoder) => encoder.graph(),
            Graphs::Split { projector, .. } => projector.graph(),
        }
    }

    /// The views from number `start` on that go through the graphs in one run: views of equal shape, so
    /// that nothing is padded; or as many as graphs of a fixed size take.
    pub(crate) fn views_of_run(&self, image: &ProcessedImage, start: usize) -> Range<usize> {
        let session = self.sessions()[0];
        if let Some(views) = self.fixed_sizes().map(|(views, _)| views) {
            return start..(start + views).min(image.grids().len());
        }
        let limits = if session.is_on_host() { ON_CPU } else { ELSEWHERE };
        let Some(grid) = image.grids().get(start) else { return start..start };
        let equal = image.grids()[start..].iter().take_while(|other| *other == grid).count();
        // Always counted from the first of them, so that an image has the same runs each time.
        let most = (limits.patches / grid.patches().max(1)).clamp(1, limits.views);
        start..start + equal.min(most)
    }

    /// Options of a run over `views`. After the last one its memory goes back to the system, since the
    /// decoder needs some next.
    pub(crate) fn run_options(
        &self,
        image: &ProcessedImage,
        views: &Range<usize>,
    ) -> Result<RunOptions, Error> {
        self.sessions()[0].ask(|_| {
            let mut options = RunOptions::new()?;
            if views.end >= image.grids().len() && self.fixed_sizes().is_none() {
                options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
            }
            Ok(options)
        })
    }

    /// Image features [tokens, hidden] of these views in order.
    pub(crate) fn run(
        &mut self,
        image: &ProcessedImage,
        views: Range<usize>,
        options: &RunOptions,
    ) -> Result<Features, Error> {
        match self.fixed_sizes() {
            Some((count, patches)) => self.run_padded(image, views, (count, patches), options),
            None => self.run_equal(image, views, options),
        }
    }

    fn fixed_sizes(&self) -> Option<(usize, usize)> {
        let fixed_size = |axis| self.sessions()[0].fixed_size("pixel_values", axis);
        fixed_size(0).zip(fixed_size(1))
    }

    /// Views of equal shape.
    fn run_equal(
        &mut self,
        image: &ProcessedImage,
        views: Range<usize>,
        options: &RunOptions,
    ) -> Result<Features, Error> {
        let Some(&grid) = image.grids().get(views.start) else {
            return Ok(Features::default());
        };
        let first: usize = image.grids()[..views.start].iter().map(|grid| grid.patches()).sum();
        let patches = first..first + views.len() * grid.patches();
        let sizes = (views.len(), grid.patches(), image.patches().ncols());
        let patches = image.patches().slice(s![patches, ..]).into_shape_with_order(sizes);
        let patches = patches.map_err(|_| self.shape_error("of contiguous patches"))?;
        let features = self.run_batch(&Batch::of_equals(grid, patches), options)?;
        let [_, _] = shape(&features)[..] else { return Err(self.shape_error("a matrix")) };
        // Where they are now they would keep memory of the run from others.
        let copy = || copy_of(&features, 0, &shape(&features), self.memory.as_ref());
        self.sessions()[0].ask(|_| copy().map(Features::of))
    }

    /// Views in a batch of `count` views of `patches` patches, for graphs that take no others. Where
    /// views are missing, the last one comes again.
    fn run_padded(
        &mut self,
        image: &ProcessedImage,
        views: Range<usize>,
        (count, patches): (usize, usize),
        options: &RunOptions,
    ) -> Result<Features, Error> {
        let batch: Vec<View<'_>> = image.views().skip(views.start).take(views.len()).collect();
        if let Some(view) = batch.iter().find(|view| view.grid.patches() > patches) {
            return Err(Error::TooManyPatches { view: view.grid.patches(), graph: patches });
        }
        let again = repeat_n(batch.last(), count).flatten();
        let filled: Vec<View<'_>> = batch.iter().chain(again).take(count).copied().collect();
        let padded = PaddedViews::new(&filled, patches)?;
        let inputs = Batch {
            pixel_values: padded.pixel_values.view(),
            pixel_attention_mask: padded.pixel_attention_mask,
            spatial_shapes: padded.spatial_shapes,
        };
        let features = self.run_batch(&inputs, options)?;
        let features =
            self.sessions()[0].ask(|_| Ok(features.try_extract_array::<f32>()?.to_owned()))?;
        let features = features.into_dimensionality::<Ix3>();
        let features = features.map_err(|_| self.shape_error("[views, tokens, size]"))?;
        let mut all = Features::default();
        for (view, features) in batch.iter().zip(features.outer_iter()) {
            // Tokens are to patches as in the whole graph.
            let tokens = view.grid.patches() * features.nrows() / patches;
            let features = features.slice(s![..tokens, ..]).to_owned();
            all.extend(self.sessions()[0].ask(|_| Features::of_array(features))?);
        }
        Ok(all)
    }

    /// Image features as the graph gives them.
    fn run_batch(&mut self, batch: &Batch<'_>, options: &RunOptions) -> Result<DynTensor, Error> {
        let memory = self.memory.as_ref();
        match &mut self.graphs {
            Graphs::Fused(encoder) => encoder.run(|session| {
                // SAFETY: the binding ends with the run, before them.
                let pixels = unsafe { batch.pixels()? };
                output(session, FEATURES, memory, options, |binding| batch.bind(&pixels, binding))
            }),
            Graphs::Split { tower, projector } => {
                let hidden = tower.run(|session| {
                    // SAFETY: as above.
                    let pixels = unsafe { batch.pixels()? };
                    output(session, HIDDEN_STATE, memory, options, |binding| {
                        batch.bind(&pixels, binding)
                    })
                })?;
                projector.run(|session| {
                    output(session, FEATURES, memory, options, |binding| {
                        binding.bind_input(HIDDEN_STATE, &hidden)?;
                        batch.bind_shapes(binding)
                    })
                })
            }
        }
    }

    fn shape_error(&self, expected: &str) -> Error {
        self.sessions()[0].contract_error(format!("image_features is not {expected}"))
    }
}

/// The output `name` of a run, in this memory.
fn output(
    session: &mut Session,
    name: &str,
    memory: Option<&DeviceMemory>,
    options: &RunOptions,
    bind: impl FnOnce(&mut IoBinding) -> ort::Result<()>,
) -> ort::Result<DynTensor> {
    let mut binding = session.create_binding()?;
    bind(&mut binding)?;
    binding.bind_output_to_device(name, &memory_info(memory)?)?;
    let mut outputs = session.run_binding_with_options(&binding, options)?;
    let output = outputs.remove(name);
    output
        .ok_or_else(|| ort::Error::new(format!("no output {name}")))?
        .downcast::<DynTensorValueType>()
}
