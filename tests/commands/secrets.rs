use integration_worker::infrastructure::crypto::generate_key_line;
use serde_json::{Value, json};

use crate::world::{World, refusal};

const CANARY: &str = "canary-7f3a9c";
const HEADER_CANARY: &str = "Bearer header-canary-51d2";

fn body(name: &str) -> Value {
    json!({
        "name": name, "type": "api",
        "config": {
            "endpoint": "https://api.example.com",
            "credentials": { "apiKey": CANARY, "more": { "deep": CANARY } },
            "servers": [{ "credentials": { "password": CANARY } }],
        },
    })
}

#[tokio::test]
async fn a_secret_is_in_no_reply_no_event_and_no_row() {
    let world = World::new().await;
    let created = world
        .call("integration.create", &body("a"))
        .durable()
        .key("k")
        .ok()
        .await;
    let id = json!({ "id": created["id"] });
    let rotate = json!({ "id": created["id"], "credentials": { "token": CANARY } });
    let config = json!({ "id": created["id"], "config": body("a")["config"] });
    let mut replies = vec![created.clone()];
    replies.push(
        world
            .call("integration.rotate_credentials", &rotate)
            .durable()
            .ok()
            .await,
    );
    replies.push(
        world
            .call("integration.update", &config)
            .durable()
            .ok()
            .await,
    );
    replies.push(world.ok("integration.get", id.clone()).await);
    replies.push(world.ok("integration.list", json!({})).await);
    // Refusals hold no values either.
    let mut faulty = body("b");
    faulty["config"]["credentials"] = json!(CANARY);
    faulty["config"]["headers"] = json!({ "x": format!("{CANARY}\n") });
    let refused = world
        .call("integration.create", &faulty)
        .durable()
        .key("r")
        .send()
        .await;
    replies.push(refused.reply.to_json());
    let events = world.events().await;
    assert_eq!(events.len(), 7);
    let told = json!([replies, events]).to_string();
    assert!(!told.contains(CANARY), "{told}");
    assert!(!world.stored_anywhere(CANARY));
}

#[tokio::test]
async fn a_signing_secret_is_answered_and_stored_sealed_alone() {
    let world = World::new().await;
    let integration = world.integration().await;
    let body = json!({
        "name": "a", "integrationId": integration, "events": ["*"],
        "config": { "url": "https://a.example.com", "headers": { "Authorization": HEADER_CANARY } },
    });
    let created = world
        .call("webhook.create", &body)
        .durable()
        .key("k")
        .ok()
        .await;
    let secret = created["secret"]
        .as_str()
        .unwrap()
        .strip_prefix("whsec_")
        .unwrap();
    let got = world
        .ok("webhook.get", json!({ "id": created["id"] }))
        .await;
    world
        .ok("webhook.test", json!({ "id": created["id"] }))
        .await;
    let events = world.events().await;
    assert!(!json!([got, events]).to_string().contains(secret));
    assert!(!json!(events).to_string().contains("header-canary"));
    assert!(!world.stored_anywhere(secret));
    assert!(
        world.stored_anywhere("a.example.com"),
        "the files are not those of the database"
    );
}

#[tokio::test]
async fn rotating_replaces_the_credentials_alone() {
    let world = World::new().await;
    let created = world.ok("integration.create", body("a")).await;
    world.events().await;
    let rotate = json!({ "id": created["id"], "credentials": { "token": "t" } });
    let rotated = world.ok("integration.rotate_credentials", rotate).await;
    assert_eq!(rotated["version"], 2);
    let credentials = rotated["config"]["credentials"].as_object().unwrap();
    assert_eq!(credentials.keys().collect::<Vec<_>>(), ["token"]);
    assert_eq!(rotated["config"]["endpoint"], created["config"]["endpoint"]);
    assert_eq!(rotated["config"]["servers"], created["config"]["servers"]);
    let events = world.events().await;
    assert_eq!(events[0].0, "integration.credentials_rotated");
    assert_eq!(
        events[0].1["data"],
        json!({ "name": "a", "status": "pending" })
    );

    let faulty = json!({
        "id": 1, "credentials": { "x": "a\0b", "credentials": 1 }, "more": 1,
    });
    let paths = ["id", "credentials.x", "credentials.credentials", "more"];
    let refused = world
        .call("integration.rotate_credentials", &faulty)
        .refused()
        .await;
    assert_eq!(refused, refusal("validation_failed", &paths));
}

#[tokio::test]
async fn a_key_that_the_ring_lacks_is_something_to_wait_for() {
    let mut world = World::new().await;
    let created = world
        .call("integration.create", &body("a"))
        .key("k")
        .ok()
        .await;
    let integration = created["id"].clone();
    let hook = world.webhook(integration.as_str().unwrap(), "h").await;
    world.events().await;
    world.with_keys(&generate_key_line("k2", world.clock.as_ref()));
    let update = json!({ "id": integration, "config": {} });
    let unavailable = refusal("unavailable", &[]);
    for call in [
        world.call("integration.update", &update).durable(),
        world.call("integration.create", &body("a")).key("k"),
        world.call("webhook.test", &json!({ "id": hook["id"] })),
    ] {
        assert_eq!(call.refused().await, unavailable);
    }
    // It will be tried again, so nothing is told yet.
    assert_eq!(world.event_types().await, [""; 0]);
    // What needs no old secret goes on.
    world
        .ok("webhook.rotate_secret", json!({ "id": hook["id"] }))
        .await;
}

#[tokio::test]
async fn a_secret_that_does_not_open_is_a_fault_of_ours() {
    let mut world = World::new().await;
    let created = world.ok("integration.create", body("a")).await;
    world.events().await;
    // The same key id, but another key.
    world.with_keys(&generate_key_line("k1", world.clock.as_ref()));
    let update = json!({ "id": created["id"], "config": {} });
    let call = world.call("integration.update", &update).durable();
    assert_eq!(call.refused().await, refusal("internal", &[]));
    assert_eq!(world.event_types().await, ["command.rejected"]);
}
