//! Which deliveries a worker is given to send in one request.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use integration_worker::domain::{
    entities::{BatchRule, Batching, Delivery, DeliveryStatus, Webhook, WebhookStatus},
    interfaces::{BatchClaim, ClaimedBatch, FirstRecord, LeasedRecord, RecordBatch, Store},
    values::{BatchId, Timestamp, WebhookId},
};
use tokio::task::JoinSet;

use crate::{
    deliveries::our_webhook,
    harness::{Database, everything_due},
    samples::{at, delivery, integration, new_id, parked, under_lease, webhook},
};

both!(
    nothing_goes_out_before_it_is_due_or_there_is_enough,
    a_batch_is_of_the_oldest_and_no_larger_than_its_rule,
    bytes_make_a_batch_too_and_one_that_is_larger_goes_alone,
    a_changed_rule_counts_and_without_one_the_default_does,
    a_batch_is_claimed_again_as_it_was_when_its_lease_has_ended,
    a_batch_that_failed_waits_as_a_whole_and_keeps_its_id,
    one_that_was_cancelled_or_retried_leaves_its_batch,
    a_batch_can_be_divided,
    batches_are_left_alone_by_other_claims_and_the_others_by_claims_of_batches,
    every_webhook_gets_its_batch_and_the_turn_goes_round,
    only_webhooks_that_run_and_are_not_excluded_get_a_batch,
    what_waits_is_cancelled_with_its_webhook,
    a_delivery_that_cannot_be_read_leaves_the_others_their_batch,
    concurrent_workers_never_share_a_delivery_nor_tear_a_batch,
);

/// One that is due at `at(number)`, with an event of so many bytes.
fn sized(hook: &Webhook, number: i64, bytes: usize) -> FirstRecord {
    let mut record = parked(&Delivery {
        batch: Batching::Waits,
        ..delivery(hook, number)
    });
    if let Some(event) = &mut record.event {
        event.raw = Bytes::from(vec![b'x'; bytes]);
    }
    record
}

pub(crate) async fn wait(database: &Database, hook: &Webhook, numbers: impl Iterator<Item = i64>) {
    database
        .record_first(numbers.map(|n| sized(hook, n, 10)).collect())
        .await;
}

pub(crate) fn rule(max_events: u32, max_bytes: u32) -> BatchRule {
    BatchRule {
        max_events,
        max_bytes,
        max_wait: Duration::from_secs(1),
    }
}

pub(crate) async fn set_rule(database: &Database, hook: WebhookId, rule: Option<BatchRule>) {
    database
        .work(async |work| {
            let put = work.put_batch_rule(hook, rule.as_ref()).await;
            put.expect("it is kept");
        })
        .await;
}

pub(crate) async fn ruled(database: &Database, rule: BatchRule) -> Webhook {
    let hook = our_webhook(database).await;
    set_rule(database, hook.id, Some(rule)).await;
    hook
}

pub(crate) fn claim(now: Timestamp) -> BatchClaim {
    BatchClaim {
        now,
        lease_until: now + chrono::TimeDelta::seconds(60),
        ids: (0..10).map(|_| BatchId(new_id())).collect(),
        exclude: Vec::new(),
        only: None,
        enough: true,
    }
}

async fn take(database: &Database, claim: &BatchClaim) -> Vec<ClaimedBatch> {
    let claimed = database.store.claim_batches(claim).await;
    claimed.expect("it claims").batches
}

/// The numbers in a batch, in their order.
pub(crate) fn numbers(batch: &ClaimedBatch) -> Vec<i64> {
    let hook = batch.deliveries[0].delivery.webhook_id;
    let each = batch.deliveries.iter().map(|one| {
        assert_eq!(one.delivery.batch, Batching::In(batch.id));
        assert_eq!(one.delivery.webhook_id, hook, "one webhook");
        one.delivery.source_sequence.expect("a number")
    });
    each.collect()
}

pub(crate) fn all_numbers(batches: &[ClaimedBatch]) -> Vec<Vec<i64>> {
    let mut all: Vec<Vec<i64>> = batches.iter().map(numbers).collect();
    all.sort();
    all
}

