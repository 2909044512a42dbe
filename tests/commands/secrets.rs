use std::fmt::Write as _;

use integration_worker::infrastructure::crypto::generate_key_line;
use serde_json::{Value, json};

use crate::world::{World, id, refusal};

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

/// A hash of a body tells the weak credentials in it to whoever tries some.
#[tokio::test]
async fn no_hash_of_a_body_is_stored_or_told() {
    let world = World::new().await;
    let first = body("a").to_string();
    let other = body("b").to_string();
    let create = |body: &str| {
        let call = world.raw("integration.create", body.to_owned());
        call.key("k").durable().fallback(7)
    };
    let created = create(&first).ok().await;
    assert_eq!(create(&first).ok().await, created);
    let misused = refusal("conflict", &["Idempotency-Key"]);
    assert_eq!(create(&other).refused().await, misused);
    let hex = |text: &str| {
        let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let mut hex = String::new();
        for byte in hash.as_ref() {
            write!(hex, "{byte:02x}").unwrap();
        }
        hex
    };
    for body in [&first, &other] {
        assert!(!world.stored_anywhere(&hex(body)));
    }
    let rejected = async |body: &str| {
        assert_eq!(create(body).refused().await, misused);
        world.event_types().await
    };
    // Told once for a message, whatever its body: the event's id holds nothing of it.
    assert_eq!(world.event_types().await.len(), 3);
    assert_eq!(rejected(&other).await, [""; 0]);
    assert_eq!(rejected(&body("c").to_string()).await, [""; 0]);
    let another = world.raw("integration.create", other).key("k").durable();
    assert_eq!(another.fallback(8).refused().await, misused);
    assert_eq!(world.event_types().await, ["command.rejected"]);
}

#[tokio::test]
async fn a_signing_secret_is_answered_and_stored_sealed_alone() {
    let world = World::new().await;
    let integration = world.integration().await;
    for (signing, prefix) in [("v1", "whsec_"), ("v1a", "whsk_")] {
        signing_secret_is_sealed(&world, &integration, signing, prefix).await;
    }
}

async fn signing_secret_is_sealed(world: &World, integration: &str, signing: &str, prefix: &str) {
    let body = json!({
        "name": signing, "integrationId": integration, "events": ["*"],
        "config": {
            "url": "https://a.example.com", "signing": signing,
            "headers": { "Authorization": HEADER_CANARY },
        },
    });
    let created = world
        .call("webhook.create", &body)
        .durable()
        .key(signing)
        .ok()
        .await;
    let secret = created["secret"]
        .as_str()
        .unwrap()
        .strip_prefix(prefix)
        .unwrap();
    // The first half of a private key is its seed.
    let secret = secret.get(..40).unwrap();
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
async fn a_credential_that_is_null_is_refused_and_not_shown_as_set() {
    let world = World::new().await;
    let created = world.ok("integration.create", body("a")).await;
    let nothing = json!({ "token": null });
    for (command, body, path) in [
        (
            "integration.create",
            json!({ "name": "b", "type": "api", "config": { "credentials": nothing } }),
            "config.credentials.token",
        ),
        (
            "integration.update",
            json!({ "id": created["id"], "config": { "a": [{ "credentials": nothing }] } }),
            "config.a[0].credentials.token",
        ),
        (
            "integration.rotate_credentials",
            json!({ "id": created["id"], "credentials": nothing }),
            "credentials.token",
        ),
    ] {
        let refused = world.call(command, &body).refused().await;
        assert_eq!(refused, refusal("validation_failed", &[path]), "{command}");
    }
    let get = json!({ "id": created["id"] });
    assert_eq!(world.ok("integration.get", get).await, created);
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
    let hook = world.webhook(&id(&created), "h").await;
    world.events().await;
    // The same key id, but another key.
    world.with_keys(&generate_key_line("k1", world.clock.as_ref()));
    let test = json!({ "id": hook["id"] });
    let call = world.call("webhook.test", &test).durable();
    assert_eq!(call.refused().await, refusal("internal", &[]));
    assert_eq!(world.event_types().await, ["command.rejected"]);
    let update = json!({ "id": created["id"], "config": {} });
    let reply = world.call("integration.update", &update).send().await.reply;
    let told = reply.to_json()["error"].to_string();
    for part in ["conflict", r#"\"k1\""#, "rotate_credentials"] {
        assert!(told.contains(part), "{told}");
    }
}

#[tokio::test]
async fn credentials_whose_key_is_lost_are_given_anew() {
    // The key is gone, or another one has its name.
    for lost in ["k2", "k1"] {
        let mut world = World::new().await;
        let seed = body("a");
        let plain = json!({
            "name": "b", "type": "api", "config": { "credentials": { "apiKey": CANARY } },
        });
        let deep = id(&world.ok("integration.create", seed.clone()).await);
        let flat = id(&world.ok("integration.create", plain).await);
        world.with_keys(&generate_key_line(lost, world.clock.as_ref()));

        let rotate = json!({ "id": flat, "credentials": { "token": "t" } });
        world.ok("integration.rotate_credentials", rotate).await;
        let all = json!({ "id": deep, "config": seed["config"] });
        world.ok("integration.update", all).await;
        // From now on they open: an update keeps them.
        for (integration, config) in [
            (
                &flat,
                json!({ "credentials": { "more": "x" }, "timeout": 5000 }),
            ),
            (&deep, json!({ "servers": [{ "host": "h" }] })),
        ] {
            let keep = json!({ "id": integration, "config": config });
            world.ok("integration.update", keep).await;
        }
        assert!(!world.stored_anywhere(CANARY));
    }
}

#[tokio::test]
async fn credentials_that_are_to_stay_need_their_key_and_the_refusal_says_so() {
    let mut world = World::new().await;
    let created = world.ok("integration.create", body("a")).await;
    world.with_keys(&generate_key_line("k2", world.clock.as_ref()));
    let id = &created["id"];
    for (action, change) in [
        ("integration.update", json!({ "id": id, "config": {} })),
        (
            "integration.update",
            json!({ "id": id, "config": { "credentials": created["config"]["credentials"] } }),
        ),
        // Those of `servers` stay.
        (
            "integration.rotate_credentials",
            json!({ "id": id, "credentials": { "token": "t" } }),
        ),
    ] {
        let reply = world.call(action, &change).send().await.reply;
        let told = reply.to_json()["error"].to_string();
        for part in ["unavailable", r#"\"k1\""#, "rotate_credentials"] {
            assert!(told.contains(part), "{told}");
        }
    }
    // What leaves all of them out of the picture needs none.
    let dropped = json!({ "id": id, "config": { "credentials": {} } });
    world.ok("integration.update", dropped).await;
}
