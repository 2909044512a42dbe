//! Events that wait to be published, and the one relay that takes them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use integration_worker::domain::{
    events::{DomainEvent, MadeBy, Response},
    interfaces::{OutboxClaim, OutboxPostponement, OutboxRow},
    values::{Timestamp, TraceContext, WebhookId},
};
use serde_json::Value;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    harness::{Database, sorted},
    samples::{TRACE, at, event, new_id},
};

both!(
    an_event_comes_out_as_it_is_published,
    events_come_in_the_order_of_their_versions,
    an_event_that_is_there_already_is_left_alone,
    published_rows_do_not_come_again,
    one_relay_works_at_a_time,
    of_many_relays_one_is_let_in,
    a_lease_that_ends_lets_another_in,
    published_rows_are_pruned_by_age_and_in_pieces,
    events_made_of_answers_and_our_own_do_not_fill_each_others_batches,
    what_is_refused_waits_twice_as_long_each_time_and_lets_others_pass,
    a_batch_ends_at_its_bytes_and_holds_one_event_at_least,
    events_made_of_answers_are_pruned_once_they_are_published,
);

async fn add(database: &Database, events: &[DomainEvent]) {
    database
        .work(async |work| work.add_events(events).await.expect("it is in"))
        .await;
}

fn claim(holder: u128, now: Timestamp, limit: u32) -> OutboxClaim {
    OutboxClaim {
        holder: Uuid::from_u128(holder),
        now,
        lease: Duration::from_secs(30),
        responses: false,
        limit,
        max_bytes: u32::MAX,
    }
}

/// An event made of an answer.
fn made(subject: &str) -> DomainEvent {
    let mut made = event(subject, 1);
    made.response = Some(Response {
        made_by: MadeBy {
            webhook: WebhookId(Uuid::from_u128(1)),
            before: Vec::new(),
            is_last: false,
        },
        data: r#"{"n":18450.00}"#.to_owned(),
    });
    made
}

fn responses(now: Timestamp, limit: u32) -> OutboxClaim {
    OutboxClaim {
        responses: true,
        ..claim(1, now, limit)
    }
}

async fn batch(database: &Database, claim: OutboxClaim) -> Option<Vec<OutboxRow>> {
    let batch = database.store.outbox_batch(claim).await;
    batch.expect("it reads")
}

fn ids(rows: &[OutboxRow]) -> Vec<Uuid> {
    rows.iter().map(|row| row.id).collect()
}

