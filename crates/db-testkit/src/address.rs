//! The database's address, with another place in it.

use std::net::SocketAddr;

use url::Url;

use crate::error::Error;

/// What says where the server is.
const PLACE: [&str; 3] = ["host", "hostaddr", "port"];
const SSL_MODE: [&str; 2] = ["sslmode", "ssl-mode"];

/// With the proxy's place. Everything else, such as the user and the password, stays.
pub(crate) fn through(address: &str, us: SocketAddr, is_local: bool) -> Result<Url, Error> {
    let fails = |why: String| Error::Address { why };
    let mut url = Url::parse(address).map_err(|error| fails(error.to_string()))?;
    url.set_host(Some(&us.ip().to_string())).map_err(|error| fails(error.to_string()))?;
    url.set_port(Some(us.port())).map_err(|()| fails("it has no place for a port".into()))?;
    let mut pairs = pairs_without(&url, |key| PLACE.contains(&key) || is_local && SSL_MODE.contains(&key));
    if is_local {
        pairs.push(("sslmode".into(), "disable".into()));
    }
    set_pairs(&mut url, pairs);
    Ok(url)
}

pub(crate) fn with_database(url: &Url, database: &str) -> Url {
    let mut url = url.clone();
    url.set_path(&format!("/{database}"));
    let pairs = pairs_without(&url, |key| key == "dbname");
    set_pairs(&mut url, pairs);
    url
}

fn pairs_without(url: &Url, goes: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    url.query_pairs().filter(|(key, _)| !goes(key)).map(|(key, value)| (key.into(), value.into())).collect()
}

fn set_pairs(url: &mut Url, pairs: Vec<(String, String)>) {
    if pairs.is_empty() {
        url.set_query(None);
    } else {
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
}

#[cfg(test)]
mod tests {
    use super::{through, with_database};

    #[test]
    fn only_the_place_changes_and_a_unix_socket_has_no_encryption() {
        let us = "127.0.0.1:4711".parse().unwrap();
        for (address, is_local, changed) in [
            (
                "postgres://u:p%40@h:5433/mine?sslmode=require",
                false,
                "postgres://u:p%40@127.0.0.1:4711/mine?sslmode=require",
            ),
            ("postgresql://h/mine", false, "postgresql://127.0.0.1:4711/mine"),
            (
                "postgres://localhost/mine?host=%2Ftmp&port=5432&user=u&sslmode=prefer",
                true,
                "postgres://127.0.0.1:4711/mine?user=u&sslmode=disable",
            ),
            ("postgres://u@%2Ftmp/mine", true, "postgres://u@127.0.0.1:4711/mine?sslmode=disable"),
            ("postgres:///mine?host=/tmp", true, "postgres://127.0.0.1:4711/mine?sslmode=disable"),
        ] {
            assert_eq!(through(address, us, is_local).unwrap().as_str(), changed);
        }
    }

    #[test]
    fn another_database_wins_over_both_forms_of_the_first() {
        let us = "127.0.0.1:4711".parse().unwrap();
        let url = through("postgres://u@h/mine?dbname=x&user=y", us, false).unwrap();

        assert_eq!(with_database(&url, "other").as_str(), "postgres://u@127.0.0.1:4711/other?user=y");
    }
}
