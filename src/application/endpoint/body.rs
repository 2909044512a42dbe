//! The body of a request, and the headers that belong to it. The event's data is copied as it was
//! written, never read and written anew: numbers keep their form.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::domain::{
    entities::BodyFormat,
    events::{BusinessEvent, EventMeta, Payload},
    values::format_time,
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");
const CLOUDEVENTS: HeaderValue = HeaderValue::from_static("application/cloudevents+json");

/// What the CloudEvents HTTP binding encodes in a header besides what is no ASCII.
const CE_ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Room for the attributes around the data.
const ATTRIBUTES: usize = 512;

/// Makes the body and sets the headers that belong to it. `payload` is the event's, or what was made of
/// it; `headers` holds the `Content-Type` of the user, or an empty one.
pub(super) fn write(
    format: BodyFormat,
    event: &BusinessEvent,
    payload: &Payload,
    headers: &mut HeaderMap,
) -> Bytes {
    let meta = &event.meta;
    match (format, payload) {
        (BodyFormat::CloudEvents, _) => {
            headers.insert(CONTENT_TYPE, CLOUDEVENTS);
            structured(meta, payload)
        }
        (BodyFormat::CloudEventsBinary, payload) => {
            attribute_headers(meta, headers);
            headers.insert(CONTENT_TYPE, data_type(meta, payload));
            payload.bytes().clone()
        }
        (_, Payload::Binary(bytes)) => {
            headers.insert(CONTENT_TYPE, data_type(meta, payload));
            bytes.clone()
        }
        (BodyFormat::Standard, Payload::Json(data)) => {
            or_json(headers);
            standard(meta, data)
        }
        (BodyFormat::Raw, Payload::Json(_)) => {
            match own_type(meta) {
                Some(own) => drop(headers.insert(CONTENT_TYPE, own)),
                None => or_json(headers),
            }
            event.raw.clone()
        }
    }
}

fn standard(meta: &EventMeta, data: &[u8]) -> Bytes {
    let mut body = Vec::with_capacity(data.len() + meta.event_type.len() + 64);
    let mut separator = b'{';
    push_text(&mut body, &mut separator, "type", &meta.event_type);
    push_text(
        &mut body,
        &mut separator,
        "timestamp",
        &format_time(meta.time),
    );
    body.extend_from_slice(b",\"data\":");
    body.extend_from_slice(data);
    body.push(b'}');
    body.into()
}

pub(super) fn structured(meta: &EventMeta, payload: &Payload) -> Bytes {
    let data = payload.bytes();
    let mut body = Vec::with_capacity(data.len() * 4 / 3 + ATTRIBUTES);
    let mut separator = b'{';
    for (name, value) in attributes(meta) {
        push_text(&mut body, &mut separator, name, value);
    }
    push_text(&mut body, &mut separator, "time", &format_time(meta.time));
    let data_type = data_type(meta, payload);
    if let Ok(data_type) = data_type.to_str() {
        push_text(&mut body, &mut separator, "datacontenttype", data_type);
    }
    match payload {
        Payload::Json(data) => {
            body.extend_from_slice(b",\"data\":");
            body.extend_from_slice(data);
        }
        Payload::Binary(data) => {
            push_text(
                &mut body,
                &mut separator,
                "data_base64",
                &STANDARD.encode(data),
            );
        }
    }
    body.push(b'}');
    body.into()
}

fn attribute_headers(meta: &EventMeta, headers: &mut HeaderMap) {
    for (name, value) in attributes(meta) {
        let name = match name {
            "specversion" => "ce-specversion",
            "id" => "ce-id",
            "source" => "ce-source",
            "type" => "ce-type",
            "subject" => "ce-subject",
            "tenantid" => "ce-tenantid",
            _ => "ce-correlationid",
        };
        let encoded = utf8_percent_encode(value, CE_ENCODED).to_string();
        if let Ok(value) = HeaderValue::try_from(encoded) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    if let Ok(time) = HeaderValue::try_from(format_time(meta.time)) {
        headers.insert(HeaderName::from_static("ce-time"), time);
    }
}

/// All attributes that are texts; an attribute is never empty.
fn attributes(meta: &EventMeta) -> impl Iterator<Item = (&'static str, &str)> {
    [
        ("specversion", "1.0"),
        ("id", &meta.id),
        ("source", &meta.source),
        ("type", &meta.event_type),
        ("subject", &meta.subject),
        ("tenantid", meta.tenant.as_str()),
        (
            "correlationid",
            meta.correlation_id.as_deref().unwrap_or_default(),
        ),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
}

/// The type of the data alone. The type of the message says it unless it speaks of an envelope, or
/// calls JSON something else.
fn data_type(meta: &EventMeta, payload: &Payload) -> HeaderValue {
    let own = own_type(meta).filter(|own| {
        let own = own.as_bytes().to_ascii_lowercase();
        !own.starts_with(b"application/cloudevents")
            && (matches!(payload, Payload::Binary(_)) || is_json(&own))
    });
    own.unwrap_or(match payload {
        Payload::Json(_) => JSON,
        Payload::Binary(_) => BINARY,
    })
}

fn is_json(media_type: &[u8]) -> bool {
    let essence = media_type.split(|b| *b == b';').next().unwrap_or_default();
    let essence = essence.trim_ascii();
    essence.ends_with(b"/json") || essence.ends_with(b"+json")
}

/// The content type that the message came with, if it can be sent on.
fn own_type(meta: &EventMeta) -> Option<HeaderValue> {
    let text = meta.content_type.as_deref()?.trim();
    HeaderValue::from_str(text)
        .ok()
        .filter(|own| !own.is_empty())
}

/// Leaves the user's `Content-Type` where there is one.
fn or_json(headers: &mut HeaderMap) {
    if let Some(value) = headers
        .get_mut(CONTENT_TYPE)
        .filter(|value| value.is_empty())
    {
        *value = JSON;
    }
}

/// `{"name":"text"`, or with a comma from the second one on.
fn push_text(body: &mut Vec<u8>, separator: &mut u8, name: &str, text: &str) {
    body.push(std::mem::replace(separator, b','));
    body.push(b'"');
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(b"\":");
    // A text always becomes JSON, and a vector takes it all.
    serde_json::to_writer(body, text).unwrap_or_default();
}
