//! From messages and images to the inputs of the graphs, without running any: the counterpart of
//! `Lfm2VlProcessor`.

use std::path::Path;

use image::RgbImage;

use crate::{
    Error,
    chat::{ChatTemplate, ImageTokens, Message, RenderOptions, Tokenizer},
    image::{ImageLayout, ImageProcessor, ImageSettings, Overrides, ProcessedImage},
};

/// A model's template, tokenizer and image processor. Needs no ONNX Runtime.
pub struct Prompter {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    image_tokens: ImageTokens,
    image_token_id: u32,
    image_processor: ImageProcessor,
}

/// A prompt, ready for the graphs.
pub struct Prompt {
    /// Its text, with the tokens of every image.
    pub text: String,
    /// Its token ids.
    pub input_ids: Vec<u32>,
    /// Its images in order.
    pub images: Vec<ProcessedImage>,
}

impl Prompt {
    /// Image tokens of all images.
    pub fn image_tokens(&self) -> usize {
        self.images.iter().map(|image| image.layout.tokens()).sum()
    }
}

impl Prompter {
    /// The prompter of the model in `folder`, with some image settings replaced.
    ///
    /// # Errors
    /// [`Error::Chat`] or [`Error::Image`] when a file is missing or wrong.
    pub fn from_folder(folder: &Path, overrides: &Overrides) -> Result<Self, Error> {
        if !folder.is_dir() {
            return Err(Error::NoFolder(folder.to_owned()));
        }
        let tokenizer = Tokenizer::from_folder(folder)?;
        let image_tokens = ImageTokens::from_folder(folder)?;
        let settings = ImageSettings::from_folder(folder)?.with(overrides)?;
        Ok(Prompter {
            template: ChatTemplate::from_folder(folder)?,
            image_token_id: tokenizer.token_id(&image_tokens.image)?,
            tokenizer,
            image_tokens,
            image_processor: ImageProcessor::new(settings),
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Id of the token that stands for one image feature.
    pub fn image_token_id(&self) -> u32 {
        self.image_token_id
    }

    /// The image processor.
    pub fn image_processor(&self) -> &ImageProcessor {
        &self.image_processor
    }

    /// The prompt that asks for an answer to `messages`, which have a place for each image.
    ///
    /// # Errors
    /// [`Error::Chat`] or [`Error::Image`].
    pub fn prepare(&self, messages: &[Message], images: &[RgbImage]) -> Result<Prompt, Error> {
        let images = images
            .iter()
            .map(|image| self.image_processor.process(image))
            .collect::<Result<Vec<_>, _>>()?;
        let layouts: Vec<ImageLayout> = images.iter().map(|image| image.layout).collect();
        let text = self.render(messages, &layouts)?;
        Ok(Prompt { input_ids: self.tokenizer.encode(&text)?, text, images })
    }

    /// The text of the prompt that asks for an answer to `messages`.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        images: &[ImageLayout],
    ) -> Result<String, Error> {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let text = self.template.render(messages, &options)?;
        Ok(self.image_tokens.expand(&text, images)?)
    }
}
