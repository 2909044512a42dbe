//! One pass over the top level of a JSON object, without building anything: the known fields are
//! remembered as slices of the text, everything else is skipped. Depth costs no stack.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The fields that envelopes are recognised and read by, at any level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    // CloudEvents
    SpecVersion,
    Id,
    Source,
    Type,
    Time,
    CeTenant,
    CeCorrelation,
    DataContentType,
    DataBase64,
    Traceparent,
    Tracestate,
    MadeByWebhook,
    MadeByChain,
    // All envelopes
    Data,
    Payload,
    Metadata,
    // camelCase
    EventType,
    EventId,
    TenantId,
    OccurredAt,
    OccurredOn,
    Timestamp,
    CorrelationId,
    // snake_case
    SnakeEventType,
    Tenant,
    SnakeTenantId,
    SnakeOccurredAt,
    SnakeCorrelationId,
}

const FIELDS: usize = Field::SnakeCorrelationId as usize + 1;

impl Field {
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"specversion" => Self::SpecVersion,
            b"id" => Self::Id,
            b"source" => Self::Source,
            b"type" => Self::Type,
            b"time" => Self::Time,
            b"tenantid" => Self::CeTenant,
            b"correlationid" => Self::CeCorrelation,
            b"datacontenttype" => Self::DataContentType,
            b"data_base64" => Self::DataBase64,
            b"traceparent" => Self::Traceparent,
            b"tracestate" => Self::Tracestate,
            b"integrationwebhookid" => Self::MadeByWebhook,
            b"integrationchain" => Self::MadeByChain,
            b"data" => Self::Data,
            b"payload" => Self::Payload,
            b"metadata" => Self::Metadata,
            b"eventType" => Self::EventType,
            b"eventId" => Self::EventId,
            b"tenantId" => Self::TenantId,
            b"occurredAt" => Self::OccurredAt,
            b"occurredOn" => Self::OccurredOn,
            b"timestamp" => Self::Timestamp,
            b"correlationId" => Self::CorrelationId,
            b"event_type" => Self::SnakeEventType,
            b"tenant" => Self::Tenant,
            b"tenant_id" => Self::SnakeTenantId,
            b"occurred_at" => Self::SnakeOccurredAt,
            b"correlation_id" => Self::SnakeCorrelationId,
            _ => return None,
        })
    }
}

/// The known fields of one JSON object, each as the JSON text of its value. Of a field that is there
/// twice the last one counts, as in most parsers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Object<'a>([Option<&'a RawValue>; FIELDS]);

impl<'a> Object<'a> {
    /// The fields of the text; `None` when it is no JSON object.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        if !text.trim_start().starts_with('{') {
            return None;
        }
        serde_json::from_str(text).ok()
    }

    /// The JSON text of a field, `null` included.
    pub(super) fn raw(&self, field: Field) -> Option<&'a str> {
        self.0.get(field as usize)?.map(RawValue::get)
    }

    pub(super) fn has(&self, field: Field) -> bool {
        self.raw(field).is_some()
    }

    /// A field that is a string.
    pub(super) fn string(&self, field: Field) -> Option<Cow<'a, str>> {
        string(self.raw(field)?)
    }

    /// A field that is an object; an empty one otherwise.
    pub(super) fn object(&self, field: Field) -> Self {
        self.raw(field).and_then(Self::parse).unwrap_or_default()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor).map(Self)
    }
}

/// Whether the text is one JSON value and nothing else.
pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// The JSON text of a string, read; `None` when it is another value, or no Unicode (lone surrogates).
pub(super) fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = [Option<&'de RawValue>; FIELDS];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Self::Value::default();
        while let Some(field) = map.next_key_seed(FieldSeed)? {
            if let Some(slot) = field.and_then(|field| found.get_mut(field as usize)) {
                *slot = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Reads a key as bytes: a key with a lone surrogate is odd, but no reason to refuse the text.
struct FieldSeed;

impl<'de> DeserializeSeed<'de> for FieldSeed {
    type Value = Option<Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for FieldSeed {
    type Value = Option<Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<Self::Value, E> {
        Ok(Field::of(name))
    }
}
