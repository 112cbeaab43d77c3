//! Whether a file can only be what the user has put there. What is loaded as code has all of a user's rights, so
//! who may write it, or put another in its place, must have them, too.

use std::path::Path;

/// Who else may write a file or a folder; nothing where only the user and the system's administrator may.
#[cfg(unix)]
pub fn written_by_others(path: &Path) -> Option<&'static str> {
    use std::os::unix::fs::MetadataExt;

    const GROUP_OR_OTHERS: u32 = 0o022;
    let Ok(metadata) = std::fs::metadata(path) else { return Some("cannot be looked at") };
    if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) {
        return Some("belongs to another user");
    }
    (metadata.mode() & GROUP_OR_OTHERS != 0).then_some("can be written by other users")
}

/// Rights on Windows are lists that are not looked at here.
#[cfg(not(unix))]
pub fn written_by_others(_: &Path) -> Option<&'static str> {
    None
}
