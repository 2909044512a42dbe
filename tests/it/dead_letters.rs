//! Dead letters from end to end: listed, replayed through intake, discarded, and told of before they
//! expire.

use std::time::Duration;

use integration_worker::application::dead_letter_box::LetterId;
use serde_json::{Value, json};

use crate::support::{
    PATIENCE, eventually,
    site::{Site, on_both},
    worker::{Environment, Worker},
};

on_both!(
    a_replayed_event_goes_through_intake_again,
    a_replayed_command_is_handled_again,
    a_discarded_letter_is_gone_and_what_is_left_is_counted,
    letters_near_their_end_are_told_of_once_a_day,
);

async fn letters(site: &Site) -> Vec<Value> {
    let page = site.erp.ask("deadletter.list", json!({})).await;
    page["items"].as_array().expect("a list").clone()
}

/// Waits until there are so many letters.
async fn wait_letters(site: &Site, count: usize) -> Vec<Value> {
    eventually(PATIENCE, async || {
        Some(letters(site).await).filter(|letters| letters.len() == count)
    })
    .await
}

async fn wait_metric(worker: &mut Worker, line: &str) {
    eventually(PATIENCE, async || {
        let metrics = worker.ops("/metrics").await.1;
        metrics.lines().any(|one| one == line).then_some(())
    })
    .await;
}

async fn a_replayed_event_goes_through_intake_again(site: Site) {
    let big = format!(
        r#"{{"eventType":"a.b","eventId":"e-1","tenantId":"a b","payload":{{"big":"{}"}}}}"#,
        "x".repeat(2_000)
    );
    site.erp.publish("sales.order.created", big.clone()).await;
    let first = wait_letters(&site, 1).await.remove(0);
    assert_eq!(first["reason"]["code"], "invalid_tenant");
    assert_eq!(first["subject"], "sales.order.created");
    assert_eq!(first["stream"], "ERP_EVENTS");
    assert_eq!(first["kind"], "events");
    let shown = site
        .erp
        .ask("deadletter.get", json!({ "id": first["id"] }))
        .await;
    assert_eq!(shown["body"], big);

    let replayed = site
        .erp
        .ask("deadletter.replay", json!({ "id": first["id"] }))
        .await;

    assert_eq!(replayed["id"], first["id"]);
    // Intake has seen it anew and cannot understand it this time either.
    let second = eventually(PATIENCE, async || {
        let mut letters = letters(&site).await;
        letters.retain(|letter| letter["id"] != first["id"]);
        letters.pop()
    })
    .await;
    assert_eq!(second["reason"], first["reason"]);
    assert!(second["sequence"].as_u64() > first["sequence"].as_u64());
    assert_eq!(wait_letters(&site, 1).await, [second]);
}

async fn a_replayed_command_is_handled_again(site: Site) {
    let headers = [("X-Tenant-Id", "acme"), ("Authorization", "Bearer canary")];
    site.erp
        .command("webhook.frob", &headers, &json!({ "a": 1 }))
        .await;
    let tenant = [("X-Tenant-Id", "acme")];
    let list = async || {
        let page = site
            .erp
            .request("deadletter.list", &tenant, &json!({}))
            .await;
        page["data"]["items"].as_array().expect("a list").clone()
    };
    let first = eventually(PATIENCE, async || list().await.pop()).await;
    assert_eq!(first["reason"]["code"], "unknown_action");
    assert_eq!(first["tenantId"], "acme");
    assert_eq!(first["headers"]["Authorization"], "(hidden)");
    assert!(letters(&site).await.is_empty(), "another tenant's letter");
    let body = json!({ "id": first["id"] });
    let refused = site.erp.request("deadletter.discard", &[], &body).await;
    assert_eq!(refused["error"]["code"], "not_found");

    let headers = [("X-Tenant-Id", "acme"), ("Idempotency-Key", "replay-1")];
    site.erp.command("deadletter.replay", &headers, &body).await;

    let completed = site
        .erp
        .wait_event("command.completed", |event| event["subject"] == "replay-1")
        .await;
    assert_eq!(completed["data"]["entityId"], first["id"]);
    // It came to the commands again, and is a new letter now.
    eventually(PATIENCE, async || {
        let letters = list().await;
        (letters.len() == 1 && letters.iter().all(|letter| letter["id"] != first["id"]))
            .then_some(())
    })
    .await;
}

async fn a_discarded_letter_is_gone_and_what_is_left_is_counted(mut site: Site) {
    for _ in 0..3 {
        site.erp.publish("sales.empty", "").await;
    }
    let all = wait_letters(&site, 3).await;
    wait_metric(&mut site.worker, "integration_dead_letters_kept 3").await;
    let id = all[1]["id"].as_str().expect("an id");
    assert!(id.parse::<LetterId>().is_ok(), "{id}");

    let environment = Environment::new(&site.server.url(), &site.database.url());
    let mut client = Worker::command(&["deadletter", "discard", "--id", id], &environment);

    assert_eq!(
        client.exit_code(PATIENCE).await,
        0,
        "{}",
        client.output().text()
    );
    let left = wait_letters(&site, 2).await;
    assert_eq!(left, [all[0].clone(), all[2].clone()]);
    wait_metric(&mut site.worker, "integration_dead_letters_kept 2").await;
    let mut client = Worker::command(&["deadletter", "list"], &environment);
    assert_eq!(client.exit_code(PATIENCE).await, 0);
    let table = client.output().text();
    assert!(
        table.contains("sales.empty") && !table.contains(id),
        "{table}"
    );
}

async fn letters_near_their_end_are_told_of_once_a_day(mut site: Site) {
    site.erp.publish("sales.empty", "").await;
    site.erp
        .publish_with("sales.empty", &[("X-Tenant-Id", "acme")], "")
        .await;
    wait_letters(&site, 1).await;
    wait_metric(&mut site.worker, "integration_dead_letters_kept 2").await;
    let stream = site
        .erp
        .jetstream
        .get_stream("INTEGRATION_DEAD_LETTERS")
        .await;
    let mut config = stream.expect("it is there").cached_info().config.clone();
    config.max_age = Duration::from_hours(6 * 24);
    site.erp
        .jetstream
        .update_stream(config)
        .await
        .expect("it is changed");

    let of = |tenant: &'static str| move |event: &Value| event["tenantid"] == tenant;
    let told = site
        .erp
        .wait_event("deadletter.expiring", of("default"))
        .await;
    site.erp.wait_event("deadletter.expiring", of("acme")).await;

    assert_eq!(told["data"]["count"], 1);
    assert!(told["data"]["oldest"].is_string());
    assert!(
        site.worker
            .output()
            .text()
            .contains("dead letters expire within 7 days")
    );
    // Another start of a worker on the same day tells nothing anew.
    let environment = Environment::new(&site.server.url(), &site.database.url());
    assert_eq!(site.worker.terminate().await, 0);
    let mut again = Worker::start(&environment);
    again.wait_ready().await;
    let warned = |line: &str| {
        line.contains("dead letters expire within 7 days")
            .then_some(())
    };
    again.output().wait_for(PATIENCE, warned).await;
    let events = site.erp.events().await;
    let told = events
        .iter()
        .filter(|event| event["type"] == "deadletter.expiring");
    assert_eq!(told.count(), 2);
}
