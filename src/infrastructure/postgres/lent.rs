//! A connection of the pool while it is used.
//!
//! A call that is dropped in the middle leaves its connection where nobody knows: the answer may still
//! come, or never. So only a call that came to its end gives its connection back; any other closes it.
//! (A unit of work is the exception: [`is_clean`](super::pool) looks after it.)

use std::{
    fmt,
    ops::{Deref, DerefMut},
    time::Duration,
};

use futures_util::{
    TryStreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sqlx::{
    Describe, Either, Execute, Executor, Postgres, SqlStr,
    pool::PoolConnection,
    postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::pool::{Pool, silent};

/// Dropped without more ado, it is closed.
pub(super) struct Lent(PoolConnection<Postgres>, Fate);

#[derive(PartialEq, Eq)]
enum Fate {
    Close,
    Return,
}

impl Lent {
    pub(super) fn new(connection: PoolConnection<Postgres>) -> Self {
        Self(connection, Fate::Close)
    }

    /// After the last statement has ended.
    pub(super) fn give_back(mut self) {
        self.1 = Fate::Return;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.1 == Fate::Close {
            self.0.close_on_drop();
        }
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

/// Single statements, each on a connection of its own and with an end.
impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        // All rows at once, which is how every caller here wants them.
        let all = async move {
            let mut connection = pool.try_lend().await?;
            let all: Vec<_> = connection.fetch_many(query).try_collect().await?;
            connection.give_back();
            Ok(stream::iter(all.into_iter().map(Ok)))
        };
        Box::pin(stream::once(within(self.call_timeout(), all)).try_flatten())
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        Box::pin(within(self.call_timeout(), async move {
            let mut connection = pool.try_lend().await?;
            let row = connection.fetch_optional(query).await?;
            connection.give_back();
            Ok(row)
        }))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Box::pin(within(self.call_timeout(), async move {
            let mut connection = pool.try_lend().await?;
            let statement = connection.prepare_with(sql, parameters).await?;
            connection.give_back();
            Ok(statement)
        }))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Box::pin(within(self.call_timeout(), async move {
            let mut connection = pool.try_lend().await?;
            let described = connection.describe(sql).await?;
            connection.give_back();
            Ok(described)
        }))
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(limit, call)
        .await
        .unwrap_or_else(|_| Err(silent()))
}
