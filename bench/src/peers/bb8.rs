//! bb8 over tokio-postgres.

use bb8_postgres::PostgresConnectionManager;
use bb8_postgres::bb8::{ManageConnection, Pool};
use bb8_postgres::tokio_postgres::{Client, Error, NoTls, Statement};

use super::{SELECT, Selects};

#[derive(Debug, Clone)]
pub(crate) struct Bb8(Pool<Prepares>);

impl Bb8 {
    pub(crate) async fn new(url: &str, connections: u32) -> anyhow::Result<Self> {
        let prepares = Prepares(PostgresConnectionManager::new(url.parse()?, NoTls));
        Ok(Self(Pool::builder().max_size(connections).test_on_check_out(false).build(prepares).await?))
    }
}

impl Selects for Bb8 {
    async fn select(&self, n: i64) -> anyhow::Result<i64> {
        let conn = self.0.get().await?;
        let (client, statement) = &*conn;
        Ok(client.query_one(statement, &[&n]).await?.try_get(0)?)
    }
}

/// Prepares the statement on each new connection, since bb8 has no statement cache.
#[derive(Debug, Clone)]
struct Prepares(PostgresConnectionManager<NoTls>);

impl ManageConnection for Prepares {
    type Connection = (Client, Statement);
    type Error = Error;

    async fn connect(&self) -> Result<Self::Connection, Error> {
        let client = self.0.connect().await?;
        let statement = client.prepare(SELECT).await?;
        Ok((client, statement))
    }

    async fn is_valid(&self, conn: &mut Self::Connection) -> Result<(), Error> {
        self.0.is_valid(&mut conn.0).await
    }

    fn has_broken(&self, conn: &mut Self::Connection) -> bool {
        self.0.has_broken(&mut conn.0)
    }
}
