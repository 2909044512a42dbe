//! Webhooks that show tokens of OAuth 2, against a partner over TLS: on both databases.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    eventually,
    nats::NatsServer,
    postgres::Postgres,
    site::{Site, on_both},
    tls::TokenPartner,
    worker::{Environment, Worker},
};

on_both!(
    one_token_serves_all_deliveries_and_is_shown_nowhere,
    a_token_is_replaced_past_half_of_its_life_and_no_delivery_fails,
    a_token_that_is_not_taken_is_replaced_within_the_attempt,
    a_token_endpoint_that_is_down_makes_attempts_fail_and_deliveries_wait,
);

/// The site with a worker that trusts the partner.
async fn trusting(site: &mut Site) {
    let environment = environment(&site.server.url(), &site.database.url());
    let former = std::mem::replace(&mut site.worker, Worker::start(&environment));
    former.kill9();
    site.worker.wait_ready().await;
}

fn environment(nats: &str, database: &str) -> Environment {
    let authority = TokenPartner::authority();
    Environment::new(nats, database).with("EGRESS_CA_FILE", &authority.display().to_string())
}

async fn webhook(erp: &Erp, partner: &TokenPartner) -> String {
    let credentials = json!({
        "tokenUrl": partner.url("/token"),
        "clientId": "erp & co",
        "clientSecret": "canary:secret",
        "scope": "orders:write",
    });
    let authentication = json!({ "type": "oauth2", "credentials": credentials });
    let config = json!({
        "authentication": authentication,
        "retryPolicy": { "schedule": vec!["3s"; 20] },
    });
    erp.webhook(&partner.url("/hook"), &["*.>"], config).await.0
}

async fn one_token_serves_all_deliveries_and_is_shown_nowhere(mut site: Site) {
    trusting(&mut site).await;
    let partner = TokenPartner::start();
    let hook = webhook(&site.erp, &partner).await;
    for n in 0..20 {
        site.erp.order_created(&format!("e-{n}")).await;
    }
    eventually(PATIENCE, async || {
        (partner.state().shown.len() == 20).then_some(())
    })
    .await;
    site.erp.wait_all_settled(PATIENCE).await;
    let tested = site.erp.ask("webhook.test", json!({ "id": hook })).await;
    assert_eq!(tested["statusCode"], 200, "{tested}");
    {
        let state = partner.state();
        let basic = STANDARD.encode("erp+%26+co:canary%3Asecret");
        let body = "grant_type=client_credentials&scope=orders%3Awrite".to_owned();
        assert_eq!(state.asked, [(format!("Basic {basic}"), body)]);
        assert_eq!(state.shown, ["canary-1"; 21]);
    }
    let mut shown = site.erp.events().await;
    for (action, body) in [
        ("webhook.get", json!({ "id": hook })),
        ("webhook.list", json!({})),
        ("delivery.list", json!({})),
    ] {
        shown.push(site.erp.ask(action, body).await);
    }
    let shown = Value::from(shown).to_string();
    let metrics = site.worker.ops("/metrics").await.1;
    let log = site.worker.output().text();
    let mut database = String::new();
    if let Some(file) = site.database.file() {
        for name in [file.clone(), file.with_extension("db-wal")] {
            let bytes = std::fs::read(name).expect("it is there");
            database += &String::from_utf8_lossy(&bytes);
        }
        assert!(database.contains("oauth_tokens"));
    }
    for (place, content) in [
        ("an answer or event", &shown),
        ("the log", &log),
        ("the metrics", &metrics),
        ("the database", &database),
    ] {
        for text in ["canary", "Y2FuYXJ5", "/token"] {
            assert!(!content.contains(text), "{text} is in {place}");
        }
    }
    assert!(metrics.contains("integration_token_requests_total{outcome=\"got\"} 1"));
}

