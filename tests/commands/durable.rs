use serde_json::{Value, json};
use uuid::Uuid;

use crate::world::{SEED, World, refusal};

#[tokio::test]
async fn a_completed_command_is_told_with_its_entity() {
    let world = World::new().await;
    let created = world
        .raw("integration.create", SEED)
        .durable()
        .key("c-1")
        .header("X-Correlation-Id", "corr")
        .header("X-User-Id", "alice")
        .ok()
        .await;
    let events = world.events().await;
    assert_eq!(events.len(), 2);
    let (kind, event) = &events[1];
    assert_eq!(kind, "command.completed");
    let data = json!({
        "commandId": "c-1", "action": "integration.create", "entityId": created["id"],
    });
    assert_eq!(event["data"], data);
    assert_eq!(
        (&event["subject"], &event["aggregateversion"]),
        (&json!("c-1"), &json!(1))
    );
    for (_, event) in &events {
        assert_eq!(event["causationid"], "c-1");
        assert_eq!(event["correlationid"], "corr");
        assert_eq!(event["actor"], "alice");
    }
}

#[tokio::test]
async fn a_rejected_command_is_told_with_its_error() {
    let world = World::new().await;
    let integration = world.integration().await;
    world.events().await;
    let body = json!({ "id": integration, "expectedVersion": 7 });
    let call = world
        .call("integration.activate", &body)
        .durable()
        .key("c-1");
    let reply = call.send().await.reply.to_json();
    assert_eq!(reply["error"]["code"], "conflict");
    let events = world.events().await;
    let [(kind, event)] = &events[..] else {
        panic!("not one event: {events:?}")
    };
    assert_eq!(kind, "command.rejected");
    let data = json!({
        "commandId": "c-1", "action": "integration.activate", "entityId": integration,
        "error": reply["error"],
    });
    assert_eq!(event["data"], data);
}

#[tokio::test]
async fn a_redelivered_command_executes_once_and_is_told_once() {
    let world = World::new().await;
    let send = || world.raw("integration.create", SEED).durable().fallback(9);
    let first = send().ok().await;
    let before = world.events().await;
    assert_eq!(send().ok().await, first);
    // Its outcome has the same id, so it is not told anew as long as the outbox knows it.
    assert_eq!(world.event_types().await, [""; 0]);
    assert_eq!(before[1].1["subject"], json!(Uuid::from_u128(9)));
}

#[tokio::test]
async fn every_command_that_is_refused_early_is_told() {
    let world = World::new().await;
    let tell = async |call: crate::world::Call<'_>| -> Value {
        let (code, _) = call.durable().refused().await;
        let mut events = world.events().await;
        assert_eq!(events.len(), 1);
        let (kind, event) = events.remove(0);
        assert_eq!(
            (kind.as_str(), &event["data"]["error"]["code"]),
            ("command.rejected", &json!(code))
        );
        event
    };
    let event = tell(world.raw("integration.create", "nonsense")).await;
    assert_eq!(event["data"]["error"]["code"], "malformed");
    let event = tell(
        world
            .raw("integration.create", SEED)
            .header("X-Tenant-Id", "a b"),
    )
    .await;
    assert_eq!(event["tenantid"], "default");
    let event = tell(world.raw("integration.fly", "{}")).await;
    assert_eq!(event["data"]["action"], "integration.fly");
    tell(world.raw("integration.get", "{}")).await;
}

#[tokio::test]
async fn a_key_that_is_used_for_another_body_has_an_outcome_of_its_own() {
    let world = World::new().await;
    world
        .raw("integration.create", SEED)
        .durable()
        .key("k")
        .ok()
        .await;
    let first = world.events().await;
    let body = json!({ "name": "x", "type": "api" });
    let call = world.call("integration.create", &body).durable().key("k");
    assert_eq!(
        call.refused().await,
        refusal("conflict", &["Idempotency-Key"])
    );
    let events = world.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].0, "command.rejected");
    assert_ne!(events[0].1["id"], first[1].1["id"]);
}

#[tokio::test]
async fn queries_and_tests_are_told_too() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = world.webhook(&integration, "a").await;
    world.events().await;
    for (action, id) in [
        ("integration.get", json!(integration)),
        ("webhook.test", webhook["id"].clone()),
    ] {
        world
            .call(action, &json!({ "id": id }))
            .durable()
            .ok()
            .await;
        let events = world.events().await;
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].0, "command.completed");
        assert_eq!(events[0].1["data"]["entityId"], id);
    }
}

#[tokio::test]
async fn a_request_without_durability_tells_no_outcome() {
    let world = World::new().await;
    world.raw("integration.create", SEED).key("k").ok().await;
    assert_eq!(world.event_types().await, ["integration.created"]);
}
