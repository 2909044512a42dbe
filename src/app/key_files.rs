//! `keys`: the encryption keys as a file, and what the database keeps under them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use secrecy::ExposeSecret as _;

use crate::{
    application::rewrap,
    domain::interfaces::StoreError,
    infrastructure::clock::SystemClock,
    presentation::cli::{
        Exit, KeysCommand, Output, Trouble, list_keys, rotate_keys, tell_rewrapped,
    },
    shared::{
        config::{
            ConfigFaults, DatabaseConfig, DatabaseLocation, KeySource, MigrateConfig, environment,
        },
        error_chain::Chain,
    },
};

use super::{
    error::RunError,
    keys::Keys,
    store::{self, OpenStore},
};

/// Does what is asked with the file that is named, else with the one of the configuration.
///
/// # Errors
/// Faults of the configuration, or why it was not done.
pub(crate) async fn run(command: &KeysCommand, output: &mut Output<'_>) -> Result<Exit, RunError> {
    match command {
        KeysCommand::List(options) => {
            let text = match &options.file {
                Some(file) => read(file)?,
                None => match KeySource::from_lookup(&environment)? {
                    KeySource::File(file) => read(&file)?,
                    KeySource::Inline(keys) => keys.expose_secret().to_owned(),
                },
            };
            let needed = needed().await?;
            Ok(list_keys(&text, needed.as_deref(), options.json, output)?)
        }
        KeysCommand::Rotate(options) => {
            let configured = || environment("ENCRYPTION_KEYS_FILE").map(PathBuf::from);
            let file = options.file.clone().or_else(configured);
            let file = file.filter(|file| file.as_os_str() != "").ok_or_else(|| {
                Trouble::usage("which file? Give --file, or set ENCRYPTION_KEYS_FILE")
            })?;
            let clock = SystemClock::new();
            Ok(rotate_keys(&file, options.id.as_deref(), &clock, output)?)
        }
        KeysCommand::Rewrap => rewrap(output).await,
    }
}

/// The keys that the database needs, where there is one in the environment. It is never made.
async fn needed() -> Result<Option<Vec<String>>, RunError> {
    if environment("DATABASE_URL").is_none_or(|url| url.trim().is_empty()) {
        return Ok(None);
    }
    let config = MigrateConfig::from_lookup(&environment)?.database;
    if let DatabaseLocation::Sqlite(path) = &config.location
        && !path.exists()
    {
        return Ok(Some(Vec::new()));
    }
    let store = OpenStore::open(&config).await;
    let store = store.map_err(refused(&config))?;
    let needed = async {
        if store.migrations_current().await? {
            store.store.key_ids().await.map(Some)
        } else {
            Ok(None)
        }
    };
    let needed = needed.await;
    store.close().await;
    needed.map_err(refused(&config))
}

async fn rewrap(output: &mut Output<'_>) -> Result<Exit, RunError> {
    let (database, keys) = match (
        MigrateConfig::from_lookup(&environment),
        KeySource::from_lookup(&environment),
    ) {
        (Ok(config), Ok(keys)) => (config.database, keys),
        (config, keys) => {
            let faults = [config.err(), keys.err()].into_iter().flatten();
            let all = faults.flat_map(|faults| faults.0).collect();
            return Err(ConfigFaults(all).into());
        }
    };
    let keys = Keys::read(&keys)?;
    if let DatabaseLocation::Sqlite(path) = &database.location
        && !path.exists()
    {
        let text = format!(
            "{} is missing: there is nothing to seal anew",
            path.display()
        );
        return Err(Trouble::failed(text).into());
    }
    let store = OpenStore::open(&database).await;
    let store = store.map_err(refused(&database))?;
    let done = rewrap_in(&store, &keys, output).await;
    store.close().await;
    done.map_err(refused(&database))
}

/// A database that does not answer is not reachable; one that refuses the user is a fault of its variable.
fn refused(config: &DatabaseConfig) -> impl FnOnce(StoreError) -> RunError {
    let place = config.location.to_string();
    move |error| {
        if error.is_retryable() {
            Trouble::unreachable(format!("{place}: {}", Chain(&error))).into()
        } else {
            store::refused(error)
        }
    }
}

async fn rewrap_in(
    store: &OpenStore,
    keys: &Keys,
    output: &mut Output<'_>,
) -> Result<Exit, StoreError> {
    let store = &*store.store;
    store.ping().await?;
    let (cipher, key_id) = (keys.cipher(), keys.first_id());
    let done = rewrap::rewrap(store, &*cipher, &key_id).await?;
    let needed = store.key_ids().await?;
    Ok(tell_rewrapped(&done, &key_id, &needed, output))
}

fn read(file: &Path) -> Result<String, Trouble> {
    fs::read_to_string(file)
        .map_err(|error| Trouble::failed(format!("{}: {error}", file.display())))
}
