//! The text form of values, which the simple query protocol asks for.

use std::fmt::Write as _;

use time::format_description::StaticFormatDescription;
use time::macros::format_description;
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

/// The types that are known here, by their names in PostgreSQL's catalog.
const NAMES: [(u32, &str); 33] = [
    (BOOL, "bool"),
    (BYTEA, "bytea"),
    (18, "char"),
    (19, "name"),
    (INT8, "int8"),
    (INT2, "int2"),
    (INT4, "int4"),
    (TEXT, "text"),
    (OID, "oid"),
    (XID, "xid"),
    (JSON, "json"),
    (FLOAT4, "float4"),
    (FLOAT8, "float8"),
    (705, "unknown"),
    (1000, "_bool"),
    (1001, "_bytea"),
    (1005, "_int2"),
    (1007, "_int4"),
    (1009, "_text"),
    (1015, "_varchar"),
    (1016, "_int8"),
    (1021, "_float4"),
    (1022, "_float8"),
    (1042, "bpchar"),
    (1043, "varchar"),
    (DATE, "date"),
    (TIMESTAMP, "timestamp"),
    (TIMESTAMPTZ, "timestamptz"),
    (1185, "_timestamptz"),
    (VOID, "void"),
    (UUID, "uuid"),
    (2951, "_uuid"),
    (JSONB, "jsonb"),
];

/// The name of a type, or its number.
pub(super) fn type_name(oid: u32) -> String {
    let known = NAMES.iter().find(|(there, _)| *there == oid);
    known.map_or_else(|| oid.to_string(), |(_, name)| (*name).to_owned())
}

/// The type of this name or number.
pub(super) fn type_named(name: &str) -> Option<u32> {
    let known = NAMES.iter().find(|(_, there)| *there == name);
    known.map(|(oid, _)| *oid).or_else(|| name.parse().ok())
}

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

const ON_DATE: StaticFormatDescription = format_description!("[year]-[month]-[day]");
const AT_SECOND: StaticFormatDescription =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");

/// The binary form of the value whose text this is. `None` for a type or a text that is not known here.
pub(super) fn binary(oid: u32, text: &str) -> Option<Vec<u8>> {
    if TEXTS.contains(&oid) {
        return Some(text.into());
    }
    if let Some((_, element)) = ARRAYS.iter().find(|(array, _)| *array == oid) {
        return array(*element, text);
    }
    Some(match oid {
        BOOL => vec![u8::from(["f", "t"].iter().position(|it| *it == text)? == 1)],
        INT2 => text.parse::<i16>().ok()?.to_be_bytes().into(),
        INT4 => text.parse::<i32>().ok()?.to_be_bytes().into(),
        INT8 => text.parse::<i64>().ok()?.to_be_bytes().into(),
        OID | XID => text.parse::<u32>().ok()?.to_be_bytes().into(),
        FLOAT4 => text.parse::<f32>().ok()?.to_be_bytes().into(),
        FLOAT8 => text.parse::<f64>().ok()?.to_be_bytes().into(),
        BYTEA => const_hex::decode(text.strip_prefix("\\x")?).ok()?,
        JSONB => [b"\x01", text.as_bytes()].concat(),
        VOID => Vec::new(),
        UUID => <[u8; 16]>::try_from(const_hex::decode(text.replace('-', "")).ok()?).ok()?.into(),
        DATE => {
            let days = (Date::parse(text, ON_DATE).ok()? - epoch().date()).whole_days();
            i32::try_from(days).ok()?.to_be_bytes().into()
        }
        TIMESTAMP => microseconds(text)?,
        TIMESTAMPTZ => microseconds(text.strip_suffix("+00")?)?,
        _ => return None,
    })
}

