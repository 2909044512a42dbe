use std::{collections::HashSet, sync::Arc};

use integration_worker::{
    application::commands::CommandHandler, infrastructure::sqlite::SqliteStore,
};
use serde_json::json;

use crate::world::{SEED, World, refusal};

#[tokio::test]
async fn every_fault_is_listed_at_once() {
    let world = World::new().await;
    let body = json!({
        "name": "x".repeat(256), "type": "ftp", "tags": ["a", "a", ""], "description": 1,
        "config": {
            "timeout": 999, "credentials": [], "retryPolicy": { "maxRetries": 11 }, "further": 1,
        },
        "color": "red",
    });
    let paths = [
        "name",
        "description",
        "tags[1]",
        "tags[2]",
        "type",
        "config.timeout",
        "config.retryPolicy.maxRetries",
        "config.credentials",
        "color",
    ];
    let mut refused = world.call("integration.create", &body).refused().await;
    refused.1.sort();
    let mut expected = refusal("validation_failed", &paths);
    expected.1.sort();
    assert_eq!(refused, expected);

    let body = json!({
        "integrationId": "x", "events": ["order.created", "a..b", "order.created", 1],
        "config": { "url": "http://169.254.169.254/", "batch": 7 },
    });
    let paths = [
        "name",
        "integrationId",
        "events[1]",
        "events[2]",
        "events[3]",
        "config.batch",
        "config.url",
    ];
    let refused = world.call("webhook.create", &body).refused().await;
    assert_eq!(refused, refusal("validation_failed", &paths));
    let body = json!({ "id": "x", "error": " ", "expectedVersion": 0 });
    let refused = world.call("integration.mark_error", &body).refused().await;
    assert_eq!(
        refused,
        refusal("validation_failed", &["id", "expectedVersion", "error"])
    );
    assert_eq!(world.event_types().await, [""; 0]);
}

#[tokio::test]
async fn an_update_is_checked_against_what_stands() {
    let world = World::new().await;
    let file = json!({ "name": "f", "type": "file", "config": { "endpoint": "/data/exports" } });
    let file = world.ok("integration.create", file).await;
    let fault = refusal("validation_failed", &["config.endpoint"]);
    let body = json!({ "id": file["id"], "type": "api" });
    assert_eq!(
        world.call("integration.update", &body).refused().await,
        fault
    );
    let api = world.integration().await;
    let body = json!({ "id": api, "config": { "endpoint": "/data/exports" } });
    assert_eq!(
        world.call("integration.update", &body).refused().await,
        fault
    );
}

#[tokio::test]
async fn what_is_no_object_is_malformed_and_a_bad_header_a_fault() {
    let world = World::new().await;
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(2 * 1024 * 1024));
    for body in [
        "",
        "null",
        "[1]",
        "{} {}",
        "{\"a\":1,\"a\":2}",
        &deep,
        &large,
    ] {
        for action in ["integration.create", "webhook.trigger"] {
            let call = world.raw(action, body.to_owned());
            assert_eq!(call.refused().await, refusal("malformed", &[]));
        }
    }
    let call = world.raw("integration.create", SEED);
    let call = call.header("X-Tenant-Id", "ä").header("x-user-id", "a\nb");
    let faults = refusal("validation_failed", &["X-Tenant-Id", "X-User-Id"]);
    assert_eq!(call.refused().await, faults);
}

#[tokio::test]
async fn every_listed_action_is_handled_and_no_other() {
    let world = World::new().await;
    let actions: HashSet<_> = CommandHandler::ACTIONS.iter().collect();
    assert_eq!(actions.len(), CommandHandler::ACTIONS.len());
    for (entity, action) in CommandHandler::ACTIONS {
        let call = world.raw(&format!("{entity}.{action}"), r#"{"nonsense":1}"#);
        let (code, paths) = call.refused().await;
        assert_eq!(code, "validation_failed", "{entity}.{action}");
        assert!(paths.contains(&"nonsense".to_owned()), "{entity}.{action}");
    }
    for unknown in ["integration.fly", "webhook.fly", "syncjob.create", "."] {
        assert_eq!(
            world.raw(unknown, "{}").refused().await,
            refusal("not_found", &[])
        );
    }
}

#[tokio::test]
async fn a_database_that_is_gone_is_something_to_wait_for() {
    let world = World::new().await;
    let file = world.folder.path().join("store.db");
    let other = SqliteStore::open(&file).await.unwrap();
    other.close().await;
    let world = world.with_store(Arc::new(other));
    for (action, body) in [("integration.create", SEED), ("integration.list", "{}")] {
        let reply = world
            .raw(action, body)
            .durable()
            .send()
            .await
            .reply
            .to_json();
        assert_eq!(reply["error"]["code"], "unavailable", "{reply}");
        assert_eq!(reply["error"]["retryable"], true);
    }
}
