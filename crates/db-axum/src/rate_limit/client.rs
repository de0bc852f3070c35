//! Whose requests are counted together.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

use crate::Error;

/// The first 64 bits of an IPv6 address, of which one client has all the others.
const PREFIX: u128 = !0 << 64;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// One client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// An IPv4 address, mapped into IPv6 (RFC 4291, section 2.5.5.2), or the first half of an IPv6 address.
    Address(Ipv6Addr),
    /// The first half of a SHA-256, of a text that may be a secret.
    Digest([u8; 16]),
}

impl Client {
    pub(super) fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & PREFIX),
        })
    }

    pub(super) fn of(text: &[u8]) -> Self {
        let [first, _] = <[[u8; 16]; 2]>::try_from(Sha256::digest(text).as_chunks().0).expect("32 bytes");
        Self::Digest(first)
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => IpAddr::V6(*address).to_canonical().fmt(f),
            Self::Digest(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// How the client of a request is known.
#[derive(Clone, Default)]
pub(super) struct Who {
    pub(super) by: By,
    /// How many proxies of ours append to the header with addresses.
    pub(super) proxies: u8,
}

#[derive(Clone, Default)]
pub(super) enum By {
    #[default]
    Address,
    /// By the address, too, if it is not there.
    Header(HeaderName),
    Text(Text),
}

type Text = Arc<dyn Fn(&Request) -> Option<String> + Send + Sync>;

impl Who {
    /// The client, or none if it has no limit.
    pub(super) fn of(&self, request: &Request) -> Result<Option<Client>, Error> {
        if let By::Text(text) = &self.by {
            return Ok(text(request).map(|text| Client::of(text.as_bytes())));
        }
        if let By::Header(name) = &self.by
            && let Some(value) = request.headers().get(name)
        {
            return Ok(Some(Client::of(value.as_bytes())));
        }
        address(request, self.proxies).map(Some)
    }
}

fn address(request: &Request, proxies: u8) -> Result<Client, Error> {
    let peer = || request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let address = forwarded(request.headers(), proxies).or_else(peer).ok_or_else(|| {
        let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        tracing::error!(
            route,
            "a rate limit does not know its client: serve the router by into_make_service_with_connect_info::<SocketAddr>()"
        );
        Error::internal()
    })?;
    Ok(Client::at(address))
}

/// The address that the outermost of our proxies has seen.
fn forwarded(headers: &HeaderMap, proxies: u8) -> Option<IpAddr> {
    let back = usize::from(proxies).checked_sub(1)?;
    let values: Vec<&[u8]> =
        headers.get_all(FORWARDED_FOR).iter().map(axum::http::HeaderValue::as_bytes).collect();
    let mut addresses = values.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    let text = str::from_utf8(addresses.nth(back)?).ok()?.trim();
    // As in the header `Forwarded`, an IPv6 address may stand in brackets, also without a port.
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let without_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(without_port)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn shown(who: &Who, peer: Option<&str>, headers: &[(&'static str, &str)]) -> Option<String> {
        let mut request = Request::new(Body::empty());
        if let Some(peer) = peer {
            let peer: SocketAddr = peer.parse().expect("an address");
            request.extensions_mut().insert(ConnectInfo(peer));
        }
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().expect("a value"));
        }
        who.of(&request).expect("a client").map(|client| client.to_string())
    }

    #[test]
    fn an_address_counts_by_what_one_client_has() {
        for (peer, client) in [
            ("192.0.2.1:80", "192.0.2.1"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
            ("[2001:db8:1:2:3:4:5:6]:80", "2001:db8:1:2::"),
            ("[2001:db8:1:2:ffff::]:80", "2001:db8:1:2::"),
            ("[2001:db8:1:3::]:80", "2001:db8:1:3::"),
        ] {
            assert_eq!(shown(&Who::default(), Some(peer), &[]).as_deref(), Some(client));
        }
    }

    #[test]
    fn behind_proxies_the_client_is_whom_the_outermost_has_seen() {
        let by = |proxies, values: &[&str]| {
            let headers: Vec<_> = values.iter().map(|value| (FORWARDED_FOR, *value)).collect();
            shown(&Who { proxies, ..Who::default() }, Some("10.0.0.9:80"), &headers).expect("a client")
        };
        let lied = ["1.1.1.1, 192.0.2.1", "10.0.0.1"];
        assert_eq!(
            [0, 1, 2, 3].map(|proxies| by(proxies, &lied)),
            ["10.0.0.9", "10.0.0.1", "192.0.2.1", "1.1.1.1"]
        );
        assert_eq!(by(4, &lied), "10.0.0.9", "it came past a proxy");
        for value in ["192.0.2.1:4711", " 192.0.2.1 ", "x, 192.0.2.1", "[::ffff:192.0.2.1]:80"] {
            assert_eq!(by(1, &[value]), "192.0.2.1", "{value}");
        }
        for value in ["2001:db8::7", "[2001:db8::7]", "[2001:db8::7]:80"] {
            assert_eq!(by(1, &[value]), "2001:db8::", "{value}");
        }
        for value in ["", "unknown", "192.0.2.1,", "192.0.2", "_hidden"] {
            assert_eq!(by(1, &[value]), "10.0.0.9", "{value}");
        }
        assert_eq!(by(1, &[]), "10.0.0.9");
    }

    #[test]
    fn a_header_or_a_text_is_kept_as_a_digest_only() {
        let key = Who { by: By::Header(HeaderName::from_static("x-api-key")), ..Who::default() };
        let of = |value| shown(&key, Some("192.0.2.1:80"), &[("x-api-key", value)]).expect("a client");
        assert!(!of("geheim").contains("geheim") && of("geheim").len() == 32);
        assert!(of("geheim") == of("geheim") && of("geheim") != of("geheim2"));
        assert_eq!(shown(&key, Some("192.0.2.1:80"), &[]).as_deref(), Some("192.0.2.1"));

        let user =
            |request: &Request| request.headers().get("user").map(|it| it.to_str().expect("text").to_owned());
        let by = Who { by: By::Text(Arc::new(user)), ..Who::default() };
        assert_eq!(shown(&by, None, &[]), None, "it has no limit");
        assert_eq!(shown(&by, None, &[("user", "geheim")]), Some(of("geheim")));
    }

    #[test]
    fn without_a_peer_there_is_an_answer_and_no_client() {
        let request = Request::new(Body::empty());
        assert_eq!(Who::default().of(&request).expect_err("nobody").status().as_u16(), 500);
    }
}
