//! Why an event did or did not reach a webhook: on both databases.

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    eventually,
    nats::NatsServer,
    receiver::{Answer, Receiver},
    site::{Site, on_both},
    worker::{Environment, Worker},
};

on_both!(
    a_recorded_delivery_is_explained_with_its_row,
    what_a_webhook_does_not_want_is_explained_by_what_it_wants,
    what_is_turned_off_is_explained_by_that,
    what_came_before_the_webhook_or_its_change_is_explained_by_that,
    what_nobody_knows_is_told_with_how_far_was_looked,
    what_the_stream_has_no_more_is_explained_by_another_webhooks_delivery,
);

async fn explain(erp: &Erp, event: &str, webhook: &str) -> Value {
    let body = json!({ "eventId": event, "webhookId": webhook });
    erp.ask("delivery.explain", body).await
}

/// The reason, where the outcome is this one.
async fn reason(erp: &Erp, event: &str, webhook: &str, outcome: &str) -> String {
    let answer = explain(erp, event, webhook).await;
    assert_eq!(answer["outcome"], outcome, "{answer}");
    assert!(answer.get("delivery").is_none(), "{answer}");
    answer["reason"].as_str().expect("a reason").to_owned()
}

async fn a_recorded_delivery_is_explained_with_its_row(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_in_turn("/ok", vec![Answer::status(500), Answer::status(204)]);
    receiver.answer("/down", Answer::status(500));
    receiver.answer("/slow", Answer::status(500));
    let soon = json!({ "retryPolicy": { "schedule": ["100ms"] } });
    let late = json!({ "retryPolicy": { "schedule": ["1h"] } });
    let (ok, _) = erp
        .webhook(&receiver.url("/ok"), &[">"], soon.clone())
        .await;
    let (down, _) = erp.webhook(&receiver.url("/down"), &[">"], soon).await;
    let (slow, _) = erp
        .webhook(&receiver.url("/slow"), &["sales.>"], late)
        .await;
    let sequence = erp.order_created("e-1").await;
    for (webhook, outcome, begin) in [
        (&ok, "delivered", "delivered at attempt 2 at "),
        (&down, "exhausted", "exhausted at "),
        (&slow, "pending", "pending: waits until "),
    ] {
        let row = json!({ "eventId": "e-1", "status": outcome });
        let row = erp.wait_delivery(webhook, row).await;

        let answer = explain(&erp, "e-1", webhook).await;

        assert_eq!(answer["outcome"], outcome, "{answer}");
        let reason = answer["reason"].as_str().expect("a reason");
        assert!(reason.starts_with(begin), "{reason}");
        assert_eq!(answer["delivery"], row);
    }
    let answer = explain(&erp, "e-1", &slow).await;
    let id = &answer["delivery"]["id"];
    erp.ask("delivery.cancel", json!({ "id": id })).await;
    assert_eq!(explain(&erp, "e-1", &slow).await["outcome"], "cancelled");
    // What was triggered has no event on the bus.
    let triggered = json!({ "id": ok, "payload": 1 });
    let key = [("Idempotency-Key", "t-1")];
    erp.request("webhook.trigger", &key, &triggered).await;
    let row = json!({ "eventId": "t-1", "status": "delivered" });
    erp.wait_delivery(&ok, row).await;
    assert_eq!(explain(&erp, "t-1", &ok).await["outcome"], "delivered");
    // It only reads: nothing went out again.
    assert_eq!(receiver.requests_to("/ok").len(), 3);
    assert!(sequence > 0);
}

async fn what_a_webhook_does_not_want_is_explained_by_what_it_wants(site: Site) {
    let Site { erp, receiver, .. } = site;
    let (other, _) = erp
        .webhook(&receiver.url("/a"), &["crm.*", "stock.>"], json!({}))
        .await;
    let filter = "data.totalNet > 20000 && !has(data.country) && type.startsWith('sales.')";
    let config = json!({ "filter": filter });
    let (filtered, _) = erp.webhook(&receiver.url("/b"), &["*.>"], config).await;
    erp.order_created("e-1").await;
    let foreign = order("e-2").replace("\"default\"", "\"nord\"");
    erp.publish("sales.order.created", foreign).await;
    erp.wait_all_settled(PATIENCE).await;

    let told = reason(&erp, "e-1", &other, "pattern").await;
    assert!(told.contains("sales.order.created"), "{told}");
    assert!(told.contains("crm.*, stock.>"), "{told}");
    let told = reason(&erp, "e-1", &filtered, "filter").await;
    for part in [
        filter,
        "is false",
        "data.totalNet is 18450.00",
        "data.country is not there",
        "type is \"sales.order.created\"",
    ] {
        assert!(told.contains(part), "{told}");
    }
    let told = reason(&erp, "e-2", &filtered, "other_tenant").await;
    assert!(!told.contains("nord"), "{told}");
    // Also where another webhook's delivery tells where the event is.
    let (all, _) = erp.webhook(&receiver.url("/c"), &[">"], json!({})).await;
    erp.order_created("e-3").await;
    let row = json!({ "eventId": "e-3", "status": "delivered" });
    erp.wait_delivery(&all, row).await;
    reason(&erp, "e-3", &filtered, "filter").await;
    reason(&erp, "e-3", &other, "pattern").await;
}

