//! Times as the contract writes them: RFC 3339, UTC, milliseconds.

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};

/// A moment in UTC.
/// Times are cut to milliseconds where they are made, so that both databases keep them unchanged.
pub type Timestamp = DateTime<Utc>;

/// Cuts a time to whole milliseconds.
pub fn truncate_to_millis(time: Timestamp) -> Timestamp {
    time.trunc_subsecs(3)
}

/// Writes a time as RFC 3339 UTC with milliseconds, for example `2026-11-02T08:14:09.120Z`.
pub fn format_time(time: Timestamp) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