async fn a_token_is_replaced_past_half_of_its_life_and_no_delivery_fails(mut site: Site) {
    trusting(&mut site).await;
    let partner = TokenPartner::start();
    partner.state().life = 2;
    let hook = webhook(&site.erp, &partner).await;
    let mut sent = 0;
    eventually(PATIENCE, async || {
        sent += 1;
        site.erp.order_created(&format!("e-{sent}")).await;
        let shown = partner.state().shown.clone();
        shown.contains(&"canary-3".to_owned()).then_some(())
    })
    .await;
    site.erp.wait_all_settled(PATIENCE).await;
    let failed = site.erp.events().await.into_iter();
    let failed = failed.filter(|event| event["type"] == "webhook.failed");
    assert_eq!(failed.count(), 0);
    let got = site.erp.ask("webhook.get", json!({ "id": hook })).await;
    assert_eq!(got["status"], "active");
}

async fn a_token_that_is_not_taken_is_replaced_within_the_attempt(mut site: Site) {
    trusting(&mut site).await;
    let partner = TokenPartner::start();
    let hook = webhook(&site.erp, &partner).await;
    let delivered = json!({ "status": "delivered" });
    site.erp.order_created("e-1").await;
    site.erp.wait_delivery(&hook, delivered.clone()).await;
    partner.state().takes_from = 2;
    site.erp.order_created("e-2").await;
    let event = site
        .erp
        .wait_event("webhook.triggered", |event| {
            event["data"]["eventId"] == "e-2"
        })
        .await;
    assert_eq!(event["data"]["attempt"], 1);
    let state = partner.state();
    assert_eq!(state.shown, ["canary-1", "canary-1", "canary-2"]);
    assert_eq!(state.asked.len(), 2);
}

async fn a_token_endpoint_that_is_down_makes_attempts_fail_and_deliveries_wait(mut site: Site) {
    trusting(&mut site).await;
    let partner = TokenPartner::start();
    partner.state().is_down = true;
    let hook = webhook(&site.erp, &partner).await;
    site.erp.order_created("e-1").await;
    let expected = "cannot get a token: HTTP 503 from the token endpoint (server_error)";
    let attempt = eventually(PATIENCE, async || {
        let waiting = json!({ "status": "pending" });
        let delivery = site.erp.wait_delivery(&hook, waiting).await;
        Some(delivery["attempts"].as_array()?.first()?.clone())
    })
    .await;
    assert_eq!(attempt["error"], expected);
    assert!(attempt.get("statusCode").is_none(), "{attempt}");
    let tested = site.erp.ask("webhook.test", json!({ "id": hook })).await;
    assert_eq!(tested["error"], expected);
    assert_eq!(
        partner.state().shown,
        [""; 0],
        "nothing is sent without one"
    );
    partner.state().is_down = false;
    let delivered = json!({ "status": "delivered" });
    let delivery = site.erp.wait_delivery(&hook, delivered).await;
    assert_eq!(delivery["attempts"][0]["error"], expected);
}

#[tokio::test]
async fn two_workers_get_one_token() {
    let database = Postgres::database().await;
    let server = NatsServer::start().await;
    let environment = environment(&server.url(), &database.url());
    let mut workers = [Worker::start(&environment), Worker::start(&environment)];
    for worker in &mut workers {
        worker.wait_ready().await;
    }
    let erp = Erp::connect(&server.url()).await;
    let partner = TokenPartner::start();
    webhook(&erp, &partner).await;
    let mut sent = 0;
    eventually(Duration::from_mins(1), async || {
        let orders = (sent..sent + 100).map(|n| order(&format!("e-{n}")));
        erp.publish_all("sales.order.created", orders).await;
        sent += 100;
        let mut both = true;
        for worker in &mut workers {
            let metrics = worker.ops("/metrics").await.1;
            both &= metrics.contains("integration_delivery_attempts_total{");
        }
        both.then_some(())
    })
    .await;
    // What found the endpoint busy is sent a little later.
    eventually(Duration::from_mins(1), async || {
        (partner.state().shown.len() >= sent).then_some(())
    })
    .await;
    let state = partner.state();
    assert!(state.shown.iter().all(|token| token == "canary-1"));
    assert_eq!(state.asked.len(), 1);
}
