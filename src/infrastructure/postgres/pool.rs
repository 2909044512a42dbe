//! The connections, and the bounds within which each may wait.

use std::time::Duration;

use sqlx::{
    ConnectOptions as _, Connection as _, PgPool,
    postgres::{PgConnectOptions, PgConnection, PgPoolOptions},
};

use crate::domain::interfaces::StoreError;

use super::error::during;

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

/// A pool that connects when it is used.
pub(super) fn open(url: &str, options: ConnectOptions) -> Result<PgPool, StoreError> {
    let connect: PgConnectOptions = url
        .parse()
        .map_err(during("read the address of the database"))?;
    let connect = connect
        .application_name("integration-worker")
        .options(SETTINGS)
        .disable_statement_logging();
    let pool = PgPoolOptions::new()
        .max_connections(options.max_connections.max(1))
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, metadata| {
            Box::pin(async move {
                if metadata.idle_for > TRUSTED_FOR {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(connect);
    Ok(pool)
}

/// A connection outside of the pool: its lock belongs to the session, and is gone when it closes.
pub(super) async fn for_migrations(
    pool: &PgPool,
    operation: &'static str,
) -> Result<PgConnection, StoreError> {
    let options = pool.connect_options();
    let options = PgConnectOptions::clone(&options).options(MIGRATION_SETTINGS);
    let connecting = tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect());
    connecting
        .await
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
        .map_err(during(operation))
}

/// Says goodbye, if anybody still listens.
pub(super) async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "a connection to the database did not close in order");
    }
}
