//! Webhooks in a unit of work.

use integration_worker::domain::{
    entities::{DeliveryStatus, Integration, SigningSecret, Webhook, WebhookStatus},
    interfaces::{EntityFilter, Inserted, PageRequest, RegistryChange, StoreError},
    values::WebhookId,
};
use serde_json::json;

use crate::{
    harness::{Database, everything_due, sorted},
    samples::{
        at, delivery, first_attempt, integration, new_id, object, ours, parked, pattern, sealed,
        secret, stored_event, tenant, under_lease, webhook,
    },
};

both!(
    a_webhook_keeps_every_field,
    an_update_keeps_every_field_and_the_secrets,
    a_name_is_unique_within_an_integration_and_a_taken_one_stops_nothing,
    another_tenant_sees_nothing,
    a_stale_version_is_a_conflict,
    a_deleted_webhook_cancels_what_waits_and_nothing_else,
    a_long_queue_of_a_deleted_webhook_is_cancelled_by_claims,
    all_webhooks_of_an_integration_go_at_once_with_what_waits_for_them,
    a_delivery_is_inserted_read_and_changed_by_a_command,
);

async fn our_integration(database: &Database) -> Integration {
    let one = integration("one");
    database
        .insert_integrations(std::slice::from_ref(&one))
        .await;
    one
}

/// One of each status, with everything that a field may hold.
fn of_all_sorts(integration: &Integration) -> Vec<Webhook> {
    let statuses = [
        WebhookStatus::Pending,
        WebhookStatus::Active,
        WebhookStatus::Inactive,
        WebhookStatus::Error {
            error: "410 „Gone“ 🙈\n".to_owned(),
        },
    ];
    let patterns: [&[&str]; 4] = [
        &["order.created"],
        &["*"],
        &[">", "a.*.c.>", "größe.x", "a,b", "a\"b", "{a}", "a"],
        &["b", "a", "b"],
    ];
    (0..4)
        .map(|n| {
            let mut one = webhook(integration, &format!("Büro „{n}“ 🚚 'x'"));
            one.status = statuses[n].clone();
            one.events = patterns[n].iter().map(|text| pattern(text)).collect();
            one.meta.tags = vec!["größe".to_owned(), "a,b".to_owned(), String::new()];
            one.meta.description = (n > 0).then(|| "zwei\nZeilen".to_owned());
            one.meta.updated_at = at(86_400_001);
            one.config.shown = object(json!({
                "url": "https://müller.example/ü?a=1", "method": "PUT", "b": 18450.00, "a": null,
                "headers": { "Z": "1", "A": "ü" },
            }));
            one.config.sealed = (n % 2 == 1).then(|| sealed("config-key"));
            one.secrets = secrets(n);
            one
        })
        .collect()
}

/// The newest first and without an end, the older ones with theirs.
fn secrets(older: usize) -> Vec<SigningSecret> {
    (0..=older)
        .map(|age| {
            let back = i64::try_from(age).expect("it is small") * 1_001;
            SigningSecret {
                expires_at: (age > 0).then(|| at(86_400_999 - back)),
                ..secret(&format!("secret-key-{age}"), at(-back))
            }
        })
        .collect()
}

/// Read in every way, it is what it was; the config to the letter.
async fn assert_stored(database: &Database, expected: &Webhook) {
    let tenant = &expected.meta.tenant;
    let read = database.store.get_webhook(tenant, expected.id).await;
    assert_same(&read.expect("it reads").expect("it is there"), expected);
    database
        .drop_work(async |work| {
            let locked = work.webhook(tenant, expected.id).await;
            assert_same(&locked.expect("it reads").expect("it is there"), expected);
        })
        .await;
    let page = PageRequest {
        limit: 100,
        after: None,
    };
    let listed = database
        .store
        .list_webhooks(tenant, &EntityFilter::default(), &page)
        .await
        .expect("it lists");
    let found = listed.items.iter().find(|one| one.id == expected.id);
    assert_same(found.expect("it is listed"), expected);
    let all = database.store.registry_delta(0).await.expect("it reads");
    let mut all = all.changed.iter().map(|one| &one.webhook);
    let found = all.find(|one| one.id == expected.id);
    assert_same(found.expect("it is in the registry"), expected);
}

