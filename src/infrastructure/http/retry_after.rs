//! `Retry-After`, in both of its forms.

use std::time::{Duration, SystemTime};

use crate::domain::values::Timestamp;

/// The wait that a `Retry-After` asks for: seconds, or an HTTP date. A date that is past asks for none.
pub(super) fn parse_retry_after(value: &[u8], now: Timestamp) -> Option<Duration> {
    let text = str::from_utf8(value).ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are still a wait; whoever uses it caps it.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(
        date.duration_since(SystemTime::from(now))
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_nothing_else() {
        let now = "2026-11-02T08:14:09Z".parse().unwrap();
        let seconds = |text: &str| parse_retry_after(text.as_bytes(), now).map(|d| d.as_secs());
        for (text, expected) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Mon, 02 Nov 2026 08:15:09 GMT", Some(60)),
            ("Monday, 02-Nov-26 08:15:09 GMT", Some(60)),
            ("Mon Nov  2 08:15:09 2026", Some(60)),
            ("Mon, 02 Nov 2026 08:00:00 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("2026-11-02T08:15:09Z", None),
        ] {
            assert_eq!(seconds(text), expected, "{text:?}");
        }
        assert_eq!(parse_retry_after(b"\xff", now), None);
    }
}
