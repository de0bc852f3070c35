//! Parameters of libpq, other drivers and providers that have no effect here.

use super::ConfigError;

/// A parameter, the values that match what happens anyway, and why other values are not supported.
type ForeignParameter = (&'static str, &'static [&'static str], &'static str);

const GSSAPI: &str = "GSSAPI is not supported";
const KEEPALIVE: &str = "an idle connection is pinged once and closed if it does not answer: use keepalives_idle, or \
                         PoolOptions::keepalive";
const ONE_HOST: &str = "one host is supported, and its role is not checked: use the primary's address";
const NOT_READ: &str = "password and service files are not read: write the values in the address";
const SSLMODE: &str = "use sslmode, which has libpq's meanings";

static FOREIGN: [ForeignParameter; 36] = [
    ("client_encoding", &["UTF8", "utf8", "UTF-8", "utf-8", "auto"], "the driver speaks UTF-8"),
    ("gssdelegation", &["0"], GSSAPI),
    ("gssencmode", &["disable", "prefer"], GSSAPI),
    ("gsslib", &[], GSSAPI),
    ("hostaddr", &[], "write the IP address as the host"),
    ("keepalives", &["1"], "keepalive is always on"),
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
        "every query is a prepared statement: behind a pooler, add pgbouncer=true",
    ),
    ("replication", &["false", "off", "no", "0"], "replication connections are not supported"),
    ("require_auth", &[], "the driver answers every authentication method: use sslmode=verify-full"),
    ("requirepeer", &[], "the socket's owner is not checked"),
    ("service", &[], NOT_READ),
    ("servicefile", &[], NOT_READ),
    ("socket_timeout", &[], "use PoolOptions::statement_timeout"),
    ("ssl", &[], SSLMODE),
    ("ssl_max_protocol_version", &["TLSv1.3"], "the highest TLS version cannot be limited"),
    (
        "ssl_min_protocol_version",
        &["TLSv1", "TLSv1.1", "TLSv1.2"],
        "the lowest TLS version is 1.2 and cannot be changed",
    ),
    ("sslaccept", &[], SSLMODE),
    ("sslcertmode", &["allow"], "a certificate is sent if there is one and the server asks for it"),
    ("sslcompression", &["0"], "TLS is not compressed"),
    ("sslcrl", &[], "revocation lists are not checked"),
    ("sslcrldir", &[], "revocation lists are not checked"),
    ("sslidentity", &[], "use PEM files: sslcert and sslkey"),
    ("sslnegotiation", &["postgres"], "only the SSLRequest negotiation is supported"),
    ("sslpassword", &[], "encrypted keys cannot be read: use a key without a pass phrase"),
    ("sslsni", &["1"], "the host name is always sent (SNI)"),
    ("statement_cache_size", &[], "another driver's parameter: behind a pooler, add pgbouncer=true"),
    ("target_session_attrs", &["any", "prefer-standby"], ONE_HOST),
    ("tcp_user_timeout", &[], KEEPALIVE),
    ("uselibpqcompat", &["true"], SSLMODE),
];

/// Accepts or refuses a parameter of this table; `None` for any other.
pub(super) fn set(name: &str, value: &str) -> Option<Result<(), ConfigError>> {
    // Supabase marks its addresses with this.
    if name == "supa" {
        return Some(Ok(()));
    }
    let (parameter, accepted, reason) = FOREIGN.iter().find(|(foreign, ..)| *foreign == name)?;
    Some(if accepted.contains(&value) { Ok(()) } else { Err(ConfigError::Refused { parameter, reason }) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Config;
    use super::super::tests::between;
    use super::*;

    #[test]
    fn the_options_page_lists_the_accepted_parameters_with_their_values() {
        let accepted = FOREIGN.iter().filter(|(_, values, _)| !values.is_empty());
        let mut rows: Vec<String> = accepted
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
    fn the_options_page_lists_the_refused_parameters() {
        let listed = between("refused");
        let listed: BTreeSet<&str> = listed.split('`').skip(1).step_by(2).collect();
        let refused: BTreeSet<&str> =
            FOREIGN.iter().filter(|(_, values, _)| values.is_empty()).map(|(name, ..)| *name).collect();

        assert_eq!(listed, refused);
    }

    #[test]
    fn a_value_that_matches_the_fixed_behaviour_is_accepted_and_any_other_is_refused_with_the_reason() {
        let read = |parameter: &str, value: &str| {
            Config::from_url(&format!("postgres://a@b/c?{parameter}={value}")).map(drop)
        };
        for (parameter, values, reason) in FOREIGN {
            for value in values {
                assert_eq!(read(parameter, value), Ok(()), "{parameter}={value}");
            }
            assert_eq!(read(parameter, "something-else"), Err(ConfigError::Refused { parameter, reason }));
        }
        assert_eq!(read("supa", "base-pooler.x"), Ok(()));
    }
}