fn assert_same(found: &Webhook, expected: &Webhook) {
    assert_eq!(found, expected);
    let text = |one: &Webhook| serde_json::to_string(&one.config.shown).expect("it is JSON");
    assert_eq!(text(found), text(expected));
}

async fn a_webhook_keeps_every_field(database: &Database) {
    let all = of_all_sorts(&our_integration(database).await);

    database.insert_webhooks(&all).await;

    for one in &all {
        assert_stored(database, one).await;
    }
}

async fn an_update_keeps_every_field_and_the_secrets(database: &Database) {
    let integration = our_integration(database).await;
    let untouched = webhook(&integration, "untouched");
    let mut changed = webhook(&integration, "changed");
    database
        .insert_webhooks(&[untouched.clone(), changed.clone()])
        .await;
    // The number of secrets grows and falls: what is left out is gone.
    for other in of_all_sorts(&integration)
        .into_iter()
        .chain(of_all_sorts(&integration).into_iter().rev())
    {
        let version = changed.meta.version + 1;
        changed = Webhook {
            id: changed.id,
            ..other
        };
        changed.meta.version = version;
        database
            .work(async |work| {
                let done = work.update_webhook(&changed).await;
                assert_eq!(done.expect("it writes"), Inserted::Yes);
            })
            .await;
        assert_stored(database, &changed).await;
    }
    changed.secrets.clear();
    changed.meta.version += 1;
    database
        .work(async |work| {
            let done = work.update_webhook(&changed).await;
            assert_eq!(done.expect("it writes"), Inserted::Yes);
        })
        .await;
    assert_stored(database, &changed).await;
    assert_stored(database, &untouched).await;
    assert_eq!(database.count("signing_secrets").await, 1);
}

async fn a_name_is_unique_within_an_integration_and_a_taken_one_stops_nothing(database: &Database) {
    let one = our_integration(database).await;
    let other = integration("other");
    database
        .insert_integrations(std::slice::from_ref(&other))
        .await;
    let first = webhook(&one, "hook");
    database
        .insert_webhooks(&[
            first.clone(),
            webhook(&other, "hook"),
            webhook(&one, "Hook"),
        ])
        .await;

    let (same, mut next) = (webhook(&one, "hook"), webhook(&one, "next"));
    database
        .work(async |work| {
            let taken = work.insert_webhook(&same).await;
            assert_eq!(taken.expect("it answers"), Inserted::NameTaken);
            let free = work.insert_webhook(&next).await;
            assert_eq!(free.expect("it is in"), Inserted::Yes);
        })
        .await;
    let before = next.clone();
    next.meta.name = String::from("hook");
    next.meta.touch("bernd", at(1));
    let last = webhook(&one, "last");
    database
        .work(async |work| {
            let taken = work.update_webhook(&next).await;
            assert_eq!(taken.expect("it answers"), Inserted::NameTaken);
            let free = work.insert_webhook(&last).await;
            assert_eq!(free.expect("it is in"), Inserted::Yes);
        })
        .await;

    for stored in [&first, &before, &last] {
        assert_stored(database, stored).await;
    }
    let gone = database.store.get_webhook(&ours(), same.id).await;
    assert_eq!(gone.expect("it reads"), None);
    assert_eq!(database.count("signing_secrets").await, 5);
}

async fn another_tenant_sees_nothing(database: &Database) {
    let hook = webhook(&our_integration(database).await, "hook");
    database.insert_webhooks(std::slice::from_ref(&hook)).await;
    let waiting = delivery(&hook, 1);
    database.record_first(vec![parked(&waiting)]).await;
    let other = tenant("other");

    let read = database.store.get_webhook(&other, hook.id).await;
    assert_eq!(read.expect("it reads"), None);
    let read = database.store.delivery(&other, waiting.id).await;
    assert_eq!(read.expect("it reads"), None);
    database
        .drop_work(async |work| {
            let locked = work.webhook(&other, hook.id).await;
            assert_eq!(locked.expect("it reads"), None);
            let unknown = work.webhook(&ours(), WebhookId(new_id())).await;
            assert_eq!(unknown.expect("it reads"), None);
            let locked = work.delivery(&other, waiting.id).await;
            assert_eq!(locked.expect("it reads"), None);
        })
        .await;
}

