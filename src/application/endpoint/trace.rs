//! W3C trace context of a request.

use http::HeaderValue;
use uuid::Uuid;

use crate::domain::{events::EventMeta, values::DeliveryId};

/// Longest trace state that is passed on, in bytes: what the standard asks for at least.
const MAX_TRACESTATE: usize = 512;

/// `(traceparent, tracestate)` of an attempt. A valid context of the event goes on under a new parent;
/// otherwise the delivery is a trace of its own. The ids are derived: the same attempt has the same.
pub(super) fn context(
    meta: &EventMeta,
    delivery: DeliveryId,
    attempt: i32,
) -> (String, Option<HeaderValue>) {
    let (parent, _) = Uuid::new_v5(&delivery.0, &trace_name(attempt)).as_u64_pair();
    match meta.traceparent.as_deref().and_then(parse) {
        Some((trace, flags)) => (
            format!("00-{trace}-{parent:016x}-{flags}"),
            meta.tracestate.as_deref().and_then(tracestate),
        ),
        None => (format!("00-{}-{parent:016x}-01", delivery.0.simple()), None),
    }
}

/// Other than the names of the delivery's events.
fn trace_name(attempt: i32) -> [u8; 9] {
    let [a, b, c, d] = attempt.to_be_bytes();
    [b't', b'r', b'a', b'c', b'e', a, b, c, d]
}

fn tracestate(text: &str) -> Option<HeaderValue> {
    if text.is_empty() || text.len() > MAX_TRACESTATE {
        return None;
    }
    HeaderValue::from_str(text).ok()
}

/// Trace id and flags of a valid `traceparent`; a later version may say more after the flags.
fn parse(text: &str) -> Option<(&str, &str)> {
    let mut parts = text.split('-');
    let version = hex(parts.next()?, 2)?;
    let trace = hex(parts.next()?, 32)?;
    let parent = hex(parts.next()?, 16)?;
    let flags = hex(parts.next()?, 2)?;
    let more = parts.next().is_some();
    let zero = |id: &str| id.bytes().all(|b| b == b'0');
    let known = version != "ff" && (version != "00" || !more);
    (known && !zero(trace) && !zero(parent)).then_some((trace, flags))
}

fn hex(text: &str, length: usize) -> Option<&str> {
    let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == length && text.bytes().all(digit)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn a_valid_traceparent_is_read_and_any_other_is_not() {
        let rest = format!("{TRACE}-b7ad6b7169203331-01");
        for (text, flags) in [
            (format!("00-{rest}"), "01"),
            (format!("00-{TRACE}-b7ad6b7169203331-00"), "00"),
            (format!("cc-{rest}"), "01"),
            (format!("cc-{rest}-what-comes-later"), "01"),
        ] {
            assert_eq!(parse(&text), Some((TRACE, flags)), "{text}");
        }
        for text in [
            String::new(),
            rest.clone(),
            format!("ff-{rest}"),
            format!("00-{rest}-more"),
            format!("00-{rest}-"),
            format!("0-{rest}"),
            format!("00-{}", rest.to_uppercase()),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{TRACE}-b7ad6b7169203331-1"),
            format!("00-{TRACE}-b7ad6b7169203331-01\r\nx: y"),
        ] {
            assert_eq!(parse(&text), None, "{text}");
        }
    }
}
