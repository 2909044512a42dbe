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
/// crash is deduplicated: both ids are derived from where the message came from.
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

/// The id of a dead letter: derived from where the message came from. The time of publication keeps it
/// apart from the message that had this sequence before the stream was made anew.
pub fn dead_letter_id(letter: &DeadLetter) -> Uuid {
    let name = format!(
        "dead-letter:{}:{}:{}",
        letter.stream,
        letter.sequence,
        letter.published_at.timestamp_millis()
    );
    Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes())
}

fn added_event(letter: &DeadLetter, tenant: &TenantId, now: Timestamp) -> OutboxRow {
    let id = dead_letter_id(letter);
    let event = DomainEvent {
        response: None,
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
            trace: None,
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
        is_response: false,
        id: event.id,
        event_type: event.event_type.clone(),
        trace: None,
        body: event.to_json(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::{DateTime, TimeDelta};

    use super::*;

    #[test]
    fn a_letter_is_the_same_only_with_stream_sequence_and_time_of_publication() {
        let letter = DeadLetter {
            kind: "events",
            reason: "empty: there is no body".to_owned(),
            tenant: "default".to_owned(),
            subject: "a".to_owned(),
            stream: "ERP_EVENTS".to_owned(),
            sequence: 1,
            published_at: DateTime::UNIX_EPOCH,
            headers: Vec::new(),
            body: Bytes::new(),
        };
        let id = dead_letter_id(&letter);
        let mut again = letter.clone();
        again.reason = "said otherwise".to_owned();
        assert_eq!(dead_letter_id(&again), id);
        let (mut stream, mut sequence, mut time) = (letter.clone(), letter.clone(), letter);
        stream.stream = "OTHER".to_owned();
        sequence.sequence = 2;
        time.published_at += TimeDelta::milliseconds(1);
        for other in [stream, sequence, time] {
            assert_ne!(dead_letter_id(&other), id);
        }
    }
}
