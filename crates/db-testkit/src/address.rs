//! The database's address with some parts replaced.

use std::net::SocketAddr;
use std::path::Path;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::error::Error;

/// The parameters that say where the server is.
const PLACE: [&str; 3] = ["host", "hostaddr", "port"];
const LOGIN: [&str; 2] = ["user", "password"];
const SSL_MODE: [&str; 2] = ["sslmode", "ssl-mode"];

/// The address of the proxy at `us`, with everything else, such as user and password, unchanged.
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

/// The address of a Unix socket, without password and TLS: the socket asks for neither.
pub(crate) fn through_socket(address: &str, role: &str, folder: &Path, port: u16) -> Result<Url, Error> {
    let fails = |why: String| Error::Address { why };
    let cannot = |()| fails("it has no place for a role, a host and a port".into());
    let mut url = Url::parse(address).map_err(|error| fails(error.to_string()))?;
    url.set_host(Some("localhost")).map_err(|error| fails(error.to_string()))?;
    url.set_port(Some(port)).map_err(cannot)?;
    url.set_username(role).map_err(cannot)?;
    url.set_password(None).map_err(cannot)?;
    let goes = |key: &str| PLACE.contains(&key) || LOGIN.contains(&key) || key.starts_with("ssl");
    let mut pairs = pairs_without(&url, goes);
    pairs.push(("host".into(), folder.display().to_string()));
    pairs.push(("sslmode".into(), "disable".into()));
    set_pairs(&mut url, pairs);
    Ok(url)
}

pub(crate) fn with(url: &Url, key: &str, value: &str) -> Url {
    let mut url = url.clone();
    url.query_pairs_mut().append_pair(key, value);
    url
}

/// The password in an address, from either of its two places.
pub(crate) fn password(url: &Url) -> Option<String> {
    let parameter = url.query_pairs().filter(|(key, _)| key == "password").last();
    match parameter {
        Some((_, value)) => Some(value.into_owned()),
        None => Some(percent_decode_str(url.password()?).decode_utf8_lossy().into_owned()),
    }
}

pub(crate) fn with_database(url: &Url, database: &str) -> Url {
    let mut url = url.clone();
    url.set_path(&format!("/{database}"));
    let pairs = pairs_without(&url, |key| key == "dbname");
    set_pairs(&mut url, pairs);
    url
}

/// The same address, with TLS switched off.
#[cfg(feature = "script")]
pub(crate) fn without_tls(url: &Url) -> Url {
    let mut url = url.clone();
    let mut pairs = pairs_without(&url, |key| SSL_MODE.contains(&key));
    pairs.push(("sslmode".into(), "disable".into()));
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
    use std::path::Path;

    use url::Url;

    use super::{password, through, through_socket, with_database};

    #[cfg(feature = "script")]
    #[test]
    fn tls_is_switched_off_whatever_the_address_says() {
        let url =
            Url::parse("postgres://u:p@h/mine?sslmode=require&sslrootcert=/ca&ssl-mode=prefer").unwrap();

        assert_eq!(
            super::without_tls(&url).as_str(),
            "postgres://u:p@h/mine?sslrootcert=%2Fca&sslmode=disable"
        );
    }

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

    #[test]
    fn the_way_through_a_socket_takes_the_place_of_host_login_and_encryption() {
        for (address, changed) in [
            (
                "postgres://u:p%40@h:5433/mine?sslmode=verify-full&sslrootcert=/ca&application_name=a",
                "postgres://the%20role@localhost:6432/mine?application_name=a&host=%2Ftmp%2Fx&sslmode=disable",
            ),
            (
                "postgres://localhost/mine?host=%2Frun&port=5432&user=u&password=p&dbname=y",
                "postgres://the%20role@localhost:6432/mine?dbname=y&host=%2Ftmp%2Fx&sslmode=disable",
            ),
        ] {
            let url = through_socket(address, "the role", Path::new("/tmp/x"), 6432).unwrap();
            assert_eq!(url.as_str(), changed);
        }
    }

    #[test]
    fn a_password_is_found_in_both_places_and_decoded() {
        for (address, found) in [
            ("postgres://u:p%40%2B+&=c@h/mine", Some("p@++&=c")),
            ("postgres://u@h/mine?password=a%2Bb", Some("a+b")),
            ("postgres://u@h/mine", None),
        ] {
            assert_eq!(password(&Url::parse(address).unwrap()).as_deref(), found, "{address}");
        }
    }
}
