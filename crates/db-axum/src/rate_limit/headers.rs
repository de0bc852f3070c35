//! What clients are told of their limits, by draft-ietf-httpapi-ratelimit-headers-11.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

use super::limit::{RateLimitError, Rule, Verdict};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// The names of the limits, and the header that says what they are.
#[derive(Debug)]
pub(super) struct Policy {
    /// What the state of each limit begins with: `"name";r=`.
    names: Vec<String>,
    header: HeaderValue,
}

/// What is left of the limits of a client.
#[derive(Debug)]
pub(super) struct Left {
    policy: HeaderValue,
    state: HeaderValue,
}

impl Policy {
    pub(super) fn new(name: &str, rules: &[Rule]) -> Result<Self, RateLimitError> {
        if name.is_empty() || !name.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(RateLimitError::Name(name.to_owned()));
        }
        // As a string of structured fields (RFC 9651, section 3.3.3).
        let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
        let names: Vec<String> = match rules {
            [] => return Err(RateLimitError::NoLimit),
            [_] => vec![format!("\"{quoted}\"")],
            many => (1..=many.len()).map(|number| format!("\"{quoted}-{number}\"")).collect(),
        };
        let items = names
            .iter()
            .zip(rules)
            .map(|(name, rule)| format!("{name};q={};w={}", rule.burst(), seconds(rule.whole())));
        let header = HeaderValue::try_from(items.collect::<Vec<_>>().join(", "))
            .map_err(|_| RateLimitError::Name(name.to_owned()))?;
        let names = names.into_iter().map(|name| name + ";r=").collect();
        Ok(Self { names, header })
    }

    /// What is left after this.
    pub(super) fn left(&self, verdict: &Verdict, rules: &[Rule]) -> Left {
        let mut state = String::with_capacity(48 * rules.len());
        for ((name, rule), debt) in self.names.iter().zip(rules).zip(&verdict.debts) {
            if !state.is_empty() {
                state.push_str(", ");
            }
            state.push_str(name);
            push(&mut state, rule.left(*debt).into());
            state.push_str(";t=");
            push(&mut state, seconds(*debt));
        }
        // The names are printable ASCII.
        let state =
            HeaderValue::from_maybe_shared(Bytes::from(state)).unwrap_or(HeaderValue::from_static(""));
        Left { policy: self.header.clone(), state }
    }
}

impl Left {
    /// Adds the headers to an answer, also beside those of another limit.
    pub(super) fn beside(self, answer: impl IntoResponse) -> Response {
        let mut response = answer.into_response();
        let headers = response.headers_mut();
        headers.append(POLICY, self.policy);
        headers.append(STATE, self.state);
        response
    }
}

/// Adds a number in decimal digits, in a fraction of the time of `format`: each answer has two.
fn push(text: &mut String, number: u64) {
    if number >= 10 {
        push(text, number / 10);
    }
    text.push(char::from(b'0' + u8::try_from(number % 10).unwrap_or(0)));
}

/// Whole seconds, rounded up.
pub(super) fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::super::limit::Limit;
    use super::*;

    fn rules(limits: &[Limit]) -> Vec<Rule> {
        limits.iter().map(|limit| Rule::new(*limit).expect("a limit")).collect()
    }

    #[test]
    fn limits_are_told_as_the_draft_wants() {
        let one = rules(&[Limit::per_hour(100)]);
        let two = rules(&[Limit::per(5, Duration::from_millis(500)), Limit::per_day(1000).burst(10)]);
        let debts = [Duration::from_millis(1), Duration::from_secs(431)];
        let verdict = |debts: &[Duration]| Verdict { refused_for: None, debts: debts.into() };
        let inside = Policy::new("api", &one).expect("a policy").left(&verdict(&debts[1..]), &one);
        let around = Policy::new("a\"b\\c", &two).expect("a policy").left(&verdict(&debts), &two);
        let response = around.beside(inside.beside(""));
        let headers = response.headers();

        let all =
            |name| headers.get_all(name).iter().map(|it| it.to_str().expect("text")).collect::<Vec<_>>();
        assert_eq!(all(POLICY), [r#""api";q=100;w=3600"#, r#""a\"b\\c-1";q=5;w=1, "a\"b\\c-2";q=10;w=864"#]);
        assert_eq!(all(STATE), [r#""api";r=88;t=431"#, r#""a\"b\\c-1";r=4;t=1, "a\"b\\c-2";r=5;t=431"#]);
    }

    #[test]
    fn a_name_that_no_header_can_have_is_refused() {
        let rules = rules(&[Limit::per_hour(100)]);
        for name in ["", "a\nb", "a\0", "über", "a\u{7f}", "\r\nset-cookie: x"] {
            assert!(matches!(Policy::new(name, &rules), Err(RateLimitError::Name(_))), "{name:?}");
        }
        assert!(matches!(Policy::new("api", &[]), Err(RateLimitError::NoLimit)));
    }
}
