//! The same cache in huggingface_hub. The variable `LFM2VL_HUGGINGFACE_HUB`, which `cargo xtask test`
//! sets, is the folder of that package.

use std::{path::Path, process::Command};

use lfm2vl_exporter::hub::HubSettings;

use super::{
    MODEL, all_files, commit_of, find,
    mock::{Hub, NEW, OLD, small_files},
};

fn python(mode: &str, hub: &Hub, cache: &Path, commit: &str) -> Option<()> {
    let Some(packages) = std::env::var_os("LFM2VL_HUGGINGFACE_HUB") else {
        eprintln!("not tested: LFM2VL_HUGGINGFACE_HUB is not set");
        return None;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/hub_cache.py");
    let output = Command::new("python3")
        .arg(script)
        .args([mode, &hub.address, MODEL, commit])
        .arg(cache)
        .args(small_files("old").keys())
        .env("PYTHONPATH", packages)
        .env("HF_HOME", cache.join("home"))
        .env("HF_HUB_DISABLE_XET", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

#[test]
fn huggingface_hub_reads_what_we_download() {
    for symlinks in [true, false] {
        let hub = Hub::start(OLD, small_files("old"));
        let cache = tempfile::tempdir().unwrap();
        let settings = HubSettings { symlinks, ..hub.settings(cache.path()) };
        find(&settings).unwrap();
        hub.requests();
        if python("read", &hub, cache.path(), OLD).is_none() {
            return;
        }
        assert_eq!(hub.requests().len(), 0, "it found all in the cache");
        // And its own download finds nothing to do but to ask for the commit.
        python("download", &hub, cache.path(), OLD);
        assert!(hub.requests().iter().all(|request| request.method == "HEAD"));

        hub.push(NEW, small_files("new"));
        find(&settings).unwrap();
        python("read", &hub, cache.path(), NEW);
    }
}

#[test]
fn we_read_what_huggingface_hub_downloads() {
    let hub = Hub::start(OLD, small_files("old"));
    let cache = tempfile::tempdir().unwrap();
    if python("download", &hub, cache.path(), OLD).is_none() {
        return;
    }
    hub.requests();
    let settings = HubSettings { offline: true, ..hub.settings(cache.path()) };
    assert_eq!(commit_of(&find(&settings).unwrap(), "old"), OLD);
    assert_eq!(hub.requests().len(), 0);

    // The files that it looked for in vain are not looked for again.
    let before = all_files(cache.path());
    assert_eq!(commit_of(&find(&hub.settings(cache.path())).unwrap(), "old"), OLD);
    let asked: Vec<_> = hub.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(asked, ["HEAD"]);
    assert_eq!(all_files(cache.path()), before);
}
