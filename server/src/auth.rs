//! API keys.

use axum::{
    extract::{Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::{error::ApiError, service::Service};

/// The keys of which a request must have one, as hashes: these have one length, so that comparing takes one time.
pub(crate) struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Keys(keys.iter().map(|key| hash(key.as_bytes())).collect())
    }

    /// Whether a request with this key may be answered.
    fn allow(&self, key: &[u8]) -> bool {
        let given = hash(key);
        // All of them are looked at, so that the time does not tell which it is like.
        let found = self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&given));
        self.0.is_empty() || bool::from(found)
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Lets requests with a key through.
pub(crate) async fn check_key(
    State(service): State<Service>,
    request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
    let key = match header.split_at_checked(b"Bearer ".len()) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"Bearer ") => key,
        _ => &[],
    };
    match service.keys().allow(key) {
        true => next.run(request).await,
        false => ApiError::unauthorized().into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_keys_are_allowed() {
        let keys = Keys::new(&["one".into(), "two".into()]);
        assert!(keys.allow(b"one") && keys.allow(b"two"));
        assert!(!keys.allow(b"") && !keys.allow(b"on") && !keys.allow(b"onetwo"));
        assert!(Keys::new(&[]).allow(b""));
    }
}
