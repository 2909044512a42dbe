//! A webhook that is turned off or deleted gets no more requests than those that are under way.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    PATIENCE, eventually,
    receiver::{Answer, Received},
    site::{Site, on_both},
};

on_both!(
    an_ordered_webhook_that_is_turned_off_gets_nothing_more,
    an_ordered_webhook_that_gets_another_url_uses_it_at_once,
    an_ordered_webhook_whose_integration_is_turned_off_gets_nothing_more,
    a_replayed_webhook_that_is_turned_off_gets_nothing_more,
    a_replayed_webhook_that_is_deleted_gets_nothing_more,
);

async fn publish(site: &Site, count: usize) {
    let bodies = (0..count).map(|n| {
        json!({ "eventType": "sales.order.created", "eventId": format!("e-{n}"), "payload": { "n": n } })
            .to_string()
    });
    site.erp.publish_all("sales.order.created", bodies).await;
}

async fn webhook(site: &Site, config: Value) -> String {
    let url = site.receiver.url("/w");
    site.erp.webhook(&url, &["sales.>"], config).await.0
}

fn be_slow(site: &Site) {
    let slow = Answer::status(200).after(Duration::from_millis(300));
    site.receiver.answer("/w", slow);
}

/// Waits for `more` requests, turns the webhook off, and asserts that hardly any comes after that.
async fn assert_nothing_more(site: &Site, action: &str, id: &Value, more: usize) {
    let before = site.receiver.requests().len();
    site.receiver.wait_for(before + more, PATIENCE).await;
    site.erp.ask(action, json!({ "id": id })).await;
    // Four may be under way, and four more be begun before the change is seen.
    let last = site.receiver.requests().len() + 8;
    let too_many = site
        .receiver
        .wait_until(PATIENCE, |all: &[Received]| all.len() > last);
    let came = tokio::time::timeout(Duration::from_secs(6), too_many).await;
    assert!(came.is_err(), "requests go on after {action}");
}

async fn an_ordered_webhook_that_is_turned_off_gets_nothing_more(site: Site) {
    be_slow(&site);
    let webhook = webhook(&site, json!({ "ordering": { "key": "'all'" } })).await;
    publish(&site, 60).await;

    assert_nothing_more(&site, "webhook.deactivate", &json!(webhook), 3).await;
}

async fn an_ordered_webhook_whose_integration_is_turned_off_gets_nothing_more(site: Site) {
    be_slow(&site);
    let webhook = webhook(&site, json!({ "ordering": { "key": "'all'" } })).await;
    publish(&site, 60).await;
    let webhook = site.erp.ask("webhook.get", json!({ "id": webhook })).await;

    let integration = &webhook["integrationId"];
    assert_nothing_more(&site, "integration.deactivate", integration, 3).await;
}

/// A webhook that is being replayed, and answers slowly.
async fn replayed(site: &Site) -> String {
    let webhook = webhook(site, json!({})).await;
    publish(site, 60).await;
    let replay = json!({ "id": webhook, "since": "2020-01-01T00:00:00Z" });
    let mut dry_run = replay.clone();
    dry_run["dryRun"] = json!(true);
    eventually(PATIENCE, async || {
        let counted = site.erp.ask("webhook.replay", dry_run.clone()).await;
        (counted["count"] == 60).then_some(())
    })
    .await;
    be_slow(site);
    site.erp.ask("webhook.replay", replay).await;
    webhook
}

async fn a_replayed_webhook_that_is_turned_off_gets_nothing_more(site: Site) {
    let webhook = replayed(&site).await;

    assert_nothing_more(&site, "webhook.deactivate", &json!(webhook), 1).await;
}

async fn a_replayed_webhook_that_is_deleted_gets_nothing_more(site: Site) {
    let webhook = replayed(&site).await;

    assert_nothing_more(&site, "webhook.delete", &json!(webhook), 1).await;
}

async fn an_ordered_webhook_that_gets_another_url_uses_it_at_once(site: Site) {
    be_slow(&site);
    let ordering = json!({ "ordering": { "key": "'all'" } });
    let webhook = webhook(&site, ordering.clone()).await;
    publish(&site, 60).await;
    site.receiver.wait_for(3, PATIENCE).await;
    let mut config = ordering;
    config["url"] = json!(site.receiver.url("/new"));
    let update = json!({ "id": webhook, "config": config });
    site.erp.ask("webhook.update", update).await;
    let last = site.receiver.requests_to("/w").len() + 8;

    let moved = |all: &[Received]| all.iter().any(|one| one.path == "/new");
    site.receiver.wait_until(PATIENCE, moved).await;

    let old = site.receiver.requests_to("/w").len();
    assert!(old <= last, "{old} requests to the former URL");
}
