//! Transfers that stall, break off, or run side by side.

use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use lfm2vl_exporter::hub::{HubError, HubSettings, resolve};

use super::{
    MODEL, all_files, commit_of, find,
    mock::{End, Hub, OLD, Request, Response, small_files},
};

fn impatient(hub: &Hub, cache: &Path) -> HubSettings {
    HubSettings { timeout: Duration::from_millis(500), ..hub.settings(cache) }
}

/// The error of a download from a hub with this fault, which leaves nothing unfinished.
fn error_with(fault: impl Fn(&Request, &mut Response) + Send + 'static) -> String {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    hub.change(fault);
    let started = Instant::now();
    let error = find(&impatient(&hub, cache.path())).unwrap_err().to_string();
    assert!(started.elapsed() < Duration::from_secs(20), "{error}");
    let model = cache.path().join("models--liquid--tiny");
    if model.exists() {
        let files = all_files(&model);
        assert!(!files.iter().any(|file| file.ends_with(".incomplete")), "{files:?}");
        assert!(!files.iter().any(|file| file.contains("model-2")), "{files:?}");
        assert!(!model.join("refs").exists());
    }
    error
}

fn of_weights(request: &Request) -> bool {
    request.asks_for("model-2.safetensors")
}

/// Bytes of a file that come at first; none come when it is taken up again.
fn rest_of(request: &Request) -> usize {
    if request.headers.contains_key("range") { 0 } else { 100 }
}

#[test]
fn a_silent_hub_is_given_up() {
    let error = error_with(|_, response| {
        response.raw = Some(vec![]);
        response.end = End::Stall;
    });
    assert!(error.contains("nothing came for 0.5 s"), "{error}");
    // In the middle of the headers, and of a file.
    let error = error_with(|request, response| {
        if of_weights(request) {
            response.raw = Some(b"HTTP/1.1 200 OK\r\nX-Repo".into());
            response.end = End::Stall;
        }
    });
    assert!(error.contains("nothing came"), "{error}");
    let error = error_with(|request, response| {
        if of_weights(request) && request.of_store {
            response.body.truncate(rest_of(request));
            response.end = End::Stall;
        }
    });
    assert!(error.contains("nothing came"), "{error}");
}

#[test]
fn sizes_that_contradict_each_other_are_errors() {
    let error = error_with(|request, response| {
        if of_weights(request) && !request.of_store {
            response.set("X-Linked-Size", "12");
        }
    });
    assert!(error.contains("of 12"), "{error}");
    // The connection ends before the file does.
    let error = error_with(|request, response| {
        if of_weights(request) && request.of_store {
            response.body.truncate(rest_of(request));
        }
    });
    assert!(error.contains("model-2.safetensors"), "{error}");
    // Nothing tells where the file ends.
    let error = error_with(|request, response| {
        if of_weights(request) {
            response.remove("X-Linked-Size");
            if request.of_store {
                response.remove("Content-Length");
            }
        }
    });
    assert!(error.contains("size"), "{error}");
    // Chunks that end too early and too late for what was announced.
    for body in ["3\r\nabc\r\n0\r\n\r\n", "fffff\r\n"] {
        let error = error_with(move |request, response| {
            if of_weights(request) && request.of_store {
                response.remove("Content-Length");
                response.set("Transfer-Encoding", "chunked");
                response.body = [body.as_bytes(), &vec![b'x'; 0xFFFFF]].concat();
            }
        });
        assert!(error.contains("bytes of"), "{error}");
    }
}

