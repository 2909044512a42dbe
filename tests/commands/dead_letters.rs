//! Dead letters: whose they are, pages, and that a replay that is cut short is finished. The box is
//! played here; `tests/nats_adapters` has the real one.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;
use integration_worker::application::{
    dead_letter_box::{BoxState, DeadLetterBox, KeptLetter, LetterId, SendAgainError, Slice},
    ports::BusError,
};
use serde_json::{Value, json};

use crate::world::{World, refusal};

/// A box in memory.
#[derive(Default)]
struct PlayedBox {
    letters: Mutex<Vec<KeptLetter>>,
    sent: Mutex<Vec<LetterId>>,
    /// So many removals fail.
    failing: AtomicU32,
}

fn failure() -> BusError {
    BusError {
        what: "it".to_owned(),
        source: "away".into(),
    }
}

#[async_trait]
impl DeadLetterBox for PlayedBox {
    async fn state(&self) -> Result<BoxState, BusError> {
        Err(failure())
    }

    async fn letter(&self, id: LetterId) -> Result<Option<KeptLetter>, BusError> {
        let letters = self.letters.lock().unwrap();
        Ok(letters.iter().find(|letter| letter.id() == id).cloned())
    }

    async fn newest(&self, from: Option<u64>) -> Result<Slice, BusError> {
        let from = from.unwrap_or(u64::MAX);
        let letters = self.letters.lock().unwrap();
        let mut below = letters
            .iter()
            .rev()
            .filter(|letter| letter.sequence <= from);
        let letters: Vec<_> = below.by_ref().take(3).cloned().collect();
        let next = below.next().map(|letter| letter.sequence);
        Ok(Slice { letters, next })
    }

    async fn oldest(&self, _: u64) -> Result<Slice, BusError> {
        Err(failure())
    }

    async fn send_again(&self, letter: &KeptLetter) -> Result<(), SendAgainError> {
        if letter.subject.starts_with("elsewhere.") {
            return Err(SendAgainError::Refused("nobody takes it".to_owned()));
        }
        self.sent.lock().unwrap().push(letter.id());
        Ok(())
    }

    async fn remove(&self, id: LetterId) -> Result<(), BusError> {
        let fails = |left: u32| left.checked_sub(1);
        if self
            .failing
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fails)
            .is_ok()
        {
            return Err(failure());
        }
        self.letters
            .lock()
            .unwrap()
            .retain(|letter| letter.id() != id);
        Ok(())
    }
}

fn letter(sequence: u64) -> KeptLetter {
    let seconds = 1_790_000_000 + i64::try_from(sequence).unwrap();
    KeptLetter {
        sequence,
        added_at: DateTime::from_timestamp(seconds, 0).unwrap(),
        kind: "events",
        reason: "empty: there is no body".to_owned(),
        tenant: Some("default".to_owned()),
        subject: "sales.order.created".to_owned(),
        stream: "ERP_EVENTS".to_owned(),
        origin_sequence: Some(sequence + 100),
        published_at: None,
        headers: vec![("Authorization".to_owned(), "Bearer canary".to_owned())],
        size: 4,
        body: Bytes::from_static(b"body"),
    }
}

/// A world with these letters, and their box.
async fn with(letters: Vec<KeptLetter>) -> (World, Arc<PlayedBox>) {
    let played = Arc::new(PlayedBox {
        letters: Mutex::new(letters),
        ..PlayedBox::default()
    });
    let mut world = World::new().await;
    world.with_dead_letters(Arc::<PlayedBox>::clone(&played));
    (world, played)
}

