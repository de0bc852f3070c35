//! The session that migrations run in.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::time::timeout;

/// Limit for a query that waits for no lock. The driver detects no dead link by itself, so without a limit such a query could
/// wait for ever.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The query's result, or a timed-out I/O error, which counts as a lost connection.
pub(crate) async fn answer<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER_LIMIT, asked)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// Makes the server detect that the client is gone.
///
/// A migration may send nothing for long, so TCP keepalive keeps the link open. If the client dies, the server must notice
/// while the migration runs, and not only when it sends the result: until then its session holds the lock. The settings are
/// those of PostgreSQL's manual, chapter 20.3.2 "TCP Settings"; `client_connection_check_interval` came with PostgreSQL 14.
pub(crate) async fn detect_lost_client(connection: &mut PgConnection) {
    let set = sqlx::query(
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
    if let Err(error) = answer(set).await {
        // Some operating systems do not support it. If the connection is lost, the next statement fails, too.
        tracing::debug!(%error, "the server will not notice during a migration that this client is gone");
    }
}
