//! When a value that an envelope holds is good enough to be used. What is not counts as missing, except
//! the tenant.

use std::borrow::Cow;

use chrono::{DateTime, Utc};

use crate::domain::{
    events::MadeBy,
    values::{TenantError, TenantId, Timestamp, truncate_to_millis},
};

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

/// Of what answers it was made.
pub(super) fn made_by(webhook: Option<&str>, chain: Option<&str>) -> Option<MadeBy> {
    MadeBy::read(webhook, chain.map(|chain| chain.trim_matches('"')))
}

/// The tenant that the JSON text of a field names: none when it is missing, `null` or `""`.
pub(super) fn tenant(raw: Option<&str>) -> Result<Option<TenantId>, TenantError> {
    match raw {
        None | Some("null" | "\"\"") => Ok(None),
        Some(raw) => TenantId::try_new(&json::string(raw).ok_or(TenantError)?).map(Some),
    }
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
}
