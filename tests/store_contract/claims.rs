//! Which deliveries a worker is given to attempt.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use integration_worker::domain::{
    entities::{DeliveryStatus, IntegrationStatus, Webhook, WebhookStatus},
    interfaces::{ClaimRequest, ClaimedDelivery, FirstRecord, Inserted, Store},
    values::{DeliveryId, WebhookId},
};
use tokio::task::JoinSet;

use crate::{
    deliveries::our_webhook,
    harness::{Database, everything_due, sorted},
    samples::{at, delivery, first_attempt, integration, parked, webhook},
};

both!(
    only_what_is_due_is_claimed,
    a_claim_brings_the_delivery_and_its_event,
    only_webhooks_that_run_are_claimed_for,
    what_was_parked_goes_out_after_its_webhook_runs_again,
    excluded_webhooks_are_left_alone,
    the_limits_hold_and_the_oldest_go_first,
    a_claim_brings_no_more_than_64_mib_of_events,
    a_busy_webhook_does_not_starve_the_others,
    concurrent_claims_never_overlap_and_miss_nothing,
);

fn ids(claimed: &[ClaimedDelivery]) -> Vec<DeliveryId> {
    sorted(claimed.iter().map(|one| one.delivery.id))
}

/// Webhooks of one integration that runs.
async fn webhooks(database: &Database, count: usize) -> Vec<Webhook> {
    let one = integration("one");
    let hooks: Vec<Webhook> = (0..count).map(|n| webhook(&one, &format!("{n}"))).collect();
    database.insert_integrations(&[one]).await;
    database.insert_webhooks(&hooks).await;
    hooks
}

async fn park(database: &Database, hook: &Webhook, numbers: impl IntoIterator<Item = i64>) {
    let records: Vec<FirstRecord> = numbers
        .into_iter()
        .map(|number| parked(&delivery(hook, number)))
        .collect();
    database.record_first(records).await;
}

async fn only_what_is_due_is_claimed(database: &Database) {
    let hook = our_webhook(database).await;
    park(database, &hook, [1, 2, 3]).await;
    let done = [DeliveryStatus::Delivered, DeliveryStatus::Exhausted];
    let done = done.into_iter().zip(10..);
    let done = done.map(|(status, number)| first_attempt(&delivery(&hook, number), status));
    database.record_first(done.collect()).await;

    assert_eq!(database.claim(&everything_due(at(0))).await, []);
    let due = database.claim(&everything_due(at(2))).await;
    let expected = [1, 2].map(|number| delivery(&hook, number).id);
    assert_eq!(ids(&due), sorted(expected));
    let rest = database.claim(&everything_due(at(100))).await;
    assert_eq!(ids(&rest), [delivery(&hook, 3).id]);
}

async fn a_claim_brings_the_delivery_and_its_event(database: &Database) {
    let hook = our_webhook(database).await;
    let unattempted = parked(&delivery(&hook, 1));
    let failed = first_attempt(&delivery(&hook, 2), DeliveryStatus::Pending);
    database
        .record_first(vec![unattempted.clone(), failed.clone()])
        .await;

    let claimed = database.claim(&everything_due(at(100_000))).await;

    assert_eq!(claimed.len(), 2);
    for (claimed, expected) in claimed.iter().zip([unattempted, failed]) {
        assert_eq!(claimed.lease.delivery_id, expected.delivery.id);
        assert_eq!(claimed.delivery, expected.delivery);
        assert_eq!(Some(&claimed.event), expected.event.as_ref());
    }
}

