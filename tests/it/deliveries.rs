//! Events in, signed requests out, domain events back: on both databases.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    erp::{Erp, is_signed, order},
    nats::NatsServer,
    postgres::Postgres,
    receiver::{Answer, Receiver},
    worker::{Environment, Worker},
};

/// One worker, on PostgreSQL or SQLite, with everything around it.
struct Site {
    server: NatsServer,
    erp: Erp,
    receiver: Receiver,
    worker: Worker,
    _database: Database,
}

enum Database {
    Postgres(Postgres),
    Sqlite(TempDir),
}

impl Database {
    fn url(&self) -> String {
        match self {
            Self::Postgres(database) => database.url(),
            Self::Sqlite(folder) => format!("sqlite://{}", folder.path().join("it.db").display()),
        }
    }
}

async fn on_postgres() -> Site {
    site(Database::Postgres(Postgres::database().await)).await
}

async fn on_sqlite() -> Site {
    site(Database::Sqlite(tempfile::tempdir().expect("a folder"))).await
}

async fn site(database: Database) -> Site {
    let server = NatsServer::start().await;
    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker.wait_ready().await;
    let erp = Erp::connect(&server.url()).await;
    Site {
        server,
        erp,
        receiver: Receiver::start(),
        worker,
        _database: database,
    }
}

/// Each test below runs on both databases.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test] async fn $name() { super::$name(super::on_postgres().await).await; })*
        }
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name(super::on_sqlite().await).await; })*
        }
    };
}

on_both!(
    an_event_becomes_a_signed_request_a_record_and_domain_events,
    a_failing_endpoint_is_retried_and_recovers,
    an_endpoint_that_never_recovers_is_exhausted_and_can_be_retried,
    a_gone_endpoint_is_disabled_and_its_events_wait_for_activation,
    an_endpoint_that_hangs_holds_nobody_else_up,
    every_envelope_of_the_erp_arrives,
    what_is_no_event_is_a_dead_letter,
    the_same_event_in_two_messages_is_delivered_once,
    a_webhook_gets_the_very_next_event,
    a_worker_ends_in_order_under_load,
);

fn versions(events: &[Value], subject: &str) -> Vec<(String, i64)> {
    events
        .iter()
        .filter(|event| event["subject"] == subject)
        .map(|event| {
            let kind = event["type"].as_str().expect("a type").to_owned();
            (kind, event["aggregateversion"].as_i64().expect("a version"))
        })
        .collect()
}

