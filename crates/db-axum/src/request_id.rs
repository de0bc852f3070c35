//! An id for each request, in its answer and its lines of the log.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::error::{PROBLEM, Problem};

/// The header that proxies and clients know it by.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken over.
const LONGEST: usize = 64;

/// The id of a request, among its extensions behind [`request_ids`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The id: letters, digits, `-`, `_` and `.`, 64 at most.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one that the request has, or a new one.
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let is_fit = |id: &&str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            !id.is_empty() && id.len() <= LONGEST && id.bytes().all(fits)
        };
        match given.filter(is_fit) {
            Some(given) => Self(given.to_owned()),
            None => Self(format!("{:032x}", fastrand::u128(..))),
        }
    }
}

/// A middleware that gives each request an id: that of its header `x-request-id`, or a new one if there is none or it is not fit to be in a log.
/// The id is in the answer's header, in the `instance` of a problem, in the span `request` of what is logged until the answer begins, and a
/// [`RequestId`] among the request's extensions. A client that sends an id chooses it, and may send the same one again: let a proxy in front set
/// it if that matters.
///
/// ```
/// use axum::Router;
/// use axum::middleware::from_fn;
/// use db_axum::{no_such_address, request_ids};
///
/// let router: Router = Router::new().fallback(no_such_address).layer(from_fn(request_ids));
/// # drop(router);
/// ```
pub async fn request_ids(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    // Of the highest level, or a filter for warnings would leave it out, and the lines that matter would have no id.
    let span = tracing::error_span!("request", id = id.as_str());
    request.extensions_mut().insert(id.clone());
    let mut answer = next.run(request).instrument(span).await;
    // Unless a layer in between has given it another form.
    let headers = answer.headers();
    let is_problem = headers.get(CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM)
        && !headers.contains_key(CONTENT_ENCODING);
    if let Some(problem) = answer.extensions_mut().remove::<Problem>().filter(|_| is_problem) {
        answer.headers_mut().remove(CONTENT_LENGTH);
        *answer.body_mut() = Body::from(problem.with_instance(id.as_str()));
    }
    // It has no other characters than a header may have.
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        answer.headers_mut().insert(HEADER, value);
    }
    answer
}
