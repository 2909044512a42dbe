//! The connections, and the bounds within which each may wait.
//!
//! The server bounds its statements itself, but a server whose machine is gone says nothing at all, and
//! the driver sets no TCP keepalive. So every call has an end on this side too; see [`lent`](super::lent)
//! for what becomes of its connection.

use std::{io, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgConnection, PgPoolOptions},
};

use crate::domain::interfaces::StoreError;

use super::{error::during, lent::Lent};

/// How long one call of the store may take, all its statements together; above `statement_timeout`.
const CALL_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a connection that nobody uses may take to show that it is alive; else it is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection that comes back may take to roll back and to answer; else it is closed.
const RETURN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a caller waits for a free connection, or for a server that is coming back.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is tried before it is used: the server may have restarted.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// What a connection is told when it opens.
const SETTINGS: [(&str, &str); 7] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "10s"),
    // A worker that froze in a transaction must not keep its locks.
    ("idle_in_transaction_session_timeout", "60s"),
    // A plan that was made when a table was empty must not be kept when it is full; and with the values
    // at hand, filters that are off fall away. Planning is cheap beside a batch.
    ("plan_cache_mode", "force_custom_plan"),
    // Every statement is written for an index. Without statistics, these two would read and sort a whole
    // backlog instead.
    ("enable_bitmapscan", "off"),
    ("enable_seqscan", "off"),
    ("jit", "off"),
];

/// Besides the above, for the one connection that migrates: it may wait for another migrator.
const MIGRATION_SETTINGS: [(&str, &str); 2] =
    [("statement_timeout", "1h"), ("lock_timeout", "10min")];

/// How the store uses its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Connections at most, 1 or more.
    pub max_connections: u32,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            max_connections: 16,
        }
    }
}

/// Connections that are opened when they are used. As an [`sqlx::Executor`] it runs single statements.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    connections: PgPool,
    call_timeout: Duration,
}

impl Pool {
    pub(super) fn open(url: &str, options: ConnectOptions) -> Result<Self, StoreError> {
        let connect: PgConnectOptions = url
            .parse()
            .map_err(during("read the address of the database"))?;
        let connect = connect
            .application_name("integration-worker")
            .options(SETTINGS)
            .disable_statement_logging();
        let connections = PgPoolOptions::new()
            .max_connections(options.max_connections.max(1))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, metadata| {
                Box::pin(async move {
                    if metadata.idle_for > TRUSTED_FOR {
                        let ping = tokio::time::timeout(PING_TIMEOUT, connection.ping());
                        ping.await.map_err(|_| silent())??;
                    }
                    Ok(true)
                })
            })
            .after_release(|connection, _| Box::pin(is_clean(connection)))
            .connect_lazy_with(connect);
        Ok(Self {
            connections,
            call_timeout: CALL_TIMEOUT,
        })
    }

    pub(super) fn set_call_timeout(&mut self, call_timeout: Duration) {
        self.call_timeout = call_timeout;
    }

    pub(super) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    /// A connection for a few statements.
    pub(super) async fn lend(&self, operation: &'static str) -> Result<Lent, StoreError> {
        self.try_lend().await.map_err(during(operation))
    }

    pub(super) async fn try_lend(&self) -> Result<Lent, sqlx::Error> {
        Ok(Lent::new(self.connections.acquire().await?))
    }

    /// Runs a call, unless it takes too long.
    pub(super) async fn bounded<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        bounded(self.call_timeout, operation, call).await
    }

    /// A transaction for a unit of work.
    pub(super) async fn begin(
        &self,
        operation: &'static str,
    ) -> Result<Transaction<'static, Postgres>, StoreError> {
        let begin = async { self.connections.begin().await.map_err(during(operation)) };
        self.bounded(operation, begin).await
    }

    /// Connects outside of the pool, which tells why it is in vain; the pool would only say that it has
    /// waited for long enough.
    pub(super) async fn reach(&self, operation: &'static str) -> Result<(), StoreError> {
        close(self.for_migrations(operation).await?).await;
        Ok(())
    }

    /// A connection outside of the pool: its lock belongs to the session, and is gone when it closes.
    pub(super) async fn for_migrations(
        &self,
        operation: &'static str,
    ) -> Result<PgConnection, StoreError> {
        let options = self.connections.connect_options();
        let options = PgConnectOptions::clone(&options).options(MIGRATION_SETTINGS);
        let connecting = tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect());
        connecting
            .await
            .unwrap_or_else(|_| Err(silent()))
            .map_err(during(operation))
    }

    pub(super) async fn close(&self) {
        self.connections.close().await;
    }
}

/// Runs a call, unless it takes longer than `limit`.
pub(super) async fn bounded<T>(
    limit: Duration,
    operation: &'static str,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, call)
        .await
        .unwrap_or_else(|_| Err(during(operation)(silent())))
}

/// Whether a connection that comes back can be lent again. A unit of work whose `BEGIN` was dropped on
/// its way leaves a transaction that the driver does not know of, in which the next user would write
/// without ever committing. To begin with an empty statement is how the driver can be asked: it refuses
/// what has opened no transaction.
async fn is_clean(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let ask = async {
        match connection.begin_with("").await {
            Err(sqlx::Error::BeginFailed) => Ok(true),
            Ok(_) => Ok(false),
            Err(error) => Err(error),
        }
    };
    let asked = tokio::time::timeout(RETURN_TIMEOUT, ask).await;
    asked.unwrap_or_else(|_| Err(silent()))
}

pub(super) fn silent() -> sqlx::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the server does not answer").into()
}

/// Says goodbye, if anybody still listens.
pub(super) async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "a connection to the database did not close in order");
    }
}
