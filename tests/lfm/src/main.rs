//! Greedy tokens from an exported folder in the crate `lfm`, which accepts the 450M shape only.
//!
//! ```text
//! lfm-client FOLDER PRECISION PROMPT STEPS [IMAGE]...
//! ```
//!
//! PRECISION is fp32, fp16, q8, q4 or q4f16. Prints the new token ids as JSON. The crate's own functions return text, and only when the model
//! ends its answer. Two things get the ids out of it:
//! - the answer is constrained to any STEPS tokens, so that it ends there, whatever the model says;
//! - the tokenizer it gets is the folder's with another decoder, which makes the text the vocabulary's
//!   entries with a space between them. No entry of a byte-level vocabulary has a space.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use lfm::{Engine, EnginePaths, ImageInput, Options, RequestOptions};
use llmtask::{Grammar, Task};
use serde_json::{Value, json};

/// Any `steps` tokens in answer to `prompt`.
struct AnyTokens {
    prompt: String,
    grammar: String,
}

impl Task for AnyTokens {
    type Output = String;
    type Value = String;
    type ParseError = llmtask::JsonParseError;

    fn prompt(&self) -> &str {
        &self.prompt
    }

    fn schema(&self) -> &String {
        &self.grammar
    }

    fn grammar(&self) -> Grammar {
        Grammar::lark(&self.grammar)
    }

    fn parse(&self, raw: &str) -> Result<String, Self::ParseError> {
        Ok(raw.to_owned())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, precision, prompt, steps, images @ ..] = arguments.as_slice() else {
        bail!("usage: lfm-client FOLDER PRECISION PROMPT STEPS [IMAGE]...");
    };
    let (folder, steps) = (Path::new(folder), steps.parse()?);
    let suffix = match precision.as_str() {
        "fp32" => "",
        "fp16" => "_fp16",
        "q8" => "_quantized",
        "q4" => "_q4",
        "q4f16" => "_q4f16",
        other => bail!("no precision is called {other}"),
    };
    let images: Vec<_> = images.iter().map(|path| ImageInput::Path(Path::new(path))).collect();

    let path = folder.join("tokenizer.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut tokenizer: Value = serde_json::from_str(&text)?;
    tokenizer["decoder"] = json!({ "type": "Sequence", "decoders": [
        // Puts a space before every entry that lacks the prefix: none has it.
        { "type": "WordPiece", "prefix": " ", "cleanup": false },
        // Changes nothing here; the crate's grammar library insists on one of two it knows.
        { "type": "ByteFallback" },
    ]});
    let changed = tempfile::NamedTempFile::new()?;
    fs::write(changed.path(), tokenizer.to_string())?;

    let graph =
        |name: &str| -> PathBuf { folder.join("onnx").join(format!("{name}{suffix}.onnx")) };
    let paths = EnginePaths::new(
        graph("vision_encoder"),
        graph("embed_tokens"),
        graph("decoder_model_merged"),
        changed.path().to_owned(),
    );
    let mut engine = Engine::from_paths(paths, Options::default())?;

    let request =
        RequestOptions::deterministic().with_repetition_penalty(1.0).with_max_new_tokens(steps);
    let task = AnyTokens { prompt: prompt.clone(), grammar: format!("start: <[*]>{{{steps}}}") };
    let answer = engine.run(&task, &images, &request)?;

    let tokens: Vec<u64> = answer.split(' ').filter_map(|entry| id(&tokenizer, entry)).collect();
    ensure!(tokens.len() == steps, "{} of {steps} tokens in: {answer}", tokens.len());
    println!("{}", serde_json::to_string(&tokens)?);
    Ok(())
}

/// The id of an entry of the vocabulary, or of an added token.
fn id(tokenizer: &Value, entry: &str) -> Option<u64> {
    let added = tokenizer["added_tokens"].as_array()?;
    let added = added.iter().find(|token| token["content"] == entry);
    added.map_or(&tokenizer["model"]["vocab"][entry], |token| &token["id"]).as_u64()
}
