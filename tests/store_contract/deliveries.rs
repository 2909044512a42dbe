//! Outcomes, recorded in batches.

use integration_worker::domain::{
    entities::{Attempt, Delivery, DeliveryStatus, Webhook},
    interfaces::{DeliveryFilter, FirstRecord, PageRequest, RecordBatch},
    values::DeliveryId,
};
use uuid::Uuid;

use crate::{
    harness::{Database, everything_due, sorted},
    samples::{
        at, attempted, delivery, first_attempt, integration, new_id, ours, parked, stored_event,
        under_lease, webhook,
    },
};

both!(
    a_first_record_keeps_every_field,
    what_strangers_send_does_not_stop_a_batch,
    the_same_batch_again_changes_nothing,
    a_delivery_that_is_twice_in_a_batch_is_recorded_once,
    a_new_outcome_beside_an_old_one_is_recorded_alone,
    a_batch_of_2000_mixed_outcomes_is_recorded_in_full,
    an_empty_batch_changes_nothing,
    attempts_come_in_their_order,
    an_event_is_kept_while_it_may_be_needed,
    recorded_finds_what_is_there_with_its_first_attempt,
    what_waits_for_a_webhook_that_is_gone_is_cancelled,
);

pub(crate) async fn our_webhook(database: &Database) -> Webhook {
    let one = integration("one");
    let hook = webhook(&one, "hook");
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(std::slice::from_ref(&hook)).await;
    hook
}

async fn assert_stored(database: &Database, delivery: &Delivery, attempts: &[Attempt]) {
    let store = &database.store;
    let read = store.delivery(&delivery.tenant, delivery.id).await;
    let expected = (delivery.clone(), attempts.to_vec());
    assert_eq!(read.expect("it reads"), Some(expected));
    let recorded = store.recorded(&[delivery.id]).await.expect("it reads");
    let first = attempts.first().cloned();
    assert_eq!(recorded, [(delivery.clone(), first)]);
    let filter = DeliveryFilter {
        event_id: Some(delivery.event_id.clone()),
        webhook_id: Some(delivery.webhook_id),
        ..DeliveryFilter::default()
    };
    let page = PageRequest {
        limit: 100,
        after: None,
    };
    let listed = store
        .list_deliveries(&delivery.tenant, &filter, &page)
        .await
        .expect("it lists");
    assert_eq!(listed.items, std::slice::from_ref(delivery));
}

async fn a_first_record_keeps_every_field(database: &Database) {
    let hook = our_webhook(database).await;
    let mut records: Vec<FirstRecord> = DeliveryStatus::ALL
        .into_iter()
        .zip(1..)
        .map(|(status, number)| first_attempt(&delivery(&hook, number), status))
        .collect();
    records.push(parked(&delivery(&hook, 5)));
    for (record, n) in records.iter_mut().zip(0_i32..) {
        let one = &mut record.delivery;
        one.event_type = String::from("größe.🚚");
        one.correlation_id = (n % 2 == 0).then(|| "„Bezug“ 'x'".to_owned());
        one.source_sequence = (n != 2).then_some(i64::MAX - i64::from(n));
        one.budget_base = n;
        one.event_version = i64::from(i32::MAX) + 1;
        one.created_at = at(-1 - i64::from(n));
        one.error = (n % 2 == 1).then(|| "nicht „erreichbar“\n".to_owned());
        if let Some(attempt) = &mut record.attempt {
            attempt.duration_ms = i64::from(i32::MAX) + 1;
            attempt.status_code =
                [Some(599), None, Some(100), Some(418)][usize::try_from(n).expect("it is small")];
            attempt.error = (n % 2 == 0).then(|| "timeout \"x\"".to_owned());
            attempt.response = (n != 1).then(|| "ä\u{fffd}\n{\"a\":1}".repeat(150));
        }
    }

    database.record_first(records.clone()).await;

    for FirstRecord {
        delivery, attempt, ..
    } in &records
    {
        let attempts: Vec<Attempt> = attempt.iter().cloned().collect();
        assert_stored(database, delivery, &attempts).await;
    }
}

