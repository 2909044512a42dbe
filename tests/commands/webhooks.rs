use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::world::{World, id, refusal};

fn full(integration: &str) -> Value {
    json!({
        "name": "Order Created Webhook", "integrationId": integration,
        "events": ["order.created", "order.updated"],
        "config": {
            "url": "https://api.example.com/webhooks/orders", "method": "POST",
            "headers": { "Content-Type": "application/json", "Authorization": "Bearer token" },
            "timeout": 30000, "retryPolicy": { "maxRetries": 3, "backoffMs": 1000 },
            "format": "standard", "signing": "v1",
        },
    })
}

#[tokio::test]
async fn a_webhook_is_created_and_its_secret_shown_once() {
    let world = World::new().await;
    let integration = world.integration().await;
    world.events().await;
    let version = world.registry_version().await;
    let mut created = world.ok("webhook.create", full(&integration)).await;
    let secret = created["secret"].take();
    created.as_object_mut().unwrap().remove("secret");
    let bytes = secret.as_str().unwrap().strip_prefix("whsec_").unwrap();
    assert_eq!(STANDARD.decode(bytes).unwrap().len(), 32);
    let body = full(&integration);
    let expected = json!({
        "id": created["id"], "tenantId": "default", "name": "Order Created Webhook", "tags": [],
        "integrationId": integration, "events": body["events"], "config": body["config"],
        "status": "pending", "isActive": true, "version": 1,
        "createdAt": created["createdAt"], "updatedAt": created["createdAt"],
        "createdBy": "system", "updatedBy": "system",
    });
    assert_eq!(created, expected);
    created["endpoint"] = json!({ "breaker": "closed", "failures": 0 });
    assert_eq!(
        world
            .ok("webhook.get", json!({ "id": created["id"] }))
            .await,
        created
    );
    assert_eq!(world.registry_version().await, version + 1);

    let events = world.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].0, "webhook.created");
    let mut told = created.clone();
    told.as_object_mut().unwrap().remove("endpoint");
    // A header may well hold a token.
    told["config"]["headers"] =
        json!({ "Content-Type": { "set": true }, "Authorization": { "set": true } });
    assert_eq!(events[0].1["data"], told);
}

#[tokio::test]
async fn the_values_in_a_query_are_answered_and_never_published() {
    let world = World::new().await;
    let integration = world.integration().await;
    world.events().await;
    let mut body = full(&integration);
    let url = |token: &str| format!("https://api.example.com/hook?token={token}&v={token}");
    body["config"]["url"] = json!(url("c4n4ry"));
    let created = world.ok("webhook.create", body.clone()).await;
    body["config"]["url"] = json!(url("c4n4ry-2"));
    let update = json!({ "id": created["id"], "config": body["config"] });
    world.ok("webhook.update", update).await;

    let shown = world
        .ok("webhook.get", json!({ "id": created["id"] }))
        .await;
    assert_eq!(shown["config"]["url"], url("c4n4ry-2"));
    let events = world.events().await;
    let types: Vec<&str> = events.iter().map(|event| event.0.as_str()).collect();
    assert_eq!(types, ["webhook.created", "webhook.updated"]);
    for (_, event) in &events {
        assert_eq!(event["data"]["config"]["url"], url("***"));
        assert!(!event.to_string().contains("c4n4ry"), "{event}");
    }
}

#[tokio::test]
async fn a_webhook_needs_an_integration_of_its_tenant_and_a_free_name() {
    let world = World::new().await;
    let integration = world.integration().await;
    let body = full("0198f7a0-0000-7000-8000-000000000000");
    let missing = refusal("not_found", &["integrationId"]);
    assert_eq!(world.call("webhook.create", &body).refused().await, missing);
    let body = full(&integration);
    let foreign = world
        .call("webhook.create", &body)
        .header("X-Tenant-Id", "other");
    assert_eq!(foreign.refused().await, missing);
    world.ok("webhook.create", body.clone()).await;
    let taken = refusal("conflict", &["name"]);
    assert_eq!(world.call("webhook.create", &body).refused().await, taken);
}

#[tokio::test]
async fn an_update_changes_what_is_given() {
    let world = World::new().await;
    let integration = world.integration().await;
    let before = world.webhook(&integration, "a").await;
    world.events().await;
    let id = id(&before);
    let same = world
        .ok(
            "webhook.update",
            json!({ "id": id, "events": ["order.created"] }),
        )
        .await;
    assert_eq!(same["version"], 1);
    let body = json!({
        "id": id, "events": ["sales.>"], "tags": ["x"],
        "config": { "url": "https://b.example.com", "timeout": "5s" },
    });
    let after = world.ok("webhook.update", body.clone()).await;
    for field in ["events", "tags", "config"] {
        assert_eq!(after[field], body[field]);
    }
    assert_eq!(
        (&after["name"], &after["version"]),
        (&json!("a"), &json!(2))
    );
    assert_eq!(after.get("secret"), None);
    assert_eq!(world.event_types().await, ["webhook.updated"]);
    let moved = json!({ "id": id, "integrationId": integration });
    let fault = refusal("validation_failed", &["integrationId"]);
    assert_eq!(world.call("webhook.update", &moved).refused().await, fault);
}

