//! A message that could not be understood: kept in the dead letters, told in `deadletter.added`, and
//! only then terminated.

use metrics::counter;
use serde_json::json;
use uuid::Uuid;

use crate::{
    domain::{
        events::{Context, DomainEvent},
        interfaces::OutboxRow,
        values::{TenantId, Timestamp},
    },
    shared::metrics::DEAD_LETTERS,
};

use super::ports::{BusError, DeadLetter, EventPublisher, Settle};

/// Publishes the letter and its event, awaits both, and terminates the message. Doing it again after a
/// crash is deduplicated: both ids are derived from stream and sequence.
///
/// # Errors
/// The message is untouched then, and comes again.
pub async fn bury(
    publisher: &dyn EventPublisher,
    letter: &DeadLetter,
    tenant: &TenantId,
    now: Timestamp,
    message: &dyn Settle,
) -> Result<(), BusError> {
    publisher.dead_letter(letter).await?;
    publisher
        .publish(&[added_event(letter, tenant, now)])
        .await?;
    counter!(DEAD_LETTERS, "kind" => letter.kind).increment(1);
    tracing::warn!(
        kind = letter.kind,
        reason = letter.reason,
        subject = letter.subject,
        sequence = letter.sequence,
        "a message became a dead letter"
    );
    message.terminate().await
}

/// The id of a dead letter: derived from where the message came from.
pub fn dead_letter_id(letter: &DeadLetter) -> Uuid {
    Uuid::new_v5(
        &Uuid::NAMESPACE_URL,
        format!("dead-letter:{}:{}", letter.stream, letter.sequence).as_bytes(),
    )
}

fn added_event(letter: &DeadLetter, tenant: &TenantId, now: Timestamp) -> OutboxRow {
    let id = dead_letter_id(letter);
    let event = DomainEvent {
        id: Uuid::new_v5(&id, b"deadletter.added"),
        event_type: "deadletter.added".to_owned(),
        subject: id.to_string(),
        time: now,
        aggregate_version: 1,
        context: Context {
            tenant: tenant.clone(),
            actor: "system".to_owned(),
            correlation_id: id.to_string(),
            causation_id: id.to_string(),
            traceparent: None,
        },
        data: json!({
            "kind": letter.kind,
            "reason": letter.reason,
            "originSubject": letter.subject,
            "originStream": letter.stream,
            "originSequence": letter.sequence,
        }),
    };
    OutboxRow {
        id: event.id,
        event_type: event.event_type.clone(),
        traceparent: None,
        body: event.to_json(),
    }
}
