//! Settings of the image processor: `processor_config.json` or `preprocessor_config.json`.

use std::{fs, io, path::Path};

use serde_json::{Map, Value};

use super::ImageError;

/// How an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Bilinear with antialiasing; 2 in the processor files.
    Bilinear,
    /// Bicubic with antialiasing; 3 in the processor files.
    Bicubic,
}

/// Everything that decides how an image becomes patches. The names are those of the processor
/// files, and the defaults those of `Lfm2VlImageProcessor`.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSettings {
    /// Smaller images are enlarged to this many image tokens.
    pub min_image_tokens: usize,
    /// Larger images are shrunk to this many, or split into tiles.
    pub max_image_tokens: usize,
    /// Fewest tiles of an image that is split.
    pub min_tiles: usize,
    /// Most tiles of an image that is split.
    pub max_tiles: usize,
    /// Side of a tile in pixels.
    pub tile_size: usize,
    /// Side of a patch in pixels.
    pub encoder_patch_size: usize,
    /// Patches on each side of an image token.
    pub downsample_factor: usize,
    /// An image is split when it has more pixels than `max_image_tokens` stand for, times this.
    pub max_pixels_tolerance: f64,
    /// Whether large images are split at all.
    pub do_image_splitting: bool,
    /// Whether a small copy of a split image comes after its tiles.
    pub use_thumbnail: bool,
    /// Whether pixels are multiplied with `rescale_factor`.
    pub do_rescale: bool,
    /// Factor from 0..=255 to 0..=1.
    pub rescale_factor: f64,
    /// Whether mean and standard deviation are applied.
    pub do_normalize: bool,
    /// Mean of red, green and blue.
    pub image_mean: [f32; 3],
    /// Standard deviation of red, green and blue.
    pub image_std: [f32; 3],
    /// Interpolation.
    pub resample: Resample,
}

impl Default for ImageSettings {
    fn default() -> Self {
        ImageSettings {
            min_image_tokens: 64,
            max_image_tokens: 256,
            min_tiles: 2,
            max_tiles: 10,
            tile_size: 512,
            encoder_patch_size: 16,
            downsample_factor: 2,
            max_pixels_tolerance: 2.0,
            do_image_splitting: true,
            use_thumbnail: true,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            resample: Resample::Bilinear,
        }
    }
}

/// Settings for one call, in place of the model's own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// See [`ImageSettings::min_image_tokens`].
    pub min_image_tokens: Option<usize>,
    /// See [`ImageSettings::max_image_tokens`].
    pub max_image_tokens: Option<usize>,
    /// See [`ImageSettings::min_tiles`].
    pub min_tiles: Option<usize>,
    /// See [`ImageSettings::max_tiles`].
    pub max_tiles: Option<usize>,
    /// See [`ImageSettings::do_image_splitting`].
    pub do_image_splitting: Option<bool>,
    /// See [`ImageSettings::use_thumbnail`].
    pub use_thumbnail: Option<bool>,
}

/// Sizes above this are refused, so that products of a few cannot overflow.
const LARGEST_SIZE: usize = 1 << 16;

impl ImageSettings {
    /// Reads the settings of the model in `folder`: the `image_processor` object of
    /// `processor_config.json`, or else `preprocessor_config.json`.
    ///
    /// # Errors
    /// [`ImageError::SettingsFile`] when neither can be read; [`ImageError::Setting`] for a value
    /// that is wrong or not supported.
    pub fn from_folder(folder: &Path) -> Result<Self, ImageError> {
        let processor = read_json(&folder.join("processor_config.json"))?;
        if let Some(nested) = processor.as_ref().and_then(|json| json.get("image_processor")) {
            return Self::from_json(nested);
        }
        let path = folder.join("preprocessor_config.json");
        let json = read_json(&path)?.ok_or_else(|| ImageError::SettingsFile {
            path,
            message: "the file does not exist".into(),
        })?;
        Self::from_json(&json)
    }

    /// Reads settings from the JSON object of a processor file. Missing keys have their defaults.
    ///
    /// # Errors
    /// [`ImageError::Setting`] for a value that is wrong or not supported.
    pub fn from_json(json: &Value) -> Result<Self, ImageError> {
        let empty = Map::new();
        let json = Object(json.as_object().unwrap_or(&empty));
        let default = ImageSettings::default();
        let settings = ImageSettings {
            min_image_tokens: json.size("min_image_tokens", default.min_image_tokens)?,
            max_image_tokens: json.size("max_image_tokens", default.max_image_tokens)?,
            min_tiles: json.size("min_tiles", default.min_tiles)?,
            max_tiles: json.size("max_tiles", default.max_tiles)?,
            tile_size: json.size("tile_size", default.tile_size)?,
            encoder_patch_size: json.size("encoder_patch_size", default.encoder_patch_size)?,
            downsample_factor: json.size("downsample_factor", default.downsample_factor)?,
            max_pixels_tolerance: json
                .number("max_pixels_tolerance", default.max_pixels_tolerance)?,
            do_image_splitting: json.flag("do_image_splitting", default.do_image_splitting)?,
            use_thumbnail: json.flag("use_thumbnail", default.use_thumbnail)?,
            do_rescale: json.flag("do_rescale", default.do_rescale)?,
            rescale_factor: json.number("rescale_factor", default.rescale_factor)?,
            do_normalize: json.flag("do_normalize", default.do_normalize)?,
            image_mean: json.channels("image_mean", default.image_mean)?,
            image_std: json.channels("image_std", default.image_std)?,
            resample: match json.number("resample", 2.0)? {
                2.0 => Resample::Bilinear,
                3.0 => Resample::Bicubic,
                _ => {
                    return Err(
                        json.wrong("resample", "only 2 (bilinear) and 3 (bicubic) are supported")
                    );
                }
            },
        };
        settings.validated()
    }

