//! The shape of a dead letter (CONTRACT 1). It must never be refused: a message that can neither
//! be understood nor put aside would come again for ever.

use bytes::Bytes;

use crate::{
    application::{dead_letter_box::CUT_BODY, dead_letters::dead_letter_id, ports::DeadLetter},
    domain::values::format_time,
};

/// The server stores no headers of 64 KiB or more.
const MAX_HEADERS: usize = 60 * 1024;
/// Longest reason, in bytes.
const MAX_REASON: usize = 2 * 1024;
/// Ours; an original that is a dead letter itself has them too.
const OURS: [&str; 6] = [
    "Integration-Reason",
    "Integration-Origin-Subject",
    "Integration-Origin-Stream",
    "Integration-Origin-Sequence",
    "Integration-Origin-Time",
    "Integration-Tenant",
];

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shaped {
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

/// The message as published: the original, as far as the server takes it, and what became of it.
pub(super) fn shape(letter: &DeadLetter, max_payload: usize) -> Shaped {
    let mut notes = Vec::new();
    let ours = |reason: String| our_headers(letter, reason);
    // Room for the notes is kept before they are written.
    let room = MAX_HEADERS
        .min(max_payload)
        .saturating_sub(len(&ours(text(&letter.reason, MAX_REASON))) + 256);
    let mut headers = Vec::new();
    let (mut used, mut left_out) = (0, 0);
    for (name, value) in letter.headers.iter().filter(|(name, _)| is_kept(name)) {
        let line = line_len(name, value);
        if used + line > room {
            left_out += 1;
            continue;
        }
        used += line;
        headers.push((name.clone(), value.clone()));
    }
    if left_out > 0 {
        notes.push(format!("{left_out} headers did not fit and were left out"));
    }
    let before = used + len(&ours(text(&letter.reason, MAX_REASON))) + 256;
    let limit = max_payload.saturating_sub(before);
    let mut body = letter.body.clone();
    if body.len() > limit {
        notes.push(format!("{CUT_BODY}{} to {limit} bytes", body.len()));
        body.truncate(limit);
    }
    let mut reason = text(&letter.reason, MAX_REASON);
    if !notes.is_empty() {
        reason = format!("{reason} ({})", notes.join("; "));
    }
    headers.extend(ours(reason));
    Shaped { headers, body }
}

fn our_headers(letter: &DeadLetter, reason: String) -> Vec<(String, String)> {
    let [reason_name, subject, stream, sequence, time, tenant] = OURS.map(str::to_owned);
    vec![
        (reason_name, reason),
        (subject, text(&letter.subject, 1024)),
        (stream, text(&letter.stream, 256)),
        (sequence, letter.sequence.to_string()),
        (time, format_time(letter.published_at)),
        (tenant, text(&letter.tenant, 256)),
        (super::MSG_ID.to_owned(), dead_letter_id(letter).to_string()),
    ]
}

/// `Nats-*` means something to the server, which would act on it again.
pub(in crate::infrastructure::nats) fn is_kept(name: &str) -> bool {
    let server = name
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("nats-"));
    !server && !OURS.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

fn line_len(name: &str, value: &str) -> usize {
    name.len() + value.len() + ": \r\n".len()
}

fn len(headers: &[(String, String)]) -> usize {
    let lines: usize = headers.iter().map(|(n, v)| line_len(n, v)).sum();
    lines + "NATS/1.0\r\n\r\n".len()
}

/// A header's value: one line, no control characters, at most so many bytes.
fn text(value: &str, max: usize) -> String {
    let mut line = String::with_capacity(value.len().min(max));
    for c in value.chars() {
        if line.len() + c.len_utf8() > max {
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    const MAX: usize = 1024 * 1024;

    fn letter(headers: &[(&str, &str)], body: &'static [u8]) -> DeadLetter {
        DeadLetter {
            kind: "events",
            reason: "empty: there is no body".to_owned(),
            tenant: "default".to_owned(),
            subject: "sales.order.created".to_owned(),
            stream: "ERP_EVENTS".to_owned(),
            sequence: 7,
            published_at: DateTime::UNIX_EPOCH,
            headers: headers
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
            body: Bytes::from_static(body),
        }
    }

    fn value<'a>(shaped: &'a Shaped, name: &str) -> Vec<&'a str> {
        let found = shaped.headers.iter().filter(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str()).collect()
    }

    #[test]
    fn the_original_is_kept_without_what_means_something_to_the_server() {
        let letter = letter(
            &[
                ("X-Tenant-Id", "acme"),
                ("Nats-Msg-Id", "m1"),
                ("nats-expected-stream", "X"),
                ("Integration-Reason", "an older one"),
                ("Integration-Reply-To", "my.replies"),
            ],
            b"body",
        );
        let shaped = shape(&letter, MAX);
        assert_eq!(shaped.body, letter.body);
        assert_eq!(value(&shaped, "X-Tenant-Id"), ["acme"]);
        assert_eq!(value(&shaped, "Integration-Reply-To"), ["my.replies"]);
        assert_eq!(
            value(&shaped, "Integration-Reason"),
            ["empty: there is no body"]
        );
        assert_eq!(
            value(&shaped, "Integration-Origin-Subject"),
            ["sales.order.created"]
        );
        assert_eq!(value(&shaped, "Integration-Origin-Stream"), ["ERP_EVENTS"]);
        assert_eq!(value(&shaped, "Integration-Origin-Sequence"), ["7"]);
        assert_eq!(
            value(&shaped, "Integration-Origin-Time"),
            ["1970-01-01T00:00:00.000Z"]
        );
        assert_eq!(value(&shaped, "Integration-Tenant"), ["default"]);
        assert_eq!(
            value(&shaped, "Nats-Msg-Id"),
            [dead_letter_id(&letter).to_string()]
        );
        assert!(value(&shaped, "nats-expected-stream").is_empty());
    }

    #[test]
    fn a_reason_is_one_line() {
        let mut letter = letter(&[], b"");
        letter.reason = format!("malformed: a\r\nEvil: x\u{0}{}", "é".repeat(3000));
        let shaped = shape(&letter, MAX);
        let reason = value(&shaped, "Integration-Reason").concat();
        assert!(reason.starts_with("malformed: a  Evil: x "), "{reason}");
        assert!(reason.len() <= MAX_REASON);
    }

    #[test]
    fn what_is_too_large_is_cut_and_says_so() {
        let letter = letter(&[("A", "b")], &[b'x'; 4096]);
        let shaped = shape(&letter, 4096);
        assert!(len(&shaped.headers) + shaped.body.len() <= 4096);
        assert!(shaped.body.len() > 3000);
        let reason = value(&shaped, "Integration-Reason").concat();
        assert!(reason.contains("the body was cut from 4096 to"), "{reason}");
        assert_eq!(value(&shaped, "A"), ["b"]);
    }

    #[test]
    fn headers_that_the_server_would_refuse_are_left_out() {
        let long = "v".repeat(50_000);
        let letter = letter(&[("Big-1", &long), ("Big-2", &long), ("Small", "s")], b"{}");
        let shaped = shape(&letter, MAX);
        assert!(len(&shaped.headers) < 65_535);
        assert_eq!(value(&shaped, "Small"), ["s"]);
        let reason = value(&shaped, "Integration-Reason").concat();
        assert!(reason.contains("1 headers did not fit"), "{reason}");
    }
}
