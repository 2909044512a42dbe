//! The store of one worker, embedded: one SQLite file.
//!
//! - One connection writes, so writers queue in this process instead of meeting `SQLITE_BUSY`; each
//!   transaction begins with `BEGIN IMMEDIATE`, so that a second process waits at its beginning.
//! - A few connections read. In WAL mode they see the last commit and never wait for the writer.
//! - `synchronous = FULL`: a message is acked after its commit, so a commit must outlive a power cut
//!   too. `NORMAL` would outlive only the end of the process. Outcomes are committed in batches, so it
//!   is one sync a batch: measured, a batch of 500 is as fast with either.

mod backlog;
mod batch;
mod batches;
mod blockers;
mod claim;
mod deliveries;
mod endpoints;
mod entities;
mod error;
mod lanes;
mod outbox;
mod place;
mod queries;
mod rate_limits;
mod record;
mod registry;
mod replays;
mod rows;
mod sealed;
mod tokens;
mod turns;
mod unit_of_work;

#[cfg(test)]
mod tests;

use std::{path::Path, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Sqlite, SqlitePool, Transaction,
    migrate::{Migrate as _, Migrator},
    pool::PoolConnection,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions,
        SqliteSynchronous,
    },
};

use crate::domain::interfaces::StoreError;

use error::{failed, migration_failed};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a transaction waits for one of another process, and a read for a checkpoint's end.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the opening waits for a program that holds the file: what is told soon is known soon.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long anything waits for its turn in this process.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// Each is a thread.
const READERS: u32 = 4;

/// A store in one SQLite file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the file, or creates it in a folder that exists, and checks that it can be written. What is
    /// created may be read by its owner alone.
    /// It may be another process's too: then each waits for the other, up to 10 s a transaction.
    ///
    /// # Errors
    /// [`StoreError::Failed`] when the path is a folder, or its folder is missing, or the file is no
    /// database, or may not be read and written; [`StoreError::Unavailable`] while another program holds
    /// it, or the machine is at fault. Each says what helps.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::prepare(path).await?;
        Self::open_prepared(path)
            .await
            .map_err(|error| place::cannot_open(path, error))
    }

    /// Makes the file where it is missing, for its owner alone, without opening it as a database.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub async fn prepare(path: &Path) -> Result<(), StoreError> {
        place::prepare(path).await
    }

    async fn open_prepared(path: &Path) -> Result<Self, sqlx::Error> {
        let options = connect_options(path);
        let writer = pool_options(1)
            .after_connect(|connection, _| {
                let patience = format!("PRAGMA busy_timeout = {}", BUSY_TIMEOUT.as_millis());
                let set = sqlx::raw_sql(AssertSqlSafe(patience)).execute(connection);
                Box::pin(async move { set.await.map(drop) })
            })
            // A transaction that SQLite itself gave up (disk full) may leave the connection astray.
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_with(writer_options(options.clone()))
            .await?;
        // SQLite opens what it may not write, and tells only later.
        let probe = writer.begin_with(BEGIN).await?;
        probe.rollback().await?;
        let readers = pool_options(READERS).connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self { writer, readers })
    }

    /// Brings the schema up to this program's; a second process waits meanwhile.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        const MIGRATE: &str = "migrate its schema";
        let mut transaction = self.write(MIGRATE).await?;
        MIGRATIONS
            .run_direct(None, &mut *transaction, false)
            .await
            .map_err(migration_failed(MIGRATE))?;
        transaction.commit().await.map_err(failed(MIGRATE))
    }

    /// Whether the schema is exactly that of this program.
    pub async fn migrations_current(&self) -> Result<bool, StoreError> {
        const CHECK: &str = "check its schema";
        let mut connection = self.read(CHECK).await?;
        let exists: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations')",
        )
        .fetch_one(&mut *connection)
        .await
        .map_err(failed(CHECK))?;
        if !exists {
            return Ok(false);
        }
        let applied = connection
            .list_applied_migrations("_sqlx_migrations")
            .await
            .map_err(migration_failed(CHECK))?;
        let applied = applied.iter().map(|one| (one.version, &one.checksum));
        Ok(applied.eq(MIGRATIONS.iter().map(|one| (one.version, &one.checksum))))
    }

    /// Waits for what is under way and closes the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// The turn to write. Dropping it rolls back.
    async fn write(
        &self,
        operation: &'static str,
    ) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.writer
            .begin_with(BEGIN)
            .await
            .map_err(failed(operation))
    }

    /// One statement that is a transaction by itself; answers how many rows it changed.
    async fn execute(
        &self,
        operation: &'static str,
        query: sqlx::query::Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<u64, StoreError> {
        let mut connection = self.writer.acquire().await.map_err(failed(operation))?;
        let done = query.execute(&mut *connection).await;
        Ok(done.map_err(failed(operation))?.rows_affected())
    }

    async fn read(&self, operation: &'static str) -> Result<PoolConnection<Sqlite>, StoreError> {
        self.readers.acquire().await.map_err(failed(operation))
    }
}

const BEGIN: &str = "BEGIN IMMEDIATE";

fn connect_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .statement_cache_capacity(200)
        .pragma("temp_store", "MEMORY")
        // What goes wrong is told once, by whoever handles it; and nobody logs SQL.
        .disable_statement_logging()
}

fn writer_options(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .create_if_missing(true)
        .busy_timeout(OPEN_TIMEOUT)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // 16 MiB.
        .pragma("cache_size", "-16384")
        // In pages: 16 MiB.
        .pragma("wal_autocheckpoint", "4096")
        // In bytes: what a long read made the log grow to is given back.
        .pragma("journal_size_limit", "67108864")
}

fn pool_options(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(TURN_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}
