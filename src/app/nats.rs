//! Connects to NATS and makes sure of the streams, waiting for as long as that takes.

use std::sync::Arc;

use backoff::backoff::Backoff as _;

use crate::{
    application::{
        health::{Health, NATS},
        patience::{LONGEST_WAIT, waits},
        ports::Clock,
    },
    infrastructure::nats::{
        Connection, NatsAuth, NatsSettings, NatsTls, SubjectPrefix, Topology, TopologySettings,
        connect,
    },
    presentation::nats::Connect,
    shared::{
        config::{NatsConfig, NatsCredentials},
        error_chain::Chain,
    },
};

use super::error::RunError;

/// What NATS is told about who we are.
const CLIENT_NAME: &str = concat!("integration-worker/", env!("CARGO_PKG_VERSION"));

/// The prefix of all own subjects.
///
/// # Errors
/// A fault of the configuration.
pub(crate) fn prefix(config: &NatsConfig) -> Result<SubjectPrefix, RunError> {
    SubjectPrefix::try_new(&config.prefix)
        .map_err(|error| RunError::configuration("NATS_SUBJECT_PREFIX", &error))
}

/// The client's settings.
pub(crate) fn settings(config: &NatsConfig) -> NatsSettings {
    let auth = match config.credentials.clone() {
        NatsCredentials::None => NatsAuth::None,
        NatsCredentials::CredsFile(path) => NatsAuth::CredentialsFile(path),
        NatsCredentials::NkeyFile(path) => NatsAuth::NkeyFile(path),
        NatsCredentials::User { name, password } => NatsAuth::UserPassword {
            user: name,
            password,
        },
        NatsCredentials::Token(token) => NatsAuth::Token(token),
    };
    let (cert, key) = config.tls.client.clone().unzip();
    NatsSettings {
        servers: config.servers.clone(),
        auth,
        tls: NatsTls {
            ca: config.tls.ca.clone(),
            cert,
            key,
        },
        client_name: CLIENT_NAME.to_owned(),
    }
}

/// Streams and consumers, as data.
///
/// # Errors
/// A fault of the configuration.
pub(crate) fn topology(config: &NatsConfig) -> Result<Topology, RunError> {
    Ok(Topology::new(&TopologySettings {
        prefix: prefix(config)?,
        erp_stream: config.source_stream.clone(),
        erp_subjects: config.source_subjects.clone(),
        erp_ack_wait: config.source_ack_wait,
        erp_max_ack_pending: TopologySettings::ERP_MAX_ACK_PENDING,
    }))
}

/// What is to be said where the source stream does not keep events that are made of answers. `actual` are
/// its subjects, where it is there; else it is made with those of the configuration.
pub(crate) fn responses_note(config: &NatsConfig, actual: Option<&[String]>) -> Option<String> {
    let (subject, stream) = (&config.response_subject, &config.source_stream);
    let subjects = actual.unwrap_or(&config.source_subjects);
    (!config.captures_responses(subjects)).then(|| {
        format!(
            "the stream {stream} does not capture {subject}> (ERP_RESPONSE_SUBJECT): what is made of \
             answers waits in the database until a stream does, and reaches no webhook until this one \
             does: add the subject to it, and to ERP_SUBJECTS, with which it is made"
        )
    })
}

/// Connects, and creates what is missing.
///
/// # Errors
/// A fault of the configuration, or of the streams, that waiting does not mend.
pub(crate) async fn wait_for(
    config: &NatsConfig,
    clock: Arc<dyn Clock>,
    health: &Health,
) -> Result<(Connection, Arc<Topology>), RunError> {
    let topology = topology(config)?;
    let servers = config.servers.join(",");
    health.starting(NATS, servers.clone());
    let connection = connect(&settings(config), clock)
        .await
        .map_err(|error| RunError::configuration(error.setting, &error))?;
    tracing::info!(servers, "waiting for NATS");
    connection.established().await;
    let context = async_nats::jetstream::new(connection.client.clone());
    let mut waits = waits();
    loop {
        match topology.ensure(&context).await {
            Ok(_) => break,
            Err(error) if error.is_final() => return Err(RunError::Topology(Box::new(error))),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "waiting for JetStream");
                tokio::time::sleep(waits.next_backoff().unwrap_or(LONGEST_WAIT)).await;
            }
        }
    }
    let subjects = topology.source_subjects(&context).await;
    if let Some(note) = responses_note(config, subjects.as_deref()) {
        tracing::warn!("{note}");
    }
    health.up(NATS);
    Ok((connection, Arc::new(topology)))
}

/// Makes connections for requests alone, apart from the one for everything else.
pub(crate) fn for_requests(config: &NatsConfig, clock: &Arc<dyn Clock>) -> Connect {
    let (settings, clock) = (Arc::new(settings(config)), Arc::clone(clock));
    Box::new(move || {
        let (settings, clock) = (Arc::clone(&settings), Arc::clone(&clock));
        Box::pin(async move {
            let connection = connect(&settings, clock).await?;
            Ok(connection.client)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::config::Config;

    #[test]
    fn what_is_made_of_answers_is_judged_by_the_subjects_that_the_stream_has() {
        let read = |name: &str| match name {
            "DATABASE_URL" => Some("sqlite://x.db".to_owned()),
            "ENCRYPTION_KEYS" => Some("k:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=".to_owned()),
            _ => None,
        };
        let config = Config::from_lookup(&read).unwrap().nats;
        let subjects =
            |all: &[&str]| -> Vec<String> { all.iter().map(|one| (*one).to_owned()).collect() };
        for (actual, is_captured) in [
            (None, true),
            (Some(subjects(&["sales.>", "erp.>"])), true),
            (Some(subjects(&["sales.>"])), false),
        ] {
            let note = responses_note(&config, actual.as_deref());
            assert_eq!(note.is_none(), is_captured, "{actual:?}");
        }
    }
}
