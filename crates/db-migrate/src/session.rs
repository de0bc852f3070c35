//! The session that migrations run in.

use sqlx::postgres::PgConnection;

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
    .execute(connection)
    .await;
    if let Err(error) = told {
        // Systems on which the server cannot look refuse it. A loss is met again by the next statement.
        tracing::debug!(%error, "the server does not look after the migration session");
    }
}
