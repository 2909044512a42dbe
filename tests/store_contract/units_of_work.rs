//! What makes a unit of work one transaction: all or nothing, one after the other.

use std::sync::Arc;

use integration_worker::domain::{
    entities::Integration,
    events::{Change, DomainEvent},
    interfaces::{AuditRow, Inserted, RegistryChange, Store, UnitOfWork},
    values::IntegrationId,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    harness::Database,
    samples::{
        at, command_key, delivery, event, integration, new_id, ours, stored_event, stored_reply,
        webhook,
    },
};

both!(
    a_dropped_unit_of_work_leaves_nothing,
    reads_do_not_wait_for_a_unit_of_work_and_do_not_see_it,
    units_of_work_on_one_integration_follow_each_other,
);

fn audit_row() -> AuditRow {
    AuditRow {
        tenant: ours(),
        at: at(0),
        actor: "größe".to_owned(),
        action: "integration.create".to_owned(),
        entity_id: new_id().to_string(),
        command_id: "command".to_owned(),
        correlation_id: "correlation".to_owned(),
    }
}

/// Everything that a command may write.
async fn write_everything(work: &mut dyn UnitOfWork, one: &Integration) {
    let inserted = work.insert_integration(one).await;
    assert_eq!(inserted.expect("it is in"), Inserted::Yes);
    let hook = webhook(one, "hook");
    let inserted = work.insert_webhook(&hook).await;
    assert_eq!(inserted.expect("it is in"), Inserted::Yes);
    let waiting = delivery(&hook, 1);
    work.insert_delivery(&waiting, &stored_event(1))
        .await
        .expect("it is in");
    let key = command_key("key");
    assert_eq!(work.reply(&key).await.expect("it reads"), None);
    work.keep_reply(&key, &stored_reply(at(0)))
        .await
        .expect("it is kept");
    work.add_events(&[event("a", 1)]).await.expect("it is in");
    work.add_audit(&[audit_row(), audit_row()])
        .await
        .expect("it is in");
    work.registry_changed(&[
        RegistryChange::Webhook(hook.id),
        RegistryChange::Integration(one.id),
    ])
    .await
    .expect("it is told");
}

const TABLES: [&str; 7] = [
    "integrations",
    "webhooks",
    "signing_secrets",
    "deliveries",
    "outbox",
    "audit",
    "idempotency",
];

async fn a_dropped_unit_of_work_leaves_nothing(database: &Database) {
    let one = integration("one");
    let before = database.store.registry_version().await.expect("it reads");

    database
        .drop_work(async |work| write_everything(work, &one).await)
        .await;

    for table in TABLES {
        assert_eq!(database.count(table).await, 0, "{table}");
    }
    let after = database.store.registry_version().await.expect("it reads");
    assert_eq!(after, before);
    // The same again, committed, shows that each of them would have been there.
    database
        .work(async |work| write_everything(work, &one).await)
        .await;
    for table in TABLES {
        assert!(database.count(table).await > 0, "{table}");
    }
    assert_eq!(database.count("audit").await, 2);
}

async fn reads_do_not_wait_for_a_unit_of_work_and_do_not_see_it(database: &Database) {
    let old = integration("old");
    database
        .insert_integrations(std::slice::from_ref(&old))
        .await;
    let before = database.store.registry_version().await.expect("it reads");
    let mut changed = old.clone();
    changed.meta.touch("bernd", at(1));
    let mut work = database.store.begin().await.expect("it begins");
    let locked = work.integration(&ours(), old.id).await;
    assert!(locked.expect("it reads").is_some());
    let updated = work.update_integration(&changed).await;
    assert_eq!(updated.expect("it writes"), Inserted::Yes);
    write_everything(work.as_mut(), &integration("new")).await;

    let store = &database.store;
    let read = store.get_integration(&ours(), old.id).await;
    assert_eq!(read.expect("it reads"), Some(old.clone()));
    assert_eq!(store.registry_version().await.expect("it reads"), before);
    let delta = store.registry_delta(0).await.expect("it reads");
    assert_eq!(delta.changed, []);
    let stats = store.stats(at(10)).await.expect("it counts");
    assert_eq!((stats.parked, stats.outbox), (0, 0));
    assert_eq!(store.recorded(&[]).await.expect("it reads"), []);

    work.commit().await.expect("it commits");
    let read = database.store.get_integration(&ours(), old.id).await;
    assert_eq!(read.expect("it reads"), Some(changed));
}

/// Counts one change, with its event.
async fn increment(store: Arc<dyn Store>, id: IntegrationId) {
    let mut work = store.begin().await.expect("it begins");
    let found = work.integration(&ours(), id).await.expect("it reads");
    let mut one = found.expect("it is there");
    let change = one.changed(Change::Updated, "anna", at(one.meta.version));
    let written = work.update_integration(&one).await;
    assert_eq!(written.expect("nobody was faster"), Inserted::Yes);
    let told = DomainEvent {
        response: None,
        event_type: "integration.updated".to_owned(),
        ..event(&id.to_string(), change.version)
    };
    work.add_events(&[told]).await.expect("it is in");
    work.registry_changed(&[RegistryChange::Integration(id)])
        .await
        .expect("it is told");
    work.commit().await.expect("it commits");
}

async fn units_of_work_on_one_integration_follow_each_other(database: &Database) {
    const TIMES: i64 = 40;
    let all = [integration("one"), integration("two")];
    database.insert_integrations(&all).await;
    let before = database.store.registry_version().await.expect("it reads");

    let mut tasks = JoinSet::new();
    for _ in 0..TIMES {
        for one in &all {
            tasks.spawn(increment(Arc::clone(&database.store), one.id));
        }
    }
    tasks.join_all().await;

    for one in &all {
        let read = database.store.get_integration(&ours(), one.id).await;
        let version = read.expect("it reads").expect("it is there").meta.version;
        assert_eq!(version, 1 + TIMES);
    }
    let after = database.store.registry_version().await.expect("it reads");
    assert!(after > before);
    let rows = database.outbox().await;
    for one in &all {
        let versions: Vec<i64> = rows
            .iter()
            .map(|row| serde_json::from_slice::<Value>(&row.body).expect("it is JSON"))
            .filter(|body| body["subject"] == json!(one.id))
            .map(|body| body["aggregateversion"].as_i64().expect("a number"))
            .collect();
        assert_eq!(versions, (2..=1 + TIMES).collect::<Vec<_>>());
    }
}