async fn an_event_becomes_a_signed_request_a_record_and_domain_events(site: Site) {
    let Site {
        erp,
        receiver,
        mut worker,
        ..
    } = site;
    let (webhook, secret) = erp
        .webhook(
            &receiver.url("/orders"),
            &["sales.order.created"],
            json!({}),
        )
        .await;
    erp.order_created("e-1").await;

    let request = receiver.wait_for(1, PATIENCE).await.remove(0);

    assert!(is_signed(&request, &secret));
    assert_eq!(request.method.as_str(), "POST");
    let body = std::str::from_utf8(&request.body).expect("text");
    assert!(body.contains("18450.00"), "numbers stay as written: {body}");
    assert_eq!(request.json()["type"], "sales.order.created");
    assert_eq!(request.json()["timestamp"], "2026-11-02T08:14:09.120Z");
    let delivery = erp
        .wait_delivery(&webhook, |one| one["status"] == "delivered")
        .await;
    assert_eq!(delivery["id"], request.header("webhook-id"));
    assert_eq!(delivery["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(delivery["attempts"][0]["statusCode"], 200);
    let told = erp
        .wait_event("webhook.triggered", |event| {
            event["subject"] == delivery["id"]
        })
        .await;
    assert_eq!(told["data"]["eventId"], "e-1");
    assert_eq!(told["aggregateversion"], 1);
    erp.wait_event("webhook.activated", |event| {
        event["subject"] == webhook.as_str()
    })
    .await;
    let events = erp.events().await;
    assert_eq!(
        versions(&events, &webhook),
        [
            ("webhook.created".to_owned(), 1),
            ("webhook.activated".to_owned(), 2)
        ]
    );
    let (_, metrics) = worker.ops("/metrics").await;
    assert!(
        metrics.contains("integration_delivery_attempts_total"),
        "{metrics}"
    );
    assert_eq!(worker.terminate().await, 0);
}

async fn a_failing_endpoint_is_retried_and_recovers(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_in_turn(
        "/flaky",
        vec![
            Answer::status(500).body("oh"),
            Answer::status(503),
            Answer::status(200),
        ],
    );
    let policy = json!({ "retryPolicy": { "maxRetries": 5, "backoffMs": 100 } });
    let (webhook, secret) = erp
        .webhook(&receiver.url("/flaky"), &["sales.>"], policy)
        .await;
    erp.order_created("e-1").await;

    let delivery = erp
        .wait_delivery(&webhook, |one| one["status"] == "delivered")
        .await;

    let requests = receiver.requests_to("/flaky");
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|one| is_signed(one, &secret)));
    assert!(
        requests
            .iter()
            .all(|one| one.header("webhook-id") == delivery["id"])
    );
    let attempts = delivery["attempts"].as_array().expect("attempts");
    let errors: Vec<_> = attempts.iter().map(|one| one["error"].clone()).collect();
    assert_eq!(errors, [json!("HTTP 500"), json!("HTTP 503"), Value::Null]);
    assert_eq!(attempts[0]["response"], "oh");
    let subject = delivery["id"].as_str().expect("an id");
    erp.wait_event("webhook.triggered", |event| event["subject"] == subject)
        .await;
    let told = versions(&erp.events().await, subject);
    let expected = [
        ("webhook.failed", 1),
        ("webhook.failed", 2),
        ("webhook.triggered", 3),
    ];
    assert_eq!(
        told,
        expected.map(|(kind, version)| (kind.to_owned(), version))
    );
}

async fn an_endpoint_that_never_recovers_is_exhausted_and_can_be_retried(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/down", Answer::status(500));
    let policy = json!({ "retryPolicy": { "schedule": ["50ms"] } });
    let (webhook, _) = erp.webhook(&receiver.url("/down"), &["*"], policy).await;
    erp.order_created("e-1").await;
    let delivery = erp
        .wait_delivery(&webhook, |one| one["status"] == "exhausted")
        .await;
    assert_eq!(delivery["attemptCount"], 2);
    let subject = delivery["id"].as_str().expect("an id");
    erp.wait_event("webhook.exhausted", |event| event["subject"] == subject)
        .await;
    receiver.answer("/down", Answer::status(204));

    erp.ask("delivery.retry", json!({ "id": subject })).await;

    let delivery = erp
        .wait_delivery(&webhook, |one| one["status"] == "delivered")
        .await;
    assert_eq!(delivery["attemptCount"], 3);
    erp.wait_event("webhook.triggered", |event| event["subject"] == subject)
        .await;
    let told = versions(&erp.events().await, subject);
    let kinds: Vec<_> = told
        .iter()
        .map(|(kind, version)| (kind.as_str(), *version))
        .collect();
    let expected = [
        ("webhook.failed", 1),
        ("webhook.failed", 2),
        ("webhook.exhausted", 3),
        ("webhook.triggered", 4),
    ];
    assert_eq!(kinds, expected);
}

