//! The registry is exact: what a commit changed is matched by the next event, on every worker.

#[cfg(test)]
mod support;

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use integration_worker::{
    application::registry::Registry,
    domain::{
        entities::{IntegrationStatus, WebhookStatus},
        interfaces::RegistryChange,
    },
};

use support::{Fixture, event, matches, patterns};

#[tokio::test]
async fn a_webhook_matches_the_next_event_after_its_commit() {
    let fixture = Fixture::new().await;
    let registry = fixture.registry();
    assert!(registry.refresh().await.unwrap().is_empty());
    let webhook = fixture.create(1, &["order.*"]).await;
    let snapshot = registry.refresh().await.unwrap();
    assert!(matches(&snapshot, webhook.id, "order.created"));
    assert!(!matches(&snapshot, webhook.id, "order"));

    let mut changed = webhook.clone();
    changed.events = patterns(&["stock.>"]);
    let changed = fixture.update(changed).await;
    let snapshot = registry.refresh().await.unwrap();
    assert!(!matches(&snapshot, webhook.id, "order.created"));
    assert!(matches(&snapshot, webhook.id, "stock.a.b"));

    fixture.delete(changed.id).await;
    assert!(registry.refresh().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_second_worker_and_a_late_one_see_the_same() {
    let fixture = Fixture::new().await;
    let early = fixture.registry();
    early.refresh().await.unwrap();
    let webhook = fixture.create(1, &[">"]).await;
    let late = fixture.registry();
    let (early, late) = (
        early.refresh().await.unwrap(),
        late.refresh().await.unwrap(),
    );
    assert_eq!(early.version, late.version);
    for snapshot in [early, late] {
        assert!(matches(&snapshot, webhook.id, "any.thing") && snapshot.len() == 1);
    }
}

#[tokio::test]
async fn statuses_decide_what_is_held() {
    let fixture = Fixture::new().await;
    let registry = fixture.registry();
    let mut webhook = fixture.create(1, &[">"]).await;
    for (status, held, disabled) in [
        (WebhookStatus::Active, true, false),
        (
            WebhookStatus::Error {
                error: "410".to_owned(),
            },
            true,
            true,
        ),
        (WebhookStatus::Inactive, false, false),
        (WebhookStatus::Active, true, false),
    ] {
        webhook.status = status;
        webhook = fixture.update(webhook).await;
        let snapshot = registry.refresh().await.unwrap();
        let found = snapshot
            .webhook(webhook.id)
            .map(|webhook| webhook.is_disabled);
        assert_eq!(found, held.then_some(disabled));
    }
    for (status, held) in [
        (IntegrationStatus::Inactive, false),
        (IntegrationStatus::Active, true),
    ] {
        fixture.set_integration(status).await;
        let snapshot = registry.refresh().await.unwrap();
        assert_eq!(matches(&snapshot, webhook.id, "a"), held);
    }
}

#[tokio::test]
async fn a_change_that_was_rolled_back_changes_nothing() {
    let fixture = Fixture::new().await;
    let registry = fixture.registry();
    let before = registry.refresh().await.unwrap();
    let mut work = fixture.begin().await;
    let webhook = fixture.webhook(1, &[">"]);
    assert!(fixture.insert(work.as_mut(), &webhook).await);
    work.registry_changed(&[RegistryChange::Webhook(webhook.id)])
        .await
        .unwrap();
    drop(work);
    let after = registry.refresh().await.unwrap();
    assert_eq!((after.version, after.len()), (before.version, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_ever_gets_a_snapshot_that_is_older_than_its_call() {
    let fixture = Fixture::new().await;
    let registries = [fixture.registry(), fixture.registry()];
    let (fixture, registries) = (&fixture, &registries);
    let writer = |number: u128| async move {
        for round in 0..10 {
            let webhook = fixture.create(number * 100 + round, &["a.b"]).await;
            for snapshot in join_all(registries.iter().map(Registry::refresh)).await {
                assert!(
                    matches(&snapshot.unwrap(), webhook.id, "a.b"),
                    "stale after create"
                );
            }
            if round % 2 == 0 {
                fixture.delete(webhook.id).await;
                for registry in registries {
                    let snapshot = registry.refresh().await.unwrap();
                    assert!(!matches(&snapshot, webhook.id, "a.b"), "stale after delete");
                }
            }
        }
    };
    join_all((1..=8).map(writer)).await;
    for registry in registries {
        let snapshot = registry.refresh().await.unwrap();
        assert_eq!(
            (snapshot.len(), snapshot.matches(&event("a.b")).len()),
            (40, 40)
        );
    }
}

#[tokio::test]
async fn a_webhook_whose_key_is_missing_heals_when_the_key_is_there() {
    let fixture = Fixture::new().await;
    let lost = fixture.create(1, &[">"]).await;
    fixture.key_is_there.store(false, Ordering::SeqCst);
    let registry = fixture.registry();
    let snapshot = registry.refresh().await.unwrap();
    let reason = snapshot
        .webhook(lost.id)
        .unwrap()
        .endpoint
        .as_ref()
        .unwrap_err();
    assert!(reason.contains("key ring"), "{reason}");
    assert!(
        matches(&snapshot, lost.id, "a"),
        "what matches is parked, not lost"
    );

    fixture.key_is_there.store(true, Ordering::SeqCst);
    let healed = async {
        loop {
            let snapshot = registry.refresh().await.unwrap();
            if snapshot.webhook(lost.id).unwrap().endpoint.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), healed)
        .await
        .expect("it heals");
}
