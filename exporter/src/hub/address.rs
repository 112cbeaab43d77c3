//! Addresses: where redirects lead, and whose they are.

use ureq::http::Uri;

/// An absolute address of http or https.
pub(super) fn parse(text: &str) -> Option<Uri> {
    let address: Uri = text.parse().ok()?;
    let is_web = matches!(address.scheme_str(), Some("http" | "https"))
        && address.host().is_some_and(|host| !host.is_empty());
    is_web.then_some(address)
}

/// The address that a redirect from `base` to `location` leads to (RFC 3986, section 5.2, where
/// dots are left to the server).
pub(super) fn join(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority, path) = (base.scheme_str()?, base.authority()?, base.path());
    let first_part = location.split(['/', '?', '#']).next().unwrap_or_default();
    let text = if first_part.contains(':') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if first_part.is_empty() {
        format!("{scheme}://{authority}{path}{location}")
    } else {
        let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
        format!("{scheme}://{authority}{folder}{location}")
    };
    parse(&text)
}

/// Whether both are of the same scheme, host and port: only there may a token be sent.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |address: &Uri| {
        let usual = if address.scheme_str() == Some("https") { 443 } else { 80 };
        address.port_u16().unwrap_or(usual)
    };
    let same_host = match (a.host(), b.host()) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => false,
    };
    a.scheme_str() == b.scheme_str() && same_host && port(a) == port(b)
}

/// A file's name as part of an address.
pub(super) fn encode(name: &str) -> String {
    let encode = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    name.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_the_location_says() {
        let base = parse("https://hub.example:444/a/b/resolve?x=1").unwrap();
        let to = |location| join(&base, location).map(|address| address.to_string());
        for (location, address) in [
            ("/c?d=http://e", "https://hub.example:444/c?d=http://e"),
            ("c:d", ""),
            ("c/d", "https://hub.example:444/a/b/c/d"),
            ("?c", "https://hub.example:444/a/b/resolve?c"),
            ("", "https://hub.example:444/a/b/resolve"),
            ("//other.example/c", "https://other.example/c"),
            ("http://other.example:1/c#d", "http://other.example:1/c"),
            ("file:///etc/passwd", ""),
            ("ftp://other.example/", ""),
            ("http://", ""),
            ("http://exa mple/", ""),
        ] {
            assert_eq!(to(location).unwrap_or_default(), address, "{location}");
        }
    }

    #[test]
    fn origins() {
        let same = |a, b| same_origin(&parse(a).unwrap(), &parse(b).unwrap());
        assert!(same("https://hub.example/a", "https://HUB.example:443/b"));
        for other in [
            "http://hub.example",
            "https://hub.example:444",
            "https://other.example",
            "https://hub.example@other.example",
        ] {
            assert!(!same("https://hub.example", other), "{other}");
        }
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encode("model-1.safetensors"), "model-1.safetensors");
        assert_eq!(encode("a b?#%ä"), "a%20b%3F%23%25%C3%A4");
    }
}
