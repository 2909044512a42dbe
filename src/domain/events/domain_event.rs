//! The events that the worker publishes: CloudEvents 1.0 in structured JSON.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::domain::values::{
    IntegrationId, TenantId, Timestamp, TraceContext, WebhookId, format_time,
};

/// What happened to an integration or a webhook; the last token of the event's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was made.
    Created,
    /// Some of its fields changed.
    Updated,
    /// It is gone.
    Deleted,
    /// It runs.
    Activated,
    /// A user turned it off.
    Deactivated,
    /// An integration was marked as faulty.
    Failed,
    /// An integration has new credentials.
    CredentialsRotated,
    /// The worker gave up on a webhook's address.
    Disabled,
    /// A webhook has a new signing secret.
    SecretRotated,
}

impl Change {
    /// The last token of the event's type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Activated => "activated",
            Self::Deactivated => "deactivated",
            Self::Failed => "failed",
            Self::CredentialsRotated => "credentials_rotated",
            Self::Disabled => "disabled",
            Self::SecretRotated => "secret_rotated",
        }
    }
}

/// A change to an integration, to be turned into its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a change without its event is lost to everyone who listens"]
pub struct IntegrationChange {
    /// Which integration.
    pub id: IntegrationId,
    /// Its version after the change.
    pub version: i64,
    /// What happened.
    pub change: Change,
}

/// A change to a webhook, to be turned into its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a change without its event is lost to everyone who listens"]
pub struct WebhookChange {
    /// Which webhook.
    pub id: WebhookId,
    /// Its version after the change.
    pub version: i64,
    /// What happened.
    pub change: Change,
}

/// Who and what caused an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Whose it is.
    pub tenant: TenantId,
    /// The user, or `system`.
    pub actor: String,
    /// Carried from the cause.
    pub correlation_id: String,
    /// The id of the command or business event that caused it.
    pub causation_id: String,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

/// An event to publish on `<prefix>.events.<type>`.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainEvent<D = Value> {
    /// Its id, and its `Nats-Msg-Id`.
    pub id: Uuid,
    /// For example `webhook.triggered`.
    pub event_type: String,
    /// The id of the entity, delivery or command that it is about.
    pub subject: String,
    /// When it happened.
    pub time: Timestamp,
    /// Grows by one per subject, without gaps.
    pub aggregate_version: i64,
    /// Who and what caused it.
    pub context: Context,
    /// What happened, in detail.
    pub data: D,
}

#[derive(Serialize)]
struct CloudEvent<'a, D> {
    specversion: &'static str,
    id: Uuid,
    source: &'static str,
    #[serde(rename = "type")]
    event_type: &'a str,
    subject: &'a str,
    time: String,
    datacontenttype: &'static str,
    tenantid: &'a str,
    correlationid: &'a str,
    causationid: &'a str,
    actor: &'a str,
    aggregateversion: i64,
    data: &'a D,
}

impl DomainEvent {
    /// The `Content-Type` of the message.
    pub const CONTENT_TYPE: &'static str = "application/cloudevents+json";
}

impl<D: Serialize> DomainEvent<D> {
    /// The message body.
    pub fn to_json(&self) -> Vec<u8> {
        let event = CloudEvent {
            specversion: "1.0",
            id: self.id,
            source: "/integration",
            event_type: &self.event_type,
            subject: &self.subject,
            time: format_time(self.time),
            datacontenttype: "application/json",
            tenantid: self.context.tenant.as_str(),
            correlationid: &self.context.correlation_id,
            causationid: &self.context.causation_id,
            actor: &self.context.actor,
            aggregateversion: self.aggregate_version,
            data: &self.data,
        };
        serde_json::to_vec(&event).unwrap_or_default()
    }
}
