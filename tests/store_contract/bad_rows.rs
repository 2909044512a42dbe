//! A row that cannot be understood names its table, column and key; nothing panics, and nothing of its
//! content is told.

use integration_worker::domain::{
    entities::{Delivery, DeliveryStatus, Integration, Webhook},
    interfaces::{
        DeliveryFilter, EntityFilter, PageRequest, RecordBatch, RegistryChange, StoreError,
    },
    values::{DeliveryId, WebhookId},
};

use crate::{
    deliveries::our_webhook,
    harness::{Database, everything_due},
    samples::{at, delivery, first_attempt, integration, new_id, ours, parked},
};

both!(
    a_broken_integration_names_table_column_and_id,
    a_broken_webhook_names_table_column_and_id,
    a_broken_delivery_names_table_column_and_id,
);

const SECRET: &str = "canary";

fn assert_bad<T>(answer: Result<T, StoreError>, place: (&str, &str), key: &str, how: &str) {
    let error = answer
        .err()
        .unwrap_or_else(|| panic!("{how}: it reads {place:?}"));
    let text = error.to_string();
    assert!(!text.contains(SECRET), "{how}: {text}");
    assert!(!error.is_retryable());
    let StoreError::BadRow {
        table,
        column,
        id,
        problem,
    } = error
    else {
        panic!("{how}: {error:?}");
    };
    assert_eq!((table, column), place, "{how}: {text}");
    assert_eq!(id, key, "{how}");
    assert!(!problem.is_empty(), "{how}");
}

fn first_page() -> PageRequest {
    PageRequest {
        limit: 100,
        after: None,
    }
}

/// Puts `value` (SQL) into a column of the table's only row, but for one that stays whole; each case has a row of its own.
async fn corrupt(database: &Database, table: &str, column: &str, value: &str) {
    let row = match table {
        "webhooks" => "name <> 'whole'",
        "deliveries" => "event_id <> 'event-2'",
        _ => "true",
    };
    database
        .execute(&format!(
            "UPDATE {table} SET {column} = {value} WHERE {row}"
        ))
        .await;
}

async fn assert_bad_integration(database: &Database, one: &Integration, column: &str) {
    let (store, key) = (&database.store, one.id.to_string());
    let place = ("integrations", column);
    assert_bad(
        store.get_integration(&ours(), one.id).await,
        place,
        &key,
        "get",
    );
    let filter = EntityFilter::default();
    let listed = store
        .list_integrations(&ours(), &filter, &first_page())
        .await;
    assert_bad(listed, place, &key, "list");
    let mut work = store.begin().await.expect("it begins");
    assert_bad(work.integration(&ours(), one.id).await, place, &key, "lock");
}

async fn a_broken_integration_names_table_column_and_id(database: &Database) {
    let one = integration("one");
    database
        .insert_integrations(std::slice::from_ref(&one))
        .await;
    for (column, value, good) in [
        ("type", "'canary'", "'api'"),
        ("status", "'canary'", "'active'"),
        ("config", "'{\"canary\":'", "'{}'"),
        ("config", "'[\"canary\"]'", "'{}'"),
        ("credentials_key_id", "'canary'", "NULL"),
    ] {
        corrupt(database, "integrations", column, value).await;
        assert_bad_integration(database, &one, column).await;
        corrupt(database, "integrations", column, good).await;
    }
    // An error status has its error.
    corrupt(database, "integrations", "status", "'error'").await;
    assert_bad_integration(database, &one, "error").await;
}

async fn assert_bad_webhook(database: &Database, hook: &Webhook, place: (&str, &str)) {
    let (store, key) = (&database.store, hook.id.to_string());
    assert_bad(
        store.get_webhook(&ours(), hook.id).await,
        place,
        &key,
        "get",
    );
    let filter = EntityFilter::default();
    let listed = store.list_webhooks(&ours(), &filter, &first_page()).await;
    assert_bad(listed, place, &key, "list");
    // It stops nobody, and what is meant for it is known as far as it can be.
    for since in [0, 1] {
        let delta = store.registry_delta(since).await.expect("it reads");
        let case = format!("{column} since {since}", column = place.1);
        assert_eq!(delta.removed, [], "{case}");
        let [unreadable] = delta.unreadable.as_slice() else {
            panic!("{case}: {:?}", delta.unreadable);
        };
        assert_eq!(unreadable.id, hook.id, "{case}");
        assert_eq!(unreadable.integration_id, hook.integration_id, "{case}");
        assert_eq!(unreadable.tenant, hook.meta.tenant, "{case}");
        let events = (place.1 != "events").then(|| hook.events.clone());
        assert_eq!(unreadable.events, events, "{case}");
        for part in [place.0, place.1, &key] {
            assert!(unreadable.problem.contains(part), "{case}: {part}");
        }
        assert!(!unreadable.problem.contains(SECRET), "{case}");
        let others: Vec<&str> = delta
            .changed
            .iter()
            .map(|one| one.webhook.meta.name.as_str())
            .collect();
        assert_eq!(others, ["whole"]);
    }
    let mut work = store.begin().await.expect("it begins");
    assert_bad(work.webhook(&ours(), hook.id).await, place, &key, "lock");
}

