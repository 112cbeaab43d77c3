//! Hubs that mean harm, or answer nonsense.

use std::{fs, path::Path, time::Duration};

use lfm2vl_exporter::hub::{HubError, HubSettings};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    all_files, find,
    mock::{Hub, OLD, Response, small_files},
};

const NOT_NAMES: [&str; 16] = [
    "",
    ".",
    "..",
    "../victim",
    "../../../victim",
    "/victim",
    "a/b",
    "a\\b",
    "..\\victim",
    "C:victim",
    "C:\\victim",
    "\\\\host\\victim",
    ".hidden",
    "a b",
    "a;b",
    "x\u{e4}",
];

/// A cache in a folder with a file beside it, which must stay as it is.
struct Guarded {
    folder: tempfile::TempDir,
}

impl Guarded {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("victim"), "untouched").unwrap();
        Guarded { folder }
    }

    fn cache(&self) -> std::path::PathBuf {
        self.folder.path().join("cache")
    }

    fn settings(&self, hub: &Hub) -> HubSettings {
        hub.settings(&self.cache())
    }

    /// Nothing was written but files of plain names in the model's folder.
    fn check(&self) {
        assert_eq!(fs::read(self.folder.path().join("victim")).unwrap(), b"untouched");
        for file in all_files(self.folder.path()) {
            if file == "victim" {
                continue;
            }
            let parts: Vec<_> =
                Path::new(&file).iter().map(|part| part.to_str().unwrap()).collect();
            let plain = match parts[..] {
                ["cache", "models--liquid--tiny", "refs", "main"] => true,
                ["cache", "models--liquid--tiny", "blobs", _] => !file.ends_with(".incomplete"),
                ["cache", "models--liquid--tiny", "snapshots" | ".no_exist", commit, _] => {
                    commit.len() == 40
                }
                _ => false,
            };
            assert!(plain, "{file}");
        }
    }
}

#[test]
fn etags_and_commits_that_are_paths_are_refused() {
    for header in ["ETag", "X-Linked-Etag", "X-Repo-Commit"] {
        for value in NOT_NAMES {
            for quoted in [value.to_owned(), format!("\"{value}\""), format!("W/\"{value}\"")] {
                let hub = Hub::start(OLD, small_files("old"));
                let guarded = Guarded::new();
                hub.change(move |_, response| response.set(header, &quoted));
                let error = find(&guarded.settings(&hub)).unwrap_err();
                let told = error.to_string();
                assert!(matches!(error, HubError::Fetch { .. }), "{told}");
                guarded.check();
                assert_eq!(all_files(guarded.folder.path()), ["victim"], "{header}: {value}");
            }
        }
    }
}

#[test]
fn weak_etags_are_names() {
    let hub = Hub::start(OLD, small_files("old"));
    let guarded = Guarded::new();
    hub.change(|request, response| {
        if request.asks_for("config.json") {
            response.set("ETag", "W/\"weak-1\"");
        }
    });
    find(&guarded.settings(&hub)).unwrap();
    assert!(guarded.cache().join("models--liquid--tiny/blobs/weak-1").is_file());
}

#[test]
fn shards_that_are_paths_are_refused() {
    for name in ["", ".", "..", "../victim", "/victim", "a/b", "a\\b", "C:victim", "a\0", "a\nb"] {
        let hub_files = |mut files: super::mock::Files| {
            let index = serde_json::json!({"weight_map": {"a": "model-1.safetensors", "b": name}});
            files.insert("model.safetensors.index.json".into(), index.to_string().into());
            files
        };
        let hub = Hub::start(OLD, hub_files(small_files("old")));
        let guarded = Guarded::new();
        let error = find(&guarded.settings(&hub)).unwrap_err().to_string();
        assert!(error.contains("weight_map") && error.contains("owner"), "{error}");
        guarded.check();
        assert!(!hub.requests().iter().any(|request| request.of_store), "{name:?}");
    }
    // No path, if not a usual name.
    let mut files = small_files("old");
    files.insert("weights%20%231%3F.bin".into(), b"abc".into());
    let index = serde_json::json!({"weight_map": {"a": "weights #1?.bin"}});
    files.insert("model.safetensors.index.json".into(), index.to_string().into());
    let hub = Hub::start(OLD, files);
    let guarded = Guarded::new();
    let found = find(&guarded.settings(&hub)).unwrap();
    assert_eq!(fs::read(found.folder.join("weights #1?.bin")).unwrap(), b"abc");
}

