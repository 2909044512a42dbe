//! One command at work: its unit of work, and what it leaves behind when it is committed.

use serde_json::{Map, Value};

use crate::domain::{
    entities::{EntityMeta, Integration, InvalidTransition},
    events::{Change, DomainEvent, IntegrationChange, WebhookChange},
    interfaces::{AuditRow, RegistryChange, StoreError, UnitOfWork},
    values::{
        Credentials, Faults, SealedSecrets, SecretConfig, Timestamp, WebhookId, keeps_credentials,
        split_credentials,
    },
};

use crate::application::{
    ports::{BusError, CipherError},
    webhook_settings::Unauthenticated,
};

use super::{
    Ports,
    command::Command,
    fields::Fields,
    replay::Counted,
    reply::{ErrorCode, Refusal},
};

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The answer is a refusal.
    #[error("refused: {}", .0.message)]
    Refused(Refusal),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The bus failed.
    #[error("the bus failed")]
    Bus(#[from] BusError),
    /// A secret could not be sealed or opened.
    #[error("the cipher failed")]
    Cipher(#[from] CipherError),
}

impl From<Refusal> for CommandError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Faults> for CommandError {
    fn from(faults: Faults) -> Self {
        Self::Refused(faults.into())
    }
}

impl From<Unauthenticated> for CommandError {
    fn from(problem: Unauthenticated) -> Self {
        match problem {
            Unauthenticated::Sealed(error) => Self::Cipher(error),
            Unauthenticated::Faulty(faults) => faults.into(),
        }
    }
}

impl From<InvalidTransition> for CommandError {
    fn from(error: InvalidTransition) -> Self {
        Self::Refused(error.into())
    }
}

/// The data of a success, or why there is none.
pub(super) type Outcome = Result<Value, CommandError>;

/// What a command leaves behind besides its entity.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// For the outbox.
    pub(super) events: Vec<DomainEvent>,
    /// For the audit log.
    pub(super) audit: Vec<AuditRow>,
    /// For the data plane.
    pub(super) registry: Vec<RegistryChange>,
    /// Whether deliveries may have become due.
    pub(super) parked: bool,
    /// Whether a replay began.
    pub(super) replays: bool,
}

/// What was read, without locks, before the unit of work began.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The integration of the webhook that the command names.
    pub(super) integration: Option<Integration>,
    /// The webhook of the delivery that the command names.
    pub(super) webhook: Option<WebhookId>,
    /// What the replay that the command asks for would send.
    pub(super) counted: Option<Counted>,
}

/// A command and its unit of work.
pub(super) struct Work<'a> {
    pub(super) unit: Box<dyn UnitOfWork>,
    pub(super) ports: &'a Ports,
    pub(super) command: &'a Command,
    pub(super) now: Timestamp,
    pub(super) known: Known,
    pub(super) effects: Effects,
}

