//! Sample images and prompts, turned into what the graphs are given.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lfm2vl::{
    Processor, ProcessorError, PromptOptions,
    chat::Message,
    image::{ImageError, Limits, Overrides, open},
};
use ndarray::Array2;
use serde::Deserialize;

/// The list of samples in a folder.
const LIST: &str = "samples.json";
/// What is asked about images that no list asks about.
const PROMPT: &str = "Describe this image.";
/// Files that are images.
const EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "bmp", "gif"];

/// One view of an image.
#[derive(Debug, Clone)]
pub struct View {
    /// Patches [rows * cols, 3 * patch_size^2], normalised.
    pub patches: Array2<f32>,
    /// Rows of patches.
    pub rows: usize,
    /// Columns of patches.
    pub cols: usize,
}

/// A prompt with its answer.
#[derive(Debug, Clone)]
pub struct Sample {
    /// All views of its images in order.
    pub views: Vec<View>,
    /// Token ids of prompt and answer; one image token for each image feature.
    pub ids: Vec<u32>,
    /// How many of them are the prompt.
    pub prompt: usize,
}

impl Sample {
    /// Puts image features into the places of the sample's image tokens: `embeddings` [ids, hidden],
    /// and the features [image tokens, hidden] of each of its views.
    ///
    /// # Errors
    /// [`SamplesError::FeatureCount`] when there are more or fewer features than places.
    pub(crate) fn splice<'f>(
        &self,
        embeddings: &mut Array2<f32>,
        features: impl Iterator<Item = &'f Array2<f32>>,
        image_token: u32,
    ) -> Result<(), SamplesError> {
        let places: Vec<usize> =
            (0..self.ids.len()).filter(|&place| self.ids[place] == image_token).collect();
        let rows: Vec<_> = features.flat_map(|features| features.rows()).collect();
        if rows.len() != places.len() {
            return Err(SamplesError::FeatureCount { features: rows.len(), places: places.len() });
        }
        for (place, row) in places.into_iter().zip(rows) {
            embeddings.row_mut(place).assign(&row);
        }
        Ok(())
    }
}

/// Why samples cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {path}: {source}; give a folder with images or with a samples.json")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The list is not what it should be.
    #[error(
        "{path} is no list of samples ({source}); each is an object with images, prompt and, if there is one, system and answer"
    )]
    List {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A module is to be calibrated that no sample reaches.
    #[error(
        "{0} is to be calibrated, and no sample goes through it; add samples with images, or use the method search for it"
    )]
    Unused(String),
    /// Image features do not fit the prompt.
    #[error(
        "a prompt has places for {places} image features and {features} were computed; check that image settings and config.json belong together"
    )]
    FeatureCount {
        /// Features.
        features: usize,
        /// Places.
        places: usize,
    },
    /// The folder has nothing to ask.
    #[error(
        "{0} has no samples: neither images nor entries in a samples.json; give another folder"
    )]
    Empty(PathBuf),
    /// An image cannot be loaded.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A prompt cannot be made.
    #[error(transparent)]
    Prompt(#[from] ProcessorError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    images: Vec<PathBuf>,
    prompt: String,
    system: Option<String>,
    answer: Option<String>,
    /// For those who make the list.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted, and nothing to us")]
    kind: Option<String>,
}

/// Reads a folder of samples, with the tokenizer, the template and the image settings of `model`:
/// those that `samples.json` lists, or else every image with a general question.
///
/// # Errors
/// [`SamplesError`] names the file.
pub fn read_samples(folder: &Path, model: &Path) -> Result<Vec<Sample>, SamplesError> {
    let processor = Processor::from_folder(model, &Overrides::default())?;
    let entries = entries(folder)?;
    if entries.is_empty() {
        return Err(SamplesError::Empty(folder.to_owned()));
    }
    entries.iter().map(|entry| entry.sample(folder, &processor)).collect()
}

fn entries(folder: &Path) -> Result<Vec<Entry>, SamplesError> {
    let list = folder.join(LIST);
    match fs::read(&list) {
        Ok(content) => serde_json::from_slice(&content)
            .map_err(|source| SamplesError::List { path: list, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let read_error = |source| SamplesError::Read { path: folder.to_owned(), source };
            let files = fs::read_dir(folder).map_err(read_error)?;
            let files = files.map(|entry| entry.map(|entry| PathBuf::from(entry.file_name())));
            let mut files = files.collect::<io::Result<Vec<PathBuf>>>().map_err(read_error)?;
            files.sort();
            let is_image = |path: &PathBuf| {
                let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
                EXTENSIONS.contains(&extension.to_lowercase().as_str())
            };
            let entry = |path: PathBuf| Entry {
                images: vec![path],
                prompt: PROMPT.to_owned(),
                system: None,
                answer: None,
                kind: None,
            };
            Ok(files.into_iter().filter(is_image).map(entry).collect())
        }
        Err(source) => Err(SamplesError::Read { path: list, source }),
    }
}

impl Entry {
    fn sample(&self, folder: &Path, processor: &Processor) -> Result<Sample, SamplesError> {
        let images = self
            .images
            .iter()
            .map(|image| open(&folder.join(image), &Limits::default()))
            .collect::<Result<Vec<_>, _>>()?;
        let mut user = Message::user(&self.prompt);
        user = user.with_images(images.len());
        let system = self.system.as_ref().map(Message::system);
        let messages: Vec<Message> = system.into_iter().chain([user]).collect();
        let prompt = processor.prepare(&messages, &images, &PromptOptions::default())?;
        let views = prompt.images.iter().flat_map(|image| image.views());
        let views = views
            .map(|view| View {
                patches: view.patches.to_owned(),
                rows: view.grid.rows,
                cols: view.grid.cols,
            })
            .collect();
        let mut ids = prompt.input_ids;
        let length = ids.len();
        if let Some(answer) = &self.answer {
            let answer = processor.tokenizer().encode(answer).map_err(ProcessorError::from)?;
            ids.extend(answer);
        }
        Ok(Sample { views, ids, prompt: length })
    }
}
