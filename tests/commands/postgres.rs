//! What hangs on locks between connections, which SQLite does not have.

use std::{sync::Arc, time::Duration};

use integration_worker::domain::values::{IntegrationId, TenantId};
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    idempotency::{one_of_many_executes, versions_have_no_gaps},
    integrations::numbers_keep_their_value,
    world::{SEED, World, id, refusal},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_executes_and_the_others_get_its_reply() {
    one_of_many_executes(World::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_have_no_gaps_when_commands_run_at_once() {
    versions_have_no_gaps(World::on_postgres().await).await;
}

#[tokio::test]
async fn numbers_in_a_configuration_keep_their_value_there_too() {
    numbers_keep_their_value(World::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_life_goes_as_on_sqlite() {
    let world = World::on_postgres().await;
    let created = world
        .raw("integration.create", SEED)
        .durable()
        .key("k")
        .ok()
        .await;
    assert_eq!(
        world
            .raw("integration.create", SEED)
            .durable()
            .key("k")
            .ok()
            .await,
        created
    );
    let same = json!({ "id": created["id"], "config": created["config"] });
    assert_eq!(world.ok("integration.update", same).await, created);
    let taken = refusal("conflict", &["name"]);
    assert_eq!(
        world
            .raw("integration.create", SEED)
            .durable()
            .refused()
            .await,
        taken
    );
    let hook = world.webhook(&id(&created), "a").await;
    let again = json!({
        "name": "a", "integrationId": created["id"], "events": ["*"], "config": hook["config"],
    });
    assert_eq!(
        world
            .call("webhook.create", &again)
            .key("w")
            .refused()
            .await,
        taken
    );
    let trigger = json!({ "id": hook["id"], "payload": { "n": 1.10 } });
    let delivery = world.ok("webhook.trigger", trigger).await;
    let body = json!({ "id": delivery["id"] });
    world.ok("delivery.retry", body.clone()).await;
    assert_eq!(
        world.ok("delivery.cancel", body).await["status"],
        "cancelled"
    );
    world.ok("webhook.test", json!({ "id": hook["id"] })).await;
    world
        .ok(
            "integration.delete",
            json!({ "id": created["id"], "cascade": true }),
        )
        .await;
    assert_eq!(
        world.event_types().await,
        [
            "integration.created",
            "command.completed",
            "command.rejected",
            "webhook.created",
            "webhook.deleted",
            "integration.deleted",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_lock_in_different_orders_all_end() {
    let world = Arc::new(World::on_postgres().await);
    for _ in 0..20 {
        let integration = world.integration().await;
        let hook = id(&world.webhook(&integration, "a").await);
        let delivery = id(&world
            .ok("webhook.trigger", json!({ "id": hook, "payload": 1 }))
            .await);
        let cascade = json!({ "id": integration, "cascade": true });
        let mut calls = JoinSet::new();
        for (action, body) in [
            ("webhook.trigger", json!({ "id": hook, "payload": 1 })),
            ("integration.delete", cascade.clone()),
            ("delivery.retry", json!({ "id": delivery })),
            ("webhook.activate", json!({ "id": hook })),
            ("webhook.delete", json!({ "id": hook })),
        ] {
            let world = Arc::clone(&world);
            calls.spawn(async move { world.call(action, &body).send().await.reply.result() });
        }
        for result in calls.join_all().await {
            // A deadlock would be `unavailable`.
            let expected = ["success", "not_found", "invalid_transition"];
            assert!(expected.contains(&result), "{result}");
        }
        let ended = world
            .call("integration.delete", &cascade)
            .send()
            .await
            .reply
            .result();
        assert!(["success", "not_found"].contains(&ended), "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_waits_for_nobody_who_holds_the_integration() {
    let world = World::on_postgres().await;
    let integration = world.integration().await;
    let hook = world.webhook(&integration, "a").await;
    let tenant = TenantId::try_new("default").unwrap();
    let mut unit = world.store.begin().await.unwrap();
    let locked = IntegrationId(integration.parse().unwrap());
    assert!(unit.integration(&tenant, locked).await.unwrap().is_some());
    let body = json!({ "id": hook["id"], "payload": 1 });
    let triggered = timeout(Duration::from_secs(10), world.ok("webhook.trigger", body));
    assert_eq!(triggered.await.unwrap()["status"], "pending");
    drop(unit);
}
