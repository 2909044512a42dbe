//! The commands that ask a running worker: connect once, ask, end.

use std::time::Duration;

use async_nats::Client;

use crate::{
    infrastructure::nats::{ConnectOnceError, SubjectPrefix, connect_once},
    presentation::cli::{
        self, EntityRequest, EventsCommand, Exit, Output, StatusNames, StatusOptions, Trouble,
    },
    shared::{
        config::{ClientConfig, ConfigFaults, NatsConfig, environment},
        error_chain::Chain,
    },
};

use super::{error::RunError, nats};

/// How long the connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Debug)]
pub(crate) enum Question<'a> {
    /// An action of an entity.
    Entity(&'static str, &'a EntityRequest),
    /// Who works, and what waits.
    Status(&'a StatusOptions),
    /// Domain events.
    Events(&'a EventsCommand),
}

/// Asks, and prints the answer.
///
/// # Errors
/// Faults of the configuration, or the trouble with the answer.
pub(crate) async fn ask(question: Question<'_>, output: &mut Output<'_>) -> Result<Exit, RunError> {
    if let Question::Entity(entity, request) = &question {
        cli::check_action(entity, &request.action)?;
    }
    let config = ClientConfig::from_lookup(&environment)?;
    let prefix = nats::prefix(&config.nats)?;
    let client = connect(&config.nats).await?;
    let exit = match question {
        Question::Entity(entity, request) => {
            cli::request(&client, prefix.as_str(), entity, request, output).await
        }
        Question::Status(options) => {
            let names = names(&prefix, &config.nats.source_stream);
            cli::status(&client, &names, options, output).await
        }
        Question::Events(EventsCommand::Tail(options)) => {
            cli::tail(&client, prefix.as_str(), options, output).await
        }
    };
    Ok(exit?)
}

/// Connects within [`CONNECT_TIMEOUT`].
///
/// # Errors
/// A fault of the configuration, or that nobody answers.
pub(crate) async fn connect(config: &NatsConfig) -> Result<Client, RunError> {
    let settings = nats::settings(config);
    match connect_once(&settings, CONNECT_TIMEOUT).await {
        Ok(client) => Ok(client),
        Err(ConnectOnceError::Setting(error)) => {
            let mut faults = ConfigFaults::default();
            faults.add(error.setting, error.problem);
            Err(faults.into())
        }
        Err(error) => {
            let servers = config.servers.join(",");
            let text = format!("NATS at {servers} cannot be reached: {}", Chain(&error));
            Err(Trouble::unreachable(text).into())
        }
    }
}

fn names(prefix: &SubjectPrefix, source: &str) -> StatusNames {
    StatusNames {
        service: prefix.service(),
        streams: vec![
            (source.to_owned(), Some(prefix.erp_consumer())),
            (prefix.commands_stream(), Some(prefix.commands_consumer())),
            (prefix.events_stream(), None),
            (prefix.dead_letters_stream(), None),
        ],
    }
}
