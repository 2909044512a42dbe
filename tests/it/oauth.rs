//! Webhooks that show tokens of OAuth 2, against a partner over TLS: on both databases.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

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
    a_token_request_that_fails_is_one_failed_attempt_however_many_wait,
    a_token_endpoint_that_is_slower_than_an_attempt_may_be_still_serves,
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
    let retry = json!({ "retryPolicy": { "schedule": vec!["3s"; 20] } });
    webhook_with(erp, partner, retry).await
}

async fn webhook_with(erp: &Erp, partner: &TokenPartner, mut config: Value) -> String {
    let credentials = json!({
        "tokenUrl": partner.url("/token"),
        "clientId": "erp & co",
        "clientSecret": "canary:secret",
        "scope": "orders:write",
    });
    let authentication = json!({ "type": "oauth2", "credentials": credentials });
    config["authentication"] = authentication;
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
    let basic = STANDARD.encode("erp+%26+co:canary%3Asecret");
    {
        let state = partner.state();
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
    let mut database = stored_tokens(&site).await;
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
        for text in ["canary", basic.as_str(), "/token"] {
            assert!(!content.contains(text), "{text} is in {place}");
        }
    }
    assert!(metrics.contains("integration_token_requests_total{outcome=\"got\"} 1"));
}

fn no_retries() -> Value {
    json!({ "maxRetries": 0, "backoffMs": 100 })
}

/// What PostgreSQL keeps of tokens, as texts.
async fn stored_tokens(site: &Site) -> String {
    if site.database.file().is_some() {
        return String::new();
    }
    let connected = PgConnection::connect(&site.database.url()).await;
    let mut connection = connected.expect("it connects");
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT t::text || encode(t.sealed, 'escape') FROM oauth_tokens t")
            .fetch_all(&mut connection)
            .await
            .expect("it reads");
    assert_eq!(rows.len(), 1);
    rows.concat()
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

async fn a_token_request_that_fails_is_one_failed_attempt_however_many_wait(mut site: Site) {
    trusting(&mut site).await;
    let partner = TokenPartner::start();
    partner.state().is_down = true;
    let hook = webhook_with(&site.erp, &partner, json!({ "retryPolicy": no_retries() })).await;
    let orders = (0..64).map(|n| order(&format!("e-{n}")));
    site.erp.publish_all("sales.order.created", orders).await;
    let exhausted = async || {
        let exhausted = json!({ "webhookId": hook, "status": "exhausted", "limit": 100 });
        let list = site.erp.ask("delivery.list", exhausted).await;
        list["items"].as_array().expect("a list").len()
    };
    eventually(PATIENCE, async || (exhausted().await > 0).then_some(())).await;
    let failed_requests = {
        let mut state = partner.state();
        state.is_down = false;
        state.asked.len()
    };
    eventually(PATIENCE, async || {
        (partner.state().shown.len() + failed_requests >= 64).then_some(())
    })
    .await;
    site.erp.wait_all_settled(PATIENCE).await;
    assert_eq!(exhausted().await, failed_requests);
    assert_eq!(partner.state().shown.len() + failed_requests, 64);
}

async fn a_token_endpoint_that_is_slower_than_an_attempt_may_be_still_serves(mut site: Site) {
    trusting(&mut site).await;
    let partner = TokenPartner::start();
    partner.state().token_takes = Duration::from_millis(1300);
    let config = json!({ "timeout": 1000, "retryPolicy": no_retries() });
    let hook = webhook_with(&site.erp, &partner, config).await;
    site.erp.order_created("e-1").await;
    let delivered = json!({ "status": "delivered" });
    let delivery = site.erp.wait_delivery(&hook, delivered).await;
    assert_eq!(delivery["attemptCount"], 1, "{delivery}");
    assert_eq!(partner.state().asked.len(), 1);
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
