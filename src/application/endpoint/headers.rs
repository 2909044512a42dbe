//! The headers of a request: which belong to the worker, and which the user may set.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::domain::entities::WebhookSettings;

pub(super) const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
pub(super) const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
pub(super) const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// How the worker names itself.
pub(crate) const USER_AGENT: &str = concat!("integration-worker/", env!("CARGO_PKG_VERSION"));

/// Names that the worker or the connection needs for itself.
const RESERVED: [&str; 14] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
const RESERVED_PREFIXES: [&str; 3] = ["webhook-", "ce-", "proxy-"];

/// Names whose values are no secrets.
const PUBLIC: [HeaderName; 4] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CONTENT_TYPE,
];

/// Whether a webhook's own headers may not hold this name, in any case: the worker sets it, or it
/// concerns the connection (`host`, `content-length`, `user-agent`, `webhook-*`, `traceparent`, `ce-*`, …).
///
/// `Content-Type` may be set: it is used for a JSON body that has no type of its own (see
/// [`super::Endpoint`]).
pub fn is_reserved_header(name: &str) -> bool {
    let name = name.trim().to_ascii_lowercase();
    RESERVED.contains(&name.as_str())
        || RESERVED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// The headers that are the same for every request, and a place for each that is not, so that a copy
/// need not grow.
pub(super) fn base(settings: &WebhookSettings) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::with_capacity(settings.headers.len() + 8);
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    let mut own = HeaderMap::with_capacity(settings.headers.len());
    for (name, value) in &settings.headers {
        if is_reserved_header(name) {
            continue;
        }
        let fault = || format!("the header {name:?} cannot be sent");
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| fault())?;
        let mut value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| fault())?;
        value.set_sensitive(!PUBLIC.contains(&parsed));
        own.append(parsed, value);
    }
    headers.extend(own);
    let later = HeaderValue::from_static("");
    for name in [
        WEBHOOK_ID,
        WEBHOOK_TIMESTAMP,
        WEBHOOK_SIGNATURE,
        TRACEPARENT,
    ] {
        headers.insert(name, later.clone());
    }
    if !headers.contains_key(header::CONTENT_TYPE) {
        headers.insert(header::CONTENT_TYPE, later);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_worker_sets_is_reserved_and_what_a_user_may_set_is_not() {
        for name in [
            "webhook-id",
            "Webhook-Signature",
            "webhook-anything",
            "HOST",
            "content-length",
            "Transfer-Encoding",
            "connection",
            "Keep-Alive",
            "TE",
            "trailer",
            "upgrade",
            "proxy-authorization",
            "Expect",
            "ce-id",
            "traceparent",
            "tracestate",
            "User-Agent",
            " host ",
        ] {
            assert!(is_reserved_header(name), "{name}");
        }
        for name in [
            "content-type",
            "Content-Type",
            "authorization",
            "accept",
            "x-api-key",
            "cookie",
            "cell",
            "x-webhook-id",
        ] {
            assert!(!is_reserved_header(name), "{name}");
        }
    }
}
