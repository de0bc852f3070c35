//! What clients are told of their limits, by draft-ietf-httpapi-ratelimit-headers-11.

use std::fmt::Write;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::limit::{RateLimitError, Rule, Verdict};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// The names of the limits, and the header that says what they are.
#[derive(Debug)]
pub(super) struct Policy {
    /// Strings of structured fields (RFC 9651, section 3.3.3), with their quotes.
    names: Vec<String>,
    header: HeaderValue,
}

impl Policy {
    pub(super) fn new(name: &str, rules: &[Rule]) -> Result<Self, RateLimitError> {
        if name.is_empty() || !name.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(RateLimitError::Name(name.to_owned()));
        }
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
        let header = HeaderValue::try_from(items.collect::<Vec<_>>().join(", "));
        Ok(Self { names, header: header.map_err(|_| RateLimitError::Name(name.to_owned()))? })
    }

    /// Adds the headers, also to those of another limit.
    pub(super) fn tell(&self, verdict: &Verdict, rules: &[Rule], headers: &mut HeaderMap) {
        let mut state = String::with_capacity(32 * rules.len());
        for ((name, rule), debt) in self.names.iter().zip(rules).zip(&verdict.debts) {
            let before = if state.is_empty() { "" } else { ", " };
            write!(state, "{before}{name};r={};t={}", rule.left(*debt), seconds(*debt))
                .expect("it is a text");
        }
        headers.append(POLICY, self.header.clone());
        if let Ok(state) = HeaderValue::try_from(state) {
            headers.append(STATE, state);
        }
    }
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
        let mut headers = HeaderMap::new();

        let verdict = |debts: &[Duration]| Verdict { refused_for: None, debts: debts.into() };
        Policy::new("api", &one).expect("a policy").tell(&verdict(&debts[1..]), &one, &mut headers);
        Policy::new("a\"b\\c", &two).expect("a policy").tell(&verdict(&debts), &two, &mut headers);

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
