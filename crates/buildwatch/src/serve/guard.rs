//! Who may read and start builds.
//!
//! Another site could make the reader's browser run commands on this machine in two ways: it sends a request to this server, or
//! it points its own name here (DNS rebinding) and then also reads the answers. Against rebinding, each request's host must be
//! one of this server's names: `localhost`, this machine's name, an IP address, or one given by `--host`. Against foreign
//! requests, starting a build takes a token that only the printed address has, and the request's `Origin`, if there is one,
//! must be the host.
//!
//! Reading takes the token, too, if other machines could read: commands and their output often hold secrets.
//!
//! No page holds the token, since other users of this machine can read the pages.

use std::fmt;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_SECURITY_POLICY, HOST, HeaderName, ORIGIN, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use db_axum::Error;
use subtle::ConstantTimeEq;

use crate::host::{Host, Name};
use crate::serve::App;
use crate::serve::answers::{Form, give};

/// 128 random bits. Only `Display` shows them.
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|error| anyhow::anyhow!("cannot get random bytes for a token: {error}"))?;
        Ok(Self(const_hex::encode(bytes)))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What clients are allowed to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rights {
    /// Whether builds may be started with the token.
    pub(crate) may_start: bool,
    /// Whether builds may be read without the token.
    pub(crate) may_read: bool,
}

impl Rights {
    /// The banner's label for the address with the token.
    pub(crate) fn with_the_token(self) -> &'static str {
        if self.may_start { "Start builds at:" } else { "Read builds at:" }
    }
}

/// The host that a request names; `None` if it names none, which HTTP/1.0 allows.
#[derive(Debug, Clone)]
pub(crate) struct Target(Option<Host>);

/// The access rules of a server.
pub(crate) struct Guard {
    rights: Rights,
    token: Option<Token>,
    hosts: Vec<Name>,
}

impl Guard {
    /// Makes a token if the rights need one.
    pub(crate) fn new(rights: Rights, hosts: Vec<Host>) -> anyhow::Result<Self> {
        let needs_token = rights.may_start || !rights.may_read;
        let token = if needs_token { Some(Token::generate()?) } else { None };
        Ok(Self::with_token(rights, token, hosts))
    }

    fn with_token(rights: Rights, token: Option<Token>, hosts: Vec<Host>) -> Self {
        let machine = nix::unistd::gethostname().ok().and_then(|name| Host::parse(name.to_str()?));
        let ours = [Name::Registered("localhost".to_owned())];
        let named = hosts.into_iter().chain(machine).map(|host| host.name);
        Self { rights, token, hosts: ours.into_iter().chain(named).collect() }
    }

    pub(crate) fn rights(&self) -> Rights {
        self.rights
    }

    pub(crate) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Checks that a request is meant for this server, and returns the host it names. The authority of its target, if there is
    /// one, counts before `Host`, which must be present all the same (RFC 9112, section 3.2).
    fn check_target(&self, version: Version, target: &Uri, headers: &HeaderMap) -> Result<Target, Error> {
        let bad = |detail: &str| Error::new(StatusCode::BAD_REQUEST, detail);
        let given = match only(headers, &HOST).map_err(|()| bad("more than one Host header"))? {
            Some(value) => {
                let host = value.to_str().ok().and_then(Host::parse);
                Some(host.ok_or_else(|| bad("Host must be a name or an address, with an optional port"))?)
            }
            None if version > Version::HTTP_10 => {
                return Err(bad("no Host header"));
            }
            None => None,
        };
        let said = match (target.authority(), target.scheme_str()) {
            (None, _) => given,
            (Some(authority), None | Some("http" | "https")) => {
                let host = Host::parse(authority.as_str());
                Some(host.ok_or_else(|| {
                    bad("the target's authority must be a name or an address, with an optional port")
                })?)
            }
            (Some(_), Some(_)) => return Err(bad("the target's scheme must be http or https")),
        };
        match &said {
            Some(Host { name: name @ Name::Registered(_), .. }) if !self.hosts.contains(name) => {
                let detail =
                    "this host is not one of the server's names; add it with serve --host if it should be";
                Err(Error::new(StatusCode::MISDIRECTED_REQUEST, detail))
            }
            _ => Ok(Target(said)),
        }
    }

    /// Whether a request may read builds.
    pub(crate) fn check_read(&self, headers: &HeaderMap) -> Result<(), Error> {
        if self.rights.may_read { Ok(()) } else { self.check_token(headers, "reading builds here") }
    }