async fn what_is_turned_off_is_explained_by_that(site: Site) {
    let Site { erp, receiver, .. } = site;
    let (off, _) = erp.webhook(&receiver.url("/a"), &[">"], json!({})).await;
    let (idle, _) = erp.webhook(&receiver.url("/b"), &[">"], json!({})).await;
    erp.ask("webhook.deactivate", json!({ "id": off })).await;
    let found = erp.ask("webhook.get", json!({ "id": idle })).await;
    let integration = json!({ "id": found["integrationId"] });
    erp.ask("integration.deactivate", integration.clone()).await;
    erp.order_created("e-1").await;
    erp.wait_all_settled(PATIENCE).await;
    let told = reason(&erp, "e-1", &off, "inactive").await;
    assert!(told.contains("until it is activated"), "{told}");
    let told = reason(&erp, "e-1", &idle, "integration_inactive").await;
    assert!(told.contains("its status is inactive"), "{told}");
    erp.ask("integration.activate", integration).await;

    // Disabled: what matches waits; what was let pass before does not come by itself.
    receiver.answer("/gone", Answer::status(410));
    let config = json!({ "filter": "id != 'e-2'" });
    let (gone, _) = erp.webhook(&receiver.url("/gone"), &[">"], config).await;
    erp.order_created("e-2").await;
    erp.order_created("e-3").await;
    erp.wait_event("webhook.disabled", |event| {
        event["subject"] == gone.as_str()
    })
    .await;
    let row = json!({ "eventId": "e-3", "status": "pending" });
    erp.wait_delivery(&gone, row).await;
    let answer = explain(&erp, "e-3", &gone).await;
    assert_eq!(answer["outcome"], "pending", "{answer}");
    let told = answer["reason"].as_str().expect("a reason");
    assert!(told.contains("until the webhook is activated"), "{told}");
    reason(&erp, "e-2", &gone, "filter").await;
    let config = json!({ "url": receiver.url("/gone") });
    erp.ask("webhook.update", json!({ "id": gone, "config": config }))
        .await;
    let told = reason(&erp, "e-2", &gone, "disabled").await;
    assert!(told.contains("410"), "{told}");
}

async fn what_came_before_the_webhook_or_its_change_is_explained_by_that(site: Site) {
    let Site { erp, receiver, .. } = site;
    let (early, _) = erp
        .webhook(&receiver.url("/a"), &["crm.>"], json!({}))
        .await;
    erp.order_created("e-1").await;
    erp.wait_all_settled(PATIENCE).await;
    let (late, _) = erp.webhook(&receiver.url("/b"), &[">"], json!({})).await;
    let told = reason(&erp, "e-1", &late, "never_seen").await;
    assert!(told.contains("the webhook was created at"), "{told}");
    assert!(told.contains("webhook.backfill"), "{told}");

    reason(&erp, "e-1", &early, "pattern").await;
    let change = json!({ "id": early, "events": ["sales.>"] });
    erp.ask("webhook.update", change).await;
    let told = reason(&erp, "e-1", &early, "never_seen").await;
    assert!(told.contains("changed at"), "{told}");
    assert!(receiver.requests().is_empty());
}

async fn what_the_stream_has_no_more_is_explained_by_another_webhooks_delivery(site: Site) {
    let Site { erp, receiver, .. } = site;
    let (other, _) = erp
        .webhook(&receiver.url("/a"), &["crm.>"], json!({}))
        .await;
    let config = json!({ "filter": "data.totalNet > 20000" });
    let (filtered, _) = erp.webhook(&receiver.url("/b"), &[">"], config).await;
    let (all, _) = erp.webhook(&receiver.url("/c"), &[">"], json!({})).await;
    erp.order_created("e-1").await;
    let row = json!({ "eventId": "e-1", "status": "delivered" });
    erp.wait_delivery(&all, row).await;
    erp.wait_all_settled(PATIENCE).await;
    let (late, _) = erp.webhook(&receiver.url("/d"), &[">"], json!({})).await;
    let stream = erp.jetstream.get_stream("ERP_EVENTS").await;
    stream.expect("it is there").purge().await.expect("purged");

    reason(&erp, "e-1", &other, "pattern").await;
    let told = reason(&erp, "e-1", &filtered, "never_seen").await;
    assert!(told.contains("no longer in the source stream"), "{told}");
    let told = reason(&erp, "e-1", &late, "never_seen").await;
    assert!(told.contains("the webhook was created at"), "{told}");
}

