//! What a server allows.

use std::time::Duration;

use lfm2vl::image;

/// Settings of a service. The defaults are for a server that strangers may reach, if it has keys.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the model for clients; the folder's by default.
    pub model_name: Option<String>,
    /// Keys of which a request must have one; none are needed when there are none.
    pub api_keys: Vec<String>,
    /// Web pages of these origins, such as `https://example.com`, may ask; only the server's own by default.
    pub cors_origins: Vec<String>,
    /// Requests that are answered or wait, before others are refused with 429. Each may hold a body, its images and
    /// their patches: some 35 MB for a large photo.
    pub max_requests: usize,
    /// Bytes of a request's body; 32 MiB by default, which is an image of 20 MB as base64 and more.
    pub max_body_bytes: usize,
    /// Answers of one request (`n`); 8 by default.
    pub max_choices: usize,
    /// Images of a request; 16 by default.
    pub max_images: usize,
    /// Image tokens of all images of a request; 16,384 by default.
    pub max_image_tokens: usize,
    /// Tokens of an answer, and its default where neither the request nor the model says anything; none by
    /// default, so that the model's context is the only limit.
    pub max_tokens: Option<usize>,
    /// Time for a whole request; 5 minutes by default.
    pub timeout: Duration,
    /// Limits of each image. Files of the server are never opened, whatever they say.
    pub images: image::Limits,
    /// Whether strings such as `<|im_end|>` mean special tokens in a system message, which here are the client's;
    /// not by default.
    pub special_tokens_in_system: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            model_name: None,
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            max_requests: 40,
            max_body_bytes: 32 << 20,
            max_choices: 8,
            max_images: 16,
            max_image_tokens: 16_384,
            max_tokens: None,
            timeout: Duration::from_secs(300),
            images: image::Limits {
                max_bytes: 20 << 20,
                max_pixels: 50_000_000,
                max_decoded_bytes: 200 << 20,
                ..image::Limits::default()
            },
            special_tokens_in_system: false,
        }
    }
}
