//! The store on PostgreSQL, for any number of workers.
//!
//! - The control plane is `unit_of_work`: one command, one transaction, rows locked as they are read.
//! - The data plane works on whole sets: `record` writes outcomes, `claim` takes due deliveries,
//!   `outbox` hands out what is to be published.
//! - `registry` and `queries` only read.
//!
//! Three things keep many workers apart: unique keys (a delivery is recorded once), `SKIP LOCKED` (no
//! two claim the same row), and `lease_epoch` (who lost a lease writes nothing).

mod batches;
mod blockers;
mod claim;
mod deliveries;
mod endpoints;
mod error;
mod lanes;
mod lent;
mod outbox;
mod pool;
mod queries;
mod rate_limits;
mod record;
mod registry;
mod replays;
mod rows;
mod sealed;
mod text;
mod tokens;
mod turns;
mod unit_of_work;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use sqlx::{
    Row as _,
    migrate::{MigrateError, Migrator},
};
use uuid::Uuid;

use crate::domain::interfaces::StoreError;

pub use error::is_refusal;
use error::{during, failed, is_missing_table};
use lanes::LastLane;
pub use pool::ConnectOptions;
use pool::Pool;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The store; cheap to clone.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: Pool,
    /// The webhook that the last claim ended with; the next one begins after it.
    claimed_up_to: Arc<Mutex<Uuid>>,
    /// The same of the lanes.
    last_lane: Arc<LastLane>,
    /// The same of the batches: a webhook.
    last_batch: Arc<Mutex<Uuid>>,
}

impl PostgresStore {
    /// Reads the address and prepares the pool; the first use connects, so that the caller can wait for
    /// a database that is still starting with [`ping`](crate::domain::interfaces::Queries::ping).
    ///
    /// # Errors
    /// The address cannot be understood.
    #[expect(
        clippy::unused_async,
        reason = "the pool must be made inside of the runtime, as every other store is"
    )]
    pub async fn connect(url: &str, options: ConnectOptions) -> Result<Self, StoreError> {
        Ok(Self {
            pool: Pool::open(url, options)?,
            claimed_up_to: Arc::default(),
            last_lane: Arc::default(),
            last_batch: Arc::default(),
        })
    }

    /// Changes how long a call may take, with all that it does, before it is given up as
    /// [`StoreError::Unavailable`]; 45 s unless changed.
    #[must_use]
    pub fn with_call_timeout(mut self, timeout: Duration) -> Self {
        self.pool.set_call_timeout(timeout);
        self
    }

    /// Applies the migrations that are missing. Safe to call from many workers at once: one applies
    /// them, the others wait.
    ///
    /// # Errors
    /// The database is not there, or it holds migrations that this program does not know.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        const OPERATION: &str = "apply the migrations";
        let mut connection = self.pool.for_migrations(OPERATION).await?;
        let done = MIGRATIONS
            .run_direct(None, &mut connection, false)
            .await
            .map_err(|error| match error {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                    during(OPERATION)(error)
                }
                error => failed(OPERATION, error),
            });
        // Closed whatever came of it, which also frees the lock that keeps other migrators waiting.
        pool::close(connection).await;
        done
    }

    /// Connects once, and says goodbye.
    ///
    /// # Errors
    /// Why the server does not take the connection.
    pub async fn reach(&self) -> Result<(), StoreError> {
        self.pool.reach("take a connection").await
    }

    /// Whether exactly this program's migrations are applied.
    ///
    /// # Errors
    /// The database is not there.
    pub async fn migrations_current(&self) -> Result<bool, StoreError> {
        const OPERATION: &str = "say which migrations are applied";
        migrations_current(&self.pool)
            .await
            .map_err(during(OPERATION))
    }

    /// Closes all connections; waits for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

async fn migrations_current(pool: &Pool) -> Result<bool, sqlx::Error> {
    let applied =
        sqlx::query("SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version")
            .fetch_all(pool)
            .await;
    let applied = match applied {
        Err(error) if is_missing_table(&error) => return Ok(false),
        other => other?,
    };
    let mut wanted = MIGRATIONS.iter();
    for row in applied {
        let (version, checksum): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let is_wanted = wanted
            .next()
            .is_some_and(|m| m.version == version && *m.checksum == *checksum);
        if !is_wanted || !row.try_get::<bool, _>(2)? {
            return Ok(false);
        }
    }
    Ok(wanted.next().is_none())
}