async fn only_webhooks_that_run_are_claimed_for(database: &Database) {
    let error = "kaputt".to_owned();
    let integrations = [
        (IntegrationStatus::Pending, true),
        (IntegrationStatus::Active, true),
        (IntegrationStatus::Inactive, false),
        (
            IntegrationStatus::Error {
                error: error.clone(),
            },
            false,
        ),
    ];
    let webhooks = [
        (WebhookStatus::Pending, true),
        (WebhookStatus::Active, true),
        (WebhookStatus::Inactive, false),
        (WebhookStatus::Error { error }, false),
    ];
    let mut expected = Vec::new();
    for (status, integration_runs) in integrations {
        let mut parent = integration(status.as_str());
        parent.status = status;
        database
            .insert_integrations(std::slice::from_ref(&parent))
            .await;
        for (status, webhook_runs) in &webhooks {
            let mut hook = webhook(&parent, status.as_str());
            hook.status = status.clone();
            database.insert_webhooks(std::slice::from_ref(&hook)).await;
            park(database, &hook, [1]).await;
            if integration_runs && *webhook_runs {
                expected.push(delivery(&hook, 1).id);
            }
        }
    }

    let claimed = database.claim(&everything_due(at(100))).await;

    assert_eq!(ids(&claimed), sorted(expected));
    assert_eq!(database.claim(&everything_due(at(100))).await, []);
}

async fn what_was_parked_goes_out_after_its_webhook_runs_again(database: &Database) {
    let mut parent = integration("one");
    parent.status = IntegrationStatus::Inactive;
    let mut hook = webhook(&parent, "hook");
    hook.status = WebhookStatus::Error {
        error: "410".to_owned(),
    };
    database
        .insert_integrations(std::slice::from_ref(&parent))
        .await;
    database.insert_webhooks(std::slice::from_ref(&hook)).await;
    park(database, &hook, [3, 1, 2]).await;
    assert_eq!(database.claim(&everything_due(at(100))).await, []);

    assert!(hook.activate("anna", at(50)).is_some());
    database
        .work(async |work| {
            let done = work.update_webhook(&hook).await;
            assert_eq!(done.expect("it writes"), Inserted::Yes);
        })
        .await;
    assert_eq!(database.claim(&everything_due(at(100))).await, []);
    let change = parent.activate("anna", at(50)).expect("it may");
    assert!(change.is_some());
    database
        .work(async |work| {
            let done = work.update_integration(&parent).await;
            assert_eq!(done.expect("it writes"), Inserted::Yes);
        })
        .await;

    let claimed = database.claim(&everything_due(at(100))).await;
    let order: Vec<DeliveryId> = claimed.iter().map(|one| one.delivery.id).collect();
    assert_eq!(order, [1, 2, 3].map(|number| delivery(&hook, number).id));
}

async fn excluded_webhooks_are_left_alone(database: &Database) {
    let hooks = webhooks(database, 3).await;
    for hook in &hooks {
        park(database, hook, [1, 2]).await;
    }
    let request = ClaimRequest {
        exclude: vec![hooks[0].id, hooks[2].id],
        ..everything_due(at(100))
    };

    let claimed = database.claim(&request).await;

    let expected = [1, 2].map(|number| delivery(&hooks[1], number).id);
    assert_eq!(ids(&claimed), sorted(expected));
    let all = ClaimRequest {
        exclude: hooks.iter().map(|hook| hook.id).collect(),
        ..everything_due(at(100))
    };
    assert_eq!(database.claim(&all).await, []);
    assert_eq!(database.claim(&everything_due(at(100))).await.len(), 4);
}

async fn the_limits_hold_and_the_oldest_go_first(database: &Database) {
    let hooks = webhooks(database, 2).await;
    // Written in another order than they are due.
    for hook in &hooks {
        park(database, hook, (0..20).map(|n| 1 + (n * 7) % 20)).await;
    }
    let request = ClaimRequest {
        per_webhook: 3,
        ..everything_due(at(100))
    };
    for round in 0..3 {
        let claimed = database.claim(&request).await;
        for hook in &hooks {
            let order: Vec<i64> = of_webhook(&claimed, hook);
            let first = round * 3 + 1;
            assert_eq!(order, [first, first + 1, first + 2]);
        }
    }
    let request = ClaimRequest {
        limit: 5,
        ..everything_due(at(100))
    };
    let claimed = database.claim(&request).await;
    assert_eq!(claimed.len(), 5);
    for hook in &hooks {
        let order = of_webhook(&claimed, hook);
        let expected: Vec<i64> = (10..).take(order.len()).collect();
        assert_eq!(order, expected);
    }
    assert_eq!(database.claim(&everything_due(at(100))).await.len(), 17);
}

