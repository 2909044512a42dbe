//! `migrate`: brings the database's tables up to this program's, and ends.

use crate::{
    presentation::cli::{Exit, Output},
    shared::config::{MigrateConfig, environment},
};

use super::{error::RunError, store::OpenStore};

/// Applies what is missing. Does not wait for a database that is not there.
///
/// # Errors
/// Faults of the configuration, or what the database says.
pub(crate) async fn migrate(output: &mut Output<'_>) -> Result<Exit, RunError> {
    let config = MigrateConfig::from_lookup(&environment)?;
    super::start_telling(&config.log)?;
    let store = OpenStore::open_for_use(&config.database).await?;
    let was_current = store.migrations_current().await.map_err(RunError::Store)?;
    let migrated = store.migrate().await;
    store.close().await;
    migrated.map_err(RunError::Store)?;
    let place = &config.database.location;
    output.line(if was_current {
        format!("{place} is up to date")
    } else {
        format!("{place} was brought up to this program's tables")
    });
    Ok(Exit::Done)
}