impl Work<'_> {
    /// Who acts.
    pub(super) fn actor(&self) -> &str {
        &self.command.context.actor
    }

    /// Notes a change of an integration: its event and its line in the audit log.
    pub(super) fn integration_changed(&mut self, change: IntegrationChange, data: Value) {
        let IntegrationChange {
            id,
            version,
            change,
        } = change;
        self.changed(("integration", change), id.to_string(), version, data);
    }

    /// Notes a change of a webhook: its event, its line in the audit log, and that matching must know.
    pub(super) fn webhook_changed(&mut self, change: WebhookChange, data: Value) {
        let WebhookChange {
            id,
            version,
            change,
        } = change;
        self.changed(("webhook", change), id.to_string(), version, data);
        self.effects.registry.push(RegistryChange::Webhook(id));
    }

    /// Adds a line about the command to the audit log.
    pub(super) fn audit(&mut self, entity_id: String) {
        let row = self.command.audit_row(entity_id, self.now);
        self.effects.audit.push(row);
    }

    fn changed(&mut self, (entity, change): (&str, Change), id: String, version: i64, data: Value) {
        let mut row = self.command.audit_row(id.clone(), self.now);
        if entity != self.command.entity {
            row.action = format!("{entity}.{}", self.command.action);
        }
        self.effects.audit.push(row);
        self.effects.events.push(DomainEvent {
            response: None,
            id: self.ports.clock.new_id(),
            event_type: format!("{entity}.{}", change.as_str()),
            subject: id,
            time: self.now,
            aggregate_version: version,
            context: self.command.context.for_events(),
            data,
        });
    }

    /// Seals what is secret in a configuration. `previous` keeps its credentials where `config` gives
    /// none, and is opened only then: credentials whose key is lost can be given anew. `entity` is the id
    /// that they are bound to.
    pub(super) fn seal_config(
        &self,
        config: Map<String, Value>,
        previous: Option<&SecretConfig>,
        entity: &str,
    ) -> Result<SecretConfig, CommandError> {
        let cipher = &self.ports.cipher;
        let none = Map::new();
        let shown_before = previous.map_or(&none, |p| &p.shown);
        let sealed_before = previous
            .and_then(|p| p.sealed.as_ref())
            .filter(|_| keeps_credentials(&config, shown_before));
        let kept = match sealed_before {
            Some(sealed) => self.open_credentials(sealed, entity)?,
            None => Credentials::default(),
        };
        let (shown, found) = split_credentials(config, shown_before, &kept, self.now);
        let sealed = if found.0.is_empty() {
            None
        } else if let (Some(before), true) = (sealed_before, found == kept) {
            Some(before.clone())
        } else {
            let plain = serde_json::to_vec(&found).map_err(|_| CipherError::Broken)?;
            Some(cipher.seal(&plain, entity)?)
        };
        Ok(SecretConfig { shown, sealed })
    }

    fn open_credentials(
        &self,
        sealed: &SealedSecrets,
        entity: &str,
    ) -> Result<Credentials, CommandError> {
        let opened = self.ports.cipher.open(sealed, entity).and_then(|plain| {
            serde_json::from_slice::<Credentials>(&plain).map_err(|_| CipherError::Broken)
        });
        Ok(opened.map_err(|error| lost_credentials(&sealed.key_id, entity, &error))?)
    }
}

/// Refuses to keep credentials that cannot be opened. A key that is missing may be brought back; a key
/// that does not fit will not, so there it is no use to wait.
fn lost_credentials(key_id: &str, entity: &str, error: &CipherError) -> Refusal {
    tracing::error!(entity, key_id, %error, "stored credentials cannot be opened");
    let code = match error {
        CipherError::UnknownKey(_) => ErrorCode::Unavailable,
        CipherError::Broken => ErrorCode::Conflict,
    };
    let message = format!(
        "the credentials that are to stay are sealed with the key {key_id:?}, and cannot be opened \
         ({error}): bring the key back, or give the credentials anew (rotate_credentials, or an \
         update with a config that holds them all)"
    );
    Refusal::new(code, message)
}

/// The value, when nothing was wrong with the fields it was read from.
pub(super) fn checked<T>(fields: Fields, value: Option<T>) -> Result<T, CommandError> {
    let faults = fields.finish();
    match value {
        Some(value) if faults.is_empty() => Ok(value),
        None if faults.is_empty() => {
            let message = "a field was not read and its fault not told";
            Err(Refusal::new(ErrorCode::Internal, message).into())
        }
        _ => Err(faults.into()),
    }
}

/// Refuses when `expectedVersion` is given and is not the row's.
pub(super) fn check_version(meta: &EntityMeta, expected: Option<i64>) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != meta.version => Err(Refusal::at(
            ErrorCode::Conflict,
            "expectedVersion",
            format!("the version is {}, not {expected}", meta.version),
        )),
        _ => Ok(()),
    }
}

/// There is no such thing in this tenant.
pub(super) fn not_found(entity: &str, path: &str, id: impl std::fmt::Display) -> Refusal {
    Refusal::at(
        ErrorCode::NotFound,
        path,
        format!("there is no {entity} {id}"),
    )
}

/// Another entity has the name.
pub(super) fn name_taken(entity: &str, scope: &str, name: &str) -> Refusal {
    Refusal::at(
        ErrorCode::Conflict,
        "name",
        format!("another {entity} {scope} has the name {name:?}"),
    )
}