async fn a_gone_endpoint_is_disabled_and_its_events_wait_for_activation(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/gone", Answer::status(410));
    let (webhook, _) = erp.webhook(&receiver.url("/gone"), &[">"], json!({})).await;
    erp.order_created("e-1").await;
    let disabled = erp
        .wait_event("webhook.disabled", |event| {
            event["subject"] == webhook.as_str()
        })
        .await;
    assert_eq!(disabled["data"]["status"], "error");
    for id in ["e-2", "e-3"] {
        erp.order_created(id).await;
        erp.wait_delivery(&webhook, |one| {
            one["eventId"] == id && one["status"] == "pending"
        })
        .await;
    }
    assert_eq!(
        receiver.requests_to("/gone").len(),
        1,
        "a disabled webhook gets no request"
    );
    assert_eq!(
        erp.ask("webhook.get", json!({ "id": webhook })).await["status"],
        "error"
    );
    receiver.answer("/gone", Answer::status(200));

    erp.ask("webhook.activate", json!({ "id": webhook })).await;

    for id in ["e-1", "e-2", "e-3"] {
        erp.wait_delivery(&webhook, |one| {
            one["eventId"] == id && one["status"] == "delivered"
        })
        .await;
    }
    assert_eq!(receiver.requests_to("/gone").len(), 4);
}

async fn an_endpoint_that_hangs_holds_nobody_else_up(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/hang", Answer::hang());
    let hanging = json!({ "timeout": 1000, "retryPolicy": { "maxRetries": 0, "backoffMs": 100 } });
    let (hanging, _) = erp.webhook(&receiver.url("/hang"), &["*"], hanging).await;
    let (quick, _) = erp
        .webhook(&receiver.url("/quick"), &["*"], json!({}))
        .await;
    erp.publish_all(
        "sales.order.created",
        (0..200).map(|n| order(&format!("e-{n}"))),
    )
    .await;

    receiver
        .wait_until(PATIENCE, |all| {
            all.iter().filter(|one| one.path == "/quick").count() == 200
        })
        .await;

    let delivery = erp
        .wait_delivery(&hanging, |one| one["status"] == "exhausted")
        .await;
    assert_eq!(delivery["attempts"][0]["error"], "timeout after 1000 ms");
    erp.wait_delivery(&quick, |one| one["status"] == "delivered")
        .await;
}

async fn every_envelope_of_the_erp_arrives(site: Site) {
    let Site { erp, receiver, .. } = site;
    let fixtures = [
        (
            "sales.order.created",
            "sales.order.created",
            "genossenschaft-nord",
        ),
        (
            "inventory.goods.received",
            "inventory.goods.received",
            "genossenschaft-nord",
        ),
        (
            "fibu.booking.created",
            "fibu.booking.created",
            "genossenschaft-nord",
        ),
        (
            "document.created",
            "document.created",
            "genossenschaft-nord",
        ),
        (
            "cloudevent.binary",
            "contract.created",
            "genossenschaft-nord",
        ),
        (
            "cloudevent.structured",
            "quality.batch.rejected",
            "genossenschaft-nord",
        ),
        (
            "logistics.weight.measured",
            "logistics.weight.measured",
            "genossenschaft-nord",
        ),
        (
            "purchase.order.delivered",
            "purchase.order.delivered",
            "genossenschaft-nord",
        ),
    ];
    let tenant = [("X-Tenant-Id", "genossenschaft-nord")];
    let integration = json!({ "name": "i", "type": "webhook", "config": {} });
    let integration = erp
        .request("integration.create", &tenant, &integration)
        .await;
    let config = json!({ "url": receiver.url("/all"), "format": "cloudevents" });
    let webhook = json!({
        "name": "w", "integrationId": integration["data"]["id"], "events": ["*"], "config": config,
    });
    let created = erp.request("webhook.create", &tenant, &webhook).await;
    assert_eq!(created["success"], true, "{created}");
    for (fixture, _, _) in fixtures {
        erp.fixture(fixture).await;
    }

    let requests = receiver.wait_for(fixtures.len(), PATIENCE).await;

    for (fixture, kind, tenant) in fixtures {
        let found = requests.iter().find(|one| one.json()["type"] == kind);
        let body = found
            .unwrap_or_else(|| panic!("{fixture} did not arrive"))
            .json();
        assert_eq!(body["tenantid"], tenant, "{fixture}");
        assert!(body["data"].is_object(), "{fixture}: {body}");
    }
    let booking = requests
        .iter()
        .find(|one| one.json()["type"] == "fibu.booking.created");
    assert_eq!(
        booking.expect("it arrived").json()["data"]["amount"],
        "18450.00"
    );
}