    /// These settings with some replaced.
    ///
    /// # Errors
    /// [`ImageError::Setting`] when they do not go together.
    pub fn with(&self, overrides: &Overrides) -> Result<Self, ImageError> {
        let set = |value: Option<usize>, own| value.unwrap_or(own);
        ImageSettings {
            min_image_tokens: set(overrides.min_image_tokens, self.min_image_tokens),
            max_image_tokens: set(overrides.max_image_tokens, self.max_image_tokens),
            min_tiles: set(overrides.min_tiles, self.min_tiles),
            max_tiles: set(overrides.max_tiles, self.max_tiles),
            do_image_splitting: overrides.do_image_splitting.unwrap_or(self.do_image_splitting),
            use_thumbnail: overrides.use_thumbnail.unwrap_or(self.use_thumbnail),
            ..self.clone()
        }
        .validated()
    }

    /// Checks that the settings go together.
    fn validated(self) -> Result<Self, ImageError> {
        let wrong = |name, value: &dyn ToString, expected| {
            Err(ImageError::Setting { name, value: value.to_string(), expected })
        };
        let sizes = [
            ("min_image_tokens", self.min_image_tokens),
            ("max_image_tokens", self.max_image_tokens),
            ("min_tiles", self.min_tiles),
            ("max_tiles", self.max_tiles),
            ("tile_size", self.tile_size),
            ("encoder_patch_size", self.encoder_patch_size),
            ("downsample_factor", self.downsample_factor),
        ];
        for (name, size) in sizes {
            if !(1..=LARGEST_SIZE).contains(&size) {
                return wrong(name, &size, "it must be a positive whole number of usual size");
            }
        }
        if self.max_tiles > 1024 {
            return wrong("max_tiles", &self.max_tiles, "it must be at most 1024");
        }
        if self.do_image_splitting && self.min_tiles > self.max_tiles {
            return wrong("min_tiles", &self.min_tiles, "it must not exceed max_tiles");
        }
        if self.min_image_tokens > self.max_image_tokens {
            return wrong(
                "min_image_tokens",
                &self.min_image_tokens,
                "it must not exceed max_image_tokens",
            );
        }
        if !self.tile_size.is_multiple_of(self.token_side()) {
            return wrong(
                "tile_size",
                &self.tile_size,
                "it must be a multiple of encoder_patch_size * downsample_factor",
            );
        }
        if !(self.max_pixels_tolerance > 0.0 && self.max_pixels_tolerance.is_finite()) {
            return wrong(
                "max_pixels_tolerance",
                &self.max_pixels_tolerance,
                "it must be positive",
            );
        }
        if !(self.rescale_factor > 0.0 && self.rescale_factor.is_finite()) {
            return wrong("rescale_factor", &self.rescale_factor, "it must be positive");
        }
        if self.image_std.iter().any(|&std| std.is_nan() || std <= 0.0) {
            return wrong("image_std", &format!("{:?}", self.image_std), "it must be positive");
        }
        Ok(self)
    }

    /// Side of an image token in pixels.
    pub(super) fn token_side(&self) -> usize {
        self.encoder_patch_size * self.downsample_factor
    }

    /// Patches to which the reference pads every view.
    pub fn max_num_patches(&self) -> usize {
        let tile = match self.do_image_splitting {
            true => (self.tile_size / self.encoder_patch_size).pow(2),
            false => 0,
        };
        tile.max(self.max_image_tokens * self.downsample_factor.pow(2))
    }
}

/// Reads a JSON file; `None` when it does not exist.
fn read_json(path: &Path) -> Result<Option<Value>, ImageError> {
    let error = |message: String| ImageError::SettingsFile { path: path.to_owned(), message };
    match fs::read(path) {
        Ok(content) => serde_json::from_slice(&content).map(Some).map_err(|e| error(e.to_string())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(error(e.to_string())),
    }
}

/// Typed access to the settings in a file; null counts as missing.
struct Object<'a>(&'a Map<String, Value>);

impl Object<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &'static str, expected: &'static str) -> ImageError {
        let value = self.0.get(name).map_or_else(|| "missing".into(), Value::to_string);
        ImageError::Setting { name, value, expected }
    }

    fn size(&self, name: &'static str, default: usize) -> Result<usize, ImageError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(name, "it must be a positive whole number"))
    }

    fn number(&self, name: &'static str, default: f64) -> Result<f64, ImageError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.wrong(name, "it must be a number"))
    }

    fn flag(&self, name: &'static str, default: bool) -> Result<bool, ImageError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(name, "it must be true or false"))
    }

    fn channels(&self, name: &'static str, default: [f32; 3]) -> Result<[f32; 3], ImageError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        serde_json::from_value(value.clone())
            .map_err(|_| self.wrong(name, "it must be three numbers"))
    }
}
