//! Long connections that no firewall forgets.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

/// Has the server look after its end of a connection: it asks for a sign of life when the link was silent for so long, three
/// times, and gives up what was not confirmed for twice as long. Our own end has no such option in the driver; who holds the
/// connection asks, or has deadlines.
///
/// As startup options the settings survive `DISCARD ALL`, and cost no round trip. They are those of PostgreSQL's manual, chapter
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

/// As the server takes it for a time: zero would be "for ever".
pub(crate) fn milliseconds(time: Duration) -> String {
    time.as_millis().clamp(1, i32::MAX as u128).to_string()
}
