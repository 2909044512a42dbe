//! Opens the store that the configuration names, and waits until it can be used.

use std::sync::Arc;

use backoff::backoff::Backoff as _;
use secrecy::ExposeSecret as _;

use crate::{
    application::{
        health::{DATABASE, Health, MIGRATIONS},
        patience::{LONGEST_WAIT, waits},
    },
    domain::interfaces::{Store, StoreError},
    infrastructure::{
        postgres::{ConnectOptions, PostgresStore},
        sqlite::SqliteStore,
    },
    shared::{
        config::{DatabaseConfig, DatabaseLocation},
        error_chain::Chain,
    },
};

use super::error::RunError;

/// How often a file is tried to be opened: there is no server to wait for, but another process may hold
/// a lock for a while.
const FILE_TRIES: u32 = 3;

/// An open store, and how to bring its schema up and close it.
#[derive(Clone)]
pub(crate) struct OpenStore {
    /// The store as the application sees it.
    pub(crate) store: Arc<dyn Store>,
    adapter: Adapter,
}

#[derive(Clone)]
enum Adapter {
    Postgres(PostgresStore),
    Sqlite(SqliteStore),
}

impl OpenStore {
    /// Opens it; a server need not answer yet.
    ///
    /// # Errors
    /// What the adapter says.
    pub(crate) async fn open(config: &DatabaseConfig) -> Result<Self, StoreError> {
        let adapter = match &config.location {
            DatabaseLocation::Postgres(url) => {
                let options = ConnectOptions {
                    max_connections: config.max_connections,
                };
                Adapter::Postgres(PostgresStore::connect(url.expose_secret(), options).await?)
            }
            DatabaseLocation::Sqlite(path) => Adapter::Sqlite(SqliteStore::open(path).await?),
        };
        let store: Arc<dyn Store> = match &adapter {
            Adapter::Postgres(store) => Arc::new(store.clone()),
            Adapter::Sqlite(store) => Arc::new(store.clone()),
        };
        Ok(Self { store, adapter })
    }

    /// Brings the schema up to this program's.
    ///
    /// # Errors
    /// What the adapter says.
    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        match &self.adapter {
            Adapter::Postgres(store) => store.migrate().await,
            Adapter::Sqlite(store) => store.migrate().await,
        }
    }

    /// Whether the schema is exactly that of this program.
    ///
    /// # Errors
    /// What the adapter says.
    pub(crate) async fn migrations_current(&self) -> Result<bool, StoreError> {
        match &self.adapter {
            Adapter::Postgres(store) => store.migrations_current().await,
            Adapter::Sqlite(store) => store.migrations_current().await,
        }
    }

    /// Opens the store and brings its schema up, waiting as long as it is not available.
    ///
    /// # Errors
    /// A fault that waiting does not mend.
    pub(crate) async fn wait_for(
        config: &DatabaseConfig,
        health: &Health,
    ) -> Result<Self, RunError> {
        let place = config.location.to_string();
        health.starting(DATABASE, place.clone());
        health.starting(MIGRATIONS, place.clone());
        let mut waits = waits();
        let mut tries = 0;
        loop {
            let error = match Self::open_and_migrate(config).await {
                Ok(store) => {
                    health.up(DATABASE);
                    health.up(MIGRATIONS);
                    return Ok(store);
                }
                Err(error) if error.is_final() => return Err(RunError::Store(error)),
                Err(error) => error,
            };
            tries += 1;
            if tries == FILE_TRIES && matches!(config.location, DatabaseLocation::Sqlite(_)) {
                return Err(RunError::configuration("DATABASE_URL", &error));
            }
            tracing::warn!(database = place, error = %Chain(&error), "waiting for the database");
            tokio::time::sleep(waits.next_backoff().unwrap_or(LONGEST_WAIT)).await;
        }
    }

    async fn open_and_migrate(config: &DatabaseConfig) -> Result<Self, StoreError> {
        let store = Self::open(config).await?;
        store.migrate().await?;
        store.store.ping().await?;
        Ok(store)
    }

    /// Waits for what is under way and closes the connections.
    pub(crate) async fn close(&self) {
        match &self.adapter {
            Adapter::Postgres(store) => store.close().await,
            Adapter::Sqlite(store) => store.close().await,
        }
    }
}