    /// Whether a request may start a build.
    pub(crate) fn check_start(&self, headers: &HeaderMap, target: &Target) -> Result<(), Error> {
        if !self.rights.may_start {
            let detail = "builds cannot be started here: the server runs without --allow-start";
            return Err(Error::new(StatusCode::FORBIDDEN, detail));
        }
        let origin = only(headers, &ORIGIN)
            .map_err(|()| Error::new(StatusCode::BAD_REQUEST, "more than one Origin header"))?;
        if !origin.is_none_or(|origin| is_ours(origin, target)) {
            let detail = "only this server's own page may start builds";
            return Err(Error::new(StatusCode::FORBIDDEN, detail));
        }
        self.check_token(headers, "starting a build")
    }

    fn check_token(&self, headers: &HeaderMap, what: &str) -> Result<(), Error> {
        let given = only(headers, &AUTHORIZATION)
            .map_err(|()| Error::new(StatusCode::BAD_REQUEST, "more than one Authorization header"))?;
        let given = given.and_then(|given| bearer(given.as_bytes())).unwrap_or_default();
        if self.token.as_ref().is_some_and(|token| bool::from(given.ct_eq(token.0.as_bytes()))) {
            return Ok(());
        }
        let detail = format!(
            "{what} needs the token that the server printed: open the printed address, or send `Authorization: Bearer TOKEN`"
        );
        Err(Error::new(StatusCode::UNAUTHORIZED, detail))
    }
}

/// The value of a header that may occur only once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, ()> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(()) } else { Ok(first) }
}

/// The token of `Bearer TOKEN` (RFC 9110, section 11.4): the scheme in any case, then any number of spaces.
fn bearer(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = credentials.split_at_checked("bearer".len())?;
    let token = rest.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"bearer") && rest.first() == Some(&b' ')).then_some(token)
}

/// Whether an origin is this server: the request's host and port.
fn is_ours(origin: &HeaderValue, target: &Target) -> bool {
    let origin = origin.to_str().ok().and_then(Host::of_origin);
    match (origin, &target.0) {
        (Some((origin, usual)), Some(target)) => {
            origin.name == target.name && origin.port.unwrap_or(usual) == target.port.unwrap_or(usual)
        }
        _ => false,
    }
}

