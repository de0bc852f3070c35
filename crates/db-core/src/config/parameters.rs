//! The parameters of an address in one table: the setter of each, and its row in docs/options.md.

use secrecy::SecretString;

use super::{Config, ConfigError, host, limits};
use crate::Pooler;

/// Sets a parameter's value.
type Set = fn(&mut Config, &str) -> Result<(), ConfigError>;

/// Parameters that share a row of docs/options.md.
#[cfg_attr(not(test), expect(dead_code, reason = "a test compares docs/options.md with it"))]
struct Line {
    parameters: &'static [(&'static str, Set)],
    /// The value without the parameter.
    default: &'static str,
    unit: &'static str,
    /// When to change it.
    change: &'static str,
}

static LINES: [Line; 11] = [
    Line {
        parameters: &[
            ("host", |config, value| {
                config.host = host(value)?;
                Ok(())
            }),
            ("port", |config, value| {
                config.port = value.parse().ok().filter(|port| *port != 0).ok_or(ConfigError::Port)?;
                Ok(())
            }),
            ("user", |config, value| {
                value.clone_into(&mut config.user);
                Ok(())
            }),
            ("password", |config, value| {
                config.password = Some(value).filter(|text| !text.is_empty()).map(SecretString::from);
                Ok(())
            }),
            ("dbname", |config, value| {
                value.clone_into(&mut config.database);
                Ok(())
            }),
        ],
        default: "as in the address",
        unit: "",
        change: "when a part does not fit in its place, such as the folder of a socket: `?host=/run/postgresql`",
    },
    Line {
        parameters: &[
            ("application_name", |config, value| {
                config.application_name = Some(value.to_owned());
                Ok(())
            }),
            ("fallback_application_name", |config, value| {
                config.application_name.get_or_insert_with(|| value.to_owned());
                Ok(())
            }),
        ],
        default: "the pool's name",
        unit: "",
        change: "to recognize the service in `pg_stat_activity`",
    },
    Line {
        parameters: &[("sslmode", |config, value| config.tls.set_mode(value))],
        default: "`verify-full` off this machine, `prefer` on it",
        unit: "",
        change: "as `--postgres-sslmode`",
    },
    Line {
        parameters: &[
            ("sslrootcert", |config, value| config.tls.set_authority(value)),
            ("sslcert", |config, value| config.tls.set_certificate(value)),
            ("sslkey", |config, value| config.tls.set_key(value)),
        ],
        default: "the operating system's authorities, none, none",
        unit: "PEM, or a file; `sslrootcert=system` for the operating system's authorities only, with `verify-full`",
        change: "as the flags",
    },
    Line {
        parameters: &[("channel_binding", |config, value| config.tls.set_binding(value))],
        default: "`prefer`",
        unit: "`disable`, `prefer` or `require`",
        change: "when the provider's address has it; `require` implies `verify-full`",
    },
    Line {
        parameters: &[("pgbouncer", |config, value| {
            config.pooler = match value {
                "true" => Pooler::Transaction,
                "false" => Pooler::None,
                _ => {
                    let (parameter, expected) = ("pgbouncer", "true or false");
                    return Err(ConfigError::Parameter { parameter, expected });
                }
            };
            Ok(())
        })],
        default: "`false`",
        unit: "`true` or `false`",
        change: "when the address leads to a pooler in transaction mode; then set DATABASE_URL_DIRECT, too",
    },
    Line {
        parameters: &[("connection_limit", |config, value| {
            config.limits.connections = Some(limits::connections("connection_limit", value)?);
            Ok(())
        })],
        default: "none",
        unit: "connections of each pool",
        change: "when several services share a server and the address limits each; a pool's own lower limit still applies",
    },
    Line {
        parameters: &[("pool_timeout", |config, value| {
            config.limits.acquire_timeout = Some(limits::seconds("pool_timeout", value)?);
            Ok(())
        })],
        default: "the `acquire_timeout` of each pool",
        unit: "seconds",
        change: "when callers should wait for another time than each pool's `acquire_timeout`",
    },
    Line {
        parameters: &[("connect_timeout", |config, value| {
            config.limits.connect_timeout = Some(limits::seconds("connect_timeout", value)?);
            Ok(())
        })],
        default: "5 s in `open` and in the bus, 3 s in pools",
        unit: "seconds for one attempt; in a pool, at most three quarters of its `acquire_timeout`",
        change: "when the server is far away, or a name resolves slowly; the bus and migrations use the direct address's",
    },
    Line {
        parameters: &[("keepalives_idle", |config, value| {
            config.limits.keepalive = Some(limits::seconds("keepalives_idle", value)?);
            Ok(())
        })],
        default: "the `keepalive` of each pool",
        unit: "seconds",
        change: "as `keepalive`",
    },
    Line {
        parameters: &[
            ("options", |config, value| config.session.read(value)),
            ("schema", |config, value| config.session.set_schema(value)),
            ("search_path", |config, value| config.session.set("search_path", value)),
            ("statement_timeout", |config, value| config.session.set("statement_timeout", value)),
            ("lock_timeout", |config, value| config.session.set("lock_timeout", value)),
        ],
        default: "the server's",
        unit: "settings of each session: `-c name=value …` or `options[name]=value`; a schema name; values in the server's form",
        change: "as `--postgres-options`; not through a pooler in transaction mode, which shares its sessions between clients",
    },
];

/// The setter of the parameter with this name.
pub(super) fn setter(name: &str) -> Option<Set> {
    all().find(|(parameter, _)| *parameter == name).map(|(_, set)| set)
}

/// All parameter names, for [`ConfigError::UnknownParameter`].
pub(super) fn names() -> String {
    let mut names: Vec<_> = all().map(|(name, _)| name).collect();
    names.sort_unstable();
    names.join(", ")
}

fn all() -> impl Iterator<Item = (&'static str, Set)> {
    LINES.iter().flat_map(|line| line.parameters.iter().copied())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::super::tests::between;
    use super::*;

    #[test]
    fn the_options_page_lists_every_parameter() {
        let mut table =
            String::from("| parameter | default | unit | when to change it |\n|---|---|---|---|\n");
        for Line { parameters, default, unit, change } in &LINES {
            let names: Vec<_> = parameters.iter().map(|(name, _)| format!("`{name}`")).collect();
            let unit = if unit.is_empty() { "| |".to_owned() } else { format!("| {unit} |") };
            writeln!(table, "| {} | {default} {unit} {change} |", names.join(", ")).expect("written");
        }

        assert_eq!(
            between("parameters"),
            table.trim(),
            "docs/options.md needs this table between its marks:\n{table}"
        );
    }

    #[test]
    fn the_error_for_an_unknown_parameter_lists_the_known_ones() {
        let error =
            Config::from_url("postgres://a@b/c?unknown=1").expect_err("no such parameter").to_string();

        assert!(error.ends_with(&format!("(known: {})", names())), "{error}");
        for (name, _) in all() {
            assert!(error.contains(name), "{name}");
        }
    }
}