async fn nothing_goes_out_before_it_is_due_or_there_is_enough(database: &Database) {
    let hook = ruled(database, rule(3, 100_000)).await;
    wait(database, &hook, 100..102).await;
    assert_eq!(take(database, &claim(at(99))).await, []);

    // Enough.
    wait(database, &hook, 102..103).await;
    let batches = take(database, &claim(at(50))).await;
    assert_eq!(all_numbers(&batches), [[100, 101, 102]]);
    let first = &batches[0].deliveries[0];
    assert_eq!(first.delivery.next_attempt_at, Some(at(50)));
    let stored = database.stored(&first.delivery).await;
    assert_eq!(stored.as_ref(), Some(&first.delivery));

    // Due, and with it the one that is not yet.
    wait(database, &hook, 200..202).await;
    let batches = take(database, &claim(at(200))).await;
    assert_eq!(all_numbers(&batches), [[200, 201]]);
    assert_eq!(take(database, &claim(at(300))).await, []);
}

async fn a_batch_is_of_the_oldest_and_no_larger_than_its_rule(database: &Database) {
    let hook = ruled(database, rule(4, 100_000)).await;
    wait(database, &hook, (0..10).rev()).await;
    let mut claimed = Vec::new();
    for _ in 0..3 {
        claimed.extend(take(database, &claim(at(100))).await);
    }
    let all: Vec<Vec<i64>> = claimed.iter().map(numbers).collect();
    assert_eq!(all, [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
    let ids: BTreeSet<BatchId> = claimed.iter().map(|batch| batch.id).collect();
    assert_eq!(ids.len(), 3);
}

async fn bytes_make_a_batch_too_and_one_that_is_larger_goes_alone(database: &Database) {
    let hook = ruled(database, rule(100, 2_048)).await;
    let sizes = [1_000, 1_000, 500, 5_000, 10];
    let records = (500..).zip(sizes).map(|(n, size)| sized(&hook, n, size));
    let records: Vec<FirstRecord> = records.collect();
    database.record_first(records[..2].to_vec()).await;
    assert_eq!(take(database, &claim(at(0))).await, []);
    database.record_first(records[2..].to_vec()).await;
    for expected in [vec![500, 501], vec![502], vec![503]] {
        let batches = take(database, &claim(at(0))).await;
        assert_eq!(all_numbers(&batches), [expected]);
    }
    // The last one is neither due nor enough.
    assert_eq!(take(database, &claim(at(0))).await, []);
}

async fn a_changed_rule_counts_and_without_one_the_default_does(database: &Database) {
    let hook = ruled(database, rule(50, 100_000)).await;
    wait(database, &hook, 1_000..1_150).await;
    set_rule(database, hook.id, Some(rule(3, 100_000))).await;
    assert_eq!(
        all_numbers(&take(database, &claim(at(0))).await),
        [[1_000, 1_001, 1_002]]
    );
    set_rule(database, hook.id, None).await;
    let batches = take(database, &claim(at(0))).await;
    assert_eq!(batches[0].deliveries.len(), 100);
    assert_eq!(take(database, &claim(at(0))).await, []);
    assert_eq!(database.count("batch_rules").await, 0);
}

async fn a_batch_is_claimed_again_as_it_was_when_its_lease_has_ended(database: &Database) {
    let hook = ruled(database, rule(3, 100_000)).await;
    wait(database, &hook, 0..3).await;
    let first = take(database, &claim(at(100))).await.remove(0);
    // Would fit in, and waits for the next one.
    set_rule(database, hook.id, Some(rule(5, 100_000))).await;
    wait(database, &hook, 3..5).await;

    let next = take(database, &claim(at(200))).await;
    assert_eq!(all_numbers(&next), [[3, 4]]);
    let later = at(100) + chrono::TimeDelta::seconds(60);
    let again = take(database, &claim(later)).await.remove(0);
    assert_eq!(again.id, first.id);
    assert_eq!(numbers(&again), numbers(&first));
    let epochs = |batch: &ClaimedBatch| -> Vec<i64> {
        batch.deliveries.iter().map(|one| one.lease.epoch).collect()
    };
    let grown: Vec<i64> = epochs(&first).iter().map(|epoch| epoch + 1).collect();
    assert_eq!(epochs(&again), grown);
    let stored = &again.deliveries[0];
    assert_eq!(stored.event, first.deliveries[0].event);
}

/// Records the same outcome for every delivery of a batch.
async fn outcome(database: &Database, batch: &ClaimedBatch, status: DeliveryStatus) {
    let records = batch
        .deliveries
        .iter()
        .map(|one| under_lease(one.lease, &one.delivery, status, at(1_000)));
    let records: Vec<LeasedRecord> = records.collect();
    let count = records.len();
    assert_eq!(database.record_leased(records).await.len(), count);
}

async fn a_batch_that_failed_waits_as_a_whole_and_keeps_its_id(database: &Database) {
    let hook = ruled(database, rule(3, 100_000)).await;
    wait(database, &hook, 0..3).await;
    let first = take(database, &claim(at(100))).await.remove(0);
    outcome(database, &first, DeliveryStatus::Pending).await;
    let due = at(1_000) + chrono::TimeDelta::seconds(60);
    assert_eq!(
        take(database, &claim(due - chrono::TimeDelta::milliseconds(1))).await,
        []
    );

    let again = take(database, &claim(due)).await.remove(0);
    assert_eq!(again.id, first.id);
    assert_eq!(numbers(&again), [0, 1, 2]);
    assert!(
        again
            .deliveries
            .iter()
            .all(|one| one.delivery.attempt_count == 1)
    );

    // Given back, it is a whole too.
    let leases: Vec<_> = again.deliveries.iter().map(|one| one.lease).collect();
    let released = database.store.release(&leases, due).await;
    released.expect("it is given back");
    let again = take(database, &claim(due)).await.remove(0);
    assert_eq!((again.id, numbers(&again)), (first.id, vec![0, 1, 2]));

    outcome(database, &again, DeliveryStatus::Delivered).await;
    let stored = database.stored(&again.deliveries[0].delivery).await;
    let stored = stored.expect("it is there");
    assert_eq!(stored.status, DeliveryStatus::Delivered);
    assert_eq!(stored.batch, Batching::In(first.id));
    assert_eq!(
        take(database, &claim(due + Duration::from_hours(1))).await,
        []
    );
}

async fn one_that_was_cancelled_or_retried_leaves_its_batch(database: &Database) {
    let hook = ruled(database, rule(4, 100_000)).await;
    wait(database, &hook, 0..4).await;
    let first = take(database, &claim(at(100))).await.remove(0);
    database
        .work(async |work| {
            for (number, retries) in [(1, false), (2, true)] {
                let one = delivery(&hook, number);
                let found = work.delivery(&one.tenant, one.id).await;
                let (mut one, _) = found.expect("it reads").expect("it is there");
                if retries {
                    one.retry(at(150)).expect("it can be retried");
                } else {
                    assert_eq!(one.cancel(at(150)), Ok(true));
                }
                work.update_delivery(&one).await.expect("it is updated");
            }
        })
        .await;

    // The retried one goes at once, with what waits.
    wait(database, &hook, 9_000..9_001).await;
    let next = take(database, &claim(at(150))).await;
    assert_eq!(all_numbers(&next), [[2, 9_000]]);
    assert_ne!(next[0].id, first.id);
    outcome(database, &next[0], DeliveryStatus::Delivered).await;
    // Who still has the old batch in hand changes the two others alone.
    let records = first
        .deliveries
        .iter()
        .map(|one| under_lease(one.lease, &one.delivery, DeliveryStatus::Pending, at(200)));
    assert_eq!(database.record_leased(records.collect()).await.len(), 2);
    let due = at(200) + chrono::TimeDelta::seconds(60);
    let again = take(database, &claim(due)).await;
    assert_eq!(all_numbers(&again), [[0, 3]]);
    assert_eq!(again[0].id, first.id);
}

async fn a_batch_can_be_divided(database: &Database) {
    let hook = ruled(database, rule(4, 100_000)).await;
    wait(database, &hook, 0..4).await;
    let whole = take(database, &claim(at(100))).await.remove(0);
    let halves = [BatchId(new_id()), BatchId(new_id())];
    let records = whole.deliveries.iter().enumerate().map(|(place, one)| {
        let mut record = under_lease(one.lease, &one.delivery, DeliveryStatus::Pending, at(200));
        record.delivery.next_attempt_at = Some(at(300));
        record.delivery.batch = match place {
            3 => Batching::Waits,
            place => Batching::In(halves[place / 2]),
        };
        record
    });
    database.record_leased(records.collect()).await;
    let mut found = Vec::new();
    for _ in 0..3 {
        found.extend(take(database, &claim(at(300))).await);
    }
    assert_eq!(all_numbers(&found), [vec![0, 1], vec![2], vec![3]]);
    let ids: BTreeSet<BatchId> = found.iter().map(|batch| batch.id).collect();
    assert!(halves.iter().all(|half| ids.contains(half)));
    assert!(!ids.contains(&whole.id));
}

async fn batches_are_left_alone_by_other_claims_and_the_others_by_claims_of_batches(
    database: &Database,
) {
    let hook = ruled(database, rule(2, 100_000)).await;
    wait(database, &hook, 0..3).await;
    database
        .record_first(vec![parked(&delivery(&hook, 7))])
        .await;
    let stats = database.store.stats(at(100)).await.expect("it counts");
    assert_eq!(stats.parked, 4);

    let others = database.claim(&everything_due(at(100))).await;
    assert_eq!(others.len(), 1);
    assert_eq!(others[0].delivery, delivery(&hook, 7));
    let batches = take(database, &claim(at(100))).await;
    assert_eq!(all_numbers(&batches), [[0, 1]]);
    let stats = database.store.stats(at(100)).await.expect("it counts");
    assert_eq!(stats.parked, 4);
    let much_later = at(100) + Duration::from_hours(1);
    assert_eq!(database.claim(&everything_due(much_later)).await.len(), 1);
}

async fn every_webhook_gets_its_batch_and_the_turn_goes_round(database: &Database) {
    let one = integration("one");
    let hooks: Vec<Webhook> = (0..5).map(|n| webhook(&one, &format!("{n}"))).collect();
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    for (place, hook) in (0..).zip(&hooks) {
        set_rule(database, hook.id, Some(rule(2, 100_000))).await;
        // The first one has much more than the others.
        let count = if place == 0 { 20 } else { 2 };
        wait(database, hook, 0..count).await;
    }
    let mut seen: Vec<WebhookId> = Vec::new();
    for _ in 0..4 {
        let two = BatchClaim {
            ids: (0..2).map(|_| BatchId(new_id())).collect(),
            ..claim(at(100))
        };
        let batches = take(database, &two).await;
        assert!(batches.len() <= 2, "no more than there are ids");
        seen.extend(batches.iter().map(|b| b.deliveries[0].delivery.webhook_id));
    }
    let served: BTreeSet<WebhookId> = seen.iter().copied().collect();
    assert_eq!(served.len(), 5, "all of them: {seen:?}");
    // One batch of each in a claim.
    let all = take(database, &claim(at(100))).await;
    assert_eq!(all.len(), 1);
}

async fn only_webhooks_that_run_and_are_not_excluded_get_a_batch(database: &Database) {
    let one = integration("one");
    let mut hooks: Vec<Webhook> = (0..3).map(|n| webhook(&one, &format!("{n}"))).collect();
    hooks[1].status = WebhookStatus::Inactive;
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    for (number, hook) in (0..).zip(&hooks) {
        wait(database, hook, number..=number).await;
    }
    let without = BatchClaim {
        exclude: vec![hooks[2].id],
        ..claim(at(100))
    };
    assert_eq!(all_numbers(&take(database, &without).await), [[0]]);
    let other = BatchClaim {
        only: Some(vec![hooks[0].id]),
        ..claim(at(100))
    };
    assert_eq!(take(database, &other).await, []);
    let only = BatchClaim {
        only: Some(vec![hooks[2].id]),
        ..claim(at(100))
    };
    assert_eq!(all_numbers(&take(database, &only).await), [[2]]);
    assert_eq!(take(database, &claim(at(100))).await, []);
    assert!(hooks[1].activate("anna", at(60)).is_some());
    database
        .work(async |work| {
            let updated = work.update_webhook(&hooks[1]).await;
            let _yes = updated.expect("it is updated");
        })
        .await;
    assert_eq!(all_numbers(&take(database, &claim(at(100))).await), [[1]]);
}

async fn what_waits_is_cancelled_with_its_webhook(database: &Database) {
    let hook = ruled(database, rule(2, 100_000)).await;
    wait(database, &hook, 0..3).await;
    assert_eq!(take(database, &claim(at(10))).await.len(), 1);
    database
        .work(async |work| {
            let deleted = work.delete_webhook(hook.id, at(50)).await;
            deleted.expect("it is deleted");
        })
        .await;
    // Parked by a worker that has not heard of it yet.
    wait(database, &hook, 3..4).await;
    assert_eq!(take(database, &claim(at(100))).await, []);
    for number in 0..4 {
        let stored = database.stored(&delivery(&hook, number)).await;
        let status = stored.map(|one| one.status);
        assert_eq!(status, Some(DeliveryStatus::Cancelled), "{number}");
    }
    assert_eq!(database.count("batch_rules").await, 0);
}

async fn a_delivery_that_cannot_be_read_leaves_the_others_their_batch(database: &Database) {
    let hook = ruled(database, rule(3, 100_000)).await;
    wait(database, &hook, 0..3).await;
    database
        .execute("UPDATE deliveries SET tenant = 'no tenant!' WHERE source_sequence = 1")
        .await;
    let batches = take(database, &claim(at(100))).await;
    assert_eq!(all_numbers(&batches), [[0, 2]]);
    assert_eq!(take(database, &claim(at(100))).await, []);
}

/// Takes batches, fails each once, and delivers it then.
async fn work_off(store: Arc<dyn Store>, seen: Arc<Mutex<Vec<ClaimedBatch>>>, all: usize) {
    let delivered = || {
        let seen = seen.lock().expect("nobody panics");
        let done = seen
            .iter()
            .filter(|batch| batch.deliveries[0].delivery.attempt_count > 0);
        done.map(|batch| batch.deliveries.len()).sum::<usize>()
    };
    while delivered() < all {
        let some = BatchClaim {
            ids: (0..3).map(|_| BatchId(new_id())).collect(),
            ..claim(at(10_000))
        };
        let claimed = store.claim_batches(&some).await.expect("it claims");
        for batch in claimed.batches {
            let records = batch.deliveries.iter().map(|one| {
                let failed = one.delivery.attempt_count == 0;
                let status = if failed {
                    DeliveryStatus::Pending
                } else {
                    DeliveryStatus::Delivered
                };
                let mut record = under_lease(one.lease, &one.delivery, status, at(9_000));
                if failed {
                    record.delivery.next_attempt_at = Some(at(9_000));
                }
                record
            });
            let records = RecordBatch {
                first: Vec::new(),
                leased: records.collect(),
            };
            // Seen before it is recorded: who gets it next comes after.
            seen.lock().expect("nobody panics").push(batch.clone());
            let changed = store.record(&records).await.expect("it is recorded");
            assert_eq!(changed.len(), batch.deliveries.len(), "the leases held");
        }
        tokio::task::yield_now().await;
    }
}

async fn concurrent_workers_never_share_a_delivery_nor_tear_a_batch(database: &Database) {
    let hook = ruled(database, rule(7, 100_000)).await;
    wait(database, &hook, 0..200).await;
    let seen: Arc<Mutex<Vec<ClaimedBatch>>> = Arc::default();
    let mut workers = JoinSet::new();
    for _ in 0..6 {
        let (store, seen) = (Arc::clone(&database.store), Arc::clone(&seen));
        workers.spawn(work_off(store, seen, 200));
    }
    workers.join_all().await;

    let seen = seen.lock().expect("nobody panics");
    let of = |tried: i32| -> Vec<(BatchId, Vec<i64>)> {
        let batches = seen
            .iter()
            .filter(|batch| batch.deliveries[0].delivery.attempt_count == tried);
        let mut batches: Vec<_> = batches.map(|one| (one.id, numbers(one))).collect();
        batches.sort();
        batches
    };
    let (first, second) = (of(0), of(1));
    assert_eq!(first, second, "each is tried again as it was");
    let mut all: Vec<i64> = first.into_iter().flat_map(|(_, all)| all).collect();
    all.sort_unstable();
    assert_eq!(all, (0..200).collect::<Vec<_>>(), "each once");
}