#[tokio::test]
async fn states_follow_the_contract() {
    let world = World::new().await;
    let integration = world.integration().await;
    let id = id(&world.webhook(&integration, "a").await);
    world.events().await;
    for (action, status, version) in [
        ("activate", "active", 2),
        ("activate", "active", 2),
        ("deactivate", "inactive", 3),
        ("deactivate", "inactive", 3),
        ("activate", "active", 4),
    ] {
        let view = world
            .ok(&format!("webhook.{action}"), json!({ "id": id }))
            .await;
        assert_eq!(
            (&view["status"], &view["version"]),
            (&json!(status), &json!(version))
        );
        assert_eq!(view["isActive"], status != "inactive");
    }
    for action in [
        "activate",
        "deactivate",
        "update",
        "delete",
        "rotate_secret",
    ] {
        let body = json!({ "id": id, "expectedVersion": 9 });
        let call = world.call(&format!("webhook.{action}"), &body);
        assert_eq!(
            call.refused().await,
            refusal("conflict", &["expectedVersion"]),
            "{action}"
        );
    }
    let data = world
        .ok("webhook.delete", json!({ "id": id, "expectedVersion": 4 }))
        .await;
    assert_eq!(data, json!({ "id": id, "deleted": true }));
    let events = world.events().await;
    let told: Vec<_> = events
        .iter()
        .map(|(kind, e)| (kind.as_str(), e["aggregateversion"].as_i64()))
        .collect();
    assert_eq!(
        told,
        [
            ("webhook.activated", Some(2)),
            ("webhook.deactivated", Some(3)),
            ("webhook.activated", Some(4)),
            ("webhook.deleted", Some(5)),
        ]
    );
    let data = json!({ "name": "a", "integrationId": integration, "status": "inactive" });
    assert_eq!(events[1].1["data"], data);
}

#[tokio::test]
async fn after_a_rotation_both_secrets_sign_for_the_overlap() {
    let world = World::new().await;
    let integration = world.integration().await;
    let created = world.webhook(&integration, "a").await;
    let id = id(&created);
    world.events().await;
    let signatures = async || {
        world.ok("webhook.test", json!({ "id": id })).await;
        let request = world.endpoints.requests.lock().unwrap().pop().unwrap();
        let value = request.headers["webhook-signature"]
            .to_str()
            .unwrap()
            .to_owned();
        value.split(' ').count()
    };
    assert_eq!(signatures().await, 1);
    let rotated = world.ok("webhook.rotate_secret", json!({ "id": id })).await;
    assert!(rotated["secret"].as_str().unwrap().starts_with("whsec_"));
    assert_ne!(rotated["secret"], created["secret"]);
    assert_eq!(rotated["version"], 2);
    assert_eq!(signatures().await, 2);
    world
        .ok(
            "webhook.rotate_secret",
            json!({ "id": id, "overlap": "7d" }),
        )
        .await;
    assert_eq!(signatures().await, 3);
    // An overlap of 0 ends every former one at once: that is what a leaked secret asks for.
    world
        .ok("webhook.rotate_secret", json!({ "id": id, "overlap": 0 }))
        .await;
    assert_eq!(signatures().await, 1);
    let too_long = json!({ "id": id, "overlap": "8d" });
    let fault = refusal("validation_failed", &["overlap"]);
    assert_eq!(
        world
            .call("webhook.rotate_secret", &too_long)
            .refused()
            .await,
        fault
    );
    assert_eq!(world.event_types().await, ["webhook.secret_rotated"; 3]);
}

#[tokio::test]
async fn a_way_of_signing_holds_from_the_next_secret_on_and_is_told_with_its_public_key() {
    let world = World::new().await;
    let integration = world.integration().await;
    let body = |signing: &str| json!({ "url": "https://a.example.com", "signing": signing });
    let created = world
        .ok(
            "webhook.create",
            json!({
                "name": "a", "integrationId": integration, "events": ["*"], "config": body("v1a"),
            }),
        )
        .await;
    let id = id(&created);
    let versions = async || {
        world.ok("webhook.test", json!({ "id": id })).await;
        let request = world.endpoints.requests.lock().unwrap().pop().unwrap();
        let value = request.headers["webhook-signature"].to_str().unwrap();
        let versions = value.split(' ').map(|one| one.split_once(',').unwrap().0);
        versions.map(str::to_owned).collect::<Vec<_>>()
    };
    let half = |text: &Value, prefix: &str, length: usize| {
        let base64 = text.as_str().unwrap().strip_prefix(prefix).unwrap();
        let bytes = STANDARD.decode(base64).unwrap();
        assert_eq!(bytes.len(), length);
        bytes[length - 32..].to_vec()
    };
    let public = half(&created["publicKey"], "whpk_", 32);
    assert_eq!(half(&created["secret"], "whsk_", 64), public);
    assert_eq!(versions().await, ["v1a"]);
    let got = world.ok("webhook.get", json!({ "id": id })).await;
    assert_eq!(
        (&got["secret"], &got["publicKey"]),
        (&json!(null), &json!(null))
    );

    let update = json!({ "id": id, "config": body("v1") });
    let updated = world.ok("webhook.update", update).await;
    assert_eq!(
        (&updated["secret"], &updated["publicKey"]),
        (&json!(null), &json!(null))
    );
    assert_eq!(versions().await, ["v1a"]);
    let rotated = world.ok("webhook.rotate_secret", json!({ "id": id })).await;
    half(&rotated["secret"], "whsec_", 32);
    assert_eq!(rotated["publicKey"], json!(null));
    assert_eq!(versions().await, ["v1", "v1a"]);

    let wrong = json!({ "id": id, "config": body("V1a") });
    let fault = refusal("validation_failed", &["config.signing"]);
    let refused = world.call("webhook.update", &wrong).refused().await;
    assert_eq!(refused, fault);
}