/// PostgreSQL's `text` holds no NUL. A store that cannot keep one puts U+FFFD in its place: refusing
/// would stop every other outcome of the batch for good.
async fn what_strangers_send_does_not_stop_a_batch(database: &Database) {
    let hook = our_webhook(database).await;
    let nul = "a\0b".to_owned();
    let mut record = first_attempt(&delivery(&hook, 1), DeliveryStatus::Pending);
    record.delivery.event_id.clone_from(&nul);
    record.delivery.event_type.clone_from(&nul);
    record.delivery.correlation_id = Some(nul.clone());
    record.delivery.error = Some(nul.clone());
    let attempt = record.attempt.as_mut().expect("it was made");
    attempt.response = Some(nul.clone());
    attempt.error = Some(nul.clone());
    let id = record.delivery.id;
    let other = first_attempt(&delivery(&hook, 2), DeliveryStatus::Delivered);

    database.record_first(vec![record, other]).await;

    let read = database.store.delivery(&ours(), id).await;
    let (stored, attempts) = read.expect("it reads").expect("it is there");
    let texts = [
        Some(stored.event_id.clone()),
        Some(stored.event_type.clone()),
        stored.correlation_id.clone(),
        stored.error.clone(),
        attempts[0].response.clone(),
        attempts[0].error.clone(),
    ];
    for text in texts.into_iter().flatten() {
        assert!(
            [nul.as_str(), "a\u{fffd}b"].contains(&text.as_str()),
            "{text:?}"
        );
    }
    let claimed = database.claim(&everything_due(at(100_000))).await;
    let lost = under_lease(claimed[0].lease, &stored, DeliveryStatus::Exhausted, at(2));
    let mut again = lost;
    again.delivery.error = Some(nul.clone());
    again.attempt.as_mut().expect("it was made").response = Some(nul);
    assert_eq!(database.record_leased(vec![again]).await, [id]);
}

async fn the_same_batch_again_changes_nothing(database: &Database) {
    let hook = our_webhook(database).await;
    let waiting = delivery(&hook, 1);
    database.record_first(vec![parked(&waiting)]).await;
    let claimed = database.claim(&everything_due(at(1))).await;
    let batch = RecordBatch {
        first: vec![
            first_attempt(&delivery(&hook, 2), DeliveryStatus::Delivered),
            first_attempt(&delivery(&hook, 3), DeliveryStatus::Pending),
            parked(&delivery(&hook, 4)),
        ],
        leased: vec![under_lease(
            claimed[0].lease,
            &waiting,
            DeliveryStatus::Pending,
            at(9),
        )],
    };

    let first = database.store.record(&batch).await.expect("it records");
    let again = database.store.record(&batch).await.expect("it records");

    let first_ids = batch.first.iter().map(|one| one.delivery.id);
    assert_eq!(sorted(first), sorted(first_ids.chain([waiting.id])));
    assert!(again.is_empty(), "{again:?}");
    for one in &batch.first {
        let attempts: Vec<Attempt> = one.attempt.iter().cloned().collect();
        assert_stored(database, &one.delivery, &attempts).await;
    }
    let leased = &batch.leased[0];
    let attempts: Vec<Attempt> = leased.attempt.iter().cloned().collect();
    assert_stored(database, &leased.delivery, &attempts).await;
    assert_eq!(outbox_ids(database).await, event_ids(&batch));
}

/// The ids of all events of a batch, sorted.
fn event_ids(batch: &RecordBatch) -> Vec<Uuid> {
    let first = batch.first.iter().flat_map(|one| &one.events);
    let leased = batch.leased.iter().flat_map(|one| &one.events);
    sorted(first.chain(leased).map(|event| event.id))
}

async fn outbox_ids(database: &Database) -> Vec<Uuid> {
    sorted(database.outbox().await.into_iter().map(|row| row.id))
}

async fn a_delivery_that_is_twice_in_a_batch_is_recorded_once(database: &Database) {
    let hook = our_webhook(database).await;
    let one = first_attempt(&delivery(&hook, 1), DeliveryStatus::Delivered);
    let mut twin = one.clone();
    twin.attempt.as_mut().expect("it was made").duration_ms = 77;
    let other = parked(&delivery(&hook, 2));
    let batch = RecordBatch {
        first: vec![one.clone(), other.clone(), twin, other.clone()],
        leased: Vec::new(),
    };

    let changed = database.store.record(&batch).await.expect("it records");

    let expected = [one.delivery.id, other.delivery.id];
    assert_eq!(sorted(changed), sorted(expected));
    let attempts: Vec<Attempt> = one.attempt.iter().cloned().collect();
    assert_stored(database, &one.delivery, &attempts).await;
    assert_stored(database, &other.delivery, &[]).await;
    assert_eq!(outbox_ids(database).await, [one.events[0].id]);
}

async fn a_new_outcome_beside_an_old_one_is_recorded_alone(database: &Database) {
    let hook = our_webhook(database).await;
    let old = first_attempt(&delivery(&hook, 1), DeliveryStatus::Pending);
    database.record_first(vec![old.clone()]).await;
    // Another worker made the attempt again and met another answer.
    let mut other = first_attempt(&delivery(&hook, 1), DeliveryStatus::Delivered);
    other.events[0].id = new_id();
    let new = first_attempt(&delivery(&hook, 2), DeliveryStatus::Delivered);
    let batch = RecordBatch {
        first: vec![other, new.clone()],
        leased: Vec::new(),
    };

    let changed = database.store.record(&batch).await.expect("it records");

    assert_eq!(sorted(changed), [new.delivery.id]);
    assert_stored(database, &old.delivery, old.attempt.as_slice()).await;
    assert!(database.keeps_event(&old.delivery).await);
    let events = [old.events[0].id, new.events[0].id];
    assert_eq!(outbox_ids(database).await, sorted(events));
}