async fn a_broken_webhook_names_table_column_and_id(database: &Database) {
    let hook = our_webhook(database).await;
    let mut whole = hook.clone();
    whole.id = WebhookId(new_id());
    whole.meta.name = String::from("whole");
    database.insert_webhooks(&[whole.clone()]).await;
    database
        .work(async |work| {
            for change in [
                RegistryChange::Webhook(whole.id),
                RegistryChange::Integration(hook.integration_id),
            ] {
                work.registry_changed(&[change]).await.expect("it is told");
            }
        })
        .await;
    for (column, value, good) in [
        ("status", "'canary'", "'active'"),
        ("config", "'canary'", "'{}'"),
        ("credentials_key_id", "'canary'", "NULL"),
    ] {
        corrupt(database, "webhooks", column, value).await;
        assert_bad_webhook(database, &hook, ("webhooks", column)).await;
        corrupt(database, "webhooks", column, good).await;
    }
    let (broken, good) = (
        database.text_list(&["order.created", "a..canary"]),
        database.text_list(&["order.created"]),
    );
    corrupt(database, "webhooks", "events", &broken).await;
    assert_bad_webhook(database, &hook, ("webhooks", "events")).await;
    corrupt(database, "webhooks", "events", &good).await;
    assert_nobodys(database, &hook).await;
    let read = database.store.get_webhook(&ours(), hook.id).await;
    assert!(read.expect("it is whole again").is_some());
}

/// No event can be meant for it: it is of no tenant, turned off, or of an integration that does not run.
async fn assert_nobodys(database: &Database, hook: &Webhook) {
    for (table, column, value, good) in [
        ("webhooks", "tenant", "'canary canary'", "'valeo'"),
        ("webhooks", "status", "'inactive'", "'active'"),
        ("integrations", "status", "'inactive'", "'active'"),
    ] {
        corrupt(database, "webhooks", "config", "'canary'").await;
        corrupt(database, table, column, value).await;
        let delta = database.store.registry_delta(0).await.expect("it reads");
        assert_eq!(delta.unreadable, [], "{table}.{column}");
        assert_eq!(delta.removed, [hook.id], "{table}.{column}");
        corrupt(database, table, column, good).await;
        corrupt(database, "webhooks", "config", "'{}'").await;
    }
}

async fn assert_bad_delivery(database: &Database, one: &Delivery, column: &str) {
    let (store, key) = (&database.store, one.id.to_string());
    let place = ("deliveries", column);
    assert_bad(store.delivery(&ours(), one.id).await, place, &key, "get");
    let filter = DeliveryFilter::default();
    let listed = store.list_deliveries(&ours(), &filter, &first_page()).await;
    assert_bad(listed, place, &key, "list");
    assert_left_out(database, one).await;
    let mut work = store.begin().await.expect("it begins");
    assert_bad(work.delivery(&ours(), one.id).await, place, &key, "lock");
}

/// It is attempted once more, and its record changes nothing.
async fn assert_left_out(database: &Database, one: &Delivery) {
    let hook = delivery_of_the_same(one, 2);
    let recorded = database.store.recorded(&[one.id, hook]).await;
    let recorded = recorded.expect("it reads the others");
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0].0.id, hook);
    let again = RecordBatch {
        first: vec![parked(one)],
        leased: Vec::new(),
    };
    let changed = database.store.record(&again).await.expect("it is harmless");
    assert_eq!(changed.len(), 0);
}

fn delivery_of_the_same(one: &Delivery, number: i64) -> DeliveryId {
    DeliveryId::derive(one.webhook_id, &one.tenant, &format!("event-{number}"))
}

async fn a_broken_delivery_names_table_column_and_id(database: &Database) {
    let hook = our_webhook(database).await;
    let one = delivery(&hook, 1);
    database.record_first(vec![parked(&one)]).await;
    let whole = first_attempt(&delivery(&hook, 2), DeliveryStatus::Delivered);
    database.record_first(vec![whole]).await;
    for (column, value, good) in [
        ("status", "'canary'", "'pending'"),
        ("tenant", "'canary canary'", "'valeo'"),
    ] {
        corrupt(database, "deliveries", column, value).await;
        if column == "status" {
            assert_bad_delivery(database, &one, column).await;
        } else {
            // Nobody's: it is found by its id alone, or by a worker.
            let place = ("deliveries", column);
            let key = one.id.to_string();
            assert_left_out(database, &one).await;
            let claimed = database.store.claim_due(&everything_due(at(9))).await;
            assert_bad(claimed, place, &key, "claim");
        }
        corrupt(database, "deliveries", column, good).await;
    }
    let stored = database.stored(&one).await;
    assert!(stored.is_some(), "it is whole again");
}
