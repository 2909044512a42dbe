//! Reads a business event out of a message, whatever envelope it came in (CONTRACT 6).
//!
//! Every message is an event, with three exceptions ([`Unreadable`]). What an envelope does not say, or
//! says in a way that cannot be used, is taken from the message: the subject is the type, stream and
//! sequence make the id, the time of publication is the time, the `X-Tenant-Id` header or the default
//! is the tenant. The data is a slice of the message wherever it can be, so that numbers keep their
//! written form and nothing is copied.

mod envelope;
mod json;
mod values;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use bytes::Bytes;
use uuid::Uuid;

use crate::domain::{
    events::{BusinessEvent, EventMeta, Payload},
    values::{TenantError, TenantId, TraceContext},
};

use super::ports::SourceMessage;

use envelope::{Data, Envelope};
use json::{Field, Object};

/// What the messages of one stream are read with.
#[derive(Debug, Clone)]
pub struct Normaliser {
    /// The source stream's name; part of derived ids.
    pub stream: String,
    /// For events that name no tenant.
    pub default_tenant: TenantId,
    /// Longest body, in bytes.
    pub max_bytes: usize,
}

/// Why a message is no event: `<code>: <text>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {text}")]
pub struct Unreadable {
    /// `empty`, `too_large` or `invalid_tenant`.
    pub code: &'static str,
    /// What is wrong and what is allowed.
    pub text: String,
}

/// The event's `source` where it names none.
const DEFAULT_SOURCE: &str = "/erp";
const BYTE_ORDER_MARK: char = '\u{feff}';
const WHITE_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

impl Normaliser {
    /// Reads one message.
    ///
    /// A tenant that an envelope names but that cannot be one (`"a b"`, `7`) makes the message
    /// unreadable: to give a stranger's data to the default tenant would be worse than a dead letter.
    /// The same holds for the `X-Tenant-Id` header where no envelope names a tenant.
    ///
    /// # Errors
    /// [`Unreadable`] when its body is empty or too large, or its tenant cannot be one; every other
    /// message is an event.
    pub fn event(&self, message: &SourceMessage) -> Result<BusinessEvent, Unreadable> {
        self.check_size(message)?;
        let text = std::str::from_utf8(&message.body).ok();
        let json = text.map(|text| text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text));
        let mut envelope = read(message, json)
            .and_then(|envelope| with_tenant(envelope, message))
            .map_err(|error| invalid_tenant(&error))?;
        let data = std::mem::replace(&mut envelope.data, Data::Body);
        let payload = payload(data, &message.body, json);
        Ok(BusinessEvent {
            meta: self.meta(message, envelope),
            raw: message.body.clone(),
            payload,
        })
    }

    fn check_size(&self, message: &SourceMessage) -> Result<(), Unreadable> {
        let length = message.body.len();
        if length == 0 {
            return Err(Unreadable {
                code: "empty",
                text: "an event has a body".to_owned(),
            });
        }
        if length > self.max_bytes {
            return Err(Unreadable {
                code: "too_large",
                text: format!(
                    "the body has {length} bytes, at most {} are allowed (MAX_EVENT_BYTES)",
                    self.max_bytes
                ),
            });
        }
        Ok(())
    }

    /// The envelope's word where it has one, else that of the message.
    fn meta(&self, message: &SourceMessage, envelope: Envelope<'_>) -> EventMeta {
        let header = |name| message.header(name).map(Cow::Borrowed);
        let subject = printable(&message.subject);
        let trace = TraceContext::read(message.header("traceparent"), message.header("tracestate"));
        let content_type = envelope
            .content_type
            .or_else(|| values::content_type(header("Content-Type")));
        EventMeta {
            id: envelope
                .id
                .map_or_else(|| self.derived_id(message), Cow::into_owned),
            event_type: envelope
                .event_type
                .map_or_else(|| subject.clone(), Cow::into_owned),
            source: envelope
                .source
                .map_or_else(|| DEFAULT_SOURCE.to_owned(), Cow::into_owned),
            subject,
            time: envelope.time.unwrap_or(message.published_at),
            tenant: envelope
                .tenant
                .unwrap_or_else(|| self.default_tenant.clone()),
            correlation_id: values::correlation(header("X-Correlation-Id"))
                .or(envelope.correlation)
                .map(Cow::into_owned),
            trace: trace.or(envelope.trace),
            content_type: content_type.map(Cow::into_owned),
            made_by: envelope.made_by,
            source_sequence: i64::try_from(message.sequence).ok(),
        }
    }

    /// The same for every redelivery. The time of publication keeps it apart from the message that had
    /// this sequence before the stream was made anew.
    fn derived_id(&self, message: &SourceMessage) -> String {
        let name = format!(
            "erp-event:{}:{}:{}",
            self.stream,
            message.sequence,
            message.published_at.timestamp_millis()
        );
        Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).to_string()
    }
}

/// Finds the first row of the contract's table that fits. `json` is the body as text, if it is text.
fn read<'a>(
    message: &'a SourceMessage,
    json: Option<&'a str>,
) -> Result<Envelope<'a>, TenantError> {
    if message.header("ce-specversion").is_some() {
        return Envelope::cloudevents_binary(message);
    }
    let Some((text, object)) = json.and_then(|text| Some((text, Object::parse(text)?))) else {
        return Ok(Envelope::bare(message));
    };
    if object.has(Field::SpecVersion) || is_structured(message) {
        return Envelope::cloudevents_structured(&object);
    }
    let mut envelope = Envelope::erp(&object)?;
    if let Data::Body = envelope.data {
        envelope.id = Envelope::bare(message).id;
        envelope.data = Data::Json(text.trim_matches(WHITE_SPACE));
    }
    Ok(envelope)
}

/// The tenant of the header, where the envelope names none; an empty header names none either.
fn with_tenant<'a>(
    mut envelope: Envelope<'a>,
    message: &SourceMessage,
) -> Result<Envelope<'a>, TenantError> {
    let header = message
        .header("X-Tenant-Id")
        .filter(|name| !name.is_empty());
    if envelope.tenant.is_none() {
        envelope.tenant = header.map(TenantId::try_new).transpose()?;
    }
    Ok(envelope)
}

/// `Content-Type: application/cloudevents+json`, with or without parameters.
fn is_structured(message: &SourceMessage) -> bool {
    message.header("Content-Type").is_some_and(|value| {
        let media_type = value.split(';').next().unwrap_or_default();
        media_type
            .trim()
            .eq_ignore_ascii_case("application/cloudevents+json")
    })
}

fn payload(data: Data<'_>, body: &Bytes, json: Option<&str>) -> Payload {
    match data {
        Data::Json(text) => Payload::Json(body.slice_ref(text.as_bytes())),
        Data::Null => Payload::Json(Bytes::from_static(b"null")),
        Data::Decoded(bytes) => Payload::Binary(Bytes::from(bytes)),
        Data::Body => match json.filter(|text| json::is_json(text)) {
            Some(text) => Payload::Json(body.slice_ref(text.trim_matches(WHITE_SPACE).as_bytes())),
            None => Payload::Binary(body.clone()),
        },
    }
}

/// A subject without control characters, which no database and no header could take.
fn printable(subject: &str) -> String {
    subject.replace(char::is_control, "\u{fffd}")
}

fn invalid_tenant(error: &TenantError) -> Unreadable {
    Unreadable {
        code: "invalid_tenant",
        text: format!("the event names a tenant that cannot be one: {error}"),
    }
}
