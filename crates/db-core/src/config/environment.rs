//! libpq's environment variables, which fill in what an address lacks.
//!
//! The driver reads some of them by itself, and two of those cannot be unset in its options. So this module reads the same
//! variables as the driver, shows them as settings, and reads no others.

use std::ffi::OsString;

use super::{Config, ConfigError};

/// The parameters that a variable of libpq fills in, each with the variable.
pub(crate) static LIBPQ: [(&str, &str); 6] = [
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("options", OPTIONS),
];

/// The driver appends our options to this variable's, and its API cannot remove them.
const OPTIONS: &str = "PGOPTIONS";

const BESIDE: &str = "is set, and the address or the settings set session options, too: the driver would send both, so remove one";
const POOLED: &str = "is set, and a pooler in transaction mode refuses the session options in it: unset it";

impl Config {
    /// Fills in missing parts from the environment. An empty variable counts as missing.
    pub(super) fn complete(
        &mut self,
        wrong: &mut Vec<ConfigError>,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) {
        // A certificate and its key come from one source.
        let has_certificate = self.tls.has_certificate();
        for (parameter, variable) in LIBPQ {
            let is_set = match parameter {
                "user" => !self.user.is_empty(),
                "password" => self.password.is_some(),
                "sslrootcert" => self.tls.has_authority(),
                "sslcert" | "sslkey" => has_certificate,
                _ => false,
            };
            let Some(text) = lookup(variable).filter(|text| !is_set && !text.is_empty()) else { continue };
            let problem = match text.into_string() {
                Err(_) => Some("is not UTF-8"),
                Ok(_) if variable == OPTIONS => self.beside_options(),
                Ok(text) => match self.set(parameter, &text) {
                    Ok(()) => None,
                    Err(ConfigError::Parameter { expected, .. }) => Some(expected),
                    Err(_) => Some("cannot be used"),
                },
            };
            wrong.extend(problem.map(|problem| ConfigError::Environment { variable, problem }));
        }
        if self.user.is_empty() {
            self.user = std::env::var("USER").unwrap_or_default();
        }
        if self.user.is_empty() {
            // The driver asks the operating system, as libpq does.
            let of_driver = sqlx::postgres::PgConnectOptions::new_without_pgpass();
            of_driver.get_username().clone_into(&mut self.user);
        }
    }

    fn beside_options(&self) -> Option<&'static str> {
        if self.session.set_by().is_some() {
            return Some(BESIDE);
        }
        (self.pooler == crate::Pooler::Transaction).then_some(POOLED)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn completed(address: &str, variables: &[(&str, &str)]) -> (Config, Vec<ConfigError>) {
        let mut config = Config::blank();
        for (name, value) in super::super::split_address(address).expect("an address") {
            config.set(&name, &value.expect("a part")).expect("a good one");
        }
        let mut wrong = Vec::new();
        config.complete(&mut wrong, |name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, text)| text.into())
        });
        (config, wrong)
    }

    #[test]
    fn the_driver_reads_no_variable_of_its_own() {
        let options =
            format!("{:?}", Config::from_url("postgres://app@db/shop").expect("an address").as_sqlx());

        // Whatever the driver found in the environment is replaced.
        assert!(options.contains("ssl_root_cert: Some(Inline([]))"), "{options}");
        assert!(options.contains("application_name: Some(\"\")"), "{options}");
    }

    #[test]
    fn an_empty_variable_counts_as_missing_and_a_variable_that_is_not_utf_8_is_refused() {
        let (config, wrong) = completed("postgres://db/shop", &[("PGUSER", ""), ("PGPASSWORD", "")]);
        assert!(wrong.is_empty() && config.password.is_none() && !config.user.is_empty(), "{wrong:?}");

        let mut wrong = Vec::new();
        Config::blank().complete(&mut wrong, |_| Some(OsString::from_vec(vec![0xff])));
        assert_eq!(wrong.len(), LIBPQ.len(), "{wrong:?}");
    }

    #[test]
    fn options_of_the_environment_are_not_mixed_with_others_nor_sent_through_a_pooler() {
        let options = [("PGOPTIONS", "-c geqo=off")];
        let wrong = |address| completed(address, &options).1;

        assert_eq!(wrong("postgres://app@db/shop"), []);
        for address in ["postgres://app@db/shop?options=-cjit%3Doff", "postgres://app@db/shop?pgbouncer=true"]
        {
            assert!(
                matches!(wrong(address)[..], [ConfigError::Environment { variable: "PGOPTIONS", .. }]),
                "{address}"
            );
        }
    }
}
