//! Who may ask for what.
//!
//! Two things could let a web page elsewhere run commands on this machine: it sends a request here from the reader's
//! browser, or it makes its own name point here (DNS rebinding) and then reads answers, too. Against the second, each
//! request's `Host` must be a name that is ours: `localhost`, this machine's name, an IP address, or one given by
//! `--host`. Against the first, starting a build takes a token that only the printed address has, and its `Origin`, if
//! there is one, must be the `Host`.
//!
//! The token is not part of any page: other users of this machine can read our pages, too.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use db_axum::Error;
use subtle::ConstantTimeEq;
use tokio::time::timeout;

use crate::serve::App;

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

/// The rules of one server.
pub(crate) struct Guard {
    token: Option<Token>,
    hosts: Vec<String>,
}

impl Guard {
    /// Without a token, no build can be started.
    pub(crate) fn new(token: Option<Token>, mut hosts: Vec<String>) -> Self {
        hosts.push("localhost".to_owned());
        if let Ok(name) = nix::unistd::gethostname() {
            hosts.extend(name.into_string().ok());
        }
        Self { token, hosts }
    }

    pub(crate) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Whether a request is meant for this server.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Error> {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
        let ours = host.is_some_and(|host| {
            let name = host.host().trim_start_matches('[').trim_end_matches(']');
            name.parse::<IpAddr>().is_ok() || self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(name))
        });
        if ours {
            return Ok(());
        }
        let detail = "this server does not know itself by that name; if it should, name it with serve --host";
        Err(Error::new(StatusCode::MISDIRECTED_REQUEST, detail))
    }

    /// Whether a request may start a build.
    pub(crate) fn check_start(&self, headers: &HeaderMap) -> Result<(), Error> {
        let Some(token) = &self.token else {
            let detail = "builds cannot be started here: the server runs without --allow-start";
            return Err(Error::new(StatusCode::FORBIDDEN, detail));
        };
        if let Some(origin) = headers.get(ORIGIN) {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            let same = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host)
                == host;
            if !same {
                return Err(Error::new(
                    StatusCode::FORBIDDEN,
                    "builds can be started from this server's page only",
                ));
            }
        }
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
            .unwrap_or_default();
        if bool::from(given.ct_eq(token.0.as_bytes())) {
            return Ok(());
        }
        let detail =
            "starting a build takes the token that the server printed, as `Authorization: Bearer TOKEN`";
        Err(Error::new(StatusCode::UNAUTHORIZED, detail))
    }
}

/// Refuses what is not meant for us, and tells browsers to be strict with what is.
pub(crate) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = match app.guard.check_host(request.headers()) {
        Ok(()) => match timeout(LIMIT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                Error::new(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer").into_response()
            }
        },
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
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

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn a_name_that_somebody_else_pointed_here_is_refused() {
        let guard = Guard::new(None, vec!["builds.example".to_owned()]);
        for ours in
            ["localhost:8080", "LOCALHOST", "127.0.0.1:8080", "[::1]:8080", "10.1.2.3", "builds.example"]
        {
            assert!(guard.check_host(&headers(&[("host", ours)])).is_ok(), "{ours}");
        }
        for other in ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example", "", "a b"] {
            let error = guard.check_host(&headers(&[("host", other)])).expect_err(other);
            assert_eq!(error.status(), StatusCode::MISDIRECTED_REQUEST);
        }
        assert!(guard.check_host(&HeaderMap::new()).is_err());
    }

    #[test]
    fn a_build_is_started_with_the_token_from_our_own_page_only() {
        let guard = Guard::new(Some(Token("secret".to_owned())), Vec::new());
        let host = ("host", "localhost:8080");
        let token = ("authorization", "Bearer secret");
        let status =
            |pairs: &[(&'static str, &str)]| guard.check_start(&headers(pairs)).err().map(|e| e.status());

        assert_eq!(status(&[host, token]), None);
        assert_eq!(status(&[host, token, ("origin", "http://localhost:8080")]), None);
        for origin in ["http://evil.example", "http://localhost:8081", "null", "http://localhost"] {
            assert_eq!(status(&[host, token, ("origin", origin)]), Some(StatusCode::FORBIDDEN), "{origin}");
        }
        for bad in ["Bearer ", "Bearer secre", "Bearer secrett", "secret", "Basic secret"] {
            assert_eq!(status(&[host, ("authorization", bad)]), Some(StatusCode::UNAUTHORIZED), "{bad}");
        }
        assert_eq!(status(&[host]), Some(StatusCode::UNAUTHORIZED));

        let closed = Guard::new(None, Vec::new());
        let refused =
            closed.check_start(&headers(&[host, ("authorization", "Bearer ")])).expect_err("closed");
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    }
}
