//! W3C trace context of a request.

use http::HeaderValue;
use uuid::Uuid;

use crate::domain::{
    events::EventMeta,
    values::{DeliveryId, TraceContext},
};

/// `(traceparent, tracestate)` of an attempt. The trace of the event goes on under a new parent;
/// otherwise the delivery is a trace of its own. The ids are derived: the same attempt has the same.
pub(super) fn context(
    meta: &EventMeta,
    delivery: DeliveryId,
    attempt: i32,
) -> (String, Option<HeaderValue>) {
    let parent = parent(delivery.0, attempt);
    let continued = meta.trace.as_ref();
    match continued.and_then(TraceContext::trace_and_flags) {
        Some((trace, flags)) => {
            let state = continued.and_then(TraceContext::state);
            let state = state.and_then(|text| HeaderValue::from_str(text).ok());
            (format!("00-{trace}-{parent:016x}-{flags}"), state)
        }
        None => (of_its_own(delivery.0, attempt), None),
    }
}

/// `traceparent` of an attempt that is a trace of its own.
pub(super) fn of_its_own(id: Uuid, attempt: i32) -> String {
    format!("00-{}-{:016x}-01", id.simple(), parent(id, attempt))
}

fn parent(id: Uuid, attempt: i32) -> u64 {
    Uuid::new_v5(&id, &trace_name(attempt)).as_u64_pair().0
}

/// Other than the names of the delivery's events.
fn trace_name(attempt: i32) -> [u8; 9] {
    let [a, b, c, d] = attempt.to_be_bytes();
    [b't', b'r', b'a', b'c', b'e', a, b, c, d]
}
