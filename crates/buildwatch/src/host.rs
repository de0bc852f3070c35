//! Hosts: of the header `Host`, of a target's authority, and of an `Origin`.

use std::net::{IpAddr, Ipv6Addr};

/// `uri-host [ ":" port ]` (RFC 9110, section 7.2). Comparing names ignores case and a final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: Name,
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Address(IpAddr),
    /// In lower case.
    Registered(String),
}

impl Host {
    /// `None` if the text is not a host, also if it has user information.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, port) = if let Some(literal) = text.strip_prefix('[') {
            let (address, port) = literal.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            let port = if port.is_empty() { port } else { port.strip_prefix(':')? };
            (Name::Address(address.into()), port)
        } else {
            let (name, port) = text.split_once(':').unwrap_or((text, ""));
            (registered(name)?, port)
        };
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // The port may be missing after its colon.
        let port = if port.is_empty() { None } else { Some(port.parse().ok()?) };
        Some(Self { name, port })
    }

    /// An origin's host, and its port or the default one of its scheme; `None` for other schemes.
    pub(crate) fn of_origin(origin: &str) -> Option<(Self, u16)> {
        let (scheme, host) = origin.split_once("://")?;
        let usual = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        Some((Self::parse(host)?, usual))
    }
}

/// `reg-name` or `IPv4address` of RFC 3986.
fn registered(name: &str) -> Option<Name> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || !name.bytes().all(is_allowed) {
        return None;
    }
    Some(match name.parse() {
        Ok(address) => Name::Address(address),
        Err(_) => Name::Registered(name.to_ascii_lowercase()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_as_its_grammar_has_it() {
        for (text, name, port) in [
            ("localhost", "localhost", None),
            ("LOCALHOST.:8080", "localhost", Some(8080)),
            ("localhost:", "localhost", None),
            ("localhost:00080", "localhost", Some(80)),
            ("a_b-c.example,x", "a_b-c.example,x", None),
        ] {
            assert_eq!(
                Host::parse(text),
                Some(Host { name: Name::Registered(name.to_owned()), port }),
                "{text}"
            );
        }
        for (text, address, port) in [
            ("127.0.0.1:1", "127.0.0.1", Some(1)),
            ("127.0.0.1.", "127.0.0.1", None),
            ("[::1]", "::1", None),
            ("[::FFFF:10.0.0.1]:8080", "::ffff:10.0.0.1", Some(8080)),
        ] {
            let name = Name::Address(address.parse().expect("an address"));
            assert_eq!(Host::parse(text), Some(Host { name, port }), "{text}");
        }
        for bad in [
            "",
            ".",
            ":80",
            "a b",
            "a\tb",
            "user@localhost",
            "user:word@localhost",
            "localhost:abc",
            "localhost:+1",
            "localhost:65536",
            "localhost:80:80",
            "::1",
            "[::1",
            "::1]",
            "[::1]80",
            "[::1]:x",
            "[127.0.0.1]",
            "[::1%lo]",
            "[v1.x]",
            "localhost/",
            "local\u{e9}",
            "http://localhost",
            "localhost?",
            "a\\b",
            "<a>",
        ] {
            assert_eq!(Host::parse(bad), None, "{bad}");
        }
    }
}
