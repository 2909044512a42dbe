use uuid::Uuid;

use super::*;

const NOW: Timestamp = chrono::DateTime::from_timestamp(1_772_350_000, 0).unwrap();

fn tenant() -> TenantId {
    TenantId::try_new("nord").unwrap()
}

fn read_json(kind: ReplayKind, body: Value) -> Result<Asked, Vec<String>> {
    let Value::Object(map) = body else {
        panic!("not an object")
    };
    let body = Body {
        map,
        raw: bytes::Bytes::new(),
    };
    read(kind, body, &tenant(), NOW).map_err(|error| match error {
        CommandError::Refused(refusal) => {
            let paths = refusal.details.into_iter().map(|fault| fault.path);
            paths.collect()
        }
        other => panic!("{other}"),
    })
}

fn with(more: &Value) -> Value {
    let id = Uuid::from_u128(7);
    let mut body = json!({ "id": id, "since": "2026-01-01T00:00:00Z" });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn bad_input_names_every_fault() {
    use ReplayKind::{Backfill, Replay};
    for (kind, body, paths) in [
        (Replay, json!({}), vec!["id", "since"]),
        (
            Replay,
            with(&json!({ "id": 1, "since": 2 })),
            vec!["id", "since"],
        ),
        (
            Replay,
            with(&json!({ "since": "2099-01-01T00:00:00Z" })),
            vec!["since"],
        ),
        (
            Replay,
            with(&json!({ "until": "2025-12-31T23:59:59Z" })),
            vec!["until"],
        ),
        (Replay, with(&json!({ "statuses": [] })), vec!["statuses"]),
        (
            Replay,
            with(&json!({ "statuses": ["pending"] })),
            vec!["statuses[0]"],
        ),
        (
            Replay,
            with(&json!({ "statuses": "delivered" })),
            vec!["statuses"],
        ),
        (
            Replay,
            with(&json!({ "eventTypes": ["a..b", 7] })),
            vec!["eventTypes[0]", "eventTypes[1]"],
        ),
        (
            Replay,
            with(&json!({ "dryRun": "yes", "x": 1 })),
            vec!["dryRun", "x"],
        ),
        (
            Backfill,
            with(&json!({ "statuses": ["delivered"] })),
            vec!["statuses"],
        ),
        (
            Backfill,
            with(&json!({ "eventTypes": ["a"] })),
            vec!["eventTypes"],
        ),
    ] {
        let found = read_json(kind, body.clone()).err();
        let found = found.unwrap_or_else(|| panic!("{body} is taken"));
        assert_eq!(found, paths, "{body}");
    }
}

#[test]
fn a_backfill_ends_behind_the_last_message_whatever_this_clock_says() {
    let minute = TimeDelta::minutes(1);
    let read = |body| read_json(ReplayKind::Backfill, with(&body)).ok().unwrap();
    for published_at in [NOW - minute, NOW, NOW + minute] {
        let last = ArchivePlace {
            sequence: 7,
            published_at,
        };
        let asked = read(json!({}));
        assert!(asked.end(Some(last)) > published_at);
        assert!(asked.end(Some(last)) < published_at + minute);
        assert_eq!(asked.end(None), NOW);
        let early = read(json!({ "until": "2026-01-02T00:00:00Z" }));
        assert_eq!(early.end(Some(last)), early.selection.until);
    }
}

#[test]
fn a_replay_ends_now_unless_it_is_to_end_earlier() {
    let read = |body| read_json(ReplayKind::Replay, with(&body)).ok().unwrap();
    let asked = read(json!({}));
    assert_eq!(asked.selection.until, NOW);
    assert!(!asked.dry_run);
    let asked = read(json!({ "until": "2099-01-01T00:00:00Z", "dryRun": true }));
    assert_eq!(asked.selection.until, NOW);
    assert!(asked.dry_run);
    let asked = read(json!({ "until": "2026-01-01T00:00:00Z", "statuses": ["exhausted"] }));
    assert_eq!(asked.selection.until, asked.selection.since);
    assert_eq!(asked.selection.statuses, [DeliveryStatus::Exhausted]);
}
