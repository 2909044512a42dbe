//! `migrate`: brings the database's tables up to this program's, and ends.

use crate::{
    presentation::cli::{Exit, Output, Trouble},
    shared::{
        config::{DatabaseConfig, MigrateConfig, environment},
        error_chain::Chain,
    },
};

use super::{
    error::RunError,
    store::{OpenStore, refused},
};

/// Applies what is missing. Does not wait for a database that is not there.
///
/// # Errors
/// Faults of the configuration, or what the database says.
pub(crate) async fn migrate(output: &mut Output<'_>) -> Result<Exit, RunError> {
    let config = MigrateConfig::from_lookup(&environment)?;
    super::start_telling(&config.log)?;
    let place = &config.database.location;
    let was_current = bring_up(&config.database)
        .await
        .map_err(|error| match error {
            RunError::Store(error) if error.is_retryable() => {
                Trouble::unreachable(format!("{place}: {}", Chain(&error))).into()
            }
            error => error,
        })?;
    output.line(if was_current {
        format!("{place} is up to date")
    } else {
        format!("{place} was brought up to this program's tables")
    });
    Ok(Exit::Done)
}

/// Answers whether it was up to date before.
async fn bring_up(config: &DatabaseConfig) -> Result<bool, RunError> {
    let store = OpenStore::open_for_use(config).await?;
    let was_current = store.migrations_current().await.map_err(refused)?;
    let migrated = store.migrate().await;
    store.close().await;
    migrated.map_err(refused)?;
    Ok(was_current)
}
