use serde_json::{Value, json};

use crate::world::{SEED, World, id, refusal};

/// As docs/reference.md says it.
pub(crate) async fn numbers_keep_their_value(world: World) {
    let body = r#"{"name":"n","type":"api","config":{"a":[1.10,1e2,0,-0.5,1.5e300],
        "least":-9223372036854775808,"most":18446744073709551615,"digits":123456789.012345}}"#;
    let created = world.raw("integration.create", body).ok().await;
    let shown = world
        .ok("integration.get", json!({ "id": created["id"] }))
        .await;
    let numbers = |view: &Value| view["config"]["a"].to_string();
    assert_eq!(numbers(&created), "[1.1,100.0,0,-0.5,1.5e+300]");
    let expected = json!([1.1, 100.0, 0, -0.5, 1.5e300]);
    for view in [&created, &shown] {
        let config = &view["config"];
        let read = config["a"].as_array().unwrap().iter().map(Value::as_f64);
        let wanted = expected.as_array().unwrap().iter().map(Value::as_f64);
        assert!(read.eq(wanted), "{config}");
        assert_eq!(config["least"].as_i64(), Some(i64::MIN));
        assert_eq!(config["most"].as_u64(), Some(u64::MAX));
        assert_eq!(config["digits"].to_string(), "123456789.012345");
    }
    let large = r#"{"name":"m","type":"api","config":{"a":1e400}}"#;
    let refused = world.raw("integration.create", large).refused().await;
    assert_eq!(refused, refusal("malformed", &[]));
}

#[tokio::test]
async fn numbers_in_a_configuration_keep_their_value() {
    numbers_keep_their_value(World::new().await).await;
}

#[tokio::test]
async fn the_seeds_example_is_valid_as_it_stands() {
    let world = World::new().await;
    let created = world
        .raw("integration.create", SEED)
        .header("X-Tenant-Id", "acme")
        .header("X-User-Id", "alice")
        .ok()
        .await;
    let mark = &created["config"]["credentials"]["apiKey"];
    assert_eq!(mark["set"], true);
    assert_eq!(mark["updatedAt"], created["createdAt"]);
    let expected = json!({
        "id": created["id"], "tenantId": "acme", "name": "My API Integration",
        "description": "Integration with external API", "tags": ["production", "api"], "type": "api",
        "config": {
            "endpoint": "https://api.example.com",
            "credentials": { "apiKey": { "set": true, "updatedAt": created["createdAt"] } },
            "timeout": 30000,
        },
        "status": "pending", "isActive": true, "version": 1,
        "createdAt": created["createdAt"], "updatedAt": created["createdAt"],
        "createdBy": "alice", "updatedBy": "alice",
    });
    assert_eq!(created, expected);

    let get = json!({ "id": created["id"] });
    let got = world
        .call("integration.get", &get)
        .header("X-Tenant-Id", "acme")
        .ok()
        .await;
    assert_eq!(got, created);
    // Another tenant's things are not there.
    assert_eq!(
        world.call("integration.get", &get).refused().await,
        refusal("not_found", &["id"])
    );

    let events = world.events().await;
    let [(kind, event)] = &events[..] else {
        panic!("not one event: {events:?}")
    };
    assert_eq!(kind, "integration.created");
    assert_eq!(event["subject"], created["id"]);
    assert_eq!(event["tenantid"], "acme");
    assert_eq!(event["actor"], "alice");
    assert_eq!(event["aggregateversion"], 1);
    assert_eq!(event["correlationid"], event["causationid"]);
    assert_eq!(event["data"], created);
}

#[tokio::test]
async fn an_update_is_partial_and_counts_only_when_something_changes() {
    let world = World::new().await;
    let id = world.integration().await;
    let before = world.ok("integration.get", json!({ "id": id })).await;
    world.events().await;

    let same = json!({ "id": id, "name": before["name"], "tags": ["production", "api"] });
    assert_eq!(world.ok("integration.update", same).await, before);
    let same = json!({ "id": id, "config": before["config"] });
    assert_eq!(world.ok("integration.update", same).await, before);
    assert_eq!(world.event_types().await, [""; 0]);

    let body = json!({
        "id": id, "expectedVersion": 1, "description": null, "name": "Other",
        "config": { "endpoint": "https://other.example.com", "further": { "field": [1.50] } },
    });
    let after = world
        .call("integration.update", &body)
        .header("x-user-id", "bob")
        .ok()
        .await;
    assert_eq!(after["name"], "Other");
    assert_eq!(after.get("description"), None);
    assert_eq!(after["tags"], before["tags"]);
    assert_eq!(after["version"], 2);
    assert_eq!(
        (&after["createdBy"], &after["updatedBy"]),
        (&json!("system"), &json!("bob"))
    );
    // Replaced whole, but the credentials stay.
    let config = json!({
        "endpoint": "https://other.example.com", "further": { "field": [1.50] },
        "credentials": before["config"]["credentials"],
    });
    assert_eq!(after["config"], config);
    assert_eq!(
        world.ok("integration.get", json!({ "id": id })).await,
        after
    );
    let events = world.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].0.as_str(), &events[0].1["aggregateversion"]),
        ("integration.updated", &json!(2))
    );
}

