//! Settings of the image processor: `processor_config.json` or `preprocessor_config.json`.

use std::{io, path::Path};

use serde_json::{Map, Value};

use super::ImageError;
use crate::files;

/// How an image is resized. In the processor files it is Pillow's number or torchvision's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// The pixel whose centre is nearest: 0 or `nearest-exact`.
    NearestExact,
    /// The pixel at the upper left, without half a pixel's shift: `nearest`.
    Nearest,
    /// Lanczos of three lobes with antialiasing: 1 or `lanczos`.
    Lanczos,
    /// Bilinear with antialiasing: 2 or `bilinear`.
    Bilinear,
    /// Bicubic with antialiasing: 3 or `bicubic`.
    Bicubic,
}

/// Defines each setting once: what it is, its type, and the default of `Lfm2VlImageProcessor`.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr,)*) => {
        /// Everything that decides how an image becomes patches. The names are those of the
        /// processor files, and the defaults those of `Lfm2VlImageProcessor`.
        #[derive(Debug, Clone, PartialEq)]
        pub struct ImageSettings {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Default for ImageSettings {
            fn default() -> Self {
                ImageSettings { $($name: $default,)* }
            }
        }

        /// Settings that replace others: those of a file the defaults, those of one call the
        /// model's own. `None` leaves a setting as it is.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct Overrides {
            $(
                #[doc = concat!("See [`ImageSettings::", stringify!($name), "`].")]
                pub $name: Option<$type>,
            )*
        }

        impl ImageSettings {
            /// The settings as the JSON object of a processor file.
            pub fn to_json(&self) -> Map<String, Value> {
                [$((stringify!($name), self.$name.to_value())),*]
                    .map(|(name, value)| (name.to_owned(), value))
                    .into_iter()
                    .collect()
            }
        }

        impl Overrides {
            /// The names of all settings.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Reads the settings of a processor file's JSON object; null counts as missing, and
            /// other keys are ignored.
            ///
            /// # Errors
            /// [`ImageError::Setting`] for a value of another type.
            pub fn from_json(json: &Value) -> Result<Self, ImageError> {
                Ok(Overrides { $($name: read(json, stringify!($name))?,)* })
            }

            fn replace(&self, settings: &mut ImageSettings) {
                $(
                    if let Some(value) = self.$name {
                        settings.$name = value;
                    }
                )*
            }
        }
    };
}

settings! {
    /// Smaller images are enlarged to this many image tokens.
    min_image_tokens: usize = 64,
    /// Larger images are shrunk to this many, or split into tiles.
    max_image_tokens: usize = 256,
    /// Fewest tiles of an image that is split.
    min_tiles: usize = 2,
    /// Most tiles of an image that is split.
    max_tiles: usize = 10,
    /// Side of a tile in pixels.
    tile_size: usize = 512,
    /// Side of a patch in pixels.
    encoder_patch_size: usize = 16,
    /// Patches on each side of an image token.
    downsample_factor: usize = 2,
    /// An image is split when it has more pixels than `max_image_tokens` stand for, times this.
    max_pixels_tolerance: f64 = 2.0,
    /// Most patches of a view; of those that `max_image_tokens` and `tile_size` stand for, all are allowed. An
    /// image that is long and thin would have more, each of its sides having at least one token. The
    /// reference has no such limit.
    max_view_patches: usize = 4096,
    /// Whether large images are split at all.
    do_image_splitting: bool = true,
    /// Whether a small copy of a split image comes after its tiles.
    use_thumbnail: bool = true,
    /// Whether pixels are multiplied with `rescale_factor`.
    do_rescale: bool = true,
    /// Factor from 0..=255 to 0..=1.
    rescale_factor: f64 = 1.0 / 255.0,
    /// Whether mean and standard deviation are applied.
    do_normalize: bool = true,
    /// Mean of red, green and blue.
    image_mean: [f32; 3] = [0.5; 3],
    /// Standard deviation of red, green and blue.
    image_std: [f32; 3] = [0.5; 3],
    /// Interpolation.
    resample: Resample = Resample::Bilinear,
}

/// Sizes above this are refused, so that products of a few cannot overflow.
const LARGEST_SIZE: usize = 1 << 16;

impl ImageSettings {
    /// Reads the settings of the model in `folder`; see [`image_processor_json`].
    ///
    /// # Errors
    /// [`ImageError::SettingsFile`] when there is no such file, or it cannot be read; [`ImageError::Setting`] for a
    /// value that is wrong or not supported.
    pub fn from_folder(folder: &Path) -> Result<Self, ImageError> {
        let json = image_processor_json(folder)?.ok_or_else(|| ImageError::SettingsFile {
            path: folder.join(PREPROCESSOR),
            message: "the file does not exist".into(),
        })?;
        Self::from_json(&json.into())
    }

    /// Reads settings from the JSON object of a processor file. Missing keys have their defaults.
    ///
    /// # Errors
    /// [`ImageError::Setting`] for a value that is wrong or not supported.
    pub fn from_json(json: &Value) -> Result<Self, ImageError> {
        Self::default().with(&Overrides::from_json(json)?)
    }

