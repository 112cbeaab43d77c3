//! Images from URLs, within limits, and by default from public addresses only: a service must not
//! be made to ask what is inside its own network.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ureq::{
    Agent, Error,
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use super::{ImageError, Limits, deadline::Deadline};

const MAX_REDIRECTS: u32 = 5;

/// The body that `url` gives.
pub(super) fn fetch(url: &str, limits: &Limits, deadline: Deadline) -> Result<Vec<u8>, ImageError> {
    let mut config = Agent::config_builder()
        .timeout_global(Some(deadline.left()))
        .max_redirects(MAX_REDIRECTS)
        .user_agent(concat!("lfm2vl/", env!("CARGO_PKG_VERSION")));
    if !limits.allow_private_addresses {
        // Where a proxy goes cannot be seen.
        config = config.proxy(None);
    }
    let resolver = CheckedResolver {
        public_only: !limits.allow_private_addresses,
        resolver: DefaultResolver::default(),
    };
    let agent = Agent::with_parts(config.build(), DefaultConnector::default(), resolver);

    let failed = |error: Error| match error {
        Error::Timeout(_) => ImageError::TooSlow { limit: limits.max_time }.of(url),
        Error::Other(other) => match other.downcast::<PrivateAddress>() {
            Ok(private) => {
                ImageError::PrivateAddress { host: private.host, address: private.address }
            }
            Err(other) => ImageError::Fetch { url: url.to_owned(), message: other.to_string() },
        },
        other => ImageError::Fetch { url: url.to_owned(), message: other.to_string() },
    };
    let mut response = agent.get(url).call().map_err(failed)?;
    if let Some(bytes) = response.body().content_length() {
        limits.check_bytes(bytes).map_err(|error| error.of(url))?;
    }
    let mut bytes = Vec::new();
    let reader = response.body_mut().as_reader().take(limits.max_bytes.saturating_add(1));
    { reader }.read_to_end(&mut bytes).map_err(|error| failed(Error::from(error)))?;
    limits.check_bytes(bytes.len() as u64).map_err(|error| error.of(url))?;
    Ok(bytes)
}

/// Looks up hosts, also those of redirects. What it lets through is what is connected to, so a
/// name cannot change its address in between.
#[derive(Debug)]
struct CheckedResolver {
    public_only: bool,
    resolver: DefaultResolver,
}

impl Resolver for CheckedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let addresses = self.resolver.resolve(uri, config, timeout)?;
        let private = addresses.iter().map(|a| a.ip()).find(|&ip| !is_public(ip));
        match private.filter(|_| self.public_only) {
            Some(address) => {
                let host = uri.host().unwrap_or_default().to_owned();
                Err(Error::Other(Box::new(PrivateAddress { host, address })))
            }
            None => Ok(addresses),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{host} is at the private address {address}")]
struct PrivateAddress {
    host: String,
    address: IpAddr,
}

/// Whether an address belongs to the public internet: it is in none of the blocks that IANA's
/// special-purpose registries (RFC 6890) list as not globally reachable, and is not multicast.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match a {
        // This network, private, loopback, multicast and reserved.
        0 | 10 | 127 | 224.. => true,
        // Shared by carriers.
        100 => (64..128).contains(&b),
        // Link-local.
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => b == 168 || (b == 0 && (c == 0 || c == 2)) || (b == 88 && c == 99),
        // Benchmarking, documentation.
        198 => b == 18 || b == 19 || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => false,
    };
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let v4 = |high: u16, low: u16| {
        let [[a, b], [c, d]] = [high, low].map(u16::to_be_bytes);
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4 addresses in IPv6 clothes: mapped, behind NAT64, 6to4.
        [0, 0, 0, 0, 0, 0xFFFF, high, low] | [0x64, 0xFF9B, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        // Protocol assignments (Teredo among them) and documentation.
        [0x2001, 0..0x200 | 0xDB8, ..] | [0x3FFF, 0..0x1000, ..] => false,
        // Global unicast addresses; all others are special.
        [first, ..] => first & 0xE000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Agrees with `is_global` and `is_multicast` of Python's `ipaddress`; the exceptions are
    /// stricter.
    #[test]
    fn public_addresses() {
        let table = include_str!("../../../testdata/addresses.csv");
        let mut checked = 0;
        for line in table.lines().skip(1) {
            let (address, public) = line.split_once(',').unwrap();
            let ours = is_public(address.parse().unwrap());
            assert_eq!(ours.to_string(), public, "{address}");
            checked += 1;
        }
        assert!(checked > 100, "{checked}");
    }
}
