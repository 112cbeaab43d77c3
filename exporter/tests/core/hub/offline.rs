//! What is taken from the cache, and when.

use std::{fs, path::Path};

use lfm2vl_exporter::{checkpoint::Checkpoint, hub::HubSettings};

use super::{
    MODEL, commit_of, find,
    mock::{Files, Hub, NEW, OLD, etag_of, files_of, small_files},
    program,
};
use crate::common::testdata;

/// Writes a commit into a cache as huggingface_hub does; `end` follows the commit in `refs/main`.
fn fill(cache: &Path, commit: &str, files: &Files, end: &str) {
    let model = cache.join("models--liquid--tiny");
    let snapshot = model.join("snapshots").join(commit);
    for folder in [&snapshot, &model.join("blobs"), &model.join("refs")] {
        fs::create_dir_all(folder).unwrap();
    }
    for (name, content) in files {
        let blob = etag_of(content);
        fs::write(model.join("blobs").join(&blob), content).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&blob), snapshot.join(name))
            .unwrap();
        #[cfg(not(unix))]
        fs::write(snapshot.join(name), content).unwrap();
    }
    fs::write(model.join("refs/main"), format!("{commit}{end}")).unwrap();
}

fn offline(cache: &Path) -> HubSettings {
    let endpoint = Some("http://127.0.0.1:9".into());
    HubSettings { endpoint, cache: Some(cache.to_owned()), offline: true, ..HubSettings::default() }
}

#[test]
fn a_cached_model_needs_no_network() {
    // Neither has all the optional files, nor do the shards have a file of all weights.
    for (folder, end) in
        [("tiny-shapes", ""), ("variants/sharded-f16", "\n"), ("tiny-shapes", "\r\n")]
    {
        let cache = tempfile::tempdir().unwrap();
        fill(cache.path(), OLD, &files_of(&testdata(folder)), end);
        let found = find(&offline(cache.path())).unwrap();
        assert!(found.unasked.is_none());
        Checkpoint::open(&found.folder).unwrap();
    }
}

#[test]
fn a_downloaded_model_needs_no_network() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    find(&hub.settings(cache.path())).unwrap();
    hub.requests();
    let settings = HubSettings { offline: true, ..hub.settings(cache.path()) };
    assert_eq!(commit_of(&find(&settings).unwrap(), "old"), OLD);
    assert_eq!(hub.requests().len(), 0, "nobody was asked");
}

#[test]
fn what_the_cache_lacks_is_told() {
    let cache = tempfile::tempdir().unwrap();
    let error = || find(&offline(cache.path())).unwrap_err().to_string();
    assert!(error().contains("config.json") && error().contains("HF_HUB_OFFLINE"), "{}", error());
    for missing in ["tokenizer.json", "model-2.safetensors", "model.safetensors.index.json"] {
        let mut files = small_files("old");
        files.remove(missing);
        let model = cache.path().join("models--liquid--tiny");
        let _ = fs::remove_dir_all(model);
        fill(cache.path(), OLD, &files, "");
        assert!(error().contains(missing) && error().contains("HF_HUB_OFFLINE"), "{}", error());
    }
    // A link whose content is gone.
    fill(cache.path(), NEW, &small_files("new"), "");
    let blobs = cache.path().join("models--liquid--tiny/blobs");
    fs::remove_file(blobs.join(etag_of(&small_files("new")["config.json"]))).unwrap();
    if cfg!(unix) {
        assert!(error().contains("config.json"), "{}", error());
    }
    for reference in ["", "main", "../../../..", &format!("../{OLD}")] {
        fs::write(cache.path().join("models--liquid--tiny/refs/main"), reference).unwrap();
        assert!(error().contains("config.json"), "{}", error());
    }
}

#[test]
fn a_newer_commit_is_fetched_whole() {
    let old = small_files("old");
    for cached in [&["config.json", "tokenizer.json"][..], &[]] {
        let cache = tempfile::tempdir().unwrap();
        let kept = |name: &String| cached.is_empty() || cached.contains(&name.as_str());
        let files = old.clone().into_iter().filter(|(name, _)| kept(name)).collect();
        fill(cache.path(), OLD, &files, "");
        let hub = Hub::start(NEW, small_files("new"));
        let found = find(&hub.settings(cache.path())).unwrap();
        assert_eq!(commit_of(&found, "new"), NEW);
        assert!(found.unasked.is_none());
        let reference = cache.path().join("models--liquid--tiny/refs/main");
        assert_eq!(fs::read_to_string(reference).unwrap(), NEW);
    }
}

#[test]
fn a_content_of_two_commits_is_fetched_once() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    find(&hub.settings(cache.path())).unwrap();
    let mut files = small_files("old");
    files.insert("config.json".into(), b"new".into());
    hub.push(NEW, files);
    hub.change(|request, response| {
        if request.of_store {
            response.body.clear();
        }
    });
    let found = find(&hub.settings(cache.path())).unwrap();
    assert!(found.folder.ends_with(NEW));
    assert_eq!(fs::read(found.folder.join("config.json")).unwrap(), b"new");
}

