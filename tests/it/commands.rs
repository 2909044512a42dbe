//! Commands as users send them: durable and by request, with one result.

use serde_json::{Value, json};

use crate::support::{
    PATIENCE, eventually,
    site::{Site, on_both},
};

on_both!(
    the_first_example_of_the_documentation_works_as_it_stands,
    a_durable_command_is_done_once_and_tells_its_outcome,
    what_is_no_command_is_a_dead_letter,
    no_secret_leaves_the_worker,
    the_service_is_found_by_the_tools_of_nats,
);

/// The first example of the contract.
fn example() -> Value {
    json!({
        "name": "My API Integration", "type": "api",
        "config": {
            "endpoint": "https://api.example.com",
            "credentials": { "apiKey": "canary-api-key" },
            "timeout": 30000,
        },
        "description": "Integration with external API", "tags": ["production", "api"],
    })
}

async fn the_first_example_of_the_documentation_works_as_it_stands(site: Site) {
    let erp = &site.erp;
    let created = erp.ask("integration.create", example()).await;
    assert_eq!(created["status"], "pending");
    assert_eq!(created["version"], 1);
    assert_eq!(created["config"]["credentials"]["apiKey"]["set"], true);
    let again = erp.request("integration.create", &[], &example()).await;
    assert_eq!(again["error"]["code"], "conflict");
    let other = [("X-Tenant-Id", "other")];
    let hidden = erp
        .request("integration.get", &other, &json!({ "id": created["id"] }))
        .await;
    assert_eq!(hidden["error"]["code"], "not_found");
    let faulty = json!({ "name": "", "type": "x", "surplus": 1 });
    let faulty = erp.request("integration.create", &[], &faulty).await;
    let paths: Vec<_> = faulty["error"]["details"]
        .as_array()
        .expect("details")
        .iter()
        .map(|one| one["path"].clone())
        .collect();
    for path in ["name", "type", "surplus"] {
        assert!(paths.contains(&json!(path)), "{faulty}");
    }
}

async fn a_durable_command_is_done_once_and_tells_its_outcome(site: Site) {
    let erp = &site.erp;
    let mut replies = erp
        .client
        .subscribe("replies.here")
        .await
        .expect("a subscription");
    erp.client.flush().await.expect("the server knows of it");
    let headers = [
        ("Idempotency-Key", "key-1"),
        ("Integration-Reply-To", "replies.here"),
        ("X-Correlation-Id", "corr-1"),
    ];
    erp.command("integration.create", &headers, &example())
        .await;
    erp.command("integration.create", &headers, &example())
        .await;
    erp.command(
        "integration.activate",
        &[],
        &json!({ "id": "00000000-0000-7000-8000-000000000000" }),
    )
    .await;

    let rejected = erp.wait_event("command.rejected", |_| true).await;

    assert_eq!(rejected["data"]["error"]["code"], "not_found");
    assert_eq!(rejected["data"]["action"], "integration.activate");
    let completed = erp
        .wait_event("command.completed", |event| event["subject"] == "key-1")
        .await;
    assert_eq!(completed["correlationid"], "corr-1");
    let created = erp.wait_event("integration.created", |_| true).await;
    assert_eq!(created["subject"], completed["data"]["entityId"]);
    assert_eq!(created["causationid"], "key-1");
    for _ in 0..2 {
        let reply =
            tokio::time::timeout(PATIENCE, futures_util::StreamExt::next(&mut replies)).await;
        let reply: Value =
            serde_json::from_slice(&reply.expect("in time").expect("a reply").payload)
                .expect("JSON");
        assert_eq!(
            reply["data"]["id"], created["subject"],
            "both get the first result"
        );
    }
    let list = erp.ask("integration.list", json!({})).await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
}

