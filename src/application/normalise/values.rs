//! When a value that an envelope holds is good enough to be used. What is not counts as missing, except
//! the tenant.

use std::borrow::Cow;

use chrono::{DateTime, Utc};

use crate::domain::values::{TenantError, TenantId, Timestamp, truncate_to_millis};

use super::json;

/// Longest event id, in bytes.
const MAX_ID: usize = 256;
/// Longest event type that an envelope may give, in bytes; also the longest exact pattern.
const MAX_TYPE: usize = 255;
/// Longest correlation id, in bytes.
const MAX_CORRELATION: usize = 256;
/// Longest CloudEvents source, in bytes.
const MAX_SOURCE: usize = 1024;
/// Longest content type, in bytes.
const MAX_CONTENT_TYPE: usize = 255;
/// Longest trace state, in bytes (W3C).
const MAX_TRACESTATE: usize = 512;

type Text<'a> = Cow<'a, str>;

/// Neither empty, nor too long, nor with control characters: those can neither be stored by PostgreSQL
/// (NUL) nor sent in a header.
fn usable(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && !text.chars().any(char::is_control)
}

pub(super) fn id(text: Option<Text<'_>>) -> Option<Text<'_>> {
    text.filter(|text| usable(text, MAX_ID))
}

pub(super) fn event_type(text: Option<Text<'_>>) -> Option<Text<'_>> {
    text.filter(|text| usable(text, MAX_TYPE))
}

pub(super) fn correlation(text: Option<Text<'_>>) -> Option<Text<'_>> {
    text.filter(|text| usable(text, MAX_CORRELATION))
}

pub(super) fn source(text: Option<Text<'_>>) -> Option<Text<'_>> {
    text.filter(|text| usable(text, MAX_SOURCE))
}

pub(super) fn content_type(text: Option<Text<'_>>) -> Option<Text<'_>> {
    text.filter(|text| usable(text, MAX_CONTENT_TYPE))
}

/// Reads RFC 3339, in any offset. A time without a zone is not read: the stream's own time is nearer
/// to the truth than a guess.
pub(super) fn time(text: Option<Text<'_>>) -> Option<Timestamp> {
    let time = DateTime::parse_from_rfc3339(&text?).ok()?;
    Some(truncate_to_millis(time.with_timezone(&Utc)))
}

/// The tenant that the JSON text of a field names: none when it is missing, `null` or `""`.
pub(super) fn tenant(raw: Option<&str>) -> Result<Option<TenantId>, TenantError> {
    match raw {
        None | Some("null" | "\"\"") => Ok(None),
        Some(raw) => TenantId::try_new(&json::string(raw).ok_or(TenantError)?).map(Some),
    }
}

/// A W3C trace context, `(traceparent, tracestate)`; the state counts only beside a valid parent.
pub(super) fn trace(parent: Option<Text<'_>>, state: Option<Text<'_>>) -> Option<Trace> {
    let parent = parent.filter(|text| is_traceparent(text))?.into_owned();
    let state = state.filter(|text| usable(text, MAX_TRACESTATE) && text.is_ascii());
    Some(Trace {
        parent,
        state: state.map(Cow::into_owned),
    })
}

#[derive(Debug)]
pub(super) struct Trace {
    pub(super) parent: String,
    pub(super) state: Option<String>,
}

/// Version `00` of `traceparent`; of later versions the part that is the same.
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut part = |length| parts.next().filter(|part| is_lower_hex(part, length));
    let (version, trace, span, flags) = (part(2), part(32), part(16), part(2));
    let longer = parts.next().is_some();
    version.is_some_and(|version| version != "ff" && (version != "00" || !longer))
        && trace.is_some_and(is_not_zero)
        && span.is_some_and(is_not_zero)
        && flags.is_some()
        && usable(text, MAX_TRACESTATE)
}

fn is_lower_hex(part: &str, length: usize) -> bool {
    part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_not_zero(part: &str) -> bool {
    part.bytes().any(|b| b != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Text<'_> {
        Cow::Borrowed(text)
    }

    #[test]
    fn a_time_is_rfc_3339_in_any_offset_cut_to_milliseconds() {
        for (written, millis) in [
            ("2026-11-02T08:14:09.120Z", Some(1_793_607_249_120)),
            ("2026-11-02T09:14:09.1209999+01:00", Some(1_793_607_249_120)),
            ("2026-11-02T08:14:09Z", Some(1_793_607_249_000)),
            ("2026-11-02T08:14:09.120", None),
            ("2026-11-02", None),
            ("1793607249", None),
            ("2026-13-02T08:14:09Z", None),
            ("", None),
        ] {
            let read = time(Some(text(written))).map(|time| time.timestamp_millis());
            assert_eq!(read, millis, "{written}");
        }
    }

    #[test]
    fn an_id_has_1_to_256_bytes_and_no_control_characters() {
        let long = "x".repeat(257);
        for (written, good) in [
            ("a", true),
            (long.get(1..).unwrap(), true),
            (long.as_str(), false),
            ("", false),
            ("a\0", false),
            ("ä 1", true),
        ] {
            assert_eq!(id(Some(text(written))).is_some(), good, "{written:?}");
        }
    }

    #[test]
    fn a_tenant_that_is_not_named_differs_from_one_that_cannot_be() {
        for missing in [None, Some("null"), Some("\"\"")] {
            assert_eq!(tenant(missing), Ok(None), "{missing:?}");
        }
        let nord = TenantId::try_new("nord-1").unwrap();
        assert_eq!(tenant(Some("\"nord-1\"")), Ok(Some(nord.clone())));
        assert_eq!(tenant(Some(r#""nord\u002d1""#)), Ok(Some(nord)));
        for bad in ["7", "{}", "[]", "true", "\"a b\"", "\"ä\"", r#""\ud800""#] {
            assert_eq!(tenant(Some(bad)), Err(TenantError), "{bad}");
        }
    }

    #[test]
    fn a_trace_context_is_that_of_the_w3c() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let found = trace(Some(text(good)), Some(text("a=b"))).unwrap();
        assert_eq!(
            (found.parent.as_str(), found.state.as_deref()),
            (good, Some("a=b"))
        );
        assert!(trace(Some(text(&good.replacen("00", "01", 1))), None).is_some());
        for bad in [
            "",
            "00",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        ] {
            assert!(trace(Some(text(bad)), Some(text("a=b"))).is_none(), "{bad}");
        }
    }
}