#[test]
fn a_transfer_that_breaks_off_is_taken_up_again() {
    // Each response brings 1,000 bytes and breaks off; with and without the ranges that are asked for.
    for ranges in [true, false] {
        let hub = Hub::start(OLD, small_files("old"));
        let cache = tempfile::tempdir().unwrap();
        let broken = AtomicUsize::new(0);
        hub.change(move |request, response| {
            if of_weights(request) && request.of_store {
                let count = broken.fetch_add(1, Ordering::Relaxed);
                if !ranges && count > 0 {
                    response.status = 200;
                    response.body = small_files("old")["model-2.safetensors"].clone();
                    response.set("Content-Length", &response.body.len().to_string());
                    response.remove("Content-Range");
                } else if count < 4 {
                    response.body.truncate(1000);
                }
            }
        });
        assert_eq!(commit_of(&find(&impatient(&hub, cache.path())).unwrap(), "old"), OLD);
        let requests = hub.requests();
        let parts = requests.iter().filter(|request| of_weights(request) && request.of_store);
        let ranges: Vec<_> = parts.filter_map(|r| r.headers.get("range").cloned()).collect();
        assert_eq!(ranges[0], "bytes=1000-");
        assert!(
            ranges.len() == 1
                || ranges == ["bytes=1000-", "bytes=2000-", "bytes=3000-", "bytes=4000-"]
        );
    }
}

#[test]
fn a_range_of_something_else_is_not_appended() {
    let error = error_with(|request, response| {
        if of_weights(request) && request.of_store {
            if request.headers.contains_key("range") {
                response.set("Content-Range", "bytes 7-99/100");
            } else {
                response.body.truncate(100);
            }
        }
    });
    assert!(error.contains("Content-Range"), "{error}");
    // And nobody asked for a part here.
    let error = error_with(|request, response| {
        if of_weights(request) && request.of_store {
            response.status = 206;
        }
    });
    assert!(error.contains("206"), "{error}");
}

#[test]
fn downloads_at_once_do_not_disturb_each_other() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    hub.change(|request, _| {
        if request.of_store {
            thread::sleep(Duration::from_millis(20));
        }
    });
    thread::scope(|scope| {
        let downloads: Vec<_> =
            (0..6).map(|_| scope.spawn(|| find(&hub.settings(cache.path())).unwrap())).collect();
        for download in downloads {
            assert_eq!(commit_of(&download.join().unwrap(), "old"), OLD);
        }
    });
    let files = all_files(cache.path());
    assert!(!files.iter().any(|file| file.ends_with(".incomplete")), "{files:?}");
}

#[test]
fn an_interrupted_download_leaves_nothing_unfinished() {
    for stop_at in 1..100 {
        let hub = Hub::start(OLD, small_files("old"));
        let cache = tempfile::tempdir().unwrap();
        let mut asked = 0;
        let found = resolve(MODEL, &hub.settings(cache.path()), &mut || {
            asked += 1;
            if asked >= stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let files = all_files(cache.path());
        assert!(!files.iter().any(|file| file.ends_with(".incomplete")), "{files:?}");
        match found {
            Err(HubError::Interrupted) => {}
            Ok(_) => return assert!(stop_at > 10, "{stop_at}"),
            Err(other) => panic!("{other}"),
        }
        // What is whole is kept for the next time.
        assert_eq!(commit_of(&find(&hub.settings(cache.path())).unwrap(), "old"), OLD);
    }
    panic!("it never came to an end");
}

#[test]
fn a_damaged_blob_and_a_dangling_link_are_replaced() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    let found = find(&hub.settings(cache.path())).unwrap();
    let blob = fs::canonicalize(found.folder.join("tokenizer.json")).unwrap();
    fs::remove_file(blob).unwrap();
    assert_eq!(commit_of(&find(&hub.settings(cache.path())).unwrap(), "old"), OLD);
    assert!(found.folder.join("tokenizer.json").is_symlink() || !cfg!(unix));
    let blob = fs::canonicalize(found.folder.join("tokenizer.json")).unwrap();
    fs::write(blob, "to").unwrap();
    let _ = fs::remove_file(found.folder.join("tokenizer.json"));
    assert_eq!(commit_of(&find(&hub.settings(cache.path())).unwrap(), "old"), OLD);
}