fn ids(page: &Value) -> Vec<&str> {
    let items = page["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["id"].as_str().unwrap())
        .collect()
}

fn id_of(letter: &KeptLetter) -> Value {
    json!({ "id": letter.id().to_string() })
}

#[tokio::test]
async fn a_list_is_read_page_by_page_and_each_letter_is_there_once() {
    let (world, _) = with((1..=8).map(letter).collect()).await;
    let mut seen = Vec::new();
    let mut body = json!({ "limit": 2 });
    loop {
        let page = world.ok("deadletter.list", body.clone()).await;
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        if page["nextCursor"].is_null() {
            break;
        }
        body["cursor"] = page["nextCursor"].clone();
    }
    let expected: Vec<_> = (1..=8).rev().map(|n| letter(n).id().to_string()).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_list_has_what_passes_all_its_filters() {
    let mut other = letter(4);
    other.kind = "commands";
    other.reason = "unknown_action: x".to_owned();
    other.subject = "integration.commands.a.b".to_owned();
    let (world, _) = with(vec![letter(1), letter(2), letter(3), other, letter(5)]).await;
    for (filter, expected) in [
        (json!({}), &[5, 4, 3, 2, 1][..]),
        (json!({ "kind": "commands" }), &[4]),
        (json!({ "reason": "empty", "limit": 3 }), &[5, 3, 2]),
        (json!({ "subject": "integration.commands.a.b" }), &[4]),
        (json!({ "kind": "events", "reason": "unknown_action" }), &[]),
        (json!({ "since": "2026-09-21T14:13:23Z" }), &[5, 4, 3]),
        (json!({ "until": "2026-09-21T14:13:23Z" }), &[2, 1]),
    ] {
        let page = world.ok("deadletter.list", filter.clone()).await;
        let found: Vec<u64> = ids(&page)
            .iter()
            .map(|id| id.parse::<LetterId>().unwrap().sequence)
            .collect();
        assert_eq!(found, expected, "{filter}");
    }
    for (body, path) in [
        (json!({ "kind": "other" }), "kind"),
        (json!({ "limit": 101 }), "limit"),
        (json!({ "cursor": "x" }), "cursor"),
        (json!({ "tenant": "x" }), "tenant"),
    ] {
        let refused = world.call("deadletter.list", &body).refused().await;
        assert_eq!(refused, refusal("validation_failed", &[path]));
    }
}

#[tokio::test]
async fn a_page_ends_after_so_much_was_looked_through_and_says_where_to_go_on() {
    let mut letters: Vec<_> = (1..=400).map(letter).collect();
    letters[0].kind = "commands";
    let (world, _) = with(letters).await;
    let mut body = json!({ "kind": "commands" });
    let mut pages = 0;
    let found = loop {
        let page = world.ok("deadletter.list", body.clone()).await;
        pages += 1;
        if page["nextCursor"].is_null() {
            break page;
        }
        assert!(ids(&page).is_empty());
        body["cursor"] = page["nextCursor"].clone();
    };
    assert_eq!(ids(&found), [letter(1).id().to_string()]);
    assert!(pages > 1, "one page looked through everything");
}

#[tokio::test]
async fn a_letter_is_shown_with_its_body_and_without_secrets() {
    let mut binary = letter(2);
    binary.body = Bytes::from_static(b"\xff\x00");
    let mut long = letter(3);
    long.body = "ä".repeat(100_000).into();
    let (world, _) = with(vec![letter(1), binary.clone(), long.clone()]).await;

    let shown = world.ok("deadletter.get", id_of(&letter(1))).await;

    assert_eq!(shown["body"], "body");
    assert_eq!(
        shown["reason"],
        json!({ "code": "empty", "text": "there is no body" })
    );
    assert_eq!(shown["sequence"], 101);
    assert_eq!(shown["addedAt"], "2026-09-21T14:13:21.000Z");
    assert!(!shown.to_string().contains("canary"), "{shown}");
    let shown = world.ok("deadletter.get", id_of(&binary)).await;
    assert_eq!(shown["bodyBase64"], "/wA=");
    assert_eq!(shown.get("body"), None);
    let shown = world.ok("deadletter.get", id_of(&long)).await;
    assert_eq!(shown["body"].as_str().map(str::len), Some(128 * 1024));
    assert_eq!(shown["bodyCut"], true);
    let listed = world.ok("deadletter.list", json!({})).await.to_string();
    assert!(
        !listed.contains("canary") && !listed.contains("\"body\":"),
        "{listed}"
    );
}

#[tokio::test]
async fn another_tenants_letters_are_not_there() {
    let mut other = letter(1);
    other.tenant = Some("acme".to_owned());
    let mut nobodys = letter(2);
    nobodys.tenant = None;
    let (world, played) = with(vec![other.clone(), nobodys.clone()]).await;
    let listed = world.ok("deadletter.list", json!({})).await;
    assert_eq!(ids(&listed), [nobodys.id().to_string()]);
    for action in ["get", "replay", "discard"] {
        let action = format!("deadletter.{action}");
        let refused = world.call(&action, &id_of(&other)).refused().await;
        assert_eq!(refused, refusal("not_found", &["id"]), "{action}");
        let refused = world.call(&action, &json!({ "id": "1" })).refused().await;
        assert_eq!(refused, refusal("validation_failed", &["id"]), "{action}");
    }
    assert_eq!(played.letters.lock().unwrap().len(), 2);
    assert_eq!(played.sent.lock().unwrap().len(), 0);

    let call = world.call("deadletter.discard", &id_of(&other));
    call.header("X-Tenant-Id", "acme").ok().await;

    assert_eq!(played.letters.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_replayed_letter_is_sent_and_gone() {
    let (world, played) = with(vec![letter(1), letter(2)]).await;

    let replayed = world.ok("deadletter.replay", id_of(&letter(1))).await;

    assert_eq!(replayed["subject"], "sales.order.created");
    assert_eq!(*played.sent.lock().unwrap(), [letter(1).id()]);
    let left = world.ok("deadletter.list", json!({})).await;
    assert_eq!(ids(&left), [letter(2).id().to_string()]);
    let again = world.call("deadletter.replay", &id_of(&letter(1)));
    assert_eq!(again.refused().await, refusal("not_found", &["id"]));
    assert!(world.stored_anywhere("deadletter.replay"), "no audit row");
}

#[tokio::test]
async fn a_letter_that_cannot_go_out_again_stays_and_says_why() {
    let mut outside = letter(1);
    outside.subject = "elsewhere.order".to_owned();
    let mut cut = letter(2);
    cut.reason = "too_large: 9 bytes (the body was cut from 9 to 4 bytes)".to_owned();
    let (world, played) = with(vec![outside.clone(), cut.clone()]).await;
    for letter in [outside, cut] {
        let refused = world.call("deadletter.replay", &id_of(&letter)).refused();
        assert_eq!(refused.await, refusal("invalid_transition", &[]));
    }
    assert_eq!(played.letters.lock().unwrap().len(), 2);
    assert_eq!(played.sent.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn what_was_cut_short_before_the_removal_is_finished_by_the_same_command() {
    for action in ["deadletter.replay", "deadletter.discard"] {
        let (world, played) = with(vec![letter(1)]).await;
        played.failing.store(1, Ordering::Relaxed);
        let call = || world.call(action, &id_of(&letter(1))).fallback(7).durable();

        let cut_short = call().refused().await;

        assert_eq!(cut_short, refusal("unavailable", &[]), "{action}");
        assert_eq!(played.letters.lock().unwrap().len(), 1);
        let sent = usize::from(action == "deadletter.replay");
        for _ in 0..2 {
            let done = call().ok().await;
            assert_eq!(done["id"], letter(1).id().to_string());
            assert_eq!(played.letters.lock().unwrap().len(), 0, "{action}");
            assert_eq!(played.sent.lock().unwrap().len(), sent, "{action}");
        }
        assert_eq!(world.event_types().await, ["command.completed"], "{action}");
    }
}