async fn a_batch_of_2000_mixed_outcomes_is_recorded_in_full(database: &Database) {
    let hook = our_webhook(database).await;
    let first: Vec<FirstRecord> = (0..2_000)
        .map(|number| {
            let one = delivery(&hook, number);
            match number % 4 {
                0 => parked(&one),
                1 => first_attempt(&one, DeliveryStatus::Pending),
                2 => first_attempt(&one, DeliveryStatus::Exhausted),
                _ => first_attempt(&one, DeliveryStatus::Delivered),
            }
        })
        .collect();

    database.record_first(first.clone()).await;

    let ids: Vec<DeliveryId> = first.iter().map(|one| one.delivery.id).collect();
    let recorded = database.store.recorded(&ids).await.expect("it reads");
    let expected = first
        .iter()
        .map(|one| (one.delivery.clone(), one.attempt.clone()));
    let by_id = |all: Vec<(Delivery, Option<Attempt>)>| {
        let mut all = all;
        all.sort_by_key(|(delivery, _)| delivery.id);
        all
    };
    assert!(by_id(recorded) == by_id(expected.collect()), "they differ");
    let batch = RecordBatch {
        first,
        leased: Vec::new(),
    };
    assert_eq!(outbox_ids(database).await, event_ids(&batch));
    let stats = database.store.stats(at(2_000)).await.expect("it counts");
    assert_eq!((stats.parked, stats.outbox), (1_000, 1_500));
    let again = database.store.record(&batch).await.expect("it records");
    assert!(again.is_empty());

    // And once more under leases.
    let claimed = database.claim(&everything_due(at(100_000))).await;
    assert_eq!(claimed.len(), 1_000);
    let statuses = [
        DeliveryStatus::Pending,
        DeliveryStatus::Delivered,
        DeliveryStatus::Exhausted,
    ];
    let leased = claimed.iter().zip(statuses.into_iter().cycle());
    let leased: Vec<_> = leased
        .map(|(one, status)| under_lease(one.lease, &one.delivery, status, at(100_001)))
        .collect();
    let changed = database.record_leased(leased.clone()).await;
    assert_eq!(changed.len(), 1_000);
    for one in leased.iter().step_by(101) {
        assert_eq!(
            database.stored(&one.delivery).await.as_ref(),
            Some(&one.delivery)
        );
    }
    let stats = database.store.stats(at(100_001)).await.expect("it counts");
    assert_eq!((stats.parked, stats.outbox), (334, 2_500));
}

async fn an_empty_batch_changes_nothing(database: &Database) {
    let batch = RecordBatch::default();
    let changed = database.store.record(&batch).await.expect("it records");
    assert!(changed.is_empty());
    assert_eq!(database.store.recorded(&[]).await.expect("it reads"), []);
    let released = database.store.release(&[], at(1)).await;
    released.expect("there is nothing to do");
    let published = database.store.outbox_published(&[], at(1)).await;
    published.expect("there is nothing to do");
    database
        .work(async |work| {
            work.add_events(&[]).await.expect("there is nothing to do");
            work.add_audit(&[]).await.expect("there is nothing to do");
        })
        .await;
}

async fn attempts_come_in_their_order(database: &Database) {
    let hook = our_webhook(database).await;
    let one = delivery(&hook, 1);
    database.record_first(vec![parked(&one)]).await;
    let mut current = one.clone();
    let mut attempts = Vec::new();
    for round in 1..=12 {
        // Each is due when the one before says so.
        let due = current.next_attempt_at.expect("it waits");
        let claimed = database.claim(&everything_due(due)).await;
        assert_eq!(claimed[0].delivery, current, "round {round}");
        let mut record = under_lease(claimed[0].lease, &current, DeliveryStatus::Pending, due);
        if round % 2 == 1 {
            // No answer: nothing of a later one may stand in its place.
            let attempt = record.attempt.as_mut().expect("it was made");
            (attempt.status_code, attempt.response) = (None, None);
        }
        current = record.delivery.clone();
        attempts.extend(record.attempt.clone());
        assert_eq!(database.record_leased(vec![record]).await, [one.id]);
        assert_stored(database, &current, &attempts).await;
    }

    let numbers: Vec<i32> = attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
    let events = database.outbox().await;
    let expected: Vec<Uuid> = (1..=12).map(|version| one.id.event_id(version)).collect();
    let ids: Vec<Uuid> = events.iter().map(|row| row.id).collect();
    assert_eq!(ids, expected);
}

