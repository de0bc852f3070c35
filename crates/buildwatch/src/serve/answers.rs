//! The form of error answers: a page for browsers, Problem Details (RFC 9457) for programs.
//!
//! Handlers, extractors and the router each produce errors of their own form. Here each gets the form that `Accept` prefers: a
//! browser that opens an address prefers HTML; clients that state no preference get JSON.

use axum::body::{Body, to_bytes};
use axum::http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

const PAGE: &str = include_str!("../../assets/error.html");

/// The media type of Problem Details.
const PROBLEM: &str = "application/problem+json";

/// The most bytes of an error's text that are read.
const LONGEST: usize = 64 << 10;

/// The form that a client prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Page,
    Problem,
}

impl Form {
    /// Parses `Accept` (RFC 9110, section 12.5.1). Not by the crate `headers-accept` 0.3, which takes an invalid weight for the
    /// highest, and refuses the whole header for one invalid range.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let accept: Vec<&str> =
            headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let accept = accept.join(",");
        let json =
            quality(&accept, "application", "problem+json").max(quality(&accept, "application", "json"));
        if quality(&accept, "text", "html") > json { Self::Page } else { Self::Problem }
    }
}

/// The weight of a type, from 0 to 1, by the most specific range that covers it.
fn quality(accept: &str, kind: &str, subtype: &str) -> f32 {
    let mut best = (0, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let (range_kind, range_subtype) =
            parts.next().and_then(|range| range.split_once('/')).unwrap_or_default();
        let exactness = match (range_kind, range_subtype) {
            ("*", "*") => 1,
            (given, "*") if given.eq_ignore_ascii_case(kind) => 2,
            (given, sub) if given.eq_ignore_ascii_case(kind) && sub.eq_ignore_ascii_case(subtype) => 3,
            _ => continue,
        };
        let q = parts
            .find_map(|part| part.split_once('=').filter(|(name, _)| name.trim().eq_ignore_ascii_case("q")));
        let q = match q.map(|(_, q)| q.trim().parse::<f32>()) {
            None => 1.0,
            Some(Ok(q)) if (0.0..=1.0).contains(&q) => q,
            Some(_) => continue,
        };
        if exactness > best.0 || (exactness == best.0 && q > best.1) {
            best = (exactness, q);
        }
    }
    best.1
}

/// Gives an error answer the form; other answers stay as they are.
pub(super) async fn give(answer: Response, form: Form) -> Response {
    let status = answer.status();
    let kind =
        answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
    // The routes of health answer JSON of their own.
    if !(status.is_client_error() || status.is_server_error())
        || matches!(&*kind, "application/json" | "application/health+json")
    {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    let said = to_bytes(body, LONGEST).await.unwrap_or_default();
    let said: Value = if kind == PROBLEM {
        serde_json::from_slice(&said).unwrap_or_default()
    } else {
        // The messages of axum's extractors.
        let detail = str::from_utf8(&said).ok().filter(|text| !text.is_empty());
        problem(status, detail)
    };
    let (kind, body) = match form {
        Form::Page => ("text/html; charset=utf-8", page(status, said["detail"].as_str())),
        Form::Problem => (PROBLEM, said.to_string()),
    };
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    parts.headers.append(VARY, HeaderValue::from_static("Accept"));
    Response::from_parts(parts, Body::from(body))
}

fn title(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Error")
}

fn problem(status: StatusCode, detail: Option<&str>) -> Value {
    let mut problem = json!({ "title": title(status), "status": status.as_u16() });
    if let Some(detail) = detail {
        problem["detail"] = detail.into();
    }
    problem
}

fn page(status: StatusCode, detail: Option<&str>) -> String {
    let text = detail.unwrap_or(match status {
        StatusCode::NOT_FOUND => "There is nothing at this address.",
        StatusCode::METHOD_NOT_ALLOWED => "This address does not support this method.",
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            "The server cannot answer this now. Try again in a while."
        }
        status if status.is_server_error() => "An internal error occurred. The server's log has the details.",
        _ => "The server refused this request.",
    });
    PAGE.replace("{title}", title(status)).replace("{text}", &escaped(text))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_what_is_preferred() {
        let form = |accept: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, value.parse().expect("a value"));
            }
            Form::of(&headers)
        };
        for people in [
            &["text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"][..],
            &["text/html"],
            &["TEXT/HTML; charset=utf-8"],
            &["text/*, application/json;q=0.5"],
            &["application/json;q=0.4, text/html;q=0.5"],
            &["*/*, application/json;q=0, application/problem+json;q=0.0"],
            &["application/json;q=0.1", "text/html"],
        ] {
            assert_eq!(form(people), Form::Page, "{people:?}");
        }
        for program in [
            &[][..],
            &["*/*"],
            &["application/json"],
            &["application/problem+json, text/html"],
            &["text/event-stream"],
            &["text/html;q=0"],
            &["text/html;q=0.5, */*;q=0.9"],
            &["text/html;q=nonsense"],
            &["text/html;q=2"],
            &["text/html, text/html;q=0.5, application/*"],
            &["image/png"],
            &["/, ;, text"],
        ] {
            assert_eq!(form(program), Form::Problem, "{program:?}");
        }
    }

    #[test]
    fn text_in_a_page_is_escaped() {
        let page = page(StatusCode::BAD_REQUEST, Some("<script>alert('\"&\"')</script>"));

        assert!(page.contains("&lt;script&gt;alert(&#39;&quot;&amp;&quot;&#39;)&lt;/script&gt;"), "{page}");
        assert!(page.contains("<title>Bad Request</title>"), "{page}");
    }
}
