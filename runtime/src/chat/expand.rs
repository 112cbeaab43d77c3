//! Image placeholders: each `<image>` of a prompt becomes the tokens of its image.

use std::path::Path;

use super::{ChatError, template::read_json};
use crate::image::ImageLayout;

/// The tokens that stand for images in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTokens {
    /// Stands for one image feature, and in a prompt before expansion for one image.
    pub image: String,
    /// Comes before an image.
    pub start: String,
    /// Comes after an image.
    pub end: String,
    /// Comes before a thumbnail.
    pub thumbnail: String,
    /// Whether start, end, thumbnail and the places of tiles are marked at all.
    pub use_image_special_tokens: bool,
}

impl Default for ImageTokens {
    fn default() -> Self {
        ImageTokens {
            image: "<image>".into(),
            start: "<|image_start|>".into(),
            end: "<|image_end|>".into(),
            thumbnail: "<|img_thumbnail|>".into(),
            use_image_special_tokens: true,
        }
    }
}

impl ImageTokens {
    /// The tokens of the model in `folder`, from `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`ChatError::File`] when a config cannot be read.
    pub fn from_folder(folder: &Path) -> Result<Self, ChatError> {
        let tokenizer = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let token = |name: &str, default: String| {
            tokenizer.get(name).and_then(|t| t.as_str()).map_or(default, str::to_owned)
        };
        let default = ImageTokens::default();
        Ok(ImageTokens {
            image: token("image_token", default.image),
            start: token("image_start_token", default.start),
            end: token("image_end_token", default.end),
            thumbnail: token("image_thumbnail", default.thumbnail),
            // The reference takes this from a call only, whatever processor_config.json says.
            use_image_special_tokens: true,
        })
    }

    /// Puts the tokens of each image in place of its mark in `prompt`.
    ///
    /// # Errors
    /// [`ChatError::ImageCount`] when there are more or fewer marks than images.
    pub fn expand(&self, prompt: &str, images: &[ImageLayout]) -> Result<String, ChatError> {
        let parts: Vec<&str> = prompt.split(&self.image).collect();
        let marks = parts.len() - 1;
        if marks != images.len() {
            let token = self.image.clone();
            return Err(ChatError::ImageCount { token, marks, images: images.len() });
        }
        let mut expanded = parts[0].to_owned();
        for (layout, text) in images.iter().zip(&parts[1..]) {
            self.push_image(&mut expanded, layout);
            expanded.push_str(text);
        }
        Ok(expanded)
    }

    fn push_image(&self, prompt: &mut String, layout: &ImageLayout) {
        let special = self.use_image_special_tokens;
        let push_if_special = |prompt: &mut String, token: &str| {
            if special {
                prompt.push_str(token);
            }
        };
        push_if_special(prompt, &self.start);
        if layout.is_split() {
            for row in 1..=layout.rows {
                for col in 1..=layout.cols {
                    push_if_special(prompt, &format!("<|img_row_{row}_col_{col}|>"));
                    prompt.push_str(&self.image.repeat(layout.tokens_per_tile));
                }
            }
        }
        if layout.thumbnail {
            push_if_special(prompt, &self.thumbnail);
        }
        if layout.thumbnail || !layout.is_split() {
            prompt.push_str(&self.image.repeat(layout.tokens_for_image));
        }
        push_if_special(prompt, &self.end);
    }
}