/// Passes requests that may read builds.
pub(crate) async fn check_read(State(app): State<App>, request: Request, next: Next) -> Response {
    match app.guard.check_read(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Passes requests with the token.
pub(crate) async fn check_monitoring(State(app): State<App>, request: Request, next: Next) -> Response {
    match app.guard.check_token(request.headers(), "monitoring") {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Refuses requests for other hosts, gives errors the preferred form, and adds strict security headers.
pub(crate) async fn check(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let form = Form::of(request.headers());
    let has_credentials = request.headers().contains_key(AUTHORIZATION);
    let answer = match app.guard.check_target(request.version(), request.uri(), request.headers()) {
        Ok(target) => {
            request.extensions_mut().insert(target);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    let status = answer.status();
    let mut response = give(answer, form).await;
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        // RFC 6750, section 3: without credentials, the challenge names no error.
        let challenge = if has_credentials {
            r#"Bearer realm="buildwatch", error="invalid_token""#
        } else {
            r#"Bearer realm="buildwatch""#
        };
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if status == StatusCode::REQUEST_TIMEOUT {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    for (name, value) in [
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Rights = Rights { may_start: true, may_read: true };

    fn guard(rights: Rights) -> Guard {
        let host = Host::parse("builds.example").expect("a host");
        Guard::with_token(rights, Some(Token("secret".to_owned())), vec![host])
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"))
            })
            .fold(HeaderMap::new(), |mut all, (name, value)| {
                all.append(name, value);
                all
            })
    }

    fn target(target: &str, version: Version, pairs: &[(&'static str, &str)]) -> Result<Target, StatusCode> {
        let uri = target.parse().expect("a target");
        guard(OPEN).check_target(version, &uri, &headers(pairs)).map_err(|error| error.status())
    }

    #[test]
    fn a_name_that_somebody_else_pointed_here_is_refused() {
        let of = |host: &str| target("/", Version::HTTP_11, &[("host", host)]).err();
        for ours in [
            "localhost:8080",
            "LOCALHOST",
            "localhost.",
            "127.0.0.1:8080",
            "[::1]:8080",
            "10.1.2.3",
            "builds.example",
            "Builds.Example.:443",
            "localhost:",
        ] {
            assert_eq!(of(ours), None, "{ours}");
        }
        for other in [
            "evil.example",
            "localhost.evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost..",
            "2130706433",
        ] {
            assert_eq!(of(other), Some(StatusCode::MISDIRECTED_REQUEST), "{other}");
        }
        for bad in ["", "a b", "localhost:abc", "user@localhost", "[::1", "localhost, evil.example"] {
            assert_eq!(of(bad), Some(StatusCode::BAD_REQUEST), "{bad}");
        }
    }

    #[test]
    fn a_request_has_one_host_and_its_target_is_heard_first() {
        let bad = Some(StatusCode::BAD_REQUEST);
        let elsewhere = Some(StatusCode::MISDIRECTED_REQUEST);
        let ours = ("host", "localhost");
        for (uri, version, pairs, refused) in [
            ("/", Version::HTTP_11, &[][..], bad),
            ("/", Version::HTTP_10, &[], None),
            ("/", Version::HTTP_10, &[("host", "evil.example")], elsewhere),
            ("/", Version::HTTP_11, &[ours, ours], bad),
            ("/", Version::HTTP_11, &[ours, ("host", "evil.example")], bad),
            ("http://evil.example/", Version::HTTP_11, &[ours], elsewhere),
            ("http://localhost:8080/", Version::HTTP_11, &[("host", "evil.example")], None),
            ("http://localhost:8080/", Version::HTTP_11, &[], bad),
            ("http://localhost:8080/", Version::HTTP_11, &[("host", "a b")], bad),
            ("https://builds.example/", Version::HTTP_11, &[("host", "builds.example")], None),
            ("ftp://localhost/", Version::HTTP_11, &[ours], bad),
            ("http://user@localhost/", Version::HTTP_11, &[ours], bad),
        ] {
            assert_eq!(target(uri, version, pairs).err(), refused, "{uri} {version:?} {pairs:?}");
        }
    }

    #[test]
    fn a_build_is_started_with_the_token_from_our_own_page_only() {
        let guard_open = guard(OPEN);
        let token = ("authorization", "Bearer secret");
        let at = |host: &str| Target(Host::parse(host));
        let status = |host: &str, pairs: &[(&'static str, &str)]| {
            guard_open.check_start(&headers(pairs), &at(host)).err().map(|error| error.status())
        };
        let here = "localhost:8080";

        for good in ["Bearer secret", "bearer secret", "BEARER   secret"] {
            assert_eq!(status(here, &[("authorization", good)]), None, "{good}");
        }
        for bad in [
            "Bearer ",
            "Bearer secre",
            "Bearer secrett",
            "secret",
            "Basic secret",
            "Bearersecret",
            "Bearer\tsecret",
        ] {
            assert_eq!(status(here, &[("authorization", bad)]), Some(StatusCode::UNAUTHORIZED), "{bad}");
        }
        assert_eq!(status(here, &[]), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(status(here, &[token, ("authorization", "Bearer other")]), Some(StatusCode::BAD_REQUEST));
        assert_eq!(status(here, &[token, token]), Some(StatusCode::BAD_REQUEST));

        for (host, origin) in [
            (here, "http://localhost:8080"),
            ("localhost:80", "http://localhost"),
            ("localhost", "http://localhost:80"),
            ("builds.example", "https://builds.example"),
            ("LOCALHOST.:8080", "http://localhost:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(status(host, &[token, ("origin", origin)]), None, "{origin}");
        }
        for origin in [
            "http://evil.example",
            "http://localhost:8081",
            "null",
            "http://localhost",
            "ftp://localhost:8080",
            "localhost:8080",
            "http://localhost:8080/",
            "http://user@localhost:8080",
            "",
        ] {
            let pairs = [token, ("origin", origin)];
            assert_eq!(status(here, &pairs), Some(StatusCode::FORBIDDEN), "{origin}");
        }
        let ours = ("origin", "http://localhost:8080");
        assert_eq!(status(here, &[token, ours, ours]), Some(StatusCode::BAD_REQUEST));

        let closed = guard(Rights { may_start: false, may_read: true });
        let refused =
            closed.check_start(&headers(&[("authorization", "Bearer ")]), &at(here)).expect_err("closed");
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    }

    #[test]
    fn reading_takes_the_token_where_not_everybody_may_read() {
        let closed = guard(Rights { may_start: false, may_read: false });

        assert!(guard(OPEN).check_read(&HeaderMap::new()).is_ok());
        assert!(closed.check_read(&headers(&[("authorization", "Bearer secret")])).is_ok());
        let refused = closed.check_read(&HeaderMap::new()).expect_err("no token");
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    }
}
