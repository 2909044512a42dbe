//! A connection for one question: made at once, or not at all.

use std::time::Duration;

use async_nats::{Client, ConnectError};

use super::settings::{NatsSettings, NatsSettingsError, prepare};

/// There is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectOnceError {
    /// A setting can never work.
    #[error(transparent)]
    Setting(#[from] NatsSettingsError),
    /// No server answers, or none takes us.
    #[error("no server takes the connection")]
    Refused(#[from] ConnectError),
    /// No server answers in time.
    #[error("no server answers within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Connects to the first server that answers.
///
/// # Errors
/// [`ConnectOnceError`] when none does within `patience`.
pub async fn connect_once(
    settings: &NatsSettings,
    patience: Duration,
) -> Result<Client, ConnectOnceError> {
    let (addresses, options) = prepare(settings).await?;
    let connecting = options.connection_timeout(patience).connect(addresses);
    match tokio::time::timeout(patience, connecting).await {
        Ok(client) => Ok(client?),
        Err(_) => Err(ConnectOnceError::Timeout(patience)),
    }
}
