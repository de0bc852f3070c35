//! Splits an address into its parameters.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use url::Url;

use super::ConfigError;

/// A parameter and its decoded value, or why it cannot be decoded. Parts before the `?` have parameter names, too.
pub(crate) type Parameter = (String, Result<String, ConfigError>);

type Pair = (String, String);

const ESCAPE: &str = "write the characters / : @ ? # in a name or a password as %2F %3A %40 %3F %23";
const NO_SCHEME: &str = "it has no `://`";
const CONTROL: &str = "it has a line break or another control character";
const KEYWORDS: &str = "read as keyword=value pairs, it ends too early or has a word without `=`";

/// Splits a URL, or libpq's `keyword=value` pairs. As in libpq, a later parameter overrides an earlier one, and the query
/// overrides the parts before the `?`. A parameter with two different values in the query is an error.
pub(crate) fn split_address(address: &str) -> Result<Vec<Parameter>, ConfigError> {
    let address = address.trim();
    let (mut parts, parameters) =
        if is_keywords(address) { (Vec::new(), keywords(address)?) } else { url(address)? };
    let mut seen: Vec<Pair> = Vec::new();
    for (name, value) in parameters {
        let name = canonical(&name).to_owned();
        let differs = seen.iter().any(|(other, before)| *other == name && *before != value);
        let part = if differs { Err(ConfigError::Twice(plain(&name))) } else { Ok(value.clone()) };
        seen.push((name.clone(), value));
        parts.push((name, part));
    }
    Ok(parts)
}

/// Maps sqlx's other names of libpq's parameters, and pgx's name of Prisma's, to the usual ones.
fn canonical(name: &str) -> &str {
    match name {
        "ssl-mode" => "sslmode",
        "ssl-root-cert" | "ssl-ca" => "sslrootcert",
        "ssl-cert" => "sslcert",
        "ssl-key" => "sslkey",
        "pool_max_conns" => "connection_limit",
        other => other,
    }
}

/// Returns the name if it looks like a parameter's: after an unescaped `?`, an unusual name would be half a password.
pub(super) fn plain(name: &str) -> Option<String> {
    let is_plain = name.len() <= 40 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    is_plain.then(|| name.to_owned())
}

fn url(address: &str) -> Result<(Vec<Parameter>, Vec<Pair>), ConfigError> {
    let (url, has_host) = parse(address)?;
    let mut parts = Vec::new();
    let mut add = |name: &str, text: &str, part: &'static str| {
        if !text.is_empty() {
            parts.push((name.to_owned(), decode(text, part)));
        }
    };
    if has_host {
        add("host", url.host_str().unwrap_or_default(), "host");
    }
    add("port", &url.port().map(|port| port.to_string()).unwrap_or_default(), "port");
    add("user", url.username(), "role");
    add("password", url.password().unwrap_or_default(), "password");
    add("dbname", url.path().trim_start_matches('/'), "database name");
    // As sqlx reads them, since sqlx programs share the address: a `+` is a space.
    let pairs = url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned()));
    Ok((parts, pairs.collect()))
}

/// Parses the URL and reports whether it names a host. RFC 3986 has no authority with a user and no host, but libpq's
/// addresses do: `postgres://role@/database?host=…`.
fn parse(address: &str) -> Result<(Url, bool), ConfigError> {
    let Some((scheme, rest)) = address.split_once("://") else {
        return Err(ConfigError::NotAUrl(NO_SCHEME));
    };
    if !matches!(scheme, "postgres" | "postgresql") {
        return Err(ConfigError::Scheme);
    }
    // The URL parser silently drops control characters, which would change the password.
    if address.contains(char::is_control) {
        return Err(ConfigError::NotAUrl(CONTROL));
    }
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // After an unescaped `/`, `?` or `#`, the rest of the password stands where other parts are expected.
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    if tail.contains(['@', '#']) || path.trim_start_matches('/').contains(['/', ':']) || query.contains('?') {
        return Err(ConfigError::NotAUrl(ESCAPE));
    }
    let (login, host) =
        authority.rsplit_once('@').map_or((None, authority), |(login, host)| (Some(login), host));
    let has_host = !host.is_empty() && !host.starts_with(':');
    let completed = match login {
        _ if has_host => Cow::Borrowed(address),
        Some(login) => Cow::Owned(format!("{scheme}://{login}@localhost{host}{tail}")),
        None => Cow::Owned(format!("{scheme}://localhost{host}{tail}")),
    };
    let url = Url::parse(&completed).map_err(|error| match error {
        // Each host of a list may have its own port.
        url::ParseError::InvalidPort if host.contains(',') => ConfigError::Host(super::LIST),
        url::ParseError::InvalidPort => ConfigError::Port,
        url::ParseError::EmptyHost => ConfigError::Host("missing"),
        url::ParseError::InvalidIpv4Address | url::ParseError::InvalidIpv6Address => {
            ConfigError::Host("not an IP address, though it looks like one")
        }
        url::ParseError::IdnaError | url::ParseError::InvalidDomainCharacter => {
            ConfigError::Host("not a host name: write characters such as / and @ as %2F and %40")
        }
        _ => ConfigError::NotAUrl(ESCAPE),
    })?;
    Ok((url, has_host))
}

fn decode(text: &str, part: &'static str) -> Result<String, ConfigError> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| ConfigError::Encoding(part))?;
    Ok(decoded.into_owned())
}

fn is_keywords(address: &str) -> bool {
    address.split_once('=').is_some_and(|(name, _)| {
        let name = name.trim_end();
        !name.is_empty() && plain(name).is_some()
    })
}

/// Parses libpq's other form ("Keyword/Value Connection Strings" in its manual): pairs separated by white space, values with
/// white space in single quotes, a backslash before a quote or a backslash.
fn keywords(text: &str) -> Result<Vec<Pair>, ConfigError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(ConfigError::NotAUrl(KEYWORDS))?;
        let name = name.trim_end();
        if name.contains(char::is_whitespace) {
            return Err(ConfigError::NotAUrl(KEYWORDS));
        }
        let after = after.trim_start();
        let quoted = after.strip_prefix('\'');
        let after = quoted.unwrap_or(after);
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next() {
                Some((at, '\'')) if quoted.is_some() => break at + 1,
                Some((at, c)) if quoted.is_none() && c.is_whitespace() => break at,
                Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
                Some((_, c)) => value.push(c),
                None if quoted.is_some() => return Err(ConfigError::NotAUrl(KEYWORDS)),
                None => break after.len(),
            }
        };
        pairs.push((name.to_owned(), value));
        rest = after[end..].trim_start();
    }
    Ok(pairs)
}
