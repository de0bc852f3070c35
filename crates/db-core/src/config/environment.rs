//! libpq's variables, which complete an address that does not say the same.
//!
//! The driver hears some of them by itself, and two of those cannot be taken back from it: so all of what it hears is heard
//! here, shown as settings, and nothing else is.

use std::ffi::OsString;

use super::{Config, ConfigError};

/// What `config` shows as a setting of another name: the parameter, and libpq's variable.
pub(crate) static LIBPQ: [(&str, &str); 6] = [
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("options", OPTIONS),
];

/// The driver adds what we say to this, and nothing takes it away.
const OPTIONS: &str = "PGOPTIONS";

const BESIDE: &str =
    "is set, and so are options of the sessions elsewhere: the driver would send both, so leave one out";
const POOLED: &str = "is set, and the driver sends it, which a pooler in transaction mode refuses: unset it";

impl Config {
    /// Takes from the environment what nobody has said. An empty variable counts as one that is not there.
    pub(super) fn complete(&mut self, wrong: &mut Vec<ConfigError>, look: impl Fn(&str) -> Option<OsString>) {
        // A certificate and its key come from one place.
        let has_certificate = self.tls.has_certificate();
        for (parameter, variable) in LIBPQ {
            let is_said = match parameter {
                "user" => !self.user.is_empty(),
                "password" => self.password.is_some(),
                "sslrootcert" => self.tls.has_authority(),
                "sslcert" | "sslkey" => has_certificate,
                _ => false,
            };
            let Some(text) = look(variable).filter(|text| !is_said && !text.is_empty()) else { continue };
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
        if self.session.by().is_some() {
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
        for (name, value) in super::super::parts(address).expect("an address") {
            config.set(&name, &value.expect("a part")).expect("a good one");
        }
        let mut wrong = Vec::new();
        config.complete(&mut wrong, |name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, text)| text.into())
        });
        (config, wrong)
    }

    #[test]
    fn the_drivers_own_ear_for_the_environment_is_closed() {
        let shown =
            format!("{:?}", Config::from_url("postgres://app@db/shop").expect("an address").as_sqlx());

        // What it has found there is replaced, whatever it was.
        assert!(shown.contains("ssl_root_cert: Some(Inline([]))"), "{shown}");
        assert!(shown.contains("application_name: Some(\"\")"), "{shown}");
    }

    #[test]
    fn an_empty_variable_is_not_there_and_one_that_is_not_utf_8_is_refused() {
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
