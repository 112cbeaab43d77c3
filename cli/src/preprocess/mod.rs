//! `lfm2vl preprocess`: what the graphs would be given.

mod picture;

use std::{
    borrow::Cow,
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use lfm2vl::{
    Processor, Prompt,
    image::{PaddedViews, View},
};
use safetensors::{Dtype, View as TensorView};
use serde_json::{Value, json};

use crate::{
    arguments::{ImageArguments, PromptArguments},
    print,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that lfm2vl-export wrote.
    folder: PathBuf,
    #[command(flatten)]
    prompt: PromptArguments,
    #[command(flatten)]
    images: ImageArguments,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
    /// Write `pixel_values`, `pixel_attention_mask`, `spatial_shapes` and `input_ids`, padded as
    /// the reference pads them.
    #[arg(long, value_name = "OUT.safetensors")]
    tensors: Option<PathBuf>,
    /// Draw what the model sees of the images: tiles, and the thumbnail beside them.
    #[arg(long, value_name = "OUT.png", requires = "image")]
    picture: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let processor = Processor::from_folder(&arguments.folder, &arguments.images.overrides()?)?;
    let images = arguments.images.load(&arguments.prompt.image)?;
    let chat = &arguments.prompt.chat;
    let mut messages: Vec<_> = chat.system_message().into_iter().collect();
    messages.push(arguments.prompt.message().with_images(images.len()));
    let prompt = processor.prepare(&messages, &images, &chat.options()?)?;

    if let Some(path) = &arguments.tensors {
        let patches = processor.image_processor().settings().max_num_patches();
        write_tensors(path, &prompt, patches)?;
    }
    if let Some(path) = &arguments.picture {
        picture::write(path, &prompt.images, processor.image_processor())?;
    }
    let sizes: Vec<_> = images.iter().map(|image| image.dimensions()).collect();
    let report = report(&prompt, &sizes);
    if arguments.json {
        return print(&format!("{report:#}\n"));
    }
    print(&to_text(&report, &prompt))
}

fn report(prompt: &Prompt, sizes: &[(u32, u32)]) -> Value {
    let images: Vec<Value> = prompt
        .images
        .iter()
        .zip(sizes)
        .map(|(image, (width, height))| {
            let shapes = image.grids().iter().map(|grid| [grid.rows, grid.cols]);
            json!({
                "width": width,
                "height": height,
                "rows": image.layout().rows,
                "cols": image.layout().cols,
                "thumbnail": image.layout().thumbnail,
                "spatial_shapes": shapes.collect::<Vec<_>>(),
                "image_tokens": image.layout().tokens(),
            })
        })
        .collect();
    json!({
        "images": images,
        "prompt": prompt.text,
        "input_ids": prompt.input_ids,
        "prompt_tokens": prompt.input_ids.len(),
        "image_tokens": prompt.image_tokens(),
    })
}

fn to_text(report: &Value, prompt: &Prompt) -> String {
    let mut text = String::new();
    for image in report["images"].as_array().into_iter().flatten() {
        text += &format!(
            "image {}x{}: {} x {} tiles{}, {} image tokens, patches {}\n",
            image["width"],
            image["height"],
            image["rows"],
            image["cols"],
            if image["thumbnail"] == true { " and a thumbnail" } else { "" },
            image["image_tokens"],
            image["spatial_shapes"],
        );
    }
    text + &format!(
        "prompt: {} tokens, {} of them image tokens\n{:?}\n",
        prompt.input_ids.len(),
        prompt.image_tokens(),
        prompt.input_ids
    )
}

fn write_tensors(path: &Path, prompt: &Prompt, patches: usize) -> Result<()> {
    let ids = prompt.input_ids.iter().map(|&id| i64::from(id));
    let mut tensors = HashMap::from([(
        "input_ids",
        Tensor::new(Dtype::I64, &[1, prompt.input_ids.len()], ids.map(i64::to_le_bytes)),
    )]);
    let views: Vec<View<'_>> = prompt.images.iter().flat_map(|image| image.views()).collect();
    if !views.is_empty() {
        let batch = PaddedViews::new(&views, patches)?;
        let pixels = batch.pixel_values.iter().map(|v| v.to_le_bytes());
        let mask = batch.pixel_attention_mask.iter().map(|v| v.to_le_bytes());
        let shapes = batch.spatial_shapes.iter().map(|v| v.to_le_bytes());
        tensors.extend([
            ("pixel_values", Tensor::new(Dtype::F32, batch.pixel_values.shape(), pixels)),
            (
                "pixel_attention_mask",
                Tensor::new(Dtype::I64, batch.pixel_attention_mask.shape(), mask),
            ),
            ("spatial_shapes", Tensor::new(Dtype::I64, batch.spatial_shapes.shape(), shapes)),
        ]);
    }
    safetensors::serialize_to_file(tensors, None, path)
        .with_context(|| format!("cannot write {}; check the folder and its disk", path.display()))
}

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new<const N: usize>(
        dtype: Dtype,
        shape: &[usize],
        values: impl Iterator<Item = [u8; N]>,
    ) -> Self {
        Tensor { dtype, shape: shape.to_vec(), bytes: values.flatten().collect() }
    }
}

impl TensorView for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
