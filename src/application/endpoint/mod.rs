//! An endpoint: everything about a webhook that makes a request out of an event.

mod authentication;
mod batch;
mod body;
mod headers;
mod ndjson;
#[cfg(test)]
mod tests;
mod trace;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri};
use url::Url;

use crate::domain::{
    entities::{HttpMethod, WebhookSettings},
    events::{BusinessEvent, Payload},
    policies::{SignatureKey, signature},
    values::{DeliveryId, Timestamp, WebhookId},
};

use super::{
    client_identity::ClientIdentity,
    event_view::EventView,
    oauth::Grant,
    ports::{Expression, OutboundRequest},
    response::{MAX_ANSWER, ResponseRule},
};
use headers::{TRACEPARENT, TRACESTATE, WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP};

pub use authentication::Authentication;
pub(in crate::application) use batch::BatchBody;
pub(crate) use headers::USER_AGENT;
pub use headers::is_reserved_header;

/// A signing key, and until when it signs.
#[derive(Debug, Clone)]
pub struct SigningKey {
    /// Signs `id.timestamp.body`.
    pub key: SignatureKey,
    /// `None` for the current one.
    pub expires_at: Option<Timestamp>,
}

/// A webhook's settings, compiled once per version of the webhook.
///
/// The `Content-Type` of a request: a `cloudevents` body has its own; data that is no JSON, and
/// `cloudevents-binary`, have that of the data; a `raw` message has that with which it was published.
/// What remains is JSON without a type of its own: there the user's header stands, else
/// `application/json`.
#[derive(Clone)]
pub struct Endpoint {
    settings: WebhookSettings,
    uri: Uri,
    method: Method,
    headers: HeaderMap,
    keys: Vec<SigningKey>,
    transform: Option<Arc<dyn Expression>>,
    identity: Option<Arc<ClientIdentity>>,
    response: Option<ResponseRule>,
    grant: Option<Arc<Grant>>,
}

impl Endpoint {
    /// Compiles the settings. The keys sign in their order: newest first.
    ///
    /// # Errors
    /// Says which setting cannot be used; never holds a header's value or the URL.
    pub fn compile(settings: WebhookSettings, keys: Vec<SigningKey>) -> Result<Self, String> {
        Ok(Self {
            uri: parse_url(&settings.url)?,
            method: method(settings.method),
            headers: headers::base(&settings)?,
            settings,
            keys,
            transform: None,
            identity: None,
            response: None,
            grant: None,
        })
    }

    /// Shows every request's endpoint who sends it; `webhook` is whose endpoint it is.
    ///
    /// # Errors
    /// Says why it cannot; never holds a secret or the URL.
    pub fn with_authentication(
        mut self,
        webhook: WebhookId,
        authentication: Option<Authentication>,
    ) -> Result<Self, String> {
        if let Some(authentication) = authentication {
            self.identity = authentication.identity();
            self.grant = authentication.grant(webhook);
            authentication.apply(&self.settings.url, &mut self.uri, &mut self.headers)?;
        }
        Ok(self)
    }

    /// Makes the data of the bodies out of events.
    #[must_use]
    pub fn with_transform(mut self, transform: Option<Arc<dyn Expression>>) -> Self {
        self.transform = transform;
        self
    }

    /// Makes events of answers.
    #[must_use]
    pub fn with_response(mut self, response: Option<ResponseRule>) -> Self {
        self.response = response;
        self
    }

    /// What makes events of answers, if anything does.
    pub fn response(&self) -> Option<&ResponseRule> {
        self.response.as_ref()
    }

    /// How long an attempt may take.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// The signed request of attempt `attempt` (from 1) at `now`.
    ///
    /// # Errors
    /// Why the transform makes nothing of the event: it never will.
    pub fn request(
        &self,
        event: &BusinessEvent,
        delivery: DeliveryId,
        attempt: i32,
        now: Timestamp,
    ) -> Result<OutboundRequest, String> {
        let mut headers = self.headers.clone();
        let made = self.transformed(&EventView::new(event))?;
        let made = made.map(Payload::Json);
        let payload = made.as_ref().unwrap_or(&event.payload);
        let body = body::write(self.settings.format, event, payload, &mut headers);
        let trace = trace::context(&event.meta, delivery, attempt);
        Ok(self.signed(delivery.0, body, headers, trace, now))
    }

    /// What the transform makes of an event, if there is one.
    fn transformed(&self, view: &EventView<'_>) -> Result<Option<Bytes>, String> {
        let made = self.transform.as_ref().map(|transform| {
            let made = transform.json(view);
            made.map_err(|fault| format!("transform: {fault}"))
        });
        made.transpose()
    }

    fn signed(
        &self,
        id: uuid::Uuid,
        body: Bytes,
        mut headers: HeaderMap,
        (traceparent, tracestate): (String, Option<HeaderValue>),
        now: Timestamp,
    ) -> OutboundRequest {
        let mut buffer = uuid::Uuid::encode_buffer();
        let id: &str = id.hyphenated().encode_lower(&mut buffer);
        let timestamp = now.timestamp();
        let valid = |key: &&SigningKey| key.expires_at.is_none_or(|end| end > now);
        let keys = self.keys.iter().filter(valid).map(|key| &key.key);
        let signature = signature(keys, id, timestamp, &body);

        // These texts are made of characters that every header takes.
        for (name, value) in [
            (WEBHOOK_ID, HeaderValue::from_str(id)),
            (WEBHOOK_SIGNATURE, HeaderValue::try_from(signature)),
            (TRACEPARENT, HeaderValue::try_from(traceparent)),
        ] {
            match value {
                Ok(value) if !value.is_empty() => headers.insert(name, value),
                _ => headers.remove(name),
            };
        }
        headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(timestamp));
        if let Some(tracestate) = tracestate {
            headers.insert(TRACESTATE, tracestate);
        }
        OutboundRequest {
            uri: self.uri.clone(),
            method: self.method.clone(),
            headers,
            body,
            timeout: self.settings.timeout,
            whole_up_to: self.response.is_some().then_some(MAX_ANSWER),
            identity: self.identity.clone(),
            grant: self.grant.clone(),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("host", &self.uri.host())
            .field("format", &self.settings.format)
            .finish_non_exhaustive()
    }
}

/// As a URL parser reads it: so all notations of an address become one.
fn parse_url(text: &str) -> Result<Uri, String> {
    let url = Url::parse(text).map_err(|error| format!("the URL cannot be read: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("the URL is neither http nor https".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL holds a user name or a password".to_owned());
    }
    url.as_str()
        .parse()
        .map_err(|error| format!("the URL cannot be requested: {error}"))
}

fn method(method: HttpMethod) -> Method {
    match method {
        HttpMethod::Get => Method::GET,
        HttpMethod::Post => Method::POST,
        HttpMethod::Put => Method::PUT,
        HttpMethod::Patch => Method::PATCH,
        HttpMethod::Delete => Method::DELETE,
    }
}