async fn a_stale_version_is_a_conflict(database: &Database) {
    let hook = webhook(&our_integration(database).await, "hook");
    database.insert_webhooks(std::slice::from_ref(&hook)).await;
    let mut unknown = Webhook {
        id: WebhookId(new_id()),
        ..hook.clone()
    };
    unknown.meta.name = String::from("unknown");
    unknown.meta.version = 2;
    let mut stale = vec![unknown];
    for version in [0, 1, 3] {
        let mut one = hook.clone();
        one.meta.version = version;
        one.secrets = secrets(2);
        stale.push(one);
    }
    for one in stale {
        database
            .drop_work(async |work| {
                let refused = work.update_webhook(&one).await;
                let refused = refused.expect_err("it is stale");
                assert!(matches!(refused, StoreError::Conflict), "{refused:?}");
            })
            .await;
    }

    assert_stored(database, &hook).await;
}

async fn a_deleted_webhook_cancels_what_waits_and_nothing_else(database: &Database) {
    let integration = our_integration(database).await;
    let (gone, stays) = (
        webhook(&integration, "gone"),
        webhook(&integration, "stays"),
    );
    database
        .insert_webhooks(&[gone.clone(), stays.clone()])
        .await;
    let [waiting, leased, delivered, exhausted] = [1, 2, 3, 4].map(|n| delivery(&gone, n));
    let elsewhere = delivery(&stays, 1);
    database
        .record_first(vec![
            parked(&leased),
            first_attempt(&delivered, DeliveryStatus::Delivered),
            first_attempt(&exhausted, DeliveryStatus::Exhausted),
            parked(&elsewhere),
        ])
        .await;
    let claimed = database.claim(&everything_due(at(2))).await;
    let lease = claimed.iter().find(|one| one.delivery.id == leased.id);
    let lease = lease.expect("it is due").lease;
    database.record_first(vec![parked(&waiting)]).await;

    database
        .work(async |work| {
            work.delete_webhook(gone.id, at(77)).await.expect("it goes");
            let changes = [RegistryChange::Webhook(gone.id)];
            work.registry_changed(&changes).await.expect("it is told");
        })
        .await;

    let read = database.store.get_webhook(&ours(), gone.id).await;
    assert_eq!(read.expect("it reads"), None);
    assert_eq!(database.count("signing_secrets").await, 1);
    assert_stored(database, &stays).await;
    let lost = under_lease(lease, &leased, DeliveryStatus::Delivered, at(78));
    assert_eq!(database.record_leased(vec![lost]).await, []);
    for one in [&waiting, &leased] {
        let stored = database.stored(one).await.expect("it is there");
        assert_eq!(stored.status, DeliveryStatus::Cancelled);
        assert_eq!(stored.completed_at, Some(at(77)));
        assert_eq!(stored.next_attempt_at, None);
        assert_eq!(stored.created_at, one.created_at);
        assert!(!database.keeps_event(one).await, "nobody can retry it");
    }
    for one in [
        first_attempt(&delivered, DeliveryStatus::Delivered).delivery,
        first_attempt(&exhausted, DeliveryStatus::Exhausted).delivery,
        elsewhere,
    ] {
        assert_eq!(database.stored(&one).await, Some(one));
    }
    let keys = database.store.key_ids().await.expect("it reads");
    assert_eq!(sorted(keys), ["k1"]);
}

async fn a_long_queue_of_a_deleted_webhook_is_cancelled_by_claims(database: &Database) {
    let integration = our_integration(database).await;
    let (gone, stays) = (
        webhook(&integration, "gone"),
        webhook(&integration, "stays"),
    );
    database
        .insert_webhooks(&[gone.clone(), stays.clone()])
        .await;
    // More than one batch; one is being worked on, and few are due.
    let leased = delivery(&gone, 0);
    database.record_first(vec![parked(&leased)]).await;
    let lease = database.claim(&everything_due(at(0))).await[0].lease;
    let queue = (1..2_500).map(|number| parked(&delivery(&gone, number)));
    database.record_first(queue.collect()).await;
    let elsewhere = delivery(&stays, 5_000);
    database.record_first(vec![parked(&elsewhere)]).await;

    database
        .work(async |work| work.delete_webhook(gone.id, at(1)).await.expect("it goes"))
        .await;

    let waiting = async || database.store.stats(at(1)).await.expect("it counts").parked;
    assert_eq!(waiting().await, 1_501, "a thousand went at once");
    // A worker may still tell how its attempt ended; it is not attempted again.
    let failed = under_lease(lease, &leased, DeliveryStatus::Pending, at(2));
    database.record_leased(vec![failed]).await;
    for _ in 0..4 {
        assert_eq!(database.claim(&everything_due(at(2))).await, []);
    }
    assert_eq!(waiting().await, 1);
    for number in [0, 1, 999, 1_000, 2_499] {
        let one = delivery(&gone, number);
        let stored = database.stored(&one).await.expect("it is there");
        assert_eq!(stored.status, DeliveryStatus::Cancelled, "{number}");
        assert_eq!(stored.next_attempt_at, None);
        assert!(stored.completed_at.is_some());
        assert!(!database.keeps_event(&one).await, "nobody can retry it");
    }
    assert_eq!(database.count("deleted_webhooks").await, 0);
    let claimed = database.claim(&everything_due(at(9_000))).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].delivery, elsewhere);
}