#[test]
fn redirects_to_nowhere_are_errors() {
    let error_with = |location: Option<&'static str>| {
        let hub = Hub::start(OLD, small_files("old"));
        let guarded = Guarded::new();
        hub.change(move |request, response| {
            if request.asks_for("tokenizer.json") {
                response.status = 302;
                if let Some(location) = location {
                    response.set("Location", location);
                }
            }
        });
        let error = find(&guarded.settings(&hub)).unwrap_err().to_string();
        guarded.check();
        assert!(error.contains("tokenizer.json") && error.contains("check"), "{error}");
        error
    };
    assert!(error_with(None).contains("without a location"));
    for location in ["", "tokenizer.json", "?x", "/liquid/tiny/resolve/main/tokenizer.json"] {
        assert!(error_with(Some(location)).contains("redirects more than 10 times"), "{location}");
    }
    for location in
        ["file:///etc/passwd", "http://", "http:", "ftp://127.0.0.1/", "http://[::", "x\u{e4}"]
    {
        let error = error_with(Some(location));
        assert!(error.contains("no address") || error.contains("as Location"), "{error}");
    }
    // Nobody listens there.
    assert!(error_with(Some("//127.0.0.1:9/")).contains("refused"));
}

/// Random responses: no panic, no end without a word, and nothing written where it should not be.
#[test]
fn random_responses() {
    let mut failed = 0;
    for seed in 0..400 {
        let hub = Hub::start(OLD, small_files("old"));
        let guarded = Guarded::new();
        let random = std::sync::Mutex::new(StdRng::seed_from_u64(seed));
        hub.change(move |_, response| {
            let random = &mut *random.lock().unwrap();
            while random.random_bool(0.15) {
                mutate(response, random);
            }
        });
        let timeout = Duration::from_millis(500);
        match find(&HubSettings { timeout, ..guarded.settings(&hub) }) {
            Ok(found) => assert!(found.folder.join("config.json").is_file(), "seed {seed}"),
            Err(error) => {
                assert!(error.to_string().contains(';'), "seed {seed}: {error}");
                failed += 1;
            }
        }
        guarded.check();
    }
    assert!((200..390).contains(&failed), "{failed} failed");
}

fn mutate(response: &mut Response, random: &mut StdRng) {
    const STATUSES: [u16; 18] =
        [100, 101, 103, 200, 204, 206, 300, 301, 303, 304, 307, 308, 401, 404, 416, 429, 500, 999];
    const HEADERS: [&str; 12] = [
        "X-Repo-Commit",
        "X-Linked-Etag",
        "ETag",
        "X-Linked-Size",
        "Content-Length",
        "Content-Range",
        "Location",
        "Transfer-Encoding",
        "Content-Encoding",
        "Connection",
        "Content-Type",
        "X-\u{1}",
    ];
    const VALUES: [&str; 20] = [
        "",
        "0",
        "1",
        "-1",
        "18446744073709551615",
        "18446744073709551616",
        "bytes 0-0/1",
        "bytes */0",
        "chunked",
        "gzip",
        "identity",
        "close",
        "/",
        "//",
        "http://[",
        "http://127.0.0.1:9/x",
        "W/\"\"",
        "\"a\"",
        "1111111111111111111111111111111111111111",
        "2222222222222222222222222222222222222222",
    ];
    match random.random_range(0..8) {
        0 => response.status = *STATUSES.choose(random).unwrap(),
        1 => response.remove(HEADERS.choose(random).unwrap()),
        2 => response.set(HEADERS.choose(random).unwrap(), VALUES.choose(random).unwrap()),
        3 => response.set(HEADERS.choose(random).unwrap(), NOT_NAMES.choose(random).unwrap()),
        4 => {
            let noise: Vec<u8> = (0..random.random_range(0..60)).map(|_| random.random()).collect();
            let name = HEADERS.choose(random).unwrap();
            // Sometimes beside the right one.
            if random.random() {
                response.remove(name);
            }
            let at = random.random_range(0..=response.headers.len());
            response.headers.insert(at, ((*name).to_owned(), noise));
        }
        5 => response.body.truncate(random.random_range(0..=response.body.len())),
        6 => response.body.extend([b'x'; 100]),
        _ => {
            let mut raw = response.bytes(true);
            let at = random.random_range(0..raw.len());
            raw[at] = random.random();
            raw.truncate(random.random_range(0..=raw.len()));
            response.raw = Some(raw);
        }
    }
}
