//! Opens the store that the configuration names, and waits until it can be used.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use backoff::backoff::Backoff as _;
use secrecy::ExposeSecret as _;

use crate::{
    application::{
        health::{DATABASE, Health, MIGRATIONS},
        patience::{LONGEST_WAIT, waits},
    },
    domain::interfaces::{Store, StoreError},
    infrastructure::{
        postgres::{ConnectOptions, PostgresStore, is_refusal},
        sqlite::SqliteStore,
    },
    shared::{
        config::{DatabaseConfig, DatabaseLocation},
        error_chain::Chain,
    },
};

use super::{
    error::RunError,
    lock::{LockError, lock},
};

/// Where the database's place comes from.
const VARIABLE: &str = "DATABASE_URL";

/// An open store, and how to bring its schema up and close it.
#[derive(Clone)]
pub(crate) struct OpenStore {
    /// The store as the application sees it.
    pub(crate) store: Arc<dyn Store>,
    adapter: Adapter,
    /// Keeps every other worker off the file.
    _hold: Option<Arc<File>>,
}

#[derive(Clone)]
enum Adapter {
    Postgres(PostgresStore),
    Sqlite(SqliteStore),
}

impl OpenStore {
    /// Opens it to look into it, beside a worker or not; a server need not answer yet.
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
        Ok(Self {
            store,
            adapter,
            _hold: None,
        })
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
            Adapter::Postgres(store) => {
                store.reach().await?;
                store.migrations_current().await
            }
            Adapter::Sqlite(store) => store.migrations_current().await,
        }
    }

    /// Opens it to be used; a server need not answer yet. A file is this process's alone until the store is
    /// dropped.
    ///
    /// # Errors
    /// A fault of the configuration, where waiting does not mend it; [`RunError::FileInUse`]; else
    /// [`RunError::Store`].
    pub(crate) async fn open_for_use(config: &DatabaseConfig) -> Result<Self, RunError> {
        let hold = match &config.location {
            DatabaseLocation::Postgres(_) => None,
            DatabaseLocation::Sqlite(path) => {
                SqliteStore::prepare(path).await.map_err(not_opened)?;
                Some(Arc::new(hold(path)?))
            }
        };
        let opened = Self::open(config).await.map_err(not_opened)?;
        Ok(Self {
            _hold: hold,
            ..opened
        })
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
        loop {
            let error = match Self::open_and_migrate(config).await {
                Ok(store) => {
                    health.up(DATABASE);
                    health.up(MIGRATIONS);
                    return Ok(store);
                }
                Err(RunError::Store(error)) if error.is_retryable() => error,
                Err(error) => return Err(error),
            };
            tracing::warn!(database = place, error = %Chain(&error), "waiting for the database");
            tokio::time::sleep(waits.next_backoff().unwrap_or(LONGEST_WAIT)).await;
        }
    }

    async fn open_and_migrate(config: &DatabaseConfig) -> Result<Self, RunError> {
        let store = Self::open_for_use(config).await?;
        store.migrate().await.map_err(refused)?;
        store.store.ping().await.map_err(refused)?;
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

fn not_opened(error: StoreError) -> RunError {
    if error.is_final() {
        RunError::configuration(VARIABLE, &error)
    } else {
        RunError::Store(error)
    }
}

/// The error of a store that is open: a fault of the configuration where the server does not know the
/// user, the password or the database.
pub(crate) fn refused(error: StoreError) -> RunError {
    if is_refusal(&error) {
        RunError::configuration(VARIABLE, &error)
    } else {
        RunError::Store(error)
    }
}

/// Two workers on one file would be no faster and keep each other waiting. The lock lies beside the file,
/// whatever link led to it; locks on the file itself are SQLite's.
fn hold(path: &Path) -> Result<File, RunError> {
    let refused = |path: &Path, error: io::Error| {
        let text = format!("{} cannot be locked: {error}", path.display());
        RunError::configuration(VARIABLE, &io::Error::new(error.kind(), text))
    };
    let file = path.canonicalize().map_err(|error| refused(path, error))?;
    let mut name = file.into_os_string();
    name.push("-lock");
    let beside = PathBuf::from(name);
    lock(&beside).map_err(|error| match error {
        LockError::InUse => RunError::FileInUse(path.to_owned()),
        LockError::Refused(error) => refused(&beside, error),
    })
}
