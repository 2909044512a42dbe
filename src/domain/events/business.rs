//! A business event of the ERP, whatever envelope it came in.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::domain::values::{TenantId, Timestamp, TraceContext, WebhookId};

/// Of what answer an event was made (`response` of a webhook).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MadeBy {
    /// The webhook whose endpoint answered; it never gets the event.
    pub webhook: WebhookId,
    /// How many events were made so, each of an answer to the one before; 1 is the first.
    pub hops: u8,
}

impl MadeBy {
    /// How many events may be made so: webhooks that answer each other go round no longer.
    pub const MAX_HOPS: u8 = 8;
}

/// Everything about an event but its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventMeta {
    /// Unique per tenant; at most 256 bytes.
    pub id: String,
    /// For example `sales.order.created`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The CloudEvents `source`, else `/erp`.
    pub source: String,
    /// The subject that it was published on.
    pub subject: String,
    /// When it happened.
    pub time: Timestamp,
    /// Whose it is.
    pub tenant: TenantId,
    /// Carried on into deliveries, events and logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The trace that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
    /// The message's `Content-Type`, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Its sequence in the source stream; `None` for `trigger` and `test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_sequence: Option<i64>,
    /// Set where it was made of an endpoint's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<MadeBy>,
}

impl EventMeta {
    /// Whether it was made of this webhook's answer: then it never goes to that webhook.
    pub fn is_made_by(&self, webhook: WebhookId) -> bool {
        self.made_by
            .is_some_and(|made_by| made_by.webhook == webhook)
    }
}

/// The event's data; a part of the message's bytes, unless it had to be decoded from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// JSON text, exactly as written.
    Json(Bytes),
    /// Something else, delivered as raw bytes.
    Binary(Bytes),
}

impl Payload {
    /// The bytes, whatever they are.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Json(bytes) | Self::Binary(bytes) => bytes,
        }
    }
}

/// A business event; cheap to clone, since its bytes are shared.
#[derive(Debug, Clone, PartialEq)]
pub struct BusinessEvent {
    /// Everything but the bytes.
    pub meta: EventMeta,
    /// The message as published.
    pub raw: Bytes,
    /// The data; as a rule a part of `raw`.
    pub payload: Payload,
}

/// The stored form of [`BusinessEvent`] besides its bytes.
#[derive(Serialize, Deserialize)]
struct StoredMeta {
    #[serde(flatten)]
    meta: EventMeta,
    json: bool,
    #[serde(default)]
    offset: usize,
    #[serde(default)]
    length: usize,
    /// The data itself, in base64, where it is no part of the message: a decoded `data_base64`, or the
    /// `null` of an event without data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inline: Option<String>,
}

impl BusinessEvent {
    /// The stored form: a JSON text to keep beside `raw`.
    pub fn stored_meta(&self) -> String {
        let bytes = self.payload.bytes();
        let range = part_of(&self.raw, bytes);
        let stored = StoredMeta {
            meta: self.meta.clone(),
            json: matches!(self.payload, Payload::Json(_)),
            offset: range.unwrap_or_default(),
            length: range.map_or(0, |_| bytes.len()),
            inline: match range {
                Some(_) => None,
                None => Some(BASE64_STANDARD.encode(bytes)),
            },
        };
        serde_json::to_string(&stored).unwrap_or_default()
    }

    /// Reads the stored form back.
    ///
    /// # Errors
    /// Says what is wrong with the stored text.
    pub fn from_stored(meta: &str, raw: Bytes) -> Result<Self, String> {
        let stored: StoredMeta = serde_json::from_str(meta).map_err(|error| error.to_string())?;
        let data = match &stored.inline {
            Some(text) => BASE64_STANDARD
                .decode(text)
                .map_err(|error| error.to_string())?
                .into(),
            None => stored
                .offset
                .checked_add(stored.length)
                .filter(|end| *end <= raw.len())
                .map(|end| raw.slice(stored.offset..end))
                .ok_or_else(|| "the data lies outside of the message".to_owned())?,
        };
        let payload = if stored.json {
            Payload::Json(data)
        } else {
            Payload::Binary(data)
        };
        Ok(Self {
            meta: stored.meta,
            raw,
            payload,
        })
    }
}

/// Where in `whole` the bytes of `part` lie; `None` when they lie elsewhere in memory.
fn part_of(whole: &Bytes, part: &Bytes) -> Option<usize> {
    let offset = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    let end = offset.checked_add(part.len())?;
    (end <= whole.len()).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(raw: &Bytes) -> BusinessEvent {
        BusinessEvent {
            meta: EventMeta {
                id: "e1".to_owned(),
                event_type: "a.b".to_owned(),
                source: "/erp".to_owned(),
                subject: "a.b".to_owned(),
                time: chrono::DateTime::UNIX_EPOCH,
                tenant: TenantId::try_new("t").unwrap(),
                correlation_id: None,
                trace: TraceContext::read(
                    Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                    Some("a=b"),
                ),
                content_type: None,
                source_sequence: Some(7),
                made_by: Some(MadeBy {
                    webhook: WebhookId(uuid::Uuid::from_u128(1)),
                    hops: 2,
                }),
            },
            payload: Payload::Json(raw.slice(11..25)),
            raw: raw.clone(),
        }
    }

    #[test]
    fn an_event_survives_being_stored() {
        let raw = Bytes::from_static(br#"{"payload":{"n":18450.00}}"#);
        let event = event(&raw);
        assert_eq!(
            BusinessEvent::from_stored(&event.stored_meta(), raw).unwrap(),
            event
        );
    }

    #[test]
    fn data_that_is_no_part_of_the_message_survives_too() {
        let raw = Bytes::from_static(br#"{"specversion":"1.0","data_base64":"AAH/"}"#);
        for payload in [
            Payload::Binary(Bytes::from_static(&[0, 1, 255])),
            Payload::Binary(Bytes::new()),
            Payload::Json(Bytes::from_static(b"null")),
        ] {
            let event = BusinessEvent {
                payload,
                ..event(&raw)
            };
            let stored = event.stored_meta();
            assert_eq!(BusinessEvent::from_stored(&stored, raw.clone()), Ok(event));
        }
    }

    #[test]
    fn a_stored_event_with_a_wrong_range_is_an_error() {
        let meta = r#"{"id":"e","type":"t","source":"s","subject":"s","time":"2026-01-01T00:00:00Z",
            "tenant":"t","json":true,"offset":1,"length":99}"#;
        assert!(BusinessEvent::from_stored(meta, Bytes::from_static(b"{}")).is_err());
    }
}
