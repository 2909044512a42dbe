use integration_worker::application::commands::Reply;
use serde_json::{Value, json};

use crate::world::{World, id, refusal};

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn pages_are_newest_first_and_complete() {
    let world = World::new().await;
    for n in 0..5 {
        let body =
            json!({ "name": format!("i{n}"), "type": "file", "tags": [format!("t{}", n % 2)] });
        world.ok("integration.create", body).await;
    }
    let mut seen = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let page = world
            .ok("integration.list", json!({ "limit": 2, "cursor": cursor }))
            .await;
        seen.extend(names(&page).into_iter().map(str::to_owned));
        cursor = page["nextCursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(seen, ["i4", "i3", "i2", "i1", "i0"]);
    let tagged = world.ok("integration.list", json!({ "tag": "t1" })).await;
    assert_eq!(names(&tagged), ["i3", "i1"]);
    let none = world
        .call("integration.list", &json!({}))
        .header("X-Tenant-Id", "b")
        .ok()
        .await;
    assert_eq!(none, json!({ "items": [], "nextCursor": null }));
}

#[tokio::test]
async fn pages_that_are_cut_by_bytes_miss_nothing() {
    let world = World::new().await;
    for n in 0..7 {
        let description = "d".repeat(n * 300);
        let body = json!({ "name": format!("i{n}"), "type": "file", "description": description });
        world.ok("integration.create", body).await;
    }
    let (mut seen, mut pages) = (Vec::new(), 0);
    let mut cursor = Value::Null;
    loop {
        let body = json!({ "limit": 6, "cursor": cursor });
        let reply = world.call("integration.list", &body).send().await.reply;
        let Reply::Success(page) = reply.shortened(3_000) else {
            panic!("each item fits")
        };
        seen.extend(names(&page).into_iter().map(str::to_owned));
        pages += 1;
        cursor = page["nextCursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(seen, ["i6", "i5", "i4", "i3", "i2", "i1", "i0"]);
    assert!(pages > 2, "{pages}");
}

#[tokio::test]
async fn filters_are_equalities_and_unknown_ones_faults() {
    let world = World::new().await;
    let integration = world.integration().await;
    let hook = world.webhook(&integration, "a").await;
    let other = world.webhook(&integration, "b").await;
    world
        .ok("webhook.deactivate", json!({ "id": id(&other) }))
        .await;
    for (filter, expected) in [
        (json!({ "status": "inactive" }), vec!["b"]),
        (
            json!({ "name": "a", "integrationId": integration }),
            vec!["a"],
        ),
        (json!({ "integrationId": hook["id"] }), vec![]),
        (json!({ "since": hook["createdAt"] }), vec!["b", "a"]),
        (json!({ "until": hook["createdAt"] }), vec![]),
    ] {
        let found = world.ok("webhook.list", filter.clone()).await;
        assert_eq!(names(&found), expected, "{filter}");
    }
    let delivery = world
        .ok("webhook.trigger", json!({ "id": hook["id"], "payload": 1 }))
        .await;
    for filter in [
        json!({}),
        json!({ "webhookId": hook["id"], "eventId": delivery["eventId"] }),
        json!({ "eventType": "webhook.trigger", "status": "pending" }),
    ] {
        let found = world.ok("delivery.list", filter).await;
        assert_eq!(found["items"][0]["id"], delivery["id"]);
        assert_eq!(found["items"][0].get("attempts"), None);
    }
    let found = world
        .ok("delivery.list", json!({ "status": "delivered" }))
        .await;
    assert_eq!(found["items"], json!([]));

    for (action, bad, paths) in [
        (
            "integration.list",
            json!({ "type": "x", "status": "x", "webhookId": "x" }),
            &["type", "status", "webhookId"][..],
        ),
        (
            "webhook.list",
            json!({ "integrationId": "x", "since": "x", "type": "api" }),
            &["integrationId", "since", "type"],
        ),
        (
            "delivery.list",
            json!({ "limit": 0, "cursor": "x", "tag": "x" }),
            &["limit", "cursor", "tag"],
        ),
    ] {
        let refused = world.call(action, &bad).refused().await;
        assert_eq!(refused, refusal("validation_failed", paths));
    }
}

#[tokio::test]
async fn an_empty_body_is_an_empty_query_and_the_status_has_the_figures() {
    let world = World::new().await;
    let status = world.raw("status.get", "").ok().await;
    let empty = json!({
        "registryVersion": 0, "parked": 0, "oldestDue": null, "outbox": 0, "oldestOutbox": null,
        "responses": 0, "oldestResponse": null,
    });
    assert_eq!(status, empty);
    let integration = world.integration().await;
    let hook = world.webhook(&integration, "a").await;
    world
        .ok("webhook.trigger", json!({ "id": hook["id"], "payload": 1 }))
        .await;
    let status = world.ok("status.get", json!({})).await;
    assert_eq!(
        (&status["parked"], &status["outbox"]),
        (&json!(1), &json!(2))
    );
    assert!(status["oldestDue"].is_string() && status["oldestOutbox"].is_string());
    assert_eq!(
        world.raw("webhook.create", "").refused().await,
        refusal("malformed", &[])
    );
}
