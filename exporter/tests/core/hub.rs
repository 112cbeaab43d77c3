//! Downloads, from a small server of our own that answers as the hub does.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use lfm2vl_exporter::{
    checkpoint::Checkpoint,
    hub::{HubSettings, resolve},
};

use crate::common::testdata;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one folder as the model `liquid/tiny`.
struct Server {
    address: String,
    /// Request line and authorization header of each request.
    requests: Arc<Mutex<Vec<(String, String)>>>,
}

impl Server {
    fn start(folder: PathBuf, token: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (folder, log) = (folder.clone(), Arc::clone(&log));
                thread::spawn(move || answer(stream.unwrap(), &folder, token, &log));
            }
        });
        Server { address, requests }
    }

    fn settings(&self, cache: &tempfile::TempDir) -> HubSettings {
        HubSettings {
            endpoint: Some(self.address.clone()),
            token: None,
            cache: Some(cache.path().to_owned()),
            progress: false,
        }
    }

    fn files(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let mut files: Vec<String> = requests
            .iter()
            .filter_map(|(line, _)| line.split("/resolve/main/").nth(1)?.split(' ').next())
            .map(str::to_owned)
            .collect();
        files.sort();
        files.dedup();
        files
    }
}

fn answer(
    stream: TcpStream,
    folder: &std::path::Path,
    token: Option<&str>,
    log: &Mutex<Vec<(String, String)>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let (mut authorization, mut range) = (String::new(), None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => authorization = value.to_owned(),
                "range" => range = value.strip_prefix("bytes=").map(str::to_owned),
                _ => {}
            }
        }
        log.lock().unwrap().push((line.trim_end().to_owned(), authorization.clone()));
        let path = line.split(' ').nth(1).unwrap().split('?').next().unwrap();
        let allowed = token.is_none_or(|token| authorization == format!("Bearer {token}"));
        let content = path
            .strip_prefix("/liquid/tiny/resolve/main/")
            .and_then(|file| fs::read(folder.join(file)).ok());
        let response = match content {
            _ if !allowed => b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_vec(),
            None => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            Some(content) => {
                let range = range.unwrap_or_else(|| "0-".into());
                let (first, last) = range.split_once('-').unwrap();
                let first: usize = first.parse().unwrap();
                let last = last.parse().map_or(content.len(), |last: usize| last + 1);
                let part = &content[first.min(content.len())..last.min(content.len())];
                let mut response = format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{}/{}\r\nETag: \"{path_hash:x}\"\r\nX-Repo-Commit: {COMMIT}\r\n\r\n",
                    part.len(),
                    first + part.len().saturating_sub(1),
                    content.len(),
                    path_hash = path.bytes().fold(0_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into())),
                )
                .into_bytes();
                response.extend(part);
                response
            }
        };
        if stream.write_all(&response).is_err() {
            return;
        }
    }
}

#[test]
fn only_the_files_that_are_needed_are_fetched_and_only_once() {
    let server = Server::start(testdata("tiny-shapes"), None);
    let cache = tempfile::tempdir().unwrap();
    let folder = resolve("liquid/tiny", &server.settings(&cache)).unwrap();
    Checkpoint::open(&folder).unwrap();
    for file in ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"] {
        assert_eq!(
            fs::read(folder.join(file)).unwrap(),
            fs::read(testdata("tiny-shapes").join(file)).unwrap()
        );
    }
    let files = server.files();
    assert!(files.contains(&"generation_config.json".into()), "{files:?}");
    assert!(!files.iter().any(|f| f.contains("eval") || f.contains("index")), "{files:?}");

    let asked = |requests: &Mutex<Vec<(String, String)>>| {
        let requests = requests.lock().unwrap();
        requests
            .iter()
            .filter(|(line, _)| !line.contains("LICENSE") && !line.contains("special_tokens_map"))
            .count()
    };
    let before = asked(&server.requests);
    assert_eq!(resolve("liquid/tiny", &server.settings(&cache)).unwrap(), folder);
    assert_eq!(asked(&server.requests), before, "something was fetched again");
}

#[test]
fn shards_are_fetched_by_their_index() {
    let server = Server::start(testdata("variants/sharded-f16"), None);
    let cache = tempfile::tempdir().unwrap();
    let folder = resolve("liquid/tiny", &server.settings(&cache)).unwrap();
    Checkpoint::open(&folder).unwrap();
    let shards = server.files().iter().filter(|f| f.ends_with(".safetensors")).count();
    assert_eq!(shards, 4, "three shards, and the single file that is not there");
}

#[test]
fn the_token_is_sent_and_its_lack_is_told() {
    let server = Server::start(testdata("tiny-shapes"), Some("hf_secret"));
    let cache = tempfile::tempdir().unwrap();
    let error = resolve("liquid/tiny", &server.settings(&cache)).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN") && error.contains("liquid/tiny"), "{error}");
    let settings = HubSettings { token: Some("hf_secret".into()), ..server.settings(&cache) };
    Checkpoint::open(&resolve("liquid/tiny", &settings).unwrap()).unwrap();
}

#[test]
fn the_program_honours_the_variables_of_the_hub() {
    let server = Server::start(testdata("tiny-shapes"), Some("hf_secret"));
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_lfm2vl-export"))
        .arg("liquid/tiny")
        .arg("-o")
        .arg(out.path().join("m"))
        .env("HF_ENDPOINT", &server.address)
        .env("HF_HOME", home.path())
        .env("HF_TOKEN", "hf_secret")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.path().join("m/onnx/vision_encoder.onnx").is_file());
    assert!(home.path().join("hub/models--liquid--tiny").is_dir());
}

#[test]
fn what_is_not_there_is_told() {
    let server = Server::start(testdata("tiny-shapes"), None);
    let cache = tempfile::tempdir().unwrap();
    let error = resolve("liquid/other", &server.settings(&cache)).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("liquid/other"), "{error}");
    for name in ["no-such-folder", "a/b/c", "./missing", "owner/"] {
        let error = resolve(name, &server.settings(&cache)).unwrap_err().to_string();
        assert!(error.contains("neither a folder nor a hub id"), "{error}");
    }
    // Nobody listens here.
    let settings =
        HubSettings { endpoint: Some("http://127.0.0.1:9".into()), ..server.settings(&cache) };
    let error = resolve("liquid/tiny", &settings).unwrap_err().to_string();
    assert!(error.contains("network"), "{error}");
}
