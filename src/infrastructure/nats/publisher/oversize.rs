//! Events that are larger than the server takes.

use async_nats::HeaderMap;
use serde_json::{Value, json};

use crate::domain::interfaces::OutboxRow;

/// How long headers are on the wire.
pub(super) fn wire_len(headers: &HeaderMap) -> usize {
    let frame = "NATS/1.0\r\n\r\n".len();
    let line = |name: usize, value: usize| name + ": \r\n".len() + value;
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values
            .iter()
            .map(move |v| line(name.len(), v.as_str().len()))
    });
    frame + lines.sum::<usize>()
}

/// The event's body, or, where the server would refuse it for its size, the event without its data:
/// events of an entity are published in order, so that one which never goes out would hold back
/// all that follow.
pub(super) fn fitting(row: &OutboxRow, limit: usize) -> Vec<u8> {
    if row.body.len() <= limit {
        return row.body.clone();
    }
    tracing::error!(
        event = %row.id,
        event_type = row.event_type,
        bytes = row.body.len(),
        limit,
        "an event is larger than max_payload of the NATS server; it is published without its data"
    );
    let Ok(Value::Object(mut event)) = serde_json::from_slice(&row.body) else {
        return Vec::new();
    };
    event.insert(
        "data".to_owned(),
        json!({ "omitted": "larger than max_payload" }),
    );
    serde_json::to_vec(&event).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(body: &Value) -> OutboxRow {
        OutboxRow {
            is_response: false,
            id: uuid::Uuid::nil(),
            event_type: "webhook.created".to_owned(),
            trace: None,
            body: serde_json::to_vec(body).unwrap(),
        }
    }

    #[test]
    fn what_fits_is_not_touched_and_what_does_not_keeps_its_envelope() {
        let row = row(&json!({"id": "e1", "data": {"text": "x".repeat(1000)}}));
        assert_eq!(fitting(&row, row.body.len()), row.body);
        let cut: Value = serde_json::from_slice(&fitting(&row, 500)).unwrap();
        assert_eq!(
            cut,
            json!({"id": "e1", "data": {"omitted": "larger than max_payload"}})
        );
    }
}