fn microseconds(text: &str) -> Option<Vec<u8>> {
    let (second, part) = text.split_once('.').unwrap_or((text, ""));
    let since = PrimitiveDateTime::parse(second, AT_SECOND).ok()? - epoch();
    let part: i64 = format!("{part:0<6}").parse().ok()?;
    Some((i64::try_from(since.whole_microseconds()).ok()? + part).to_be_bytes().into())
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

/// An array of one dimension.
fn array(oid: u32, text: &str) -> Option<Vec<u8>> {
    if text == "{}" {
        return Some([0, 0, oid].into_iter().flat_map(u32::to_be_bytes).collect());
    }
    let values: Option<Vec<Option<Vec<u8>>>> = unquoted(text.strip_prefix('{')?.strip_suffix('}')?)?
        .into_iter()
        .map(|element| match element {
            None => Some(None),
            Some(text) => Some(Some(binary(oid, &text)?)),
        })
        .collect();
    let values = values?;
    let count = i32::try_from(values.len()).ok()?;
    let head = [1, i32::from(values.contains(&None)), oid.try_into().ok()?, count, 1];
    let mut array: Vec<u8> = head.into_iter().flat_map(i32::to_be_bytes).collect();
    for value in values {
        let length: i32 = value.as_ref().map_or(Some(-1), |it| it.len().try_into().ok())?;
        array.extend_from_slice(&length.to_be_bytes());
        array.extend(value.unwrap_or_default());
    }
    Some(array)
}

/// The elements of an array's text, without its braces; `None` is NULL.
fn unquoted(text: &str) -> Option<Vec<Option<String>>> {
    let mut elements = Vec::new();
    let (mut element, mut is_quoted) = (String::new(), false);
    let mut chars = text.chars();
    loop {
        match chars.next() {
            Some('"') => {
                is_quoted = true;
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => element.push(chars.next()?),
                        other => element.push(other),
                    }
                }
            }
            end @ (Some(',') | None) => {
                let is_null = !is_quoted && element == "NULL";
                elements.push((!is_null).then(|| std::mem::take(&mut element)));
                element.clear();
                is_quoted = false;
                if end.is_none() {
                    return Some(elements);
                }
            }
            Some(other) => element.push(other),
        }
    }
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
    fn a_text_is_the_value_that_has_this_text() {
        let moment = "2023-11-14 22:13:20.25";
        for (oid, shown) in [
            (BOOL, "t"),
            (BOOL, "f"),
            (INT2, "-7"),
            (INT4, "70000"),
            (INT8, "-9223372036854775808"),
            (OID, "4294967295"),
            (FLOAT4, "1.5"),
            (FLOAT8, "-Infinity"),
            (TEXT, "a 'b'"),
            (BYTEA, "\\x00ff"),
            (JSONB, "{\"a\": 1}"),
            (VOID, ""),
            (UUID, "00112233-4455-6677-8899-aabbccddeeff"),
            (DATE, "1999-12-31"),
            (TIMESTAMP, moment),
            (TIMESTAMP, "1999-12-31 23:59:59"),
            (TIMESTAMPTZ, &format!("{moment}+00")),
            (1009, "{a,\"b, \\\"c\\\"\",NULL,\"null\",\"\"}"),
            (1007, "{1,NULL}"),
            (1009, "{}"),
            (2951, "{00112233-4455-6677-8899-aabbccddeeff}"),
        ] {
            let value = binary(oid, shown);
            assert_eq!(value.and_then(|it| text(oid, &it)).as_deref(), Some(shown), "{oid}");
        }
    }

    #[test]
    fn a_text_that_is_no_value_has_no_binary_form() {
        for (oid, shown) in [
            (BOOL, "true"),
            (INT2, "32768"),
            (UUID, "00"),
            (DATE, "infinity"),
            (TIMESTAMPTZ, "2023-11-14 22:13:20+01"),
            (1007, "1"),
            (1007, "{x}"),
            (1009, "{\"a}"),
            (1700, "1.5"),
        ] {
            assert_eq!(binary(oid, shown), None, "{oid} {shown}");
        }
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