#[tokio::test]
async fn a_name_is_taken_once_per_tenant() {
    let world = World::new().await;
    world.integration().await;
    let taken = refusal("conflict", &["name"]);
    assert_eq!(world.raw("integration.create", SEED).refused().await, taken);
    world
        .raw("integration.create", SEED)
        .header("X-Tenant-Id", "b")
        .ok()
        .await;
    let other = world
        .ok(
            "integration.create",
            json!({ "name": "Other", "type": "file" }),
        )
        .await;
    let rename = json!({ "id": other["id"], "name": "My API Integration" });
    assert_eq!(
        world.call("integration.update", &rename).refused().await,
        taken
    );
    let event_types = world.event_types().await;
    assert_eq!(event_types, ["integration.created"; 3]);
}

#[tokio::test]
async fn states_follow_the_contract_and_repeating_one_changes_nothing() {
    let world = World::new().await;
    let id = world.integration().await;
    world.events().await;
    let version = world.registry_version().await;
    let step = |action: &'static str| {
        let mut body = json!({ "id": id });
        if action == "mark_error" {
            body["error"] = json!("no answer\nsince noon");
        }
        world.call(&format!("integration.{action}"), &body)
    };
    for (action, status, active, version) in [
        ("activate", "active", true, 2),
        ("activate", "active", true, 2),
        ("deactivate", "inactive", false, 3),
        ("deactivate", "inactive", false, 3),
        ("activate", "active", true, 4),
        ("mark_error", "error", true, 5),
        ("mark_error", "error", true, 5),
    ] {
        let view = step(action).ok().await;
        assert_eq!(
            (&view["status"], &view["isActive"]),
            (&json!(status), &json!(active))
        );
        assert_eq!(view["version"], version, "{action}");
        let error = (status == "error").then_some("no answer\nsince noon");
        assert_eq!(view.get("error").and_then(Value::as_str), error);
    }
    assert_eq!(
        step("activate").refused().await,
        refusal("invalid_transition", &[])
    );
    step("deactivate").ok().await;
    step("activate").ok().await;

    let events = world.events().await;
    let told: Vec<_> = events
        .iter()
        .map(|(kind, e)| (kind.as_str(), e["aggregateversion"].as_i64()))
        .collect();
    let expected = [
        ("integration.activated", Some(2)),
        ("integration.deactivated", Some(3)),
        ("integration.activated", Some(4)),
        ("integration.failed", Some(5)),
        ("integration.deactivated", Some(6)),
        ("integration.activated", Some(7)),
    ];
    assert_eq!(told, expected);
    let failed = json!({ "name": "My API Integration", "status": "error", "error": "no answer\nsince noon" });
    assert_eq!(events[3].1["data"], failed);
    assert!(world.registry_version().await >= version + 6);
}

#[tokio::test]
async fn an_expected_version_must_be_the_rows() {
    let world = World::new().await;
    let id = world.integration().await;
    for (action, more) in [
        ("update", json!({ "name": "x" })),
        ("activate", json!({})),
        ("deactivate", json!({})),
        ("mark_error", json!({ "error": "x" })),
        ("rotate_credentials", json!({ "credentials": {} })),
        ("delete", json!({})),
    ] {
        let mut body = json!({ "id": id, "expectedVersion": 2 });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let call = world.call(&format!("integration.{action}"), &body);
        assert_eq!(
            call.refused().await,
            refusal("conflict", &["expectedVersion"]),
            "{action}"
        );
    }
    world
        .ok(
            "integration.activate",
            json!({ "id": id, "expectedVersion": 1 }),
        )
        .await;
}

#[tokio::test]
async fn a_deletion_is_refused_with_children_unless_it_cascades() {
    let world = World::new().await;
    let integration = world.integration().await;
    let mut webhooks = Vec::new();
    for n in 0..25 {
        webhooks.push(id(&world.webhook(&integration, &format!("hook {n}")).await));
    }
    world.events().await;
    let delete = json!({ "id": integration });
    let (code, paths) = world.call("integration.delete", &delete).refused().await;
    assert_eq!((code, paths.len()), ("conflict", 20));
    assert_eq!(world.event_types().await, [""; 0]);

    let cascade = json!({ "id": integration, "cascade": true });
    let data = world.ok("integration.delete", cascade.clone()).await;
    assert_eq!(data, json!({ "id": integration, "deleted": true }));
    let events = world.events().await;
    assert_eq!(events.len(), 26);
    for (kind, event) in &events[..25] {
        assert_eq!(
            (kind.as_str(), &event["aggregateversion"]),
            ("webhook.deleted", &json!(2))
        );
    }
    assert_eq!(events[25].0, "integration.deleted");
    assert_eq!(events[25].1["aggregateversion"], 2);
    for action in ["get", "delete", "activate"] {
        let call = world.call(&format!("integration.{action}"), &delete);
        assert_eq!(call.refused().await, refusal("not_found", &["id"]));
    }
    let get = json!({ "id": webhooks[0] });
    assert_eq!(
        world.call("webhook.get", &get).refused().await,
        refusal("not_found", &["id"])
    );
    // Its name is free again.
    world.integration().await;
}