    /// These settings with some replaced.
    ///
    /// # Errors
    /// [`ImageError::Setting`] when they do not go together.
    pub fn with(&self, overrides: &Overrides) -> Result<Self, ImageError> {
        let mut settings = self.clone();
        overrides.replace(&mut settings);
        settings.validated()
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
            ("max_view_patches", self.max_view_patches),
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
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if !positive(self.max_pixels_tolerance) {
            return wrong("max_pixels_tolerance", &self.max_pixels_tolerance, POSITIVE);
        }
        if !positive(self.rescale_factor) {
            return wrong("rescale_factor", &self.rescale_factor, POSITIVE);
        }
        if !self.image_std.iter().all(|&std| positive(std.into())) {
            return wrong("image_std", &format!("{:?}", self.image_std), POSITIVE);
        }
        Ok(self)
    }

    /// Side of an image token in pixels.
    pub fn token_side(&self) -> usize {
        self.encoder_patch_size * self.downsample_factor
    }

    /// Most patches of a view.
    pub(super) fn view_limit(&self) -> usize {
        self.max_view_patches.max(self.max_num_patches())
    }

    /// Patches to which the reference pads every view.
    pub fn max_num_patches(&self) -> usize {
        let tile = if self.do_image_splitting {
            (self.tile_size / self.encoder_patch_size).pow(2)
        } else {
            0
        };
        tile.max(self.max_image_tokens * self.downsample_factor.pow(2))
    }
}

const POSITIVE: &str = "it must be positive";

const PREPROCESSOR: &str = "preprocessor_config.json";

/// The image processor's JSON object of the model in `folder`, as transformers finds it: `image_processor` in
/// `processor_config.json`, or else `preprocessor_config.json`; `None` where neither exists.
///
/// # Errors
/// [`ImageError::SettingsFile`] when a file cannot be read or is no JSON object.
pub fn image_processor_json(folder: &Path) -> Result<Option<Map<String, Value>>, ImageError> {
    let mut processor = read_json(&folder.join("processor_config.json"))?.unwrap_or_default();
    match processor.remove("image_processor") {
        Some(Value::Object(nested)) => Ok(Some(nested)),
        _ => read_json(&folder.join(PREPROCESSOR)),
    }
}

fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, ImageError> {
    let wrong = |error: io::Error| ImageError::SettingsFile {
        path: path.to_owned(),
        message: error.to_string(),
    };
    files::read_json(path).map_err(wrong)
}

/// A setting of a JSON object.
fn read<T: Setting>(json: &Value, name: &'static str) -> Result<Option<T>, ImageError> {
    let Some(value) = json.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    let wrong = || ImageError::Setting { name, value: value.to_string(), expected: T::EXPECTED };
    T::from_value(value).map(Some).ok_or_else(wrong)
}

/// A type that a setting may have.
trait Setting: Sized {
    /// What a value must be.
    const EXPECTED: &str;

    fn from_value(value: &Value) -> Option<Self>;

    fn to_value(&self) -> Value;
}

impl Setting for usize {
    const EXPECTED: &str = "it must be a positive whole number";

    fn from_value(value: &Value) -> Option<Self> {
        value.as_u64()?.try_into().ok()
    }

    fn to_value(&self) -> Value {
        (*self).into()
    }
}

impl Setting for f64 {
    const EXPECTED: &str = "it must be a number";

    fn from_value(value: &Value) -> Option<Self> {
        value.as_f64()
    }

    fn to_value(&self) -> Value {
        (*self).into()
    }
}

impl Setting for bool {
    const EXPECTED: &str = "it must be true or false";

    fn from_value(value: &Value) -> Option<Self> {
        value.as_bool()
    }

    fn to_value(&self) -> Value {
        (*self).into()
    }
}

impl Setting for [f32; 3] {
    const EXPECTED: &str = "it must be three numbers, or one for all channels";

    fn from_value(value: &Value) -> Option<Self> {
        match value.as_f64() {
            Some(number) => Some([number as f32; 3]),
            None => serde_json::from_value(value.clone()).ok(),
        }
    }

    fn to_value(&self) -> Value {
        self.to_vec().into()
    }
}

impl Resample {
    /// As the processor files have it: Pillow's number, or torchvision's name where it has none.
    pub fn to_json(self) -> Value {
        self.to_value()
    }
}

impl Setting for Resample {
    const EXPECTED: &str =
        "it must be 0 to 3, or nearest-exact, nearest, lanczos, bilinear or bicubic";

    fn from_value(value: &Value) -> Option<Self> {
        match (value.as_f64(), value.as_str()) {
            (Some(0.0), _) | (_, Some("nearest-exact")) => Some(Resample::NearestExact),
            (_, Some("nearest")) => Some(Resample::Nearest),
            (Some(1.0), _) | (_, Some("lanczos")) => Some(Resample::Lanczos),
            (Some(2.0), _) | (_, Some("bilinear")) => Some(Resample::Bilinear),
            (Some(3.0), _) | (_, Some("bicubic")) => Some(Resample::Bicubic),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Resample::NearestExact => 0.into(),
            // Pillow has no number for it.
            Resample::Nearest => "nearest".into(),
            Resample::Lanczos => 1.into(),
            Resample::Bilinear => 2.into(),
            Resample::Bicubic => 3.into(),
        }
    }
}
