//! The envelopes of CONTRACT 6: how each is recognised, and where it keeps what.
//! A field that is missing or unusable is `None` here and taken from the message by the caller.

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use percent_encoding::percent_decode_str;

use crate::{
    application::ports::SourceMessage,
    domain::events::MadeBy,
    domain::values::{TenantError, TenantId, Timestamp, TraceContext},
};

use super::{
    json::{self, Field, Object},
    values,
};

/// What an envelope says about its event.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    pub(super) event_type: Option<Cow<'a, str>>,
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) tenant: Option<TenantId>,
    pub(super) time: Option<Timestamp>,
    pub(super) source: Option<Cow<'a, str>>,
    pub(super) correlation: Option<Cow<'a, str>>,
    pub(super) trace: Option<TraceContext>,
    /// Set where it was made of an endpoint's answer.
    pub(super) made_by: Option<MadeBy>,
    /// Set where the data has another content type than the message.
    pub(super) content_type: Option<Cow<'a, str>>,
    pub(super) data: Data<'a>,
}

/// Where an event's data is.
#[derive(Debug)]
pub(super) enum Data<'a> {
    /// This part of the body, as JSON.
    Json(&'a str),
    /// `null`: there is none.
    Null,
    /// The decoded `data_base64`.
    Decoded(Vec<u8>),
    /// The whole body, as whatever it is.
    Body,
}

impl<'a> Envelope<'a> {
    fn of(data: Data<'a>) -> Self {
        Self {
            event_type: None,
            id: None,
            tenant: None,
            time: None,
            source: None,
            correlation: None,
            trace: None,
            made_by: None,
            content_type: None,
            data,
        }
    }

    /// CloudEvents in binary mode: the attributes are headers, percent-encoded, the body is the data.
    pub(super) fn cloudevents_binary(message: &'a SourceMessage) -> Result<Self, TenantError> {
        let header = |name| {
            let value = message.header(name)?;
            percent_decode_str(value).decode_utf8().ok()
        };
        // What is no text after decoding is a tenant that cannot be one, not a missing one.
        let tenant = message
            .header("ce-tenantid")
            .map(|value| percent_decode_str(value).decode_utf8_lossy())
            .filter(|tenant| !tenant.is_empty());
        Ok(Self {
            event_type: values::event_type(header("ce-type")),
            id: values::id(header("ce-id")),
            tenant: tenant.map(|text| TenantId::try_new(&text)).transpose()?,
            time: values::time(header("ce-time")),
            source: values::source(header("ce-source")),
            correlation: values::correlation(header("ce-correlationid")),
            trace: TraceContext::read(
                header("ce-traceparent").as_deref(),
                header("ce-tracestate").as_deref(),
            ),
            made_by: values::made_by(
                header("ce-integrationwebhookid").as_deref(),
                header("ce-integrationchain").as_deref(),
            ),
            content_type: values::content_type(header("ce-datacontenttype")),
            data: Data::Body,
        })
    }

    /// CloudEvents in structured mode. Without `data` the data is `null`; a `data_base64` that does not
    /// decode is kept as the JSON string that it is; a `data` of another type than JSON is a JSON
    /// string already, and stays one.
    pub(super) fn cloudevents_structured(object: &Object<'a>) -> Result<Self, TenantError> {
        let mut data = object.raw(Field::Data).map_or(Data::Null, Data::Json);
        let mut content_type = None;
        if let (Data::Null, Some(raw)) = (&data, object.raw(Field::DataBase64)) {
            let decoded = json::string(raw).and_then(|text| BASE64_STANDARD.decode(&*text).ok());
            data = decoded.map_or(Data::Json(raw), Data::Decoded);
            content_type = values::content_type(object.string(Field::DataContentType));
        }
        Ok(Self {
            event_type: values::event_type(object.string(Field::Type)),
            id: values::id(object.string(Field::Id)),
            tenant: values::tenant(object.raw(Field::CeTenant))?,
            time: values::time(object.string(Field::Time)),
            source: values::source(object.string(Field::Source)),
            correlation: values::correlation(object.string(Field::CeCorrelation)),
            trace: TraceContext::read(
                object.string(Field::Traceparent).as_deref(),
                object.string(Field::Tracestate).as_deref(),
            ),
            made_by: values::made_by(
                object.string(Field::MadeByWebhook).as_deref(),
                object.raw(Field::MadeByChain),
            ),
            content_type,
            data,
        })
    }

