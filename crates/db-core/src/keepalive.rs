//! Keepalive settings for long-lived connections.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

/// Makes the server probe its end of a connection: it sends up to three probes when the link was silent for `silence`, and closes the
/// connection when sent data was not acknowledged for twice as long. The driver has no such option for the client's end; the owner of
/// the connection pings it or uses deadlines.
///
/// As startup options, the settings survive `DISCARD ALL` and cost no round trip. They are in PostgreSQL's manual, chapter
/// 20.3.2 "TCP Settings"; on a Unix socket the server ignores them.
#[must_use]
pub fn with_keepalive(options: PgConnectOptions, silence: Duration) -> PgConnectOptions {
    options.options([
        ("tcp_keepalives_idle", seconds(silence)),
        ("tcp_keepalives_interval", seconds(silence / 3)),
        ("tcp_keepalives_count", "3".to_owned()),
        ("tcp_user_timeout", milliseconds(silence.saturating_mul(2))),
    ])
}

fn seconds(time: Duration) -> String {
    time.as_secs().clamp(1, i32::MAX as u64).to_string()
}

/// A time in the server's form, at least 1 ms: zero would mean "no limit".
pub(crate) fn milliseconds(time: Duration) -> String {
    time.as_millis().clamp(1, i32::MAX as u128).to_string()
}