async fn what_is_no_command_is_a_dead_letter(site: Site) {
    let erp = &site.erp;
    erp.publish("integration.commands.integration.explode", "{}")
        .await;
    erp.publish("integration.commands.integration.create", "{")
        .await;

    let letters = eventually(PATIENCE, async || {
        let events = erp.events().await;
        let added: Vec<_> = events
            .into_iter()
            .filter(|event| event["type"] == "deadletter.added")
            .collect();
        (added.len() == 2).then_some(added)
    })
    .await;

    let reasons: Vec<_> = letters
        .iter()
        .map(|one| one["data"]["reason"].as_str().expect("a reason").to_owned())
        .collect();
    assert!(
        reasons
            .iter()
            .any(|reason| reason.starts_with("unknown_action: ")),
        "{reasons:?}"
    );
    assert!(
        reasons
            .iter()
            .any(|reason| reason.starts_with("malformed: ")),
        "{reasons:?}"
    );
    let left = eventually(PATIENCE, async || {
        let mut stream = erp
            .jetstream
            .get_stream("INTEGRATION_COMMANDS")
            .await
            .ok()?;
        let left = stream.info().await.ok()?.state.messages;
        (left == 0).then_some(left)
    })
    .await;
    assert_eq!(left, 0, "a work queue holds nothing that is settled");
}

async fn no_secret_leaves_the_worker(mut site: Site) {
    let erp = &site.erp;
    let integration = erp.ask("integration.create", example()).await;
    let id = integration["id"].clone();
    let rotated = json!({ "id": id, "credentials": { "apiKey": "canary-second" } });
    erp.ask("integration.rotate_credentials", rotated).await;
    let webhook = json!({
        "name": "w", "integrationId": id, "events": ["*"],
        "config": {
            "url": site.receiver.url("/a?token=canary-query"),
            "headers": { "Authorization": "Bearer canary-header" },
        },
    });
    let webhook = erp.ask("webhook.create", webhook).await;
    let secret = webhook["secret"]
        .as_str()
        .expect("it is told once")
        .to_owned();
    erp.command(
        "webhook.rotate_secret",
        &[("Idempotency-Key", "r-1")],
        &json!({ "id": webhook["id"] }),
    )
    .await;
    erp.wait_event("command.completed", |event| event["subject"] == "r-1")
        .await;
    erp.order_created("e-1").await;
    site.receiver.wait_for(1, PATIENCE).await;
    erp.wait_event("webhook.triggered", |_| true).await;

    let shown = [
        erp.ask("integration.get", json!({ "id": id })).await,
        erp.ask("integration.list", json!({})).await,
        erp.ask("webhook.get", json!({ "id": webhook["id"] })).await,
        json!(erp.events().await),
    ];
    let metrics = site.worker.ops("/metrics").await.1;
    let log = site.worker.output().text();
    let database = std::fs::read(site.database.file().unwrap_or_default()).unwrap_or_default();
    let database = String::from_utf8_lossy(&database).into_owned();

    for canary in [
        "canary-api-key",
        "canary-second",
        secret.trim_start_matches("whsec_"),
    ] {
        for place in &shown {
            assert!(
                !place.to_string().contains(canary),
                "{canary} is shown in {place}"
            );
        }
        for (place, text) in [
            ("metrics", &metrics),
            ("log", &log),
            ("database", &database),
        ] {
            assert!(!text.contains(canary), "{canary} is in the {place}");
        }
    }
    for canary in ["canary-header", "canary-query"] {
        assert!(!log.contains(canary), "{canary} is in the log");
        assert!(
            !shown[3].to_string().contains("canary-header"),
            "a header is in an event"
        );
    }
}

async fn the_service_is_found_by_the_tools_of_nats(site: Site) {
    let info = site
        .erp
        .client
        .request("$SRV.INFO.integration", "".into())
        .await
        .expect("an answer");
    let info: Value = serde_json::from_slice(&info.payload).expect("JSON");
    assert_eq!(info["name"], "integration");
    let endpoints = info["endpoints"].as_array().expect("endpoints");
    let create = "integration.api.webhook.create";
    assert!(
        endpoints.iter().any(|one| one["subject"] == create),
        "{info}"
    );
    let unknown = site
        .erp
        .client
        .request("integration.api.webhook.explode", "{}".into())
        .await;
    let unknown = unknown.expect_err("nobody answers").to_string();
    assert!(unknown.contains("no responders"), "{unknown}");
}
