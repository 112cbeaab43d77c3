//! A small hub of our own, and beside it a store to which it redirects for large files.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use lfm2vl_exporter::hub::HubSettings;
use sha2::{Digest, Sha256};

/// Nobody waits longer, whatever a test does.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) const OLD: &str = "1111111111111111111111111111111111111111";
pub(super) const NEW: &str = "2222222222222222222222222222222222222222";

pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// The files of a folder.
pub(super) fn files_of(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries.filter(|p| p.is_file()).map(|p| (name(&p), fs::read(&p).unwrap())).collect()
}

/// The fewest files that a download asks for, with weights in two files; not a model.
pub(super) fn small_files(mark: &str) -> Files {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}"#;
    let weights = format!("weights of {mark}").repeat(500);
    let content = |text: &str| format!("{text} of {mark}").into_bytes();
    [
        ("config.json", content("config")),
        ("tokenizer.json", content("tokenizer")),
        ("tokenizer_config.json", content("tokenizer_config")),
        ("chat_template.jinja", content("template")),
        ("model.safetensors.index.json", index.into()),
        ("model-1.safetensors", weights.clone().into_bytes()),
        ("model-2.safetensors", [weights, "2".into()].concat().into_bytes()),
    ]
    .into_iter()
    .map(|(name, content)| (name.to_owned(), content))
    .collect()
}

pub(super) fn etag_of(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
    /// Whether the store was asked.
    pub(super) of_store: bool,
}

impl Request {
    /// The revision and the file that are asked for.
    pub(super) fn target(&self) -> Option<(&str, &str)> {
        let prefix = if self.of_store { "/store/" } else { "/liquid/tiny/resolve/" };
        self.path.split('?').next()?.strip_prefix(prefix)?.split_once('/')
    }

    pub(super) fn asks_for(&self, file: &str) -> bool {
        self.target().is_some_and(|(_, asked)| asked == file)
    }
}

/// How a response ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    Close,
    /// Nothing more is sent, and the connection stays.
    Stall,
}

#[derive(Debug, Clone)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
    /// What is sent in place of all that.
    pub(super) raw: Option<Vec<u8>>,
    pub(super) end: End,
}

impl Response {
    fn new(status: u16, body: Vec<u8>) -> Self {
        let length = body.len().to_string();
        let mut response = Response { status, headers: vec![], body, raw: None, end: End::Close };
        response.set("Content-Length", &length);
        response
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.into()));
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.headers.retain(|(header, _)| !header.eq_ignore_ascii_case(name));
    }

    pub(super) fn bytes(&self, with_body: bool) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let mut bytes =
            format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        bytes.extend(b"\r\n");
        if with_body {
            bytes.extend(&self.body);
        }
        bytes
    }
}

type Change = Box<dyn Fn(&Request, &mut Response) + Send>;

struct State {
    commits: Vec<(&'static str, Files)>,
    token: Option<&'static str>,
    change: Change,
    requests: Vec<Request>,
    store: String,
}

/// A hub with the model `liquid/tiny`, whose last commit is the newest.
pub(super) struct Hub {
    pub(super) address: String,
    store: String,
    state: Arc<Mutex<State>>,
    stopped: Arc<AtomicBool>,
}

impl Hub {
    pub(super) fn start(commit: &'static str, files: Files) -> Self {
        let [hub, store] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
        let (hub_address, store_address) = (address(&hub), address(&store));
        let state = Arc::new(Mutex::new(State {
            commits: vec![(commit, files)],
            token: None,
            change: Box::new(|_, _| {}),
            requests: vec![],
            store: format!("http://{store_address}"),
        }));
        let stopped = Arc::new(AtomicBool::new(false));
        for (listener, of_store) in [(hub, false), (store, true)] {
            let (state, stopped) = (Arc::clone(&state), Arc::clone(&stopped));
            thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let (state, stopped) = (Arc::clone(&state), Arc::clone(&stopped));
                    thread::spawn(move || answer(stream, of_store, &state, &stopped));
                }
            });
        }
        Hub { address: format!("http://{hub_address}"), store: store_address, state, stopped }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Adds a newer commit.
    pub(super) fn push(&self, commit: &'static str, files: Files) {
        self.state().commits.push((commit, files));
    }

    /// Asks for a token from now on.
    pub(super) fn require(&self, token: &'static str) {
        self.state().token = Some(token);
    }

    /// Changes every response from now on.
    pub(super) fn change(&self, change: impl Fn(&Request, &mut Response) + Send + 'static) {
        self.state().change = Box::new(change);
    }

    /// Takes the requests since the last call.
    pub(super) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    pub(super) fn settings(&self, cache: &Path) -> HubSettings {
        HubSettings {
            endpoint: Some(self.address.clone()),
            cache: Some(cache.to_owned()),
            ..HubSettings::default()
        }
    }

    /// Hears nobody any more.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        for address in [self.address.trim_start_matches("http://"), &self.store] {
            let _ = TcpStream::connect(address);
        }
        // Until the listeners are gone.
        while TcpStream::connect(self.address.trim_start_matches("http://")).is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop();
    }
}

