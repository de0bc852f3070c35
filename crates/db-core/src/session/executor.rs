//! sqlx's `Executor` for sessions and handles. All other executors forward to one of these.

use async_stream::try_stream;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Error, Execute, Executor, Postgres, SqlStr};

use super::Session;
use super::text::Text;
use crate::{Conn, Handle, Pool, Savepoint, Tx};

/// The results of a statement.
type Results<'e> = BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>;

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut text = Text::of(query);
        Box::pin(async move { self.count(&mut text).await })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Results<'e>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.many(Text::of(query))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut text = Text::of(query);
        Box::pin(async move { self.optional(&mut text).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        // Copied, since a borrow would have to outlive every use of the connection.
        let parameters = parameters.to_vec();
        Box::pin(self.run_prepare(sql, parameters))
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        Box::pin(self.run_describe(sql))
    }
}

impl<'c> Executor<'c> for Handle {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut text = Text::of(query);
        Box::pin(async move {
            let mut conn = self.acquire_for(text.sql_str()).await?;
            conn.count(&mut text).await
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Results<'e>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let text = Text::of(query);
        Box::pin(try_stream! {
            let mut conn = self.acquire().await?;
            let mut results = conn.many(text);
            while let Some(result) = results.try_next().await? {
                yield result;
            }
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut text = Text::of(query);
        Box::pin(async move {
            let mut conn = self.acquire_for(text.sql_str()).await?;
            conn.optional(&mut text).await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        let parameters = parameters.to_vec();
        Box::pin(async move { self.acquire().await?.run_prepare(sql, parameters).await })
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        Box::pin(async move { self.acquire().await?.run_describe(sql).await })
    }
}

/// Implements `Executor` by forwarding to another executor.
macro_rules! forward {
    ($($executor:ty: |$this:ident| $to:expr;)+) => {$(
        impl<'c> Executor<'c> for $executor {
            type Database = Postgres;

            fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let $this = self;
                $to.execute(query)
            }

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Results<'e>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let $this = self;
                $to.fetch_many(query)
            }

            fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let $this = self;
                $to.fetch_optional(query)
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, Error>>
            where
                'c: 'e,
            {
                let $this = self;
                $to.prepare_with(sql, parameters)
            }

            #[doc(hidden)]
            fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
            where
                'c: 'e,
            {
                let $this = self;
                $to.describe(sql)
            }
        }
    )+};
}

forward! {
    &'c mut Conn: |conn| (&mut **conn);
    &'c mut Tx: |tx| (&mut **tx);
    &'c mut Savepoint<'_>: |savepoint| (&mut **savepoint);
    &Handle: |handle| handle.clone();
    &Pool: |pool| Handle::of(pool);
}
