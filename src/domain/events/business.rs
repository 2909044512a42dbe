//! A business event of the ERP, whatever envelope it came in.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::domain::values::{TenantId, Timestamp, TraceContext, WebhookId};

/// Of what answers an event was made (`response` of webhooks). None of these webhooks ever gets it, so what
/// webhooks answer each other neither goes round nor multiplies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MadeBy {
    /// The webhook whose endpoint answered.
    pub webhook: WebhookId,
    /// Those whose answers made the events before, the oldest first; at most [`Self::MAX_HOPS`] with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<WebhookId>,
    /// Whether no further event is made of an answer to this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_last: bool,
}

impl MadeBy {
    /// How many events may be made so, each of an answer to the one before.
    pub const MAX_HOPS: usize = 8;

    /// What is said of an event made of this webhook's answer to an event of which `former` is said; `None`
    /// where no further one is made.
    pub fn after(former: Option<&Self>, webhook: WebhookId) -> Option<Self> {
        let before: Vec<WebhookId> = former.into_iter().flat_map(Self::webhooks).collect();
        let is_over = former.is_some_and(|former| former.is_last);
        (!is_over && before.len() < Self::MAX_HOPS).then_some(Self {
            webhook,
            before,
            is_last: false,
        })
    }

    /// Reads the webhook, and the chain of all, with commas between them. Without a webhook there is nothing
    /// to say; a chain that cannot be read as one is the last.
    pub fn read(webhook: Option<&str>, chain: Option<&str>) -> Option<Self> {
        let id = |text: &str| uuid::Uuid::try_parse(text.trim()).map(WebhookId);
        let webhook = id(webhook?).ok()?;
        let Some(chain) = chain else {
            return Some(Self {
                webhook,
                before: Vec::new(),
                is_last: false,
            });
        };
        let texts = chain.split(',').take(Self::MAX_HOPS + 1);
        let read: Vec<_> = texts.map(id).collect();
        let is_whole = read.len() <= Self::MAX_HOPS && read.iter().all(Result::is_ok);
        let mut before: Vec<WebhookId> = read.into_iter().flatten().collect();
        let ends_with_it = before.last() == Some(&webhook);
        if ends_with_it {
            before.pop();
        }
        before.truncate(Self::MAX_HOPS - 1);
        Some(Self {
            webhook,
            before,
            is_last: !(is_whole && ends_with_it),
        })
    }

    /// All of them, the oldest first.
    pub fn webhooks(&self) -> impl Iterator<Item = WebhookId> {
        self.before.iter().copied().chain([self.webhook])
    }

    /// The same as a text, with commas between them.
    pub fn chain(&self) -> String {
        let ids: Vec<String> = self.webhooks().map(|id| id.to_string()).collect();
        ids.join(",")
    }
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
    /// Whether it was made of this webhook's answer, or follows from one: then it never goes to that
    /// webhook.
    pub fn is_made_by(&self, webhook: WebhookId) -> bool {
        { self.made_by.iter() }
            .flat_map(MadeBy::webhooks)
            .any(|one| one == webhook)
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
                    before: vec![WebhookId(uuid::Uuid::from_u128(2))],
                    is_last: true,
                }),
            },
            payload: Payload::Json(raw.slice(11..25)),
            raw: raw.clone(),
        }
    }

    #[test]
    fn a_chain_of_answers_has_eight_webhooks_at_most() {
        let id = |n| WebhookId(uuid::Uuid::from_u128(n));
        let mut made = MadeBy::after(None, id(1)).unwrap();
        for n in 2..=8 {
            made = MadeBy::after(Some(&made), id(n)).unwrap();
            let read = MadeBy::read(Some(&id(n).to_string()), Some(&made.chain()));
            assert_eq!(read.as_ref(), Some(&made));
        }
        assert!(made.webhooks().eq((1..=8).map(id)));
        assert_eq!(MadeBy::after(Some(&made), id(9)), None);
        let mut event = event(&Bytes::from_static(b"{\"payload\":{\"n\":18450.00}}")).meta;
        event.made_by = Some(made);
        for n in 1..=9 {
            assert_eq!(event.is_made_by(id(n)), n < 9, "{n}");
        }
    }

    #[test]
    fn a_chain_that_cannot_be_read_is_the_last_and_leaves_out_what_can() {
        let id = |n| WebhookId(uuid::Uuid::from_u128(n)).to_string();
        let all = |to| (1..=to).map(id).collect::<Vec<_>>().join(",");
        for (webhook, chain, before, is_last) in [
            (1, None, 0, false),
            (1, Some(id(1)), 0, false),
            (2, Some(format!("{}, {}", id(1), id(2))), 1, false),
            (2, Some(id(1)), 1, true),
            (2, Some(format!("x,{}", id(2))), 0, true),
            (1, Some(String::new()), 0, true),
            (1, Some("{}".to_owned()), 0, true),
            (8, Some(all(8)), 7, false),
            (9, Some(all(9)), 7, true),
            (1, Some(all(1000)), 7, true),
        ] {
            let read = MadeBy::read(Some(&id(webhook)), chain.as_deref()).unwrap();
            let found = (read.before.len(), read.is_last);
            assert_eq!(found, (before, is_last), "{webhook} {chain:?}");
        }
        for webhook in [None, Some(""), Some("w")] {
            assert_eq!(MadeBy::read(webhook, Some(&all(1))), None);
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
