//! The events that the worker publishes: CloudEvents 1.0 in structured JSON.

use serde::Serialize;
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

use super::MadeBy;
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
    /// Nothing is sent to a webhook's endpoint for a while.
    BreakerOpened,
    /// A webhook's endpoint is sent to again.
    BreakerClosed,
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
            Self::BreakerOpened => "breaker_opened",
            Self::BreakerClosed => "breaker_closed",
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

/// A business event that was made of an endpoint's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Whose answer, and to whose answers that was one.
    pub made_by: MadeBy,
    /// JSON text: its numbers keep their written form.
    pub data: String,
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
    /// Set where it is no event of the worker's own, but one for the ERP: then it is published on
    /// `ERP_RESPONSE_SUBJECT` + type, has this for its data, and no version.
    pub response: Option<Response>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    aggregateversion: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    integrationwebhookid: Option<WebhookId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    integrationchain: Option<String>,
    data: Data<'a, D>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a, D> {
    Own(&'a D),
    Written(&'a RawValue),
}

impl DomainEvent {
    /// The `Content-Type` of the message.
    pub const CONTENT_TYPE: &'static str = "application/cloudevents+json";
}

impl<D: Serialize> DomainEvent<D> {
    /// The message body.
    pub fn to_json(&self) -> Vec<u8> {
        let made_by = self.response.as_ref().map(|response| &response.made_by);
        // What is no JSON never gets here.
        let written = self
            .response
            .as_ref()
            .map(|response| serde_json::from_str(&response.data).unwrap_or(RawValue::NULL));
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
            aggregateversion: made_by.is_none().then_some(self.aggregate_version),
            integrationwebhookid: made_by.map(|made_by| made_by.webhook),
            integrationchain: made_by.map(MadeBy::chain),
            data: written.map_or(Data::Own(&self.data), Data::Written),
        };
        serde_json::to_vec(&event).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_made_of_an_answer_names_the_webhook_and_has_no_version() {
        let own = DomainEvent {
            id: Uuid::nil(),
            event_type: "a.b".to_owned(),
            subject: "s".to_owned(),
            time: chrono::DateTime::UNIX_EPOCH,
            aggregate_version: 3,
            context: Context {
                tenant: TenantId::try_new("nord").unwrap(),
                actor: "system".to_owned(),
                correlation_id: "c".to_owned(),
                causation_id: "e".to_owned(),
                trace: None,
            },
            data: serde_json::json!({ "n": 1 }),
            response: None,
        };
        let made = DomainEvent {
            response: Some(Response {
                made_by: MadeBy {
                    webhook: WebhookId(Uuid::nil()),
                    before: vec![WebhookId(Uuid::from_u128(1))],
                    is_last: false,
                },
                data: r#"{"n": 18450.00}"#.to_owned(),
            }),
            ..own.clone()
        };
        let text = |event: &DomainEvent| String::from_utf8(event.to_json()).unwrap();
        let (own, made) = (text(&own), text(&made));
        assert!(own.ends_with(r#""actor":"system","aggregateversion":3,"data":{"n":1}}"#));
        assert!(!own.contains("integrationwebhookid"), "{own}");
        let (nil, one) = (Uuid::nil(), Uuid::from_u128(1));
        let end = format!(
            r#""actor":"system","integrationwebhookid":"{nil}","integrationchain":"{one},{nil}","data":{{"n": 18450.00}}}}"#
        );
        assert!(made.ends_with(&end), "{made}");
    }
}
