//! Downloads, from a small server of our own that answers as the hub does.

mod hostile;
mod huggingface_hub;
mod mock;
mod offline;
mod transfer;

use std::{fs, ops::ControlFlow, path::Path, process::Command};

use lfm2vl_exporter::{
    checkpoint::Checkpoint,
    hub::{Found, HubError, HubSettings, resolve},
};

use crate::common::testdata;
use mock::{Hub, NEW, OLD, files_of, small_files};

const MODEL: &str = "liquid/tiny";

fn find(settings: &HubSettings) -> Result<Found, HubError> {
    resolve(MODEL, settings, &mut || ControlFlow::Continue(()))
}

/// The commit whose files were found; all of them must be of it.
fn commit_of(found: &Found, mark: &str) -> String {
    for (name, content) in small_files(mark) {
        assert_eq!(fs::read(found.folder.join(&name)).unwrap(), content, "{name}");
    }
    found.folder.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Paths of all files and links below a folder.
fn all_files(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path)
            } else {
                files.push(path.strip_prefix(folder).unwrap().display().to_string())
            }
        }
    }
    files.sort();
    files
}

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_lfm2vl-export"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("HF_") || text.starts_with("HUGGING") || text.ends_with("_OFFLINE") {
            program.env_remove(name);
        }
    }
    program
}

#[test]
fn only_the_files_that_are_needed_are_fetched_and_only_once() {
    let hub = Hub::start(OLD, files_of(&testdata("tiny-shapes")));
    let cache = tempfile::tempdir().unwrap();
    let found = find(&hub.settings(cache.path())).unwrap();
    assert!(found.unasked.is_none());
    Checkpoint::open(&found.folder).unwrap();
    for file in ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"] {
        assert_eq!(
            fs::read(found.folder.join(file)).unwrap(),
            fs::read(testdata("tiny-shapes").join(file)).unwrap()
        );
    }
    let requests = hub.requests();
    let asked = |file| requests.iter().filter(|request| request.asks_for(file)).count();
    assert_eq!(asked("config.json"), 2, "for the commit, and for the file");
    assert_eq!(asked("generation_config.json"), 1);
    assert_eq!(asked("model.safetensors"), 2, "the hub, and its store");
    assert_eq!(asked("chat_template.json"), 0);
    assert!(!requests.iter().any(|r| r.path.contains("eval") || r.path.contains("index")));
    let revisions = requests.iter().filter_map(|request| Some(request.target()?.0));
    assert_eq!(revisions.filter(|&revision| revision != OLD).count(), 1, "the commit is pinned");

    assert_eq!(find(&hub.settings(cache.path())).unwrap().folder, found.folder);
    let again = hub.requests();
    assert_eq!(again.len(), 1, "{again:?}");
    assert_eq!(again[0].method, "HEAD");
}

#[test]
fn shards_are_fetched_by_their_index() {
    let hub = Hub::start(OLD, files_of(&testdata("variants/sharded-f16")));
    let cache = tempfile::tempdir().unwrap();
    let found = find(&hub.settings(cache.path())).unwrap();
    Checkpoint::open(&found.folder).unwrap();
    let shards = hub.requests().iter().filter(|r| r.of_store).count();
    assert_eq!(shards, 3);
}

#[test]
fn an_adapter_beside_the_model_is_fetched_with_it() {
    let mut files = files_of(&testdata("tiny-shapes"));
    files.extend(files_of(&testdata("adapters/plain")));
    let hub = Hub::start(OLD, files.clone());
    let cache = tempfile::tempdir().unwrap();
    let found = find(&hub.settings(cache.path())).unwrap();
    assert!(Checkpoint::open(&found.folder).unwrap().adapter().is_some());

    files.remove("adapter_model.safetensors");
    let hub = Hub::start(OLD, files);
    let cache = tempfile::tempdir().unwrap();
    let error = find(&hub.settings(cache.path())).unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors"), "{error}");
}

#[test]
fn tokens_stay_with_the_hub() {
    let hub = Hub::start(OLD, small_files("old"));
    hub.require("hf_secret");
    let cache = tempfile::tempdir().unwrap();
    let error = find(&hub.settings(cache.path())).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN") && error.contains(MODEL), "{error}");

    // A redirect within the hub keeps the token: models that were renamed.
    hub.change(|request, response| {
        if request.asks_for("tokenizer.json") && !request.path.contains('?') {
            response.status = 307;
            response.remove("X-Repo-Commit");
            response.set("Location", &format!("{}?renamed", request.path));
        }
    });
    let settings = HubSettings { token: Some("hf_secret".into()), ..hub.settings(cache.path()) };
    hub.requests();
    assert_eq!(commit_of(&find(&settings).unwrap(), "old"), OLD);
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.path.ends_with("?renamed")));
    let (store, hub): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.of_store);
    assert!(hub.iter().all(|r| r.headers["authorization"] == "Bearer hf_secret"), "{hub:?}");
    assert_eq!(store.len(), 2);
    assert!(!store.iter().any(|r| r.headers.contains_key("authorization")), "{store:?}");
}

