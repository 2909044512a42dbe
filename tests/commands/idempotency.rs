use std::sync::Arc;

use integration_worker::application::commands::Reply;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::world::{SEED, World, id, refusal};

#[tokio::test]
async fn the_same_key_returns_the_first_result_and_does_nothing_twice() {
    let world = World::new().await;
    let first = world.raw("integration.create", SEED).key("k").send().await;
    let again = world
        .raw("integration.create", SEED)
        .header("nats-msg-id", "k")
        .send()
        .await;
    assert!(matches!(first.reply, Reply::Success(_)));
    assert_eq!(first.reply, again.reply);
    assert_eq!(
        (first.command_id.as_str(), again.command_id.as_str()),
        ("k", "k")
    );
    assert_eq!(world.event_types().await, ["integration.created"]);
    // Without a key, or by another tenant, it is another command.
    let taken = refusal("conflict", &["name"]);
    assert_eq!(world.raw("integration.create", SEED).refused().await, taken);
    let other = world
        .raw("integration.create", SEED)
        .key("k")
        .header("X-Tenant-Id", "b");
    other.ok().await;
}

#[tokio::test]
async fn the_same_key_with_another_body_is_a_conflict_and_with_another_action_another_command() {
    let world = World::new().await;
    let created = world.raw("integration.create", SEED).key("k").ok().await;
    let misused = refusal("conflict", &["Idempotency-Key"]);
    let body = json!({ "name": "x", "type": "api" });
    assert_eq!(
        world
            .call("integration.create", &body)
            .key("k")
            .refused()
            .await,
        misused
    );
    assert_eq!(
        world
            .raw("integration.create", "{")
            .key("k")
            .refused()
            .await,
        misused
    );
    let activate = json!({ "id": created["id"] });
    let active = world
        .call("integration.activate", &activate)
        .key("k")
        .ok()
        .await;
    assert_eq!(active["version"], 2);
    // The first reply stays what it was, whatever has happened since.
    assert_eq!(
        world.raw("integration.create", SEED).key("k").ok().await,
        created
    );
}

#[tokio::test]
async fn a_refusal_is_kept_too_and_leaves_no_work_behind() {
    let world = World::new().await;
    let integration = world.integration().await;
    world.events().await;
    let rename = json!({ "id": integration, "name": "B" });
    let blocker = world
        .ok("integration.create", json!({ "name": "B", "type": "file" }))
        .await;
    let taken = refusal("conflict", &["name"]);
    assert_eq!(
        world
            .call("integration.update", &rename)
            .key("k")
            .refused()
            .await,
        taken
    );
    world
        .ok("integration.delete", json!({ "id": blocker["id"] }))
        .await;
    assert_eq!(
        world
            .call("integration.update", &rename)
            .key("k")
            .refused()
            .await,
        taken
    );
    assert_eq!(world.ok("integration.update", rename).await["name"], "B");
    let faulty = json!({ "id": 1 });
    for _ in 0..2 {
        let call = world.call("integration.update", &faulty).key("f");
        assert_eq!(call.refused().await, refusal("validation_failed", &["id"]));
    }
    for _ in 0..2 {
        let call = world.raw("integration.update", "[]").key("m");
        assert_eq!(call.refused().await, refusal("malformed", &[]));
    }
}

#[tokio::test]
async fn a_secret_is_answered_again_to_the_same_command() {
    let world = World::new().await;
    let integration = world.integration().await;
    let body = json!({
        "name": "a", "integrationId": integration, "events": [">"],
        "config": { "url": "https://a.example.com" },
    });
    let first = world.call("webhook.create", &body).key("k").ok().await;
    let again = world.call("webhook.create", &body).key("k").ok().await;
    assert!(first["secret"].is_string());
    assert_eq!(first, again);
}

#[tokio::test]
async fn queries_are_never_kept() {
    let world = World::new().await;
    let integration = world.integration().await;
    let get = json!({ "id": integration });
    let before = world.call("integration.get", &get).key("k").ok().await;
    world.ok("integration.activate", get.clone()).await;
    let after = world.call("integration.get", &get).key("k").ok().await;
    assert_eq!(
        (&before["version"], &after["version"]),
        (&json!(1), &json!(2))
    );
    world
        .call("integration.list", &json!({}))
        .key("k")
        .ok()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_executes_and_the_others_get_its_reply() {
    one_of_many_executes(World::new().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_have_no_gaps_when_commands_run_at_once() {
    versions_have_no_gaps(World::new().await).await;
}

pub(crate) async fn one_of_many_executes(world: World) {
    let world = Arc::new(world);
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let world = Arc::clone(&world);
        calls.spawn(async move { world.raw("integration.create", SEED).key("k").ok().await });
    }
    let replies: Vec<Value> = calls.join_all().await;
    assert!(replies.iter().all(|reply| *reply == replies[0]));
    assert_eq!(world.event_types().await, ["integration.created"]);

    // The same for a refusal.
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let world = Arc::clone(&world);
        calls.spawn(async move { world.raw("integration.create", SEED).key("r").send().await });
    }
    let replies = calls.join_all().await;
    assert!(
        replies
            .iter()
            .all(|handled| handled.reply == replies[0].reply)
    );
    assert_eq!(replies[0].reply.result(), "conflict");
}

pub(crate) async fn versions_have_no_gaps(world: World) {
    let world = Arc::new(world);
    let integration = world.integration().await;
    world.events().await;
    let mut calls = JoinSet::new();
    for n in 0..20 {
        let world = Arc::clone(&world);
        let body = json!({ "id": integration, "description": format!("number {n}") });
        calls.spawn(async move { world.ok("integration.update", body).await });
    }
    calls.join_all().await;
    let events = world.events().await;
    let versions = events.iter().map(|(_, e)| e["aggregateversion"].as_i64());
    assert_eq!(
        versions.collect::<Vec<_>>(),
        (2..=21).map(Some).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_test_under_the_same_key_is_sent_once() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    let body = json!({ "id": webhook });
    let first = world.call("webhook.test", &body).key("k").ok().await;
    assert_eq!(world.call("webhook.test", &body).key("k").ok().await, first);
    assert_eq!(world.endpoints.requests.lock().unwrap().len(), 1);
}
