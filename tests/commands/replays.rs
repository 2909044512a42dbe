//! Replays as users begin and end them; what becomes of them meanwhile is the workers'.

use serde_json::{Value, json};

use crate::world::{World, id, refusal};

const LONG_AGO: &str = "2020-01-01T00:00:00Z";

async fn world_with_webhook() -> (World, String) {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "hook").await);
    world.events().await;
    (world, webhook)
}

fn since(webhook: &str) -> Value {
    json!({ "id": webhook, "since": LONG_AGO })
}

#[tokio::test]
async fn a_replay_is_begun_once_under_one_key_and_told() {
    let (world, webhook) = world_with_webhook().await;

    let begun = world
        .call("webhook.replay", &since(&webhook))
        .key("k")
        .ok()
        .await;
    let again = world
        .call("webhook.replay", &since(&webhook))
        .key("k")
        .ok()
        .await;

    assert_eq!(begun, again);
    assert_eq!(begun["count"], 0);
    let events = world.events().await;
    assert_eq!(events.len(), 1, "{events:?}");
    let (kind, event) = &events[0];
    assert_eq!(kind, "webhook.replay_started");
    assert_eq!(event["subject"], begun["replayId"]);
    assert_eq!(event["aggregateversion"], 1);
    assert_eq!(event["data"]["kind"], "replay");
    assert!(world.stored_anywhere("webhook.replay"), "no audit row");
    let listed = world.ok("webhook.replays", json!({ "id": webhook })).await;
    assert_eq!(listed["items"][0]["status"], "running");
    assert_eq!(listed["items"][0]["id"], begun["replayId"]);
}

#[tokio::test]
async fn one_runs_for_a_webhook_until_it_is_cancelled() {
    let (world, webhook) = world_with_webhook().await;
    let begun = world.ok("webhook.replay", since(&webhook)).await;
    let refused = world
        .call("webhook.replay", &since(&webhook))
        .refused()
        .await;
    assert_eq!(refused.0, "invalid_transition");

    let cancel = json!({ "id": webhook, "replayId": begun["replayId"] });
    let cancelled = world.ok("webhook.cancel_replay", cancel.clone()).await;
    world.ok("webhook.cancel_replay", cancel).await;

    assert_eq!(cancelled["status"], "cancelled");
    assert!(cancelled["completedAt"].is_string());
    let told = world.event_types().await;
    assert_eq!(told, ["webhook.replay_started", "webhook.replay_cancelled"]);
    world.ok("webhook.replay", since(&webhook)).await;
}

#[tokio::test]
async fn ten_run_for_a_tenant() {
    let (world, webhook) = world_with_webhook().await;
    let integration = world.ok("webhook.get", json!({ "id": webhook })).await;
    let integration = integration["integrationId"].as_str().unwrap();
    for number in 0..10 {
        let one = id(&world.webhook(integration, &format!("hook {number}")).await);
        world.ok("webhook.replay", since(&one)).await;
    }
    let refused = world
        .call("webhook.replay", &since(&webhook))
        .refused()
        .await;
    assert_eq!(refused.0, "conflict");
    let mut dry = since(&webhook);
    dry["dryRun"] = true.into();
    world.ok("webhook.replay", dry).await;
}

#[tokio::test]
async fn what_is_not_there_or_not_ones_own_is_not_found() {
    let (world, webhook) = world_with_webhook().await;
    let begun = world.ok("webhook.replay", since(&webhook)).await;
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    for action in ["webhook.replay", "webhook.replays"] {
        let body = match action {
            "webhook.replay" => since(unknown),
            _ => json!({ "id": unknown }),
        };
        let refused = world.call(action, &body).refused().await;
        assert_eq!(refused, refusal("not_found", &["id"]), "{action}");
    }
    let foreign = world.call("webhook.replay", &since(&webhook));
    let foreign = foreign.header("X-Tenant-Id", "other").refused().await;
    assert_eq!(foreign, refusal("not_found", &["id"]));
    let cancel = json!({ "id": webhook, "replayId": begun["replayId"] });
    let foreign = world.call("webhook.cancel_replay", &cancel);
    let foreign = foreign.header("X-Tenant-Id", "other").refused().await;
    assert_eq!(foreign, refusal("not_found", &["replayId"]));
}

#[tokio::test]
async fn only_a_webhook_that_runs_is_replayed() {
    let (world, webhook) = world_with_webhook().await;
    world
        .ok("webhook.deactivate", json!({ "id": webhook }))
        .await;
    let refused = world
        .call("webhook.replay", &since(&webhook))
        .refused()
        .await;
    assert_eq!(refused.0, "invalid_transition");
    world.ok("webhook.activate", json!({ "id": webhook })).await;
    let hook = world.ok("webhook.get", json!({ "id": webhook })).await;
    let integration = json!({ "id": hook["integrationId"] });
    world.ok("integration.deactivate", integration).await;
    let refused = world
        .call("webhook.replay", &since(&webhook))
        .refused()
        .await;
    assert_eq!(refused.0, "invalid_transition");
}

#[tokio::test]
async fn a_backfill_begins_although_nothing_can_be_counted_and_a_dry_run_is_refused() {
    let (world, webhook) = world_with_webhook().await;
    let mut dry = since(&webhook);
    dry["dryRun"] = true.into();
    let refused = world.call("webhook.backfill", &dry).refused().await;
    assert_eq!(refused.0, "internal", "there is no source stream here");

    let begun = world.ok("webhook.backfill", since(&webhook)).await;

    assert_eq!(
        (&begun["count"], &begun["isComplete"]),
        (&json!(0), &json!(false))
    );
    let events = world.events().await;
    let (kind, event) = &events[0];
    assert_eq!(kind, "webhook.replay_started");
    assert_eq!(event["data"]["total"], Value::Null);
}