async fn what_nobody_knows_is_told_with_how_far_was_looked(site: Site) {
    let Site { erp, receiver, .. } = site;
    let (webhook, _) = erp
        .webhook(&receiver.url("/a"), &["crm.>"], json!({}))
        .await;
    let told = reason(&erp, "e-1", &webhook, "never_seen").await;
    assert!(told.contains("none of the 0 messages"), "{told}");
    erp.publish_all(
        "sales.order.created",
        (0..2_500).map(|n| order(&format!("e-{n}"))),
    )
    .await;
    erp.publish("sales.order.created", "").await;
    erp.wait_all_settled(PATIENCE).await;
    let told = reason(&erp, "no-such-event", &webhook, "never_seen").await;
    for part in [
        "2501 messages",
        "ERP_EVENTS holds, back to 20",
        "kept for 30d",
    ] {
        assert!(told.contains(part), "{told}");
    }
    // The oldest is found, too.
    reason(&erp, "e-0", &webhook, "pattern").await;

    let other = "01a212a5-0122-7299-8be0-3975693b1c04";
    let nord = [("X-Tenant-Id", "nord")];
    for (headers, body, code, path) in [
        (
            &[][..],
            json!({ "eventId": "e-1", "webhookId": other }),
            "not_found",
            "webhookId",
        ),
        (
            &nord,
            json!({ "eventId": "e-1", "webhookId": webhook }),
            "not_found",
            "webhookId",
        ),
        (
            &[],
            json!({ "eventId": "e-1", "webhookId": "x" }),
            "validation_failed",
            "webhookId",
        ),
        (
            &[],
            json!({ "eventId": "", "webhookId": webhook }),
            "validation_failed",
            "eventId",
        ),
        (
            &[],
            json!({ "webhookId": webhook }),
            "validation_failed",
            "eventId",
        ),
        (
            &[],
            json!({ "eventId": "e-1", "webhookId": webhook, "x": 1 }),
            "validation_failed",
            "x",
        ),
    ] {
        let reply = erp.request("delivery.explain", headers, &body).await;
        assert_eq!(reply["error"]["code"], code, "{reply}");
        assert_eq!(reply["error"]["details"][0]["path"], path, "{reply}");
    }
}

#[tokio::test]
async fn what_is_older_than_deliveries_are_kept_may_have_been_pruned() {
    let server = NatsServer::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("it.db").display());
    let environment = Environment::new(&server.url(), &database).with("DELIVERY_RETENTION", "1s");
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    let erp = Erp::connect(&server.url()).await;
    let receiver = Receiver::start();
    // No row is there any more than after a pruning, which comes once a minute.
    let (webhook, _) = erp
        .webhook(&receiver.url("/a"), &["crm.>"], json!({}))
        .await;
    erp.order_created("e-1").await;
    erp.wait_all_settled(PATIENCE).await;
    let change = json!({ "id": webhook, "events": ["sales.>"] });
    erp.ask("webhook.update", change).await;

    let told = eventually(PATIENCE, async || {
        let answer = explain(&erp, "e-1", &webhook).await;
        (answer["outcome"] == "pruned").then(|| answer["reason"].clone())
    })
    .await;

    let told = told.as_str().expect("a reason");
    assert!(told.contains("kept for 1s (DELIVERY_RETENTION)"), "{told}");
}

#[tokio::test]
async fn the_command_line_asks_for_an_explanation() {
    let site = crate::support::site::on_sqlite().await;
    let (erp, url) = (&site.erp, site.receiver.url("/a"));
    let (webhook, _) = erp.webhook(&url, &["crm.>"], json!({})).await;
    erp.order_created("e-1").await;
    erp.wait_all_settled(PATIENCE).await;
    let arguments = [
        "delivery",
        "explain",
        "--event",
        "e-1",
        "--webhook",
        &webhook,
    ];
    let environment = Environment::new(&site.server.url(), &site.database.url());
    let mut asked = Worker::command(&arguments, &environment);
    assert_eq!(asked.exit_code(PATIENCE).await, 0);
    let told = |line: &str| line.contains("pattern").then(|| line.to_owned());
    asked.output().wait_for(PATIENCE, told).await;
}
