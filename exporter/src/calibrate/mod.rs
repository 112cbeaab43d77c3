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

/// Quantizes every weight of one precision whose method is calibrated; the results go into
/// `quantizer`. Files of a layer are in `folder` while it is run.
///
/// `on_stage` is told of each layer, and may stop.
///
/// # Errors
/// [`ExportError::Calibration`] when ONNX Runtime is not available or cannot run a layer.
pub(crate) fn calibrate(
    checkpoint: &Checkpoint,
    build: Build<'_>,
    samples: &[Sample],
    quantizer: &mut Quantizer,
    folder: &Path,
    on_stage: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<(), ExportError> {
    let float = Build { quantization: None, floats: &Floats::Single, ..build };
    let mut run = StageRun { checkpoint, folder };
    let (vision, decoder) = Stage::all(checkpoint.config());

    let mut activations = Activations::of_patches(samples);
    for stage in vision {
        quantize_stage(&mut run, stage, float, build, &mut activations, quantizer)?;
        if on_stage().is_break() {
            return Err(ExportError::Interrupted);
        }
    }
    let mut activations = activations.into_prompts(checkpoint, samples)?;
    for stage in decoder {
        quantize_stage(&mut run, stage, float, build, &mut activations, quantizer)?;
        if on_stage().is_break() {
            return Err(ExportError::Interrupted);
        }
    }
    Ok(())
}

/// Quantizes the weights of a stage, and moves the activations on to the next one.
fn quantize_stage(
    run: &mut StageRun<'_>,
    stage: Stage,
    float: Build<'_>,
    build: Build<'_>,
    activations: &mut Activations,
    quantizer: &mut Quantizer,
) -> Result<(), ExportError> {
    let (session, taps) = run.open(stage, float, quantizer, true)?;
    let calibrated: Vec<(String, Vec<Target>)> = taps
        .into_iter()
        .map(|tap| {
            let targets = tap.modules.iter().filter_map(|m| Target::of(m, build)).collect();
            (tap.output, targets)
        })
        .filter(|(_, targets): &(String, Vec<Target>)| !targets.is_empty())
        .collect();
    if !calibrated.is_empty() {
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
                let weight = run.matrix(&tensor)?;
                let parts = gptq::solve(weight, hessian.clone(), format);
                quantizer.keep(&tensor, Encoding::Blocks(format), parts)?;
            }
        }
    }
    let (session, _) = run.open(stage, build, quantizer, false)?;
    activations.advance(stage, session)
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
