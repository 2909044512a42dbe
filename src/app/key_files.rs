//! `keys`: the encryption keys as a file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use secrecy::ExposeSecret as _;

use crate::{
    infrastructure::clock::SystemClock,
    presentation::cli::{Exit, KeysCommand, Output, Trouble, list_keys, rotate_keys},
    shared::config::{KeySource, environment},
};

use super::error::RunError;

/// Does what is asked with the file that is named, else with the one of the configuration.
///
/// # Errors
/// Faults of the configuration, or why it was not done.
pub(crate) fn run(command: &KeysCommand, output: &mut Output<'_>) -> Result<Exit, RunError> {
    match command {
        KeysCommand::List(options) => {
            let text = match &options.file {
                Some(file) => read(file)?,
                None => match KeySource::from_lookup(&environment)? {
                    KeySource::File(file) => read(&file)?,
                    KeySource::Inline(keys) => keys.expose_secret().to_owned(),
                },
            };
            Ok(list_keys(&text, options.json, output)?)
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
    }
}

fn read(file: &Path) -> Result<String, Trouble> {
    fs::read_to_string(file)
        .map_err(|error| Trouble::failed(format!("{}: {error}", file.display())))
}