async fn a_claim_brings_no_more_than_64_mib_of_events(database: &Database) {
    const MIB: usize = 1 << 20;
    let hooks = webhooks(database, 2).await;
    let large = Bytes::from(vec![7; 16 * MIB]);
    for (hook, numbers) in hooks.iter().zip([0..4, 10..13]) {
        for number in numbers {
            let mut record = parked(&delivery(hook, number));
            record.event.as_mut().expect("it has one").raw = large.clone();
            database.record_first(vec![record]).await;
        }
    }

    let mut claimed = Vec::new();
    for expected in [4, 3, 0] {
        let some = database.claim(&everything_due(at(100))).await;
        assert_eq!(some.len(), expected);
        claimed.extend(some);
    }
    assert_eq!(ids(&claimed).len(), 7);
}

/// The numbers of the claimed deliveries of one webhook, as they came.
fn of_webhook(claimed: &[ClaimedDelivery], hook: &Webhook) -> Vec<i64> {
    claimed
        .iter()
        .filter(|one| one.delivery.webhook_id == hook.id)
        .filter_map(|one| one.delivery.source_sequence)
        .collect()
}

async fn a_busy_webhook_does_not_starve_the_others(database: &Database) {
    let hooks = webhooks(database, 4).await;
    park(database, &hooks[0], 0..200).await;
    park(database, &hooks[1], 1_000..1_100).await;
    park(database, &hooks[2], 2_000..2_002).await;
    let request = ClaimRequest {
        limit: 12,
        per_webhook: 12,
        ..everything_due(at(10_000))
    };

    let claimed = database.claim(&request).await;

    assert_eq!(claimed.len(), 12);
    let mut shares: BTreeMap<WebhookId, usize> = BTreeMap::new();
    for one in &claimed {
        *shares.entry(one.delivery.webhook_id).or_default() += 1;
    }
    // A third each, and what one does not need is for the others.
    assert!(shares[&hooks[0].id] >= 4, "{shares:?}");
    assert!(shares[&hooks[1].id] >= 4, "{shares:?}");
    assert_eq!(shares[&hooks[2].id], 2, "{shares:?}");
}

async fn claim_until_nothing_is_left(store: Arc<dyn Store>) -> Vec<DeliveryId> {
    let request = ClaimRequest {
        limit: 40,
        per_webhook: 16,
        ..everything_due(at(10_000))
    };
    let mut mine = Vec::new();
    loop {
        let claimed = store
            .claim_due(&request)
            .await
            .expect("it claims")
            .deliveries;
        assert!(claimed.len() <= 40);
        if claimed.is_empty() {
            return mine;
        }
        mine.extend(claimed.iter().map(|one| one.delivery.id));
    }
}

async fn concurrent_claims_never_overlap_and_miss_nothing(database: &Database) {
    let hooks = webhooks(database, 10).await;
    let mut expected = HashSet::new();
    for hook in &hooks {
        park(database, hook, 0..200).await;
        expected.extend((0..200).map(|number| delivery(hook, number).id));
    }
    assert_eq!(expected.len(), 2_000);

    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        tasks.spawn(claim_until_nothing_is_left(Arc::clone(&database.store)));
    }
    let mut claimed: Vec<DeliveryId> = tasks.join_all().await.into_iter().flatten().collect();
    // Whoever came while others held all rows may have left early.
    claimed.extend(claim_until_nothing_is_left(Arc::clone(&database.store)).await);

    assert_eq!(claimed.len(), 2_000, "none twice");
    assert_eq!(claimed.into_iter().collect::<HashSet<_>>(), expected);
}
