//! Which requests come from this machine.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request};
use axum::http::header::{HOST, HeaderName, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::Error;

/// What proxies say of the client whose request they forward, beside `x-forwarded…`.
const FORWARDS: [&str; 9] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
];

/// Passes requests of this machine.
pub(super) async fn check(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    match refuse(peer, request.uri(), request.headers()) {
        None => next.run(request).await,
        Some(why) => {
            tracing::debug!(?peer, why, "monitoring refused");
            Error::new(StatusCode::FORBIDDEN, format!("these routes are for this machine only: {why}"))
                .into_response()
        }
    }
}

/// Why a request is not of this machine.
fn refuse(peer: Option<IpAddr>, target: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    let Some(peer) = peer else { return Some("the peer's address is not known") };
    if !peer.to_canonical().is_loopback() {
        return Some("the peer is another machine");
    }
    if headers
        .keys()
        .map(HeaderName::as_str)
        .any(|name| name.starts_with("x-forwarded") || FORWARDS.contains(&name))
    {
        return Some("the request was forwarded");
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    // The authority of the target counts before `Host` (RFC 9112, section 3.2), and neither may lie.
    let named: Vec<&Authority> = host.iter().chain(target.authority()).collect();
    if hosts.next().is_some() || named.is_empty() || !named.iter().all(|host| is_loopback(host.host())) {
        return Some("its host is no name of this machine");
    }
    let origin = headers.get(ORIGIN).map(|origin| origin.to_str().ok().and_then(|it| it.split_once("://")));
    match origin {
        None => None,
        Some(Some((_, origin))) if named.iter().all(|host| host.as_str() == origin) => None,
        Some(_) => Some("a page of another origin has sent it"),
    }
}

/// `localhost`, or an address that only this machine reaches.
fn is_loopback(host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(peer: Option<&str>, target: &str, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a value"));
        }
        let peer = peer.map(|peer| peer.parse().expect("an address"));
        refuse(peer, &target.parse().expect("a target"), &map).is_some()
    }

    #[test]
    fn loopback_peers_that_name_this_machine_pass_and_nobody_else() {
        let here = Some("127.0.0.1");
        for host in
            ["localhost", "LocalHost.:80", "127.0.0.1:8080", "127.8.9.1", "[::1]:80", "[::ffff:127.0.0.1]"]
        {
            assert!(!refused(here, "/", &[("host", host)]), "{host}");
        }
        for peer in ["::1", "127.3.2.1", "::ffff:127.0.0.1"] {
            assert!(!refused(Some(peer), "/", &[("host", "localhost")]), "{peer}");
        }
        for peer in [None, Some("10.0.0.1"), Some("::ffff:10.0.0.1"), Some("fe80::1"), Some("0.0.0.0")] {
            assert!(refused(peer, "/", &[("host", "localhost")]), "{peer:?}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "2130706433",
            "localhost..",
            "::1",
            "",
        ] {
            assert!(refused(here, "/", &[("host", host)]), "{host}");
        }
        assert!(refused(here, "/", &[]), "no host");
        assert!(refused(here, "/", &[("host", "localhost"), ("host", "localhost")]), "two hosts");
        assert!(refused(here, "http://evil.example/", &[("host", "localhost")]));
        assert!(refused(here, "http://localhost/", &[("host", "evil.example")]));
        assert!(!refused(here, "http://localhost/", &[("host", "localhost")]));
    }

    #[test]
    fn forwarded_requests_and_those_of_other_pages_are_refused() {
        let here = Some("127.0.0.1");
        let host = ("host", "localhost:8080");
        for name in [
            "forwarded",
            "via",
            "x-forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-forwarded-port",
            "x-forwarded-server",
            "x-real-ip",
            "x-client-ip",
            "x-cluster-client-ip",
            "x-envoy-external-address",
            "true-client-ip",
            "cf-connecting-ip",
            "fastly-client-ip",
        ] {
            assert!(refused(here, "/", &[host, (name, "127.0.0.1")]), "{name}");
            assert!(refused(here, "/", &[host, (name, "")]), "{name}");
        }
        assert!(!refused(here, "/", &[host, ("origin", "http://localhost:8080")]));
        for origin in ["http://evil.example", "null", "http://localhost", "http://localhost:8081", ""] {
            assert!(refused(here, "/", &[host, ("origin", origin)]), "{origin}");
        }
    }
}