async fn an_event_comes_out_as_it_is_published(database: &Database) {
    let mut bare = event("größe „x“", 1);
    bare.context.trace = None;
    bare.data = serde_json::from_str(r#"{"z":18450.00,"a":{"b":null},"nul":"\u0000"}"#)
        .expect("it is JSON");
    let mut stateless = event("b", 1);
    stateless.context.trace = TraceContext::read(Some(TRACE), None);
    let made = made("c");
    let events = [event("a", 1), bare, stateless];
    assert!(
        events[0]
            .context
            .trace
            .as_ref()
            .is_some_and(|trace| trace.state().is_some())
    );

    add(database, &events).await;
    add(database, std::slice::from_ref(&made)).await;

    let row = |event: &DomainEvent| OutboxRow {
        is_response: event.response.is_some(),
        id: event.id,
        event_type: event.event_type.clone(),
        trace: event.context.trace.clone(),
        body: event.to_json(),
    };
    assert_eq!(
        batch(database, claim(1, at(0), 10)).await,
        Some(events.iter().map(row).collect())
    );
    let found = batch(database, responses(at(0), 10)).await;
    assert_eq!(found, Some(vec![row(&made)]));
}

async fn events_come_in_the_order_of_their_versions(database: &Database) {
    // Of three subjects, interleaved; some in one unit of work, some in their own.
    let all: Vec<DomainEvent> = (1..=20)
        .flat_map(|version| ["a", "b", "c"].map(|subject| event(subject, version)))
        .collect();
    let (together, alone) = all.split_at(45);
    add(database, together).await;
    for one in alone {
        add(database, std::slice::from_ref(one)).await;
    }

    let mut found = Vec::new();
    loop {
        let rows = batch(database, claim(1, at(0), 7)).await;
        let rows = rows.expect("it holds the lease");
        if rows.is_empty() {
            break;
        }
        assert!(rows.len() <= 7);
        let published = database.store.outbox_published(&ids(&rows), at(1)).await;
        published.expect("it marks");
        found.extend(rows);
    }

    assert_eq!(sorted(ids(&found)), sorted(all.iter().map(|one| one.id)));
    let mut versions: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in &found {
        let body: Value = serde_json::from_slice(&row.body).expect("it is JSON");
        let subject = body["subject"].as_str().expect("it has one").to_owned();
        let version = body["aggregateversion"].as_i64().expect("a number");
        versions.entry(subject).or_default().push(version);
    }
    for subject in ["a", "b", "c"] {
        assert_eq!(versions[subject], (1..=20).collect::<Vec<_>>(), "{subject}");
    }
}

async fn an_event_that_is_there_already_is_left_alone(database: &Database) {
    let first = event("a", 1);
    let mut twin = event("b", 7);
    twin.id = first.id;
    let next = event("a", 2);
    add(database, &[first.clone(), twin.clone(), next.clone()]).await;
    add(database, &[twin.clone()]).await;

    let rows = batch(database, claim(1, at(0), 10))
        .await
        .expect("it is ours");
    assert_eq!(ids(&rows), [first.id, next.id]);
    assert_eq!(rows[0].body, first.to_json());
    // Nor does it come again once it is published.
    let published = database.store.outbox_published(&[first.id], at(1)).await;
    published.expect("it marks");
    add(database, &[twin]).await;
    let rows = batch(database, claim(1, at(0), 10))
        .await
        .expect("it is ours");
    assert_eq!(ids(&rows), [next.id]);
}

async fn published_rows_do_not_come_again(database: &Database) {
    let all: Vec<DomainEvent> = (1..=5).map(|version| event("a", version)).collect();
    add(database, &all).await;
    let rows = batch(database, claim(1, at(0), 3))
        .await
        .expect("it is ours");
    assert_eq!(ids(&rows), [all[0].id, all[1].id, all[2].id]);
    // Unmarked, they come again.
    let again = batch(database, claim(1, at(1), 3))
        .await
        .expect("it is ours");
    assert_eq!(again, rows);

    // In any order, with gaps, twice, and beside one that is unknown.
    for _ in 0..2 {
        let ids = [all[3].id, new_id(), all[0].id];
        let published = database.store.outbox_published(&ids, at(2)).await;
        published.expect("it marks");
    }

    let rest = batch(database, claim(1, at(3), 10))
        .await
        .expect("it is ours");
    assert_eq!(ids(&rest), [all[1].id, all[2].id, all[4].id]);
}

async fn one_relay_works_at_a_time(database: &Database) {
    add(database, &[event("a", 1)]).await;
    assert_eq!(
        batch(database, claim(1, at(0), 10))
            .await
            .map(|rows| rows.len()),
        Some(1)
    );

    assert_eq!(batch(database, claim(2, at(1), 10)).await, None);
    // Somebody else's release changes nothing.
    let released = database.store.outbox_release(Uuid::from_u128(2)).await;
    released.expect("it is ignored");
    assert_eq!(batch(database, claim(2, at(2), 10)).await, None);
    let released = database.store.outbox_release(Uuid::from_u128(1)).await;
    released.expect("it is given up");
    assert_eq!(
        batch(database, claim(2, at(3), 10))
            .await
            .map(|rows| rows.len()),
        Some(1)
    );
    assert_eq!(batch(database, claim(1, at(4), 10)).await, None);
}

async fn of_many_relays_one_is_let_in(database: &Database) {
    let mut tasks = JoinSet::new();
    for holder in 1..=12 {
        let store = Arc::clone(&database.store);
        tasks.spawn(async move { store.outbox_batch(claim(holder, at(0), 10)).await });
    }
    let answers = tasks.join_all().await;
    let let_in = answers
        .into_iter()
        .filter(|answer| answer.as_ref().expect("it reads").is_some());
    assert_eq!(let_in.count(), 1);
}

async fn a_lease_that_ends_lets_another_in(database: &Database) {
    add(database, &[event("a", 1)]).await;
    let lets_in = async |holder, now| batch(database, claim(holder, at(now), 10)).await.is_some();
    assert!(lets_in(1, 0).await);
    // It is renewed by each batch, also by an empty one.
    assert!(lets_in(1, 20_000).await);
    assert!(!lets_in(2, 30_001).await);
    assert!(!lets_in(2, 49_999).await);
    assert!(lets_in(2, 50_001).await);
    assert!(!lets_in(1, 50_002).await);
    // Its own lease may have ended; nobody was faster.
    assert!(lets_in(2, 500_000).await);
}

async fn published_rows_are_pruned_by_age_and_in_pieces(database: &Database) {
    let all: Vec<DomainEvent> = (1..=10).map(|version| event("a", version)).collect();
    add(database, &all).await;
    // Published at 1 … 8; two still wait.
    for (one, n) in all.iter().zip(1..=8) {
        let published = database.store.outbox_published(&[one.id], at(n)).await;
        published.expect("it marks");
    }
    let prune = async |before, limit| {
        let pruned = database.store.prune_outbox(at(before), limit).await;
        pruned.expect("it prunes")
    };

    assert_eq!(prune(1, 100).await, 0);
    assert_eq!(prune(6, 3).await, 3);
    assert_eq!(prune(6, 3).await, 2);
    assert_eq!(prune(6, 3).await, 0);
    assert_eq!(database.count("outbox").await, 5);
    assert_eq!(prune(1_000_000, 100).await, 3);
    let rest = batch(database, claim(1, at(0), 10))
        .await
        .expect("it is ours");
    assert_eq!(ids(&rest), [all[8].id, all[9].id]);
}

async fn events_made_of_answers_and_our_own_do_not_fill_each_others_batches(database: &Database) {
    let (a, b) = ([made("r"), made("r")], [event("a", 1), event("a", 2)]);
    add(database, &a).await;
    add(database, &b).await;
    let own = batch(database, claim(1, at(0), 2)).await.expect("ours");
    assert_eq!(ids(&own), [b[0].id, b[1].id]);
    let found = batch(database, responses(at(0), 2)).await.expect("ours");
    assert_eq!(ids(&found), [a[0].id, a[1].id]);
    // One lease for both.
    let other = OutboxClaim {
        holder: Uuid::from_u128(2),
        ..responses(at(1), 2)
    };
    assert_eq!(batch(database, other).await, None);
    let stats = database.store.stats(at(0)).await.expect("it counts");
    assert_eq!((stats.outbox, stats.responses), (2, 2));
    assert_eq!(stats.oldest_response, Some(at(1)));
}

async fn what_is_refused_waits_twice_as_long_each_time_and_lets_others_pass(database: &Database) {
    let (refused, own) = (made("r"), event("a", 1));
    add(database, &[refused.clone(), own.clone()]).await;
    let mut now = 0;
    // 1, 2, 4 s, and then the longest.
    for wait in [1_000, 2_000, 4_000, 5_000, 5_000] {
        let due = batch(database, responses(at(now), 1)).await.expect("ours");
        assert_eq!(ids(&due), [refused.id], "{wait}");
        let postponement = OutboxPostponement {
            now: at(now),
            first: Duration::from_secs(1),
            longest: Duration::from_secs(5),
        };
        let postponed = [refused.id, own.id];
        let done = database.store.outbox_postpone(&postponed, postponement);
        done.await.expect("it postpones");
        now += wait;
        let early = batch(database, responses(at(now - 1), 1)).await;
        assert_eq!(early, Some(Vec::new()), "{wait}");
    }
    // The worker's own wait for nothing, and what is new goes before what was refused.
    let found = batch(database, claim(1, at(0), 1)).await.expect("ours");
    assert_eq!(ids(&found), [own.id]);
    let new = made("s");
    add(database, std::slice::from_ref(&new)).await;
    let found = batch(database, responses(at(now), 1)).await.expect("ours");
    assert_eq!(ids(&found), [new.id]);
}

async fn a_batch_ends_at_its_bytes_and_holds_one_event_at_least(database: &Database) {
    let long = |mut event: DomainEvent| {
        let text = serde_json::json!({ "text": "x".repeat(10_000) });
        event.data = text.clone();
        if let Some(response) = &mut event.response {
            response.data = text.to_string();
        }
        event
    };
    for kind in [false, true] {
        let all: Vec<DomainEvent> = (1..=5)
            .map(|version| long(if kind { made("r") } else { event("a", version) }))
            .collect();
        add(database, &all).await;
        for (max_bytes, expected) in [(1, 1), (10_000, 1), (20_000, 2), (40_000, 4), (60_000, 5)] {
            let claim = OutboxClaim {
                responses: kind,
                max_bytes,
                ..claim(1, at(0), 10)
            };
            let found = batch(database, claim).await.expect("ours");
            let first: Vec<Uuid> = all.iter().take(expected).map(|one| one.id).collect();
            assert_eq!(ids(&found), first, "{kind} {max_bytes}");
        }
    }
}

async fn events_made_of_answers_are_pruned_once_they_are_published(database: &Database) {
    let all: Vec<DomainEvent> = (0..4).map(|_| made("r")).collect();
    add(database, &all).await;
    add(database, &[event("a", 1)]).await;
    for (one, n) in all.iter().take(3).zip([3, 1, 2]) {
        let published = database.store.outbox_published(&[one.id], at(n)).await;
        published.expect("it marks");
    }
    let prune = async |before, limit| {
        let pruned = database.store.prune_outbox(at(before), limit).await;
        pruned.expect("it prunes")
    };
    assert_eq!(prune(3, 10).await, 2);
    assert_eq!(prune(1_000_000, 1).await, 1);
    assert_eq!(prune(1_000_000, 10).await, 0);
    let rest = batch(database, responses(at(0), 10)).await.expect("ours");
    assert_eq!(ids(&rest), [all[3].id]);
}
