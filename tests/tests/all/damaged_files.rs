//! The files of models, damaged at random but the same each time. Whatever is in them, nothing panics and an
//! error is one line. `LFM2VL_DAMAGE=20 cargo test -p lfm2vl-tests --test all damaged_files -- --nocapture`
//! does 20 times as much; how many files were refused is printed.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use lfm2vl::{
    Engine, GenerationOptions, Processor, PromptOptions,
    chat::{ChatTemplate, Message, RenderOptions},
    image::{ImageProcessor, ImageSettings, Overrides, RgbImage},
};
use lfm2vl_exporter::{ExportOptions, Part, checkpoint::Checkpoint, export};
use lfm2vl_graphs::{Manifest, Recipe, RecipeSource};
use lfm2vl_tests::{copy_folder, testdata, tiny_shapes};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::{Map, json};

/// What these files are made of, so that some of what comes out can be read.
const PIECES: [&str; 24] = [
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    "18446744073709551616",
    "0.5",
    "\"\"",
    "[]",
    "{}",
    "[[",
    "}",
    ",",
    ": ",
    "\n  ",
    "\"a\"",
    "\u{fffd}",
    "\\u0000",
    "{%",
    "%}",
    "{{",
    "for x in messages",
    "fp32",
    "bicubic",
];

fn damage(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len());
        let end = bytes.len().min(at + random.random_range(0..12));
        match random.random_range(0..5) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = PIECES[random.random_range(0..PIECES.len())];
                drop(bytes.splice(at..end, piece.bytes()));
            }
            _ => {
                let copied = bytes[at..end].to_vec();
                let to = random.random_range(0..bytes.len());
                drop(bytes.splice(to..to, copied));
            }
        }
        if bytes.is_empty() {
            bytes.push(b'{');
        }
    }
}

/// Replaces a number, a string or a word by another piece: what is left is often valid.
fn exchange(random: &mut SmallRng, bytes: &mut Vec<u8>) {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let at = random.random_range(0..bytes.len());
    let start = bytes[..at].iter().rposition(|byte| !is_word(byte)).map_or(0, |at| at + 1);
    let length = bytes[start..].iter().take_while(|byte| is_word(byte)).count();
    let piece = PIECES[random.random_range(0..PIECES.len())];
    drop(bytes.splice(start..start + length, piece.bytes()));
}

/// A few rounds, or so many times as many.
fn rounds(few: usize) -> usize {
    few * std::env::var("LFM2VL_DAMAGE").map_or(1, |times| times.parse().unwrap())
}

/// Damages the file at `path` again and again, of which the first `most` bytes, and reads it.
fn damage_file(
    path: &Path,
    most: usize,
    rounds: usize,
    mut read: impl FnMut(&[u8]) -> Result<(), String>,
) {
    let whole = fs::read(path).unwrap();
    read(&whole).unwrap();
    let (start, rest) = whole.split_at(most.min(whole.len()));
    let mut random = SmallRng::seed_from_u64(start.len() as u64);
    let mut refused = 0;
    for round in 0..rounds {
        let mut bytes = start.to_vec();
        if round % 2 == 0 {
            damage(&mut random, &mut bytes);
        } else {
            exchange(&mut random, &mut bytes);
        }
        bytes.extend(rest);
        fs::write(path, &bytes).unwrap();
        if let Err(message) = read(&bytes) {
            assert!(!message.contains('\n') && message.len() < 2000, "{message}");
            refused += 1;
        }
    }
    fs::write(path, whole).unwrap();
    let name = path.file_name().unwrap().to_string_lossy();
    println!("{name}: {refused} of {rounds} refused");
    // Neither everything nor nothing.
    assert!(refused * 20 > rounds && refused < rounds, "{name}: {refused} of {rounds}");
}

fn text(error: impl std::error::Error) -> String {
    error.to_string()
}

fn copy_of(source: &Path) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("m");
    copy_folder(source, &copy);
    (folder, copy)
}

#[test]
fn checkpoints() {
    let (out, folder) = copy_of(&testdata("variants/no-layernorm"));
    let read = |_: &[u8]| {
        let checkpoint = Checkpoint::open(&folder).map_err(text)?;
        for name in checkpoint.dtypes().keys() {
            checkpoint.load(name).map_err(text)?;
        }
        Ok(())
    };
    let weights = folder.join("model.safetensors");
    let length = u64::from_le_bytes(fs::read(&weights).unwrap()[..8].try_into().unwrap());
    damage_file(&weights, 8 + length as usize, rounds(400), read);

    let options = ExportOptions {
        parts: vec![Part::Vision, Part::Projector, Part::Decoder],
        force: true,
        ..ExportOptions::new(Recipe::builtin("portable").unwrap())
    };
    let exported = out.path().join("exported");
    let read = |_: &[u8]| {
        let checkpoint = Checkpoint::open(&folder).map_err(text)?;
        export(&checkpoint, &exported, &options, &mut |_| ControlFlow::Continue(()))
            .map_err(text)?;
        Ok(())
    };
    for name in ["config.json", "tokenizer_config.json", "generation_config.json"] {
        damage_file(&folder.join(name), usize::MAX, rounds(150), read);
    }
}

