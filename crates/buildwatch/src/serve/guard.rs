//! Who may ask for what.
//!
//! Two things could let a web page elsewhere run commands on this machine: it sends a request here from the reader's
//! browser, or it makes its own name point here (DNS rebinding) and then reads answers, too. Against the second, each
//! request's host must be a name that is ours: `localhost`, this machine's name, an IP address, or one given by
//! `--host`. Against the first, starting a build takes a token that only the printed address has, and its `Origin`, if
//! there is one, must be the host.
//!
//! Reading takes the token, too, where others than the users of this machine could read: commands and their output often hold
//! secrets.
//!
//! The token is not part of any page: other users of this machine can read our pages, too.

use std::fmt;
use std::time::Duration;

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
use tokio::time::timeout;

use crate::serve::App;
use crate::serve::answers::{Form, give};
use crate::serve::host::{Host, Name};

/// How long a request may take until its answer begins; a live stream then goes on.
const LIMIT: Duration = Duration::from_secs(30);

/// 128 random bits. Shown by `Display` where it is printed on purpose, and by nothing else.
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|error| anyhow::anyhow!("no random bytes for a token: {error}"))?;
        Ok(Self(const_hex::encode(bytes)))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is allowed, and to whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rights {
    /// With the token, builds may be started.
    pub(crate) may_start: bool,
    /// Without the token, builds may be read.
    pub(crate) may_read: bool,
}

impl Rights {
    /// What the token is good for, as a line of the banner begins.
    pub(crate) fn with_the_token(self) -> &'static str {
        if self.may_start { "Start builds at:" } else { "Read builds at:" }
    }
}

/// Whom a request is for; `None` when it does not say so, as those of HTTP/1.0 need not.
#[derive(Debug, Clone)]
pub(crate) struct Target(Option<Host>);

/// The rules of one server.
pub(crate) struct Guard {
    rights: Rights,
    token: Option<Token>,
    hosts: Vec<Name>,
}

impl Guard {
    /// With a token if one is ever needed.
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

    /// Whether a request is meant for this server, and by what name. The authority of its target, if it has one, is heard before
    /// `Host`, which has to be there all the same (RFC 9112, section 3.2).
    fn check_target(&self, version: Version, target: &Uri, headers: &HeaderMap) -> Result<Target, Error> {
        let bad = |detail: &str| Error::new(StatusCode::BAD_REQUEST, detail);
        let given =
            match only(headers, &HOST).map_err(|()| bad("a request has one Host, and this one has more"))? {
                Some(value) => {
                    let host = value.to_str().ok().and_then(Host::parse);
                    Some(host.ok_or_else(|| {
                        bad("Host must be a name or an address, and a port if there is one")
                    })?)
                }
                None if version > Version::HTTP_10 => {
                    return Err(bad("a request has a Host, and this one has none"));
                }
                None => None,
            };
        let said =
            match (target.authority(), target.scheme_str()) {
                (None, _) => given,
                (Some(authority), None | Some("http" | "https")) => {
                    let host = Host::parse(authority.as_str());
                    Some(host.ok_or_else(|| {
                        bad("the target's authority must be a name or an address, and a port")
                    })?)
                }
                (Some(_), Some(_)) => return Err(bad("the target is neither http nor https")),
            };
        match &said {
            Some(Host { name: name @ Name::Registered(_), .. }) if !self.hosts.contains(name) => {
                let detail =
                    "this server does not know itself by that name; if it should, name it with serve --host";
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
        let origin = only(headers, &ORIGIN).map_err(|()| {
            Error::new(StatusCode::BAD_REQUEST, "a request has one Origin, and this one has more")
        })?;
        if !origin.is_none_or(|origin| is_ours(origin, target)) {
            let detail = "builds can be started from this server's page only";
            return Err(Error::new(StatusCode::FORBIDDEN, detail));
        }
        self.check_token(headers, "starting a build")
    }

    fn check_token(&self, headers: &HeaderMap, what: &str) -> Result<(), Error> {
        let given = only(headers, &AUTHORIZATION).map_err(|()| {
            Error::new(StatusCode::BAD_REQUEST, "a request has one Authorization, and this one has more")
        })?;
        let given = given.and_then(|given| bearer(given.as_bytes())).unwrap_or_default();
        if self.token.as_ref().is_some_and(|token| bool::from(given.ct_eq(token.0.as_bytes()))) {
            return Ok(());
        }
        let detail = format!(
            "{what} takes the token that the server printed: open the address with it, or send `Authorization: Bearer TOKEN`"
        );
        Err(Error::new(StatusCode::UNAUTHORIZED, detail))
    }
}

/// The value of a header that must not be there twice.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, ()> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(()) } else { Ok(first) }
}

/// The token of `Bearer TOKEN` (RFC 9110, section 11.4): the scheme in any case, and any number of spaces after it.
fn bearer(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = credentials.split_at_checked("bearer".len())?;
    let token = rest.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"bearer") && rest.first() == Some(&b' ')).then_some(token)
}

/// Whether a page of this origin is ours: the host that the request is for, and its port.
fn is_ours(origin: &HeaderValue, target: &Target) -> bool {
    let origin = origin.to_str().ok().and_then(Host::of_origin);
    match (origin, &target.0) {
        (Some((origin, usual)), Some(target)) => {
            origin.name == target.name && origin.port.unwrap_or(usual) == target.port.unwrap_or(usual)
        }
        _ => false,
    }
}

/// Lets through who may read.
pub(crate) async fn check_read(State(app): State<App>, request: Request, next: Next) -> Response {
    match app.guard.check_read(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Refuses what is not meant for us, gives errors the form that was asked for, and tells browsers to be strict with all of it.
pub(crate) async fn check(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let form = Form::of(request.headers());
    let has_credentials = request.headers().contains_key(AUTHORIZATION);
    let answer = match app.guard.check_target(request.version(), request.uri(), request.headers()) {
        Ok(target) => {
            request.extensions_mut().insert(target);
            timeout(LIMIT, next.run(request)).await.unwrap_or_else(|_| {
                let detail = format!("there was no answer within {} s", LIMIT.as_secs());
                Error::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
            })
        }
        Err(error) => error.into_response(),
    };
    let status = answer.status();
    let mut response = give(answer, form).await;
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        // RFC 6750, section 3: without credentials, no error is named.
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
