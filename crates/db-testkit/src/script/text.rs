//! The text form of values, which the simple query protocol asks for.

use std::fmt::Write as _;

use time::{Date, Duration, Month, OffsetDateTime, PrimitiveDateTime, Time};

pub(super) const BOOL: u32 = 16;
pub(super) const BYTEA: u32 = 17;
pub(super) const INT8: u32 = 20;
pub(super) const INT4: u32 = 23;
pub(super) const TEXT: u32 = 25;
pub(super) const FLOAT8: u32 = 701;
pub(super) const VOID: u32 = 2278;

const INT2: u32 = 21;
const OID: u32 = 26;
const XID: u32 = 28;
const JSON: u32 = 114;
const FLOAT4: u32 = 700;
const DATE: u32 = 1082;
const TIMESTAMP: u32 = 1114;
const TIMESTAMPTZ: u32 = 1184;
const UUID: u32 = 2950;
const JSONB: u32 = 3802;

/// `"char"`, name, text, bpchar, varchar, unknown: their binary form is their text.
const TEXTS: [u32; 7] = [18, 19, TEXT, 1042, 1043, 705, JSON];

/// One-dimensional arrays, by the type of their elements.
const ARRAYS: [(u32, u32); 11] = [
    (1000, BOOL),
    (1001, BYTEA),
    (1005, INT2),
    (1007, INT4),
    (1009, TEXT),
    (1015, 1043),
    (1016, INT8),
    (1021, FLOAT4),
    (1022, FLOAT8),
    (1185, TIMESTAMPTZ),
    (2951, UUID),
];

/// The text of a value in binary form. `None` for a type whose text form is not known here, and for bytes that are no value of
/// the type.
pub(super) fn text(oid: u32, value: &[u8]) -> Option<String> {
    if TEXTS.contains(&oid) {
        return String::from_utf8(value.to_vec()).ok();
    }
    if ARRAYS.iter().any(|(array, _)| *array == oid) {
        return array_text(value);
    }
    Some(match oid {
        BOOL => if value.first()? == &0 { "f" } else { "t" }.to_owned(),
        INT2 => i16::from_be_bytes(value.try_into().ok()?).to_string(),
        INT4 => i32::from_be_bytes(value.try_into().ok()?).to_string(),
        INT8 => i64::from_be_bytes(value.try_into().ok()?).to_string(),
        OID | XID => u32::from_be_bytes(value.try_into().ok()?).to_string(),
        FLOAT4 => float(f32::from_be_bytes(value.try_into().ok()?).to_string()),
        FLOAT8 => float(f64::from_be_bytes(value.try_into().ok()?).to_string()),
        BYTEA => format!("\\x{}", const_hex::encode(value)),
        JSONB => String::from_utf8(value.get(1..)?.to_vec()).ok()?,
        VOID => String::new(),
        UUID => {
            let hex = const_hex::encode(<[u8; 16]>::try_from(value).ok()?);
            format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
        }
        DATE => {
            let days = i32::from_be_bytes(value.try_into().ok()?);
            epoch().date().checked_add(Duration::days(days.into()))?.to_string()
        }
        TIMESTAMP => timestamp(value)?,
        TIMESTAMPTZ => timestamp(value)? + "+00",
        _ => return None,
    })
}

/// PostgreSQL writes infinity and what is no number in its own way.
fn float(text: String) -> String {
    match text.as_str() {
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        _ => text,
    }
}

/// PostgreSQL counts from here.
fn epoch() -> PrimitiveDateTime {
    let date = Date::from_calendar_date(2000, Month::January, 1).expect("the day exists");
    PrimitiveDateTime::new(date, Time::MIDNIGHT)
}

fn timestamp(value: &[u8]) -> Option<String> {
    let since = Duration::microseconds(i64::from_be_bytes(value.try_into().ok()?));
    let at: OffsetDateTime = epoch().checked_add(since)?.assume_utc();
    let (date, (hour, minute, second, micros)) = (at.date(), at.to_hms_micro());
    let mut text = format!("{date} {hour:02}:{minute:02}:{second:02}");
    if micros > 0 {
        // Writing to a string does not fail.
        let _ = write!(text, ".{}", format!("{micros:06}").trim_end_matches('0'));
    }
    Some(text)
}

/// The elements of an array in binary form, and their type. Of several dimensions, the elements come one after the other.
pub(super) fn elements(value: &[u8]) -> Option<(u32, Vec<Option<&[u8]>>)> {
    let int = |at: usize| Some(i32::from_be_bytes(value.get(at..at + 4)?.try_into().ok()?));
    let (dimensions, oid) =
        (usize::try_from(int(0)?).ok()?, u32::from_be_bytes(value.get(8..12)?.try_into().ok()?));
    let mut at = 12 + 8 * dimensions;
    let mut found = Vec::new();
    while at < value.len() {
        let length = int(at)?;
        at += 4;
        let Ok(length) = usize::try_from(length) else {
            found.push(None);
            continue;
        };
        found.push(Some(value.get(at..at + length)?));
        at += length;
    }
    Some((oid, found))
}

fn array_text(value: &[u8]) -> Option<String> {
    let (oid, elements) = elements(value)?;
    let elements: Option<Vec<String>> = elements
        .into_iter()
        .map(|element| match element {
            None => Some("NULL".to_owned()),
            Some(value) => Some(quoted(&text(oid, value)?)),
        })
        .collect();
    Some(format!("{{{}}}", elements?.join(",")))
}

fn quoted(element: &str) -> String {
    let needs = |c: char| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_whitespace();
    if element.is_empty() || element.eq_ignore_ascii_case("null") || element.contains(needs) {
        format!("\"{}\"", element.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        element.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::values::{Values, oid};
    use super::*;

    fn shown<T>(value: T) -> String
    where
        (T,): Values,
    {
        let number = oid(&<(T,)>::types()[0]).unwrap();
        text(number, &(value,).cells().unwrap()[0].clone().unwrap()).unwrap()
    }

    #[test]
    fn values_have_the_text_that_postgresql_gives_them() {
        assert_eq!(shown(true), "t");
        assert_eq!(shown(-7_i16), "-7");
        assert_eq!(shown(i64::MAX), "9223372036854775807");
        assert_eq!(shown(1.5_f64), "1.5");
        assert_eq!(shown(f32::NEG_INFINITY), "-Infinity");
        assert_eq!(shown("a 'b'"), "a 'b'");
        assert_eq!(shown(vec![0_u8, 255]), "\\x00ff");
        assert_eq!(
            shown(vec!["a".to_owned(), "b, c".to_owned(), "null".to_owned()]),
            "{a,\"b, c\",\"null\"}"
        );
        assert_eq!(shown(vec![Some(1_i32), None]), "{1,NULL}");
        let moment = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_250_000_000).unwrap();
        assert_eq!(shown(moment), "2023-11-14 22:13:20.25+00");
        assert_eq!(shown(moment.date()), "2023-11-14");
    }

    #[test]
    fn bytes_that_are_no_value_have_no_text() {
        for (oid, bytes) in
            [(INT4, &[1_u8][..]), (TEXT, &[0xff]), (BOOL, &[]), (1007, &[0, 0]), (600, &[0; 16])]
        {
            assert_eq!(text(oid, bytes), None, "{oid}");
        }
    }
}