#[test]
fn the_program_honours_the_variables_of_the_hub() {
    let hub = Hub::start(OLD, files_of(&testdata("tiny-shapes")));
    hub.require("hf_secret");
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let output = program()
        .arg(MODEL)
        .arg("-o")
        .arg(out.path().join("m"))
        .env("HF_ENDPOINT", format!("{}/", hub.address))
        .env("HF_HOME", home.path())
        .env("HF_TOKEN", "hf_secret\n")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let of_weights = told.lines().filter(|line| line.starts_with("downloading model.safetensors"));
    let of_weights: Vec<_> = of_weights.collect();
    let size = fs::metadata(testdata("tiny-shapes/model.safetensors")).unwrap().len() as f64 / 1e6;
    assert_eq!(of_weights[0], format!("downloading model.safetensors: {size:.2} MB"));
    let end = of_weights.last().unwrap();
    assert!(end.contains(&format!(": done, {size:.2} MB in ")), "{told}");
    assert!(out.path().join("m/onnx/vision_encoder.onnx").is_file());
    assert!(home.path().join("hub/models--liquid--tiny").is_dir());
}

#[test]
fn variables_mean_what_they_mean_in_huggingface_hub() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("token"), "hf_stored\r\n").unwrap();
    let other_token = folder.path().join("other");
    fs::write(&other_token, " hf_other ").unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (home, other_token) = (path(&home), path(&other_token));

    let settings = |variables: &[(&str, &str)]| {
        let value = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.into())
        };
        HubSettings::from_variables(&value, false)
    };
    let cache = |variables: &[(&str, &str)]| settings(variables).cache.unwrap();
    let users = std::env::home_dir().unwrap();
    assert_eq!(cache(&[]), users.join(".cache/huggingface/hub"));
    assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
    assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]), Path::new("/h/hub"));
    assert_eq!(cache(&[("HF_HOME", "")]), users.join(".cache/huggingface/hub"));
    assert_eq!(cache(&[("HF_HOME", "~/h")]), users.join("h/hub"));
    assert_eq!(
        cache(&[("HF_HOME", "/a/$B/${C}c/$D"), ("B", "b"), ("C", "c")]),
        Path::new("/a/b/cc/$D/hub")
    );
    assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HOME", "/h")]), Path::new("/o"));
    assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/o")]), Path::new("/c"));

    let token = |variables: &[(&str, &str)]| {
        settings(&[variables, &[("HF_HOME", home.as_str())]].concat()).token
    };
    assert_eq!(token(&[]).as_deref(), Some("hf_stored"));
    assert_eq!(token(&[("HF_HUB_CACHE", "/elsewhere")]).as_deref(), Some("hf_stored"));
    assert_eq!(token(&[("HF_TOKEN_PATH", &other_token)]).as_deref(), Some("hf_other"));
    assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_a")]).as_deref(), Some("hf_a"));
    assert_eq!(
        token(&[("HF_TOKEN", "hf_b\n"), ("HUGGING_FACE_HUB_TOKEN", "a")]).as_deref(),
        Some("hf_b")
    );
    assert_eq!(token(&[("HF_TOKEN", " \n")]).as_deref(), Some("hf_stored"));
    assert_eq!(token(&[("HF_TOKEN", "b"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);

    for (value, offline) in
        [("1", true), ("on", true), ("Yes", true), ("TRUE", true), ("0", false), ("2", false)]
    {
        assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        assert_eq!(settings(&[("TRANSFORMERS_OFFLINE", value)]).offline, offline, "{value}");
    }
    assert!(!settings(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
    assert!(settings(&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")]).offline);
    assert!(!settings(&[("HF_HUB_DISABLE_SYMLINKS", "1")]).symlinks && settings(&[]).symlinks);
    for (value, seconds) in
        [("3", 3), ("0", 10), ("-1", 10), ("99999999999999999999", 10), ("x", 10)]
    {
        let timeout = settings(&[("HF_HUB_DOWNLOAD_TIMEOUT", value)]).timeout;
        assert_eq!(timeout.as_secs(), seconds, "{value}");
    }
}

#[test]
fn what_is_not_there_is_told() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path());
    let error = |checkpoint: &str, settings: &HubSettings| {
        let error = resolve(checkpoint, settings, &mut || ControlFlow::Continue(()));
        error.unwrap_err().to_string()
    };
    let message = error("liquid/other", &settings);
    assert!(message.contains("config.json") && message.contains("liquid/other"), "{message}");
    for name in ["no-such-folder", "a/b/c", "./missing", "owner/", "a--b/c"] {
        let message = error(name, &settings);
        assert!(message.contains("neither a folder nor a hub id"), "{message}");
    }
    // Nobody listens here.
    let nobody = HubSettings { endpoint: Some("http://127.0.0.1:9".into()), ..settings.clone() };
    assert!(error(MODEL, &nobody).contains("check the network"));
    for endpoint in ["huggingface.co", "", "file:///etc", "http://"] {
        let settings = HubSettings { endpoint: Some(endpoint.into()), ..settings.clone() };
        assert!(error(MODEL, &settings).contains("HF_ENDPOINT"), "{endpoint}");
    }
    let nowhere = HubSettings { cache: None, ..settings };
    assert!(error(MODEL, &nowhere).contains("HF_HOME"));

    let mut files = small_files("new");
    files.remove("tokenizer_config.json");
    hub.push(NEW, files);
    let message = find(&hub.settings(cache.path())).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json"), "{message}");
}