    /// The ERP's own envelopes, in the order of the contract; the body itself where none fits.
    pub(super) fn erp(object: &Object<'a>) -> Result<Self, TenantError> {
        let metadata = object.object(Field::Metadata);
        let payload = object.raw(Field::Payload);
        let data = object.raw(Field::Data);
        let mut envelope = if object.has(Field::EventType)
            && let Some(payload) = payload
        {
            Self::payload(object, payload)?
        } else if object.has(Field::EventType)
            && let Some(data) = data
        {
            Self::domain(object, &metadata, data)?
        } else if object.has(Field::SnakeEventType)
            && let Some(data) = data
        {
            Self::python(object, data)?
        } else if metadata.has(Field::SnakeEventType)
            && let Some(payload) = payload
        {
            Self::accounting(object, &metadata, payload)?
        } else {
            Self::of(Data::Body)
        };
        envelope.correlation = values::correlation(object.string(Field::CorrelationId))
            .or_else(|| values::correlation(metadata.string(Field::SnakeCorrelationId)))
            .or_else(|| values::correlation(metadata.string(Field::CorrelationId)))
            .or(envelope.correlation);
        Ok(envelope)
    }

    /// `eventType` + `payload`.
    fn payload(object: &Object<'a>, payload: &'a str) -> Result<Self, TenantError> {
        let mut tenant = values::tenant(object.raw(Field::TenantId))?;
        if tenant.is_none() {
            let payload = Object::parse(payload).unwrap_or_default();
            tenant = values::tenant(payload.raw(Field::TenantId))?;
        }
        Ok(Self {
            event_type: values::event_type(object.string(Field::EventType)),
            id: values::id(object.string(Field::EventId)),
            tenant,
            time: values::time(object.string(Field::OccurredAt))
                .or_else(|| values::time(object.string(Field::Timestamp))),
            ..Self::of(Data::Json(payload))
        })
    }

    /// `eventType` + `data`.
    fn domain(
        object: &Object<'a>,
        metadata: &Object<'a>,
        data: &'a str,
    ) -> Result<Self, TenantError> {
        let tenant = match values::tenant(object.raw(Field::TenantId))? {
            None => values::tenant(metadata.raw(Field::TenantId))?,
            tenant => tenant,
        };
        Ok(Self {
            event_type: values::event_type(object.string(Field::EventType)),
            id: values::id(object.string(Field::EventId)),
            tenant,
            time: values::time(object.string(Field::OccurredAt))
                .or_else(|| values::time(object.string(Field::OccurredOn))),
            ..Self::of(Data::Json(data))
        })
    }

    /// `event_type` + `data`, where `data` may be an envelope of its own.
    fn python(object: &Object<'a>, data: &'a str) -> Result<Self, TenantError> {
        let event_type = values::event_type(object.string(Field::SnakeEventType));
        let inner = Object::parse(data).unwrap_or_default();
        let outer_tenant = values::tenant(object.raw(Field::Tenant));
        let nested = inner.has(Field::EventId) && inner.has(Field::EventType);
        let Some(inner_data) = inner.raw(Field::Data).filter(|_| nested) else {
            return Ok(Self {
                event_type,
                tenant: outer_tenant?,
                ..Self::of(Data::Json(data))
            });
        };
        let tenant = match values::tenant(inner.raw(Field::TenantId))? {
            None => outer_tenant?,
            tenant => tenant,
        };
        Ok(Self {
            event_type,
            id: values::id(inner.string(Field::EventId)),
            tenant,
            time: values::time(inner.string(Field::OccurredOn)),
            correlation: values::correlation(inner.string(Field::CorrelationId)),
            ..Self::of(Data::Json(inner_data))
        })
    }

    /// `metadata.event_type` + `payload`.
    fn accounting(
        object: &Object<'a>,
        metadata: &Object<'a>,
        payload: &'a str,
    ) -> Result<Self, TenantError> {
        Ok(Self {
            event_type: values::event_type(metadata.string(Field::SnakeEventType)),
            id: values::id(object.string(Field::Id)),
            tenant: values::tenant(metadata.raw(Field::SnakeTenantId))?,
            time: values::time(metadata.string(Field::SnakeOccurredAt)),
            ..Self::of(Data::Json(payload))
        })
    }

    /// A body that no envelope fits, JSON or not.
    pub(super) fn bare(message: &'a SourceMessage) -> Self {
        let mut envelope = Self::of(Data::Body);
        envelope.id = values::id(message.header("Nats-Msg-Id").map(Cow::Borrowed));
        envelope
    }
}
