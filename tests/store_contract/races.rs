//! Several workers on the same rows: nobody is told of a deadlock, and nothing happens twice.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use integration_worker::domain::{
    entities::DeliveryStatus,
    interfaces::{FirstRecord, LeasedRecord, RecordBatch, Store},
    values::{DeliveryId, WebhookId},
};
use tokio::task::JoinSet;

use crate::{
    deliveries::our_webhook,
    harness::{Database, everything_due},
    samples::{at, delivery, first_attempt, integration, parked, under_lease, webhook},
};

both!(
    of_many_workers_with_the_same_outcome_one_records_it,
    an_outcome_that_is_told_by_many_holders_is_recorded_once,
    webhooks_are_deleted_while_workers_deliver,
);

/// The same records, in an order of its own for each worker.
fn turned<T: Clone>(all: &[T], worker: usize) -> Vec<T> {
    let mut all = all.to_vec();
    let middle = all.len() * worker / 8;
    all.rotate_left(middle);
    if worker % 2 == 1 {
        all.reverse();
    }
    all
}

/// Each worker records its batch; answers who changed what.
async fn record_at_once(database: &Database, batches: Vec<RecordBatch>) -> Vec<DeliveryId> {
    let mut tasks = JoinSet::new();
    for batch in batches {
        let store = Arc::clone(&database.store);
        tasks.spawn(async move { store.record(&batch).await.expect("it records") });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

async fn of_many_workers_with_the_same_outcome_one_records_it(database: &Database) {
    let hook = our_webhook(database).await;
    let all: Vec<FirstRecord> = (0..300)
        .map(|number| first_attempt(&delivery(&hook, number), DeliveryStatus::Pending))
        .collect();
    let batches = (0..8).map(|worker| RecordBatch {
        first: turned(&all, worker),
        leased: Vec::new(),
    });

    let changed = record_at_once(database, batches.collect()).await;

    assert_eq!(changed.len(), 300, "each by one worker");
    assert_eq!(changed.into_iter().collect::<HashSet<_>>().len(), 300);
    assert_eq!(database.outbox().await.len(), 300);
    assert_eq!(
        database.claim(&everything_due(at(100_000))).await.len(),
        300
    );
}

async fn an_outcome_that_is_told_by_many_holders_is_recorded_once(database: &Database) {
    let hook = our_webhook(database).await;
    let all = (0..300).map(|number| parked(&delivery(&hook, number)));
    database.record_first(all.collect()).await;
    let claimed = database.claim(&everything_due(at(300))).await;
    let leased: Vec<LeasedRecord> = claimed
        .iter()
        .map(|one| under_lease(one.lease, &one.delivery, DeliveryStatus::Delivered, at(301)))
        .collect();
    assert_eq!(leased.len(), 300);
    let batches = (0..8).map(|worker| RecordBatch {
        first: Vec::new(),
        leased: turned(&leased, worker),
    });

    let changed = record_at_once(database, batches.collect()).await;

    assert_eq!(changed.len(), 300, "each by one worker");
    assert_eq!(database.outbox().await.len(), 300);
}

/// Claims, delivers and gives back until nothing is due.
async fn deliver(store: Arc<dyn Store>) -> HashMap<DeliveryId, WebhookId> {
    let mut request = everything_due(at(100_000));
    (request.limit, request.per_webhook) = (20, 5);
    let mut delivered = HashMap::new();
    loop {
        let claimed = store
            .claim_due(&request)
            .await
            .expect("it claims")
            .deliveries;
        if claimed.is_empty() {
            return delivered;
        }
        // Every third is given back, and is due again at once.
        let (back, made): (Vec<_>, Vec<_>) = claimed
            .into_iter()
            .partition(|one| one.delivery.source_sequence.unwrap_or_default() % 3 == 0);
        let leases: Vec<_> = back
            .iter()
            .filter(|one| one.delivery.next_attempt_at < Some(at(90_000)))
            .map(|one| one.lease)
            .collect();
        store.release(&leases, at(90_000)).await.expect("it may");
        let again = back
            .into_iter()
            .filter(|one| one.delivery.next_attempt_at == Some(at(90_000)));
        let leased = made.into_iter().chain(again).map(|one| {
            under_lease(
                one.lease,
                &one.delivery,
                DeliveryStatus::Delivered,
                at(100_000),
            )
        });
        let batch = RecordBatch {
            first: Vec::new(),
            leased: leased.collect(),
        };
        let webhooks: HashMap<DeliveryId, WebhookId> = batch
            .leased
            .iter()
            .map(|one| (one.delivery.id, one.delivery.webhook_id))
            .collect();
        for id in store.record(&batch).await.expect("it records") {
            let twice = delivered.insert(id, webhooks[&id]);
            assert_eq!(twice, None);
        }
    }
}

async fn delete(store: Arc<dyn Store>, webhook: WebhookId) {
    let mut work = store.begin().await.expect("it begins");
    let gone = work.delete_webhook(webhook, at(100_001)).await;
    gone.expect("it goes");
    work.commit().await.expect("it commits");
}

async fn webhooks_are_deleted_while_workers_deliver(database: &Database) {
    let parent = integration("one");
    let hooks: Vec<_> = (0..8).map(|n| webhook(&parent, &format!("{n}"))).collect();
    database.insert_integrations(&[parent]).await;
    database.insert_webhooks(&hooks).await;
    for hook in &hooks {
        let all = (0..100).map(|number| parked(&delivery(hook, number)));
        database.record_first(all.collect()).await;
    }

    let mut workers = JoinSet::new();
    for _ in 0..4 {
        workers.spawn(deliver(Arc::clone(&database.store)));
    }
    let mut deleting = JoinSet::new();
    for hook in hooks.iter().step_by(2) {
        deleting.spawn(delete(Arc::clone(&database.store), hook.id));
    }
    deleting.join_all().await;
    let mut delivered: Vec<(DeliveryId, WebhookId)> =
        workers.join_all().await.into_iter().flatten().collect();
    // Whoever came while others held all rows may have left early.
    delivered.extend(deliver(Arc::clone(&database.store)).await);

    let ids: HashSet<DeliveryId> = delivered.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), delivered.len(), "none twice");
    for (hook, n) in hooks.iter().zip(0..) {
        let of_hook = delivered.iter().filter(|(_, id)| *id == hook.id).count();
        assert!(of_hook == 100 || n % 2 == 0, "{of_hook}");
    }
    for hook in &hooks {
        for number in 0..100 {
            let one = delivery(hook, number);
            let stored = database.stored(&one).await.expect("it is there");
            let expected = if ids.contains(&one.id) {
                DeliveryStatus::Delivered
            } else {
                DeliveryStatus::Cancelled
            };
            assert_eq!(stored.status, expected);
        }
    }
    assert_eq!(database.outbox().await.len(), ids.len());
}