async fn all_webhooks_of_an_integration_go_at_once_with_what_waits_for_them(database: &Database) {
    let (ours, other) = (our_integration(database).await, integration("other"));
    database
        .insert_integrations(std::slice::from_ref(&other))
        .await;
    let gone = of_all_sorts(&ours);
    let stays = webhook(&other, "stays");
    database.insert_webhooks(&gone).await;
    database.insert_webhooks(std::slice::from_ref(&stays)).await;
    // Together they are more than one batch.
    let queue = (0..2_400)
        .zip(gone.iter().take(3).cycle())
        .map(|(number, hook)| parked(&delivery(hook, number)));
    database.record_first(queue.collect()).await;
    let elsewhere = delivery(&stays, 5_000);
    database.record_first(vec![parked(&elsewhere)]).await;

    database
        .work(async |work| {
            let deleted = work.delete_webhooks_of(ours.id, at(1)).await;
            let mut expected = gone.clone();
            expected.sort_by_key(|hook| hook.id);
            assert_eq!(deleted.expect("they go"), expected);
            let again = work.delete_webhooks_of(ours.id, at(1)).await;
            assert_eq!(again.expect("none is left"), []);
            work.delete_integration(ours.id).await.expect("it goes");
        })
        .await;

    let waiting = async || database.store.stats(at(1)).await.expect("it counts").parked;
    assert_eq!(waiting().await, 1_401, "a thousand went at once");
    for _ in 0..6 {
        assert_eq!(database.claim(&everything_due(at(1))).await, []);
    }
    assert_eq!(waiting().await, 1);
    assert_eq!(database.count("deleted_webhooks").await, 0);
    assert_eq!(database.count("webhooks").await, 1);
    assert_eq!(database.stored(&elsewhere).await, Some(elsewhere));
}

async fn a_delivery_is_inserted_read_and_changed_by_a_command(database: &Database) {
    let hook = webhook(&our_integration(database).await, "hook");
    database.insert_webhooks(std::slice::from_ref(&hook)).await;
    let mut one = delivery(&hook, 5);
    one.source_sequence = None;
    one.correlation_id = None;
    one.event_type = String::from("größe.x");
    one.error = Some("warum „nicht“?".to_owned());
    database
        .work(async |work| {
            let done = work.insert_delivery(&one, &stored_event(5)).await;
            done.expect("it is in");
            let locked = work.delivery(&ours(), one.id).await;
            assert_eq!(locked.expect("it reads"), Some((one.clone(), true)));
        })
        .await;
    let read = database.store.delivery(&ours(), one.id).await;
    assert_eq!(read.expect("it reads"), Some((one.clone(), Vec::new())));

    assert!(one.cancel(at(9)).expect("it waits"));
    one.event_version = 4;
    database
        .work(async |work| work.update_delivery(&one).await.expect("it writes"))
        .await;
    assert_eq!(database.stored(&one).await, Some(one.clone()));
    assert_eq!(database.claim(&everything_due(at(100))).await, []);

    one.attempt_count = 3;
    one.error = None;
    one.retry(at(11)).expect("it is cancelled");
    database
        .work(async |work| work.update_delivery(&one).await.expect("it writes"))
        .await;
    assert_eq!(database.stored(&one).await, Some(one.clone()));
    assert!(database.keeps_event(&one).await);
    let claimed = database.claim(&everything_due(at(11))).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].delivery, one);
    assert_eq!(claimed[0].event, stored_event(5));
}
