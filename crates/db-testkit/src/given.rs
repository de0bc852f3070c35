//! The server of `DATABASE_URL`.

use std::fmt;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use url::Url;

use crate::address;
use crate::error::Error;

/// A parsed address. Both forms may hold a password, so `Debug` shows neither.
pub(crate) struct Given {
    url: Url,
    options: PgConnectOptions,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DATABASE_URL")
    }
}

impl Given {
    pub(crate) fn parse(address: &str) -> Result<Given, Error> {
        let url = Url::parse(address).map_err(|error| Error::Address { why: error.to_string() })?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(Error::Address { why: format!("its scheme is {}, not postgres", url.scheme()) });
        }
        let options =
            PgConnectOptions::from_str(address).map_err(|error| Error::Address { why: error.to_string() })?;
        Ok(Given { url, options })
    }

    /// The options of the address, with its own database.
    pub(crate) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// The address of another database on the same server.
    pub(crate) fn url_of(&self, database: &str) -> String {
        address::with_database(&self.url, database).into()
    }
}

#[cfg(test)]
mod tests {
    use super::Given;

    #[test]
    fn only_the_database_of_an_address_changes() {
        for (address, changed) in [
            ("postgres://u:p@h:5433/mine?sslmode=disable", "postgres://u:p@h:5433/other?sslmode=disable"),
            ("postgresql://h", "postgresql://h/other"),
            (
                "postgres://localhost/mine?host=%2Ftmp%2Fx&dbname=y",
                "postgres://localhost/other?host=%2Ftmp%2Fx",
            ),
        ] {
            assert_eq!(Given::parse(address).unwrap().url_of("other"), changed);
        }
    }

    #[test]
    fn an_address_of_something_else_is_refused_without_showing_it() {
        for address in ["mysql://u:secret@h/x", "secret", "postgres://u:secret@h:port/x"] {
            let error = Given::parse(address).err().unwrap();
            assert!(!format!("{error:?} {error}").contains("secret"), "{error:?}");
        }
    }
}
