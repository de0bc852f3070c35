//! An address, taken apart.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use url::Url;

use super::ConfigError;

/// A parameter and its value, decoded, or why it cannot be. What stands before the `?` has its parameter's name, too.
pub(crate) type Part = (String, Result<String, ConfigError>);

type Pair = (String, String);

const ESCAPE: &str = "write the characters / : @ ? # in a name or a password as %2F %3A %40 %3F %23";
const NO_SCHEME: &str = "there is no `://` in it";
const CONTROL: &str = "there is a line break or another control character in it";
const KEYWORDS: &str = "as keyword=value pairs it ends too early, or has a word without its `=`";

/// Takes a URL, or libpq's `keyword=value` pairs, apart. A later part overrides an earlier one: a parameter of the query what
/// stands before the `?`, as libpq has it. Said twice in the query, differently, a parameter is an error.
pub(crate) fn parts(address: &str) -> Result<Vec<Part>, ConfigError> {
    let address = address.trim();
    let (mut parts, parameters) =
        if is_keywords(address) { (Vec::new(), keywords(address)?) } else { url(address)? };
    let mut said: Vec<Pair> = Vec::new();
    for (name, value) in parameters {
        let name = canonical(&name).to_owned();
        let differs = said.iter().any(|(other, before)| *other == name && *before != value);
        let part = if differs { Err(ConfigError::Twice(plain(&name))) } else { Ok(value.clone()) };
        said.push((name.clone(), value));
        parts.push((name, part));
    }
    Ok(parts)
}

/// The other names that sqlx has for libpq's parameters, and pgx for Prisma's.
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

/// A name that looks like a parameter's: after an unescaped `?`, another would be half a password.
pub(super) fn plain(name: &str) -> Option<String> {
    let is_plain = name.len() <= 40 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    is_plain.then(|| name.to_owned())
}

fn url(address: &str) -> Result<(Vec<Part>, Vec<Pair>), ConfigError> {
    let (url, has_host) = parse(address)?;
    let mut parts = Vec::new();
    let mut add = |name: &str, text: &str, called: &'static str| {
        if !text.is_empty() {
            parts.push((name.to_owned(), decode(text, called)));
        }
    };
    if has_host {
        add("host", url.host_str().unwrap_or_default(), "host");
    }
    add("port", &url.port().map(|port| port.to_string()).unwrap_or_default(), "port");
    add("user", url.username(), "role");
    add("password", url.password().unwrap_or_default(), "password");
    add("dbname", url.path().trim_start_matches('/'), "database name");
    // As sqlx reads them, whose programs share the address: a `+` is a space.
    let pairs = url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned()));
    Ok((parts, pairs.collect()))
}

/// The URL, and whether it names a host. RFC 3986 has no authority with a user and no host, but libpq's addresses do:
/// `postgres://role@/database?host=…`.
fn parse(address: &str) -> Result<(Url, bool), ConfigError> {
    let Some((scheme, rest)) = address.split_once("://") else {
        return Err(ConfigError::NotAUrl(NO_SCHEME));
    };
    if !matches!(scheme, "postgres" | "postgresql") {
        return Err(ConfigError::Scheme);
    }
    // The parser drops them without a word, and a password would be another.
    if address.contains(char::is_control) {
        return Err(ConfigError::NotAUrl(CONTROL));
    }
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // After an unescaped `/`, `?` or `#` in a password, the rest of it stands where other parts are expected.
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

/// libpq's other form, as its manual has it in "Keyword/Value Connection Strings": pairs parted by white space, values with
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
