//! Parameters that libpq, other drivers and providers write, and that say nothing here that could be set.

use super::ConfigError;

/// A parameter, the values that say what is so anyway, and why another cannot be heard.
type Known = (&'static str, &'static [&'static str], &'static str);

const GSSAPI: &str = "there is no GSSAPI here";
const KEEPALIVE: &str = "an idle connection is asked once, and given up when it does not answer: say keepalives_idle, or set \
                         PoolOptions::keepalive";
const ONE_HOST: &str = "one host is supported, and it is not asked which it is: give the primary's address";
const NOT_READ: &str = "no file of passwords or services is read: write it in the address";
const SSLMODE: &str = "say it by sslmode, which means what libpq means by it";

static KNOWN: [Known; 36] = [
    ("client_encoding", &["UTF8", "utf8", "UTF-8", "utf-8", "auto"], "the driver speaks UTF-8"),
    ("gssdelegation", &["0"], GSSAPI),
    ("gssencmode", &["disable", "prefer"], GSSAPI),
    ("gsslib", &[], GSSAPI),
    ("hostaddr", &[], "write the address in the host's place"),
    ("keepalives", &["1"], "connections are always kept alive"),
    ("keepalives_count", &[], KEEPALIVE),
    ("keepalives_interval", &[], KEEPALIVE),
    ("krbsrvname", &[], GSSAPI),
    ("load_balance_hosts", &["disable"], "one host is supported"),
    ("max_protocol_version", &["3.0"], "the driver speaks version 3.0 of the protocol"),
    ("min_protocol_version", &["3.0"], "the driver speaks version 3.0 of the protocol"),
    ("passfile", &[], NOT_READ),
    (
        "prepared_statements",
        &["true"],
        "every query is a prepared statement: behind a pooler, say pgbouncer=true",
    ),
    ("replication", &["false", "off", "no", "0"], "these are no connections for replication"),
    ("require_auth", &[], "the driver answers whatever the server asks for: say sslmode=verify-full"),
    ("requirepeer", &[], "the socket's owner is not looked at"),
    ("service", &[], NOT_READ),
    ("servicefile", &[], NOT_READ),
    ("socket_timeout", &[], "a statement is limited by PoolOptions::statement_timeout"),
    ("ssl", &[], SSLMODE),
    ("ssl_max_protocol_version", &["TLSv1.3"], "the newest version of TLS cannot be bounded"),
    (
        "ssl_min_protocol_version",
        &["TLSv1", "TLSv1.1", "TLSv1.2"],
        "TLS 1.2 is the oldest in any case, and cannot be raised",
    ),
    ("sslaccept", &[], SSLMODE),
    ("sslcertmode", &["allow"], "a certificate is shown when there is one and the server asks"),
    ("sslcompression", &["0"], "TLS is not compressed"),
    ("sslcrl", &[], "revoked certificates are not looked up"),
    ("sslcrldir", &[], "revoked certificates are not looked up"),
    ("sslidentity", &[], "give the certificate and its key as PEM: sslcert and sslkey"),
    ("sslnegotiation", &["postgres"], "the driver asks for TLS by the protocol's own request only"),
    ("sslpassword", &[], "a key under a pass phrase cannot be read: give one without"),
    ("sslsni", &["1"], "the host's name is always told to the server"),
    ("statement_cache_size", &[], "it belongs to another driver: behind a pooler, say pgbouncer=true"),
    ("target_session_attrs", &["any", "prefer-standby"], ONE_HOST),
    ("tcp_user_timeout", &[], KEEPALIVE),
    ("uselibpqcompat", &["true"], SSLMODE),
];

/// Takes a parameter of an address, if it is one of these.
pub(super) fn set(name: &str, value: &str) -> Option<Result<(), ConfigError>> {
    // A mark by which Supabase counts addresses.
    if name == "supa" {
        return Some(Ok(()));
    }
    let (parameter, taken, reason) = KNOWN.iter().find(|(known, ..)| *known == name)?;
    Some(if taken.contains(&value) { Ok(()) } else { Err(ConfigError::Refused { parameter, reason }) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Config;
    use super::super::tests::between;
    use super::*;

    #[test]
    fn the_page_lists_those_that_are_taken_with_their_values() {
        let taken = KNOWN.iter().filter(|(_, values, _)| !values.is_empty());
        let mut rows: Vec<String> = taken
            .map(|(name, values, _)| {
                let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
                format!("| `{name}` | {} |", values.join(", "))
            })
            .collect();
        rows.push("| `supa` | anything: a mark of Supabase's |".to_owned());
        rows.sort();
        let table = format!("| parameter | values |\n|---|---|\n{}", rows.join("\n"));

        assert_eq!(between("others"), table, "docs/options.md needs this table between its marks:\n{table}");
    }

    #[test]
    fn the_page_lists_those_that_are_refused() {
        let listed = between("refused");
        let listed: BTreeSet<&str> = listed.split('`').skip(1).step_by(2).collect();
        let refused: BTreeSet<&str> =
            KNOWN.iter().filter(|(_, values, _)| values.is_empty()).map(|(name, ..)| *name).collect();

        assert_eq!(listed, refused);
    }

    #[test]
    fn a_value_that_says_what_is_so_anyway_is_taken_and_another_is_refused_with_the_reason() {
        let read = |parameter: &str, value: &str| {
            Config::from_url(&format!("postgres://a@b/c?{parameter}={value}")).map(drop)
        };
        for (parameter, values, reason) in KNOWN {
            for value in values {
                assert_eq!(read(parameter, value), Ok(()), "{parameter}={value}");
            }
            assert_eq!(read(parameter, "something-else"), Err(ConfigError::Refused { parameter, reason }));
        }
        assert_eq!(read("supa", "base-pooler.x"), Ok(()));
    }
}
