//! How long a client waits, by a header.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::Error;

/// The longest number. More digits say no more.
const LONGEST: usize = 20;

/// A header in which clients say how long they wait.
#[derive(Debug, Clone)]
pub(super) struct Header {
    name: HeaderName,
    unit: Unit,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
}

impl Header {
    pub(super) fn new(name: HeaderName, unit: Unit) -> Self {
        Self { name, unit }
    }

    /// The time that a client has given, if any.
    ///
    /// # Errors
    ///
    /// 400 if it is no number, or more than one.
    pub(super) fn read(&self, headers: &HeaderMap) -> Result<Option<Duration>, Error> {
        let mut values = headers.get_all(&self.name).into_iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => self.parse(value).map(Some).ok_or_else(|| self.unreadable()),
            (Some(_), Some(_)) => Err(self.unreadable()),
        }
    }

    fn parse(&self, value: &HeaderValue) -> Option<Duration> {
        let text = value.to_str().ok()?.trim();
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if !is_plain || text.len() > LONGEST {
            return None;
        }
        let number: f64 = text.parse().ok()?;
        let seconds = match self.unit {
            Unit::Seconds => number,
            Unit::Milliseconds => number / 1000.0,
        };
        // What is longer than a `Duration` is longer than any limit.
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    fn unreadable(&self) -> Error {
        let (unit, example) = match self.unit {
            Unit::Seconds => ("seconds", "0.5"),
            Unit::Milliseconds => ("milliseconds", "500"),
        };
        let detail = format!("the header {} must be one number of {unit}, such as {example}", self.name);
        Error::bad_request(StatusCode::BAD_REQUEST, &detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(unit: Unit, values: &[&[u8]]) -> Result<Option<Duration>, u16> {
        let name = HeaderName::from_static("x-timeout");
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_bytes(value).expect("a header's value"));
        }
        Header::new(name, unit).read(&headers).map_err(|error| error.status().as_u16())
    }

    #[test]
    fn a_plain_number_is_a_time() {
        for (value, seconds) in
            [(&b"2"[..], 2.0), (b" 0.25 ", 0.25), (b".5", 0.5), (b"0", 0.0), (b"0.000", 0.0), (b"1.", 1.0)]
        {
            let time = Duration::from_secs_f64(seconds);
            assert_eq!(read(Unit::Seconds, &[value]), Ok(Some(time)), "{:?}", String::from_utf8_lossy(value));
        }
        assert_eq!(read(Unit::Milliseconds, &[b"250"]), Ok(Some(Duration::from_millis(250))));
        assert_eq!(
            read(Unit::Seconds, &[b"99999999999999999999"]),
            Ok(Some(Duration::MAX)),
            "longer than any"
        );
        assert_eq!(read(Unit::Seconds, &[]), Ok(None));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let values: [&[u8]; 16] = [
            b"",
            b" ",
            b"-1",
            b"+1",
            b"\xe2\x88\x9e",
            b"inf",
            b"infinity",
            b"NaN",
            b"1e3",
            b"soon",
            b"1s",
            b"1,5",
            b".",
            b"1.2.3",
            b"0x10",
            b"999999999999999999999",
        ];
        for value in values {
            assert_eq!(read(Unit::Seconds, &[value]), Err(400), "{:?}", String::from_utf8_lossy(value));
        }
        assert_eq!(read(Unit::Seconds, &[b"1", b"2"]), Err(400), "two values");
    }
}