#[test]
fn a_commit_that_comes_during_a_download_waits_for_the_next() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    let mut asked = 0;
    let found = lfm2vl_exporter::hub::resolve(MODEL, &hub.settings(cache.path()), &mut || {
        asked += 1;
        if asked == 3 {
            hub.push(NEW, small_files("new"));
        }
        std::ops::ControlFlow::Continue(())
    });
    assert!(asked > 3);
    assert_eq!(commit_of(&found.unwrap(), "old"), OLD);
    assert_eq!(commit_of(&find(&hub.settings(cache.path())).unwrap(), "new"), NEW);

    // A hub that gives a file of another commit than the one that was asked for.
    let cache = tempfile::tempdir().unwrap();
    hub.change(|request, response| {
        if request.asks_for("tokenizer.json") {
            response.set("X-Repo-Commit", OLD);
        }
    });
    let error = find(&hub.settings(cache.path())).unwrap_err().to_string();
    assert!(error.contains(OLD) && error.contains(NEW), "{error}");
}

#[test]
fn a_failed_download_of_a_newer_commit_exports_no_older_one() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    find(&hub.settings(cache.path())).unwrap();
    hub.push(NEW, small_files("new"));
    hub.change(|request, response| {
        if request.asks_for("model-2.safetensors") {
            response.status = 503;
        }
    });
    let error = find(&hub.settings(cache.path())).unwrap_err().to_string();
    assert!(error.contains("model-2.safetensors") && error.contains("503"), "{error}");
    // The older one is still the last that was downloaded whole.
    let settings = HubSettings { offline: true, ..hub.settings(cache.path()) };
    assert_eq!(commit_of(&find(&settings).unwrap(), "old"), OLD);
}

#[test]
fn where_the_hub_cannot_be_asked_the_cached_commit_is_taken_and_that_is_told() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    let settings = hub.settings(cache.path());
    find(&settings).unwrap();
    for status in [401, 403, 429, 500, 503] {
        hub.change(move |_, response| response.status = status);
        let found = find(&settings).unwrap();
        assert_eq!(commit_of(&found, "old"), OLD);
        let told = found.unasked.unwrap().to_string();
        assert!(told.contains(&status.to_string()) && told.contains(OLD), "{told}");
    }
    // Some page of a network that wants a login first.
    hub.change(|_, response| response.remove("X-Repo-Commit"));
    assert!(find(&settings).unwrap().unasked.unwrap().to_string().contains("X-Repo-Commit"));
    // A model that is no more is another matter.
    hub.change(|_, response| response.status = 404);
    assert!(find(&settings).unwrap_err().to_string().contains("check the id"));

    hub.stop();
    let found = find(&settings).unwrap();
    assert_eq!(commit_of(&found, "old"), OLD);
    assert!(found.unasked.unwrap().to_string().contains("HF_HUB_OFFLINE"));
    // What is not whole is not taken.
    let config = cache.path().join("models--liquid--tiny/snapshots").join(OLD).join("config.json");
    fs::remove_file(config).unwrap();
    let error = find(&settings).unwrap_err().to_string();
    assert!(error.contains("check the network"), "{error}");
}

#[test]
fn the_program_says_in_one_line_that_it_takes_a_cached_commit() {
    let (cache, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(cache.path(), OLD, &files_of(&testdata("tiny-shapes")), "");
    for (number, offline) in ["0", "1"].iter().enumerate() {
        let output = program()
            .args([MODEL, "--json", "-o"])
            .arg(out.path().join(number.to_string()))
            .env("HF_HUB_CACHE", cache.path())
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env("HF_HUB_OFFLINE", offline)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        assert_eq!(told.lines().count(), 1 - number, "{told}");
        assert_eq!(told.contains("warning:") && told.contains(OLD), number == 0, "{told}");
    }
}

#[test]
fn copies_stand_where_links_cannot_be_made() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings { symlinks: false, ..hub.settings(cache.path()) };
    let found = find(&settings).unwrap();
    assert_eq!(commit_of(&found, "old"), OLD);
    assert!(!found.folder.join("config.json").is_symlink());
    assert_eq!(commit_of(&find(&offline(cache.path())).unwrap(), "old"), OLD);
}

#[cfg(unix)]
#[test]
fn links_are_as_in_huggingface_hub() {
    use std::os::unix::fs::PermissionsExt;
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    let found = find(&hub.settings(cache.path())).unwrap();
    let blob = etag_of(&small_files("old")["config.json"]);
    let target = fs::read_link(found.folder.join("config.json")).unwrap();
    assert_eq!(target, Path::new("../../blobs").join(blob));
    // As any file that this user makes.
    let probe = cache.path().join("probe");
    fs::write(&probe, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&found.folder.join("config.json")), mode(&probe));
}
