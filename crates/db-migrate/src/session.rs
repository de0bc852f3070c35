//! The session that migrations run in.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::time::timeout;

/// How long the server may take to answer what waits for nobody. A link that fell silent would be waited for until the end of
/// time: the driver does not look after our end of it.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The answer, or the loss that its absence is.
pub(crate) async fn answer<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER_LIMIT, asked)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// Has the server look after the session's end.
///
/// A migration may be silent for long, so the server keeps the link alive. And when we are gone, it is to notice while the
/// migration runs, not when it has an answer for us: until then its session holds the lock. The settings are those of PostgreSQL's
/// manual, chapter 20.3.2 "TCP Settings"; `client_connection_check_interval` came with PostgreSQL 14.
pub(crate) async fn have_looked_after(connection: &mut PgConnection) {
    let told = sqlx::query(
        "select set_config(wanted.name, wanted.value, false)
         from
             (values
                 ('client_connection_check_interval', '1s'),
                 ('tcp_keepalives_idle', '15s'),
                 ('tcp_keepalives_interval', '5s'),
                 ('tcp_keepalives_count', '3')
             ) as wanted (name, value)
             join pg_settings using (name)",
    )
    .execute(connection);
    if let Err(error) = answer(told).await {
        // Systems on which the server cannot look refuse it. A loss is met again by the next statement.
        tracing::debug!(%error, "the server does not look after the migration session");
    }
}