#[test]
fn adapters() {
    for (adapter, base) in [
        ("patterns", "variants/layernorm-tied"),
        ("some-layers", "variants/layernorm-tied"),
        ("lora-bias", "variants/conv-bias"),
        ("embedding-tied", "variants/layernorm-tied"),
    ] {
        let (_out, folder) = copy_of(&testdata(&format!("adapters/{adapter}")));
        let read = |_: &[u8]| {
            let checkpoint =
                Checkpoint::open_with_adapter(&testdata(base), &folder).map_err(text)?;
            for name in checkpoint.dtypes().keys() {
                checkpoint.load(name).map_err(text)?;
            }
            Ok(())
        };
        // As much of the values as of the header, where hardly any damage is harmless.
        let weights = folder.join("adapter_model.safetensors");
        let length = u64::from_le_bytes(fs::read(&weights).unwrap()[..8].try_into().unwrap());
        damage_file(&weights, 8 + 2 * length as usize, rounds(200), read);
        damage_file(&folder.join("adapter_config.json"), usize::MAX, rounds(200), read);
    }
}

#[test]
fn chat_templates() {
    let (_out, folder) = copy_of(&testdata("variants/no-layernorm"));
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let options = RenderOptions {
        add_generation_prompt: true,
        tools: Some(tools),
        ..RenderOptions::default()
    };
    let messages = [
        Message::system("Be short."),
        Message::user("Hi"),
        Message::assistant("a"),
        Message::user("b"),
    ];
    damage_file(&folder.join("chat_template.jinja"), usize::MAX, rounds(2000), |bytes| {
        let source = String::from_utf8_lossy(bytes);
        let template = ChatTemplate::new(&source, &Map::new()).map_err(text)?;
        template.render(&messages, &options).map(drop).map_err(text)
    });
}

#[test]
fn tokenizers_and_processors() {
    let (_out, folder) = copy_of(&testdata("variants/no-layernorm"));
    let read = |_: &[u8]| {
        let processor = Processor::from_folder(&folder, &Overrides::default()).map_err(text)?;
        let messages = [Message::user("What is 2 < 3?")];
        let prompt = processor.prepare(&messages, &[], &PromptOptions::default()).map_err(text)?;
        processor.tokenizer().decode(&prompt.input_ids, false).map(drop).map_err(text)
    };
    damage_file(&folder.join("tokenizer.json"), 4000, rounds(300), read);
    damage_file(&folder.join("tokenizer_config.json"), usize::MAX, rounds(300), read);

    let image = RgbImage::new(90, 70);
    let read = |_: &[u8]| {
        let processor = ImageProcessor::new(ImageSettings::from_folder(&folder).map_err(text)?);
        let processor = processor.map_err(text)?;
        for (height, width) in [(1, 1), (70, 90), (3000, 4000), (1, 100_000), (usize::MAX, 1)] {
            processor.layout(height, width);
        }
        // Some of these ask for images of gigabytes.
        let layout = processor.layout(70, 90);
        if layout.is_split() || layout.tokens() > 10_000 {
            return Ok(());
        }
        processor.process(&image).map(drop).map_err(text)
    };
    for name in ["processor_config.json", "preprocessor_config.json"] {
        if folder.join(name).exists() {
            damage_file(&folder.join(name), usize::MAX, rounds(1000), read);
            fs::remove_file(folder.join(name)).unwrap();
        }
    }
}

#[test]
fn recipes_and_manifests() {
    let modules = Checkpoint::open(&testdata("variants/no-layernorm")).unwrap();
    let modules = modules.config().quantizable_modules();
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("mine.yaml");
    for recipe in ["default", "coreml", "cuda"] {
        let recipe = Recipe::builtin(recipe).unwrap();
        // With all that a recipe may have.
        fs::write(&file, serde_yaml::to_string(&recipe).unwrap()).unwrap();
        damage_file(&file, usize::MAX, rounds(1000), |_| {
            let source = RecipeSource::load(file.to_str().unwrap()).map_err(text)?;
            source.check(&modules).map(drop).map_err(text)
        });
    }
    let (_out, folder) = copy_of(&tiny_shapes("default"));
    damage_file(&folder.join("lfm2vl.yaml"), usize::MAX, rounds(2000), |bytes| {
        let manifest = Manifest::read(bytes).map_err(text)?;
        manifest.all_files().for_each(drop);
        Ok(())
    });
}

#[test]
fn exported_folders() {
    let (_out, folder) = copy_of(&tiny_shapes("default"));
    let read = |_: &[u8]| {
        let engine = Engine::builder(&folder).threads(Some(1)).build().map_err(text)?;
        engine.generation_options().map(|_: GenerationOptions| ()).map_err(text)
    };
    for name in ["config.json", "generation_config.json", "lfm2vl.yaml"] {
        damage_file(&folder.join(name), usize::MAX, rounds(40), read);
    }
}