fn answer(mut stream: TcpStream, of_store: bool, state: &Mutex<State>, stopped: &AtomicBool) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let Some(request) = read_request(&stream, of_store) else { return };
    let response = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let mut response = respond(&request, &state);
        (state.change)(&request, &mut response);
        response
    };
    // Who asked may be gone.
    let _ = stream.write_all(&response.bytes(request.method != "HEAD"));
    if response.end == End::Stall {
        let mut waited = Duration::ZERO;
        let step = Duration::from_millis(20);
        while waited < PATIENCE && !stopped.load(Ordering::Relaxed) {
            thread::sleep(step);
            waited += step;
        }
    }
}

fn read_request(stream: &TcpStream, of_store: bool) -> Option<Request> {
    let mut lines = BufReader::new(stream).take(1 << 16).lines().map_while(Result::ok);
    let line = lines.next()?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_ascii_lowercase(), value.to_owned()))
        })
        .collect();
    Some(Request { method, path, headers, of_store })
}

fn respond(request: &Request, state: &State) -> Response {
    let authorization = request.headers.get("authorization");
    let allowed = |token| authorization.is_some_and(|given| *given == format!("Bearer {token}"));
    if !request.of_store && !state.token.is_none_or(allowed) {
        return Response::new(401, vec![]);
    }
    let Some((revision, file)) = request.target() else { return Response::new(404, vec![]) };
    let mut commits = state.commits.iter().rev();
    let found = commits.find(|(commit, _)| revision == "main" || *commit == revision);
    let Some((commit, files)) = found else { return Response::new(404, vec![]) };
    let Some(content) = files.get(file) else {
        let mut response = Response::new(404, b"Entry not found".into());
        response.set("X-Repo-Commit", commit);
        response.set("X-Error-Code", "EntryNotFound");
        return response;
    };
    if !request.of_store && file.ends_with(".safetensors") {
        let mut response = Response::new(302, b"Found".into());
        response.set("Location", &format!("{}/store/{commit}/{file}", state.store));
        response.set("X-Repo-Commit", commit);
        response.set("X-Linked-Etag", &format!("\"{}\"", etag_of(content)));
        response.set("X-Linked-Size", &content.len().to_string());
        return response;
    }
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let start = range.and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok());
    let mut response = match start {
        Some(start) if start < content.len() => {
            let mut response = Response::new(206, content[start..].to_vec());
            let (last, all) = (content.len() - 1, content.len());
            response.set("Content-Range", &format!("bytes {start}-{last}/{all}"));
            response
        }
        Some(_) => Response::new(416, vec![]),
        None => Response::new(200, content.clone()),
    };
    if request.of_store {
        response.set("ETag", "\"of/the/store\"");
    } else {
        response.set("X-Repo-Commit", commit);
        response.set("ETag", &format!("\"{}\"", etag_of(content)));
    }
    response
}