async fn what_is_no_event_is_a_dead_letter(site: Site) {
    let Site {
        server,
        erp,
        receiver,
        ..
    } = site;
    let (webhook, _) = erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    erp.publish_with("sales.empty", &[("X-Kept", "yes")], "")
        .await;
    erp.order_created("e-1").await;

    let told = erp.wait_event("deadletter.added", |_| true).await;

    assert_eq!(told["data"]["originSubject"], "sales.empty");
    erp.wait_delivery(&webhook, |one| {
        one["eventId"] == "e-1" && one["status"] == "delivered"
    })
    .await;
    let stream = erp
        .jetstream
        .get_stream("INTEGRATION_DEAD_LETTERS")
        .await
        .expect("it is there");
    let letter = stream.get_raw_message(1).await.expect("the letter");
    assert_eq!(letter.subject.as_str(), "integration.dead_letters.events");
    let header = |name: &str| {
        letter
            .headers
            .get(name)
            .map(|value| value.as_str().to_owned())
    };
    assert!(
        header("Integration-Reason")
            .expect("a reason")
            .starts_with("empty: ")
    );
    assert_eq!(
        header("Integration-Origin-Subject").as_deref(),
        Some("sales.empty")
    );
    assert_eq!(
        header("Integration-Origin-Stream").as_deref(),
        Some("ERP_EVENTS")
    );
    assert_eq!(header("Integration-Tenant").as_deref(), Some("default"));
    assert_eq!(header("X-Kept").as_deref(), Some("yes"));
    assert_eq!(receiver.requests().len(), 1);
    drop(server);
}

async fn the_same_event_in_two_messages_is_delivered_once(site: Site) {
    let Site { erp, receiver, .. } = site;
    let (webhook, _) = erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    for _ in 0..20 {
        erp.order_created("same").await;
    }
    erp.order_created("other").await;

    erp.wait_delivery(&webhook, |one| {
        one["eventId"] == "other" && one["status"] == "delivered"
    })
    .await;
    erp.wait_all_settled(PATIENCE).await;

    assert_eq!(receiver.requests().len(), 2);
}

async fn a_webhook_gets_the_very_next_event(site: Site) {
    let Site { erp, receiver, .. } = site;
    for round in 0..20 {
        let path = format!("/round-{round}");
        erp.webhook(&receiver.url(&path), &["sales.order.created"], json!({}))
            .await;
        erp.order_created(&format!("e-{round}")).await;
        let arrived =
            |all: &[crate::support::receiver::Received]| all.iter().any(|one| one.path == path);
        receiver.wait_until(PATIENCE, arrived).await;
    }
    // Each webhook has got every event from its creation on, and no earlier one.
    let expected: usize = (1..=20).sum();
    receiver.wait_for(expected, PATIENCE).await;
    erp.wait_all_settled(PATIENCE).await;
    assert_eq!(receiver.requests().len(), expected);
}

async fn a_worker_ends_in_order_under_load(site: Site) {
    let Site {
        server,
        erp,
        receiver,
        worker,
        _database: database,
        ..
    } = site;
    receiver.answer("/a", Answer::status(200).after(Duration::from_millis(5)));
    let (webhook, _) = erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    erp.publish_all(
        "sales.order.created",
        (0..2000).map(|n| order(&format!("e-{n}"))),
    )
    .await;
    receiver.wait_for(100, PATIENCE).await;

    assert_eq!(worker.terminate().await, 0);

    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker.wait_ready().await;
    erp.wait_all_settled(PATIENCE).await;
    let mut ids: Vec<_> = receiver
        .requests()
        .iter()
        .map(|one| one.header("webhook-id").to_owned())
        .collect();
    let requests = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2000, "{requests} requests");
    assert_eq!(requests, 2000, "an orderly end repeats nothing");
    erp.wait_delivery(&webhook, |one| one["status"] == "delivered")
        .await;
}
