//! The page at `/`, to try the model in.

use std::sync::LazyLock;

use axum::{
    http::{
        HeaderValue,
        header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    response::IntoResponse,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("index.html");

/// Nothing from elsewhere, and no style or script but the page's own, which browsers know by their hashes.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let (style, script) =
        (hash("<style>", "</style>"), hash("<script type=\"module\">", "</script>"));
    format!(
        "default-src 'none'; style-src {style}; script-src {script}; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// The hash of what stands between two tags.
fn hash(open: &str, close: &str) -> String {
    let content = PAGE.split_once(open).and_then(|(_, rest)| rest.split_once(close));
    let content = content.map_or("", |(content, _)| content);
    format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(content)))
}

pub(crate) async fn page() -> impl IntoResponse {
    let policy = HeaderValue::from_str(&POLICY);
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        // Without it, nothing is allowed.
        (CONTENT_SECURITY_POLICY, policy.unwrap_or(HeaderValue::from_static("default-src 'none'"))),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, PAGE)
}
