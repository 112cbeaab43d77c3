//! Names that a hub gives and that become names of files: whatever is not plainly one is refused
//! before anything is written.

/// Id of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommitId(String);

impl CommitId {
    /// 40 hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| CommitId(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of a file's content in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlobName(String);

/// A sha256 has 64 characters.
const LONGEST: usize = 128;

impl BlobName {
    /// An `ETag` without its quotes and without the mark of weak ones, as huggingface_hub names it.
    pub(super) fn from_etag(etag: &str) -> Option<Self> {
        let name = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
        let is_name = (1..=LONGEST).contains(&name.len())
            && !name.starts_with('.')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        is_name.then(|| BlobName(name.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether this can be a model's id, by the rules of huggingface_hub's `validate_repo_id`; the
/// owner is always named here.
pub(super) fn is_model_id(text: &str) -> bool {
    let is_part = |part: &str| {
        (1..=96).contains(&part.len())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    match text.split('/').collect::<Vec<_>>()[..] {
        // Two hyphens stand for the slash in the cache's folder.
        [owner, name] => {
            is_part(owner)
                && is_part(name)
                && !text.contains("--")
                && !text.contains("..")
                && !name.ends_with(".git")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blobs() {
        let name = |etag: &str| BlobName::from_etag(etag).map(|name| name.0);
        for etag in ["\"0a1B\"", "W/\"0a1B\"", "0a1B"] {
            assert_eq!(name(etag).as_deref(), Some("0a1B"));
        }
        assert_eq!(name("\"9b2cf535f27731c974343645a3985328-12\"").unwrap().len(), 35);
        assert!(name(&"a".repeat(128)).is_some());
        let long = "a".repeat(129);
        for etag in [
            "",
            "\"\"",
            ".",
            "..",
            ".a",
            "../a",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "C:",
            "C:a",
            "a\0",
            "a b",
            "ä",
            "W/W/\"a\"",
            &long,
        ] {
            assert_eq!(name(etag), None, "{etag:?}");
        }
    }

    #[test]
    fn ids() {
        assert!(CommitId::parse("0123456789abcdef0123456789abcdef01234567").is_some());
        for id in ["", "main", "..", "0123456789abcdef0123456789abcdef0123456", &"g".repeat(40)] {
            assert_eq!(CommitId::parse(id), None, "{id}");
        }
        for id in ["LiquidAI/LFM2-VL-450M", "a/b", "a_b/c.d"] {
            assert!(is_model_id(id), "{id}");
        }
        for id in [
            "a", "a/", "/a", "a/b/c", "a/..", "../a", "a--b/c", "a/b--c", "-a/b", "a/b.",
            "a/b.git", "a/b c",
        ] {
            assert!(!is_model_id(id), "{id}");
        }
    }
}