async fn an_event_is_kept_while_it_may_be_needed(database: &Database) {
    let hook = our_webhook(database).await;
    let all = [
        (DeliveryStatus::Pending, true),
        (DeliveryStatus::Exhausted, true),
        (DeliveryStatus::Delivered, false),
    ];
    // Straight from the fast lane …
    for ((status, kept), number) in all.into_iter().zip(10..) {
        let record = first_attempt(&delivery(&hook, number), status);
        let one = record.delivery.clone();
        database.record_first(vec![record]).await;
        assert_eq!(database.keeps_event(&one).await, kept, "{status:?}");
    }
    // … and from the parked lane.
    for ((status, kept), number) in all.into_iter().zip(1..) {
        let one = delivery(&hook, number);
        database.record_first(vec![parked(&one)]).await;
        assert!(database.keeps_event(&one).await);
        let claimed = database.claim(&everything_due(at(number))).await;
        assert_eq!(claimed[0].event, stored_event(number));
        assert!(database.keeps_event(&one).await);
        let record = under_lease(claimed[0].lease, &one, status, at(number));
        assert_eq!(database.record_leased(vec![record]).await, [one.id]);
        assert_eq!(database.keeps_event(&one).await, kept, "{status:?}");
    }

    // An exhausted one that a user retries goes out with the event that it had.
    let mut retried = database
        .stored(&delivery(&hook, 2))
        .await
        .expect("it is there");
    assert_eq!(retried.status, DeliveryStatus::Exhausted);
    retried.retry(at(20)).expect("it is exhausted");
    database
        .work(async |work| work.update_delivery(&retried).await.expect("it writes"))
        .await;
    let claimed = database.claim(&everything_due(at(20))).await;
    assert_eq!(claimed[0].delivery, retried);
    assert_eq!(claimed[0].event, stored_event(2));
}

async fn recorded_finds_what_is_there_with_its_first_attempt(database: &Database) {
    let hook = our_webhook(database).await;
    let done = first_attempt(&delivery(&hook, 1), DeliveryStatus::Delivered);
    let failed = first_attempt(&delivery(&hook, 2), DeliveryStatus::Pending);
    let unattempted = parked(&delivery(&hook, 3));
    let all = vec![done.clone(), failed.clone(), unattempted.clone()];
    database.record_first(all).await;
    // A second attempt does not hide the first.
    let claimed = database.claim(&everything_due(at(100_000))).await;
    let claimed = claimed
        .iter()
        .find(|one| one.delivery.id == failed.delivery.id)
        .expect("it is due");
    let second = under_lease(
        claimed.lease,
        &failed.delivery,
        DeliveryStatus::Delivered,
        at(100_001),
    );
    database.record_leased(vec![second.clone()]).await;
    let (_, unknown) = attempted(&delivery(&hook, 4), DeliveryStatus::Delivered, at(1));
    assert_eq!(unknown.number, 1);

    let ids = [
        done.delivery.id,
        failed.delivery.id,
        unattempted.delivery.id,
        delivery(&hook, 4).id,
        done.delivery.id,
    ];
    let mut found = database.store.recorded(&ids).await.expect("it reads");
    found.sort_by_key(|(delivery, _)| delivery.source_sequence);

    assert_eq!(
        found,
        [
            (done.delivery, done.attempt),
            (second.delivery, failed.attempt),
            (unattempted.delivery, None),
        ]
    );
}

async fn what_waits_for_a_webhook_that_is_gone_is_cancelled(database: &Database) {
    let hook = our_webhook(database).await;
    database
        .work(async |work| {
            work.delete_webhook(hook.id, at(1)).await.expect("it goes");
        })
        .await;
    let all = vec![
        first_attempt(&delivery(&hook, 1), DeliveryStatus::Delivered),
        first_attempt(&delivery(&hook, 2), DeliveryStatus::Pending),
        parked(&delivery(&hook, 3)),
    ];

    database.record_first(all.clone()).await;

    let stored = database.stored(&all[0].delivery).await;
    assert_eq!(stored.as_ref(), Some(&all[0].delivery));
    assert_eq!(database.claim(&everything_due(at(100_000))).await, []);
    for one in &all[1..] {
        let stored = database.stored(&one.delivery).await.expect("it is there");
        assert_eq!(stored.status, DeliveryStatus::Cancelled);
        assert_eq!(stored.next_attempt_at, None);
        assert!(stored.completed_at.is_some());
        assert_eq!(stored.attempt_count, one.delivery.attempt_count);
        assert!(!database.keeps_event(&stored).await);
    }
    let figures = database.store.stats(at(100_000)).await.expect("it counts");
    assert_eq!((figures.parked, figures.oldest_due), (0, None));
}
