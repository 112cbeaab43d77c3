//! Calibration: the model is run over sample inputs one layer at a time, and each layer's weights
//! are quantized for what the layer is given, which is what the layers before it give once they are
//! quantized themselves. (Token embeddings are taken as float32.)

mod run;
mod samples;

use std::{ops::ControlFlow, path::Path};

use lfm2vl_graphs::Method;
use ndarray::Array2;

pub use samples::{Sample, SamplesError, View, read_samples};

pub(crate) use run::{Activations, StageRun};

use crate::{
    checkpoint::Checkpoint,
    error::ExportError,
    models::{Build, Stage},
    onnx::{Encoding, Floats},
    quantize::{BlockFormat, Quantizer, gptq},
};

/// Which sides of the model have weights to calibrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sides {
    pub(crate) vision: bool,
    pub(crate) decoder: bool,
}

impl Sides {
    /// Those of `self` for which a precision asks for a calibrated method.
    pub(crate) fn calibrated(self, build: Build<'_>) -> Self {
        let any = |stages: Vec<Stage>| {
            let modules = stages.into_iter().flat_map(|stage| stage.modules(build.config));
            modules.into_iter().any(|module| Target::of(&module, build).is_some())
        };
        let (vision, decoder) = Stage::all(build.config);
        Sides { vision: self.vision && any(vision), decoder: self.decoder && any(decoder) }
    }

    pub(crate) fn any(self) -> bool {
        self.vision || self.decoder
    }
}

/// Quantizes every weight of one precision whose method is calibrated, on the given sides; the
/// results go into `quantizer`. Files of a layer are in `folder` while it is run.
///
/// `on_stage` is told of each layer, and may stop.
///
/// # Errors
/// [`ExportError::Session`] when ONNX Runtime is not available or cannot run a layer;
/// [`ExportError::Samples`] when no sample reaches a weight.
pub(crate) fn calibrate(
    checkpoint: &Checkpoint,
    build: Build<'_>,
    sides: Sides,
    samples: &[Sample],
    quantizer: &mut Quantizer,
    folder: &Path,
    on_stage: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<(), ExportError> {
    let run = StageRun { checkpoint, folder };
    let mut quantize = |stages: Vec<Stage>, activations: &mut Activations, solve: bool| {
        for stage in stages {
            if solve {
                solve_stage(&run, stage, build, activations, quantizer)?;
            }
            // What the stage gives as it will be shipped is what the next one is given.
            let (session, _) = run.open(stage, build, quantizer, false)?;
            activations.advance(stage, session)?;
            if on_stage().is_break() {
                return Err(ExportError::Interrupted);
            }
        }
        Ok(())
    };
    let (vision, decoder) = Stage::all(checkpoint.config());
    let mut activations = Activations::of_patches(samples);
    quantize(vision, &mut activations, sides.vision)?;
    if sides.decoder {
        quantize(decoder, &mut activations.into_prompts(checkpoint, samples)?, true)?;
    }
    Ok(())
}

/// Quantizes the weights of a stage for what it is given.
fn solve_stage(
    run: &StageRun<'_>,
    stage: Stage,
    build: Build<'_>,
    activations: &Activations,
    quantizer: &mut Quantizer,
) -> Result<(), ExportError> {
    let float = Build { quantization: None, floats: &Floats::Single, ..build };
    let (session, taps) = run.open(stage, float, quantizer, true)?;
    let calibrated: Vec<(String, Vec<Target>)> = taps
        .into_iter()
        .map(|tap| {
            let targets = tap.modules.iter().filter_map(|m| Target::of(m, build)).collect();
            (tap.output, targets)
        })
        .filter(|(_, targets): &(String, Vec<Target>)| !targets.is_empty())
        .collect();
    if calibrated.is_empty() {
        return Ok(());
    }
    let mut hessians: Vec<Option<Array2<f32>>> = vec![None; calibrated.len()];
    activations.run(stage, session, |outputs| {
        for ((output, _), hessian) in calibrated.iter().zip(&mut hessians) {
            let Some(inputs) = outputs.remove(output) else { continue };
            let columns = inputs.ncols();
            let hessian = hessian.get_or_insert_with(|| Array2::zeros((columns, columns)));
            gptq::accumulate(hessian, inputs.view());
        }
    })?;
    for ((_, targets), hessian) in calibrated.into_iter().zip(hessians) {
        let Some(hessian) = hessian else {
            return Err(SamplesError::Unused(targets[0].tensor.clone()).into());
        };
        for Target { tensor, format } in targets {
            let parts = gptq::solve(run.matrix(&tensor)?, hessian.clone(), format);
            quantizer.keep(&tensor, Encoding::Blocks(format), parts)?;
        }
    }
    Ok(())
}

/// A weight that is to be calibrated.
struct Target {
    tensor: String,
    format: BlockFormat,
}

impl Target {
    fn of(module: &str, build: Build<'_>) -> Option<Self> {
        let (tensor, format) = build.block_format(module)?;
        (format.method == Method::Gptq).then_some(Target { tensor, format })
    }
}
