//! The way back: answers become events, which reach others and never the webhook that made them.

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    eventually,
    nats::NatsServer,
    postgres::Postgres,
    receiver::{Answer, Receiver},
    site::{Site, on_both},
    worker::{Environment, Worker},
};

on_both!(
    an_answer_becomes_an_event_that_others_get_and_the_maker_does_not,
    every_lane_makes_one_event_of_the_answer_that_was_a_success,
    an_answer_that_cannot_become_an_event_is_delivered_all_the_same,
    webhooks_that_answer_each_other_come_to_an_end,
    an_event_that_the_stream_refuses_waits_by_itself_until_it_is_taken,
);

const ACKNOWLEDGED: &str = "partner.order.acknowledged";
const SUBJECT: &str = "erp.partner.order.acknowledged";

fn acknowledging() -> Value {
    let data = "{'number': response.documentNumber, 'order': data, 'net': response.net}";
    json!({ "response": { "event": ACKNOWLEDGED, "data": data } })
}

fn document(number: &str) -> Answer {
    Answer::status(201).body(format!(r#"{{"documentNumber":"{number}","net":18450.00}}"#))
}

/// The events of the ERP's stream that are made of answers.
async fn made(erp: &Erp) -> Vec<(String, Value)> {
    let all = erp.read_stream("ERP_EVENTS").await;
    let is_made = |(_, event): &(String, Value)| event["integrationwebhookid"].is_string();
    all.into_iter().filter(is_made).collect()
}

async fn wait_made(erp: &Erp, count: usize) -> Vec<(String, Value)> {
    let made = eventually(PATIENCE, async || {
        let made = made(erp).await;
        (made.len() >= count).then_some(made)
    })
    .await;
    assert_eq!(made.len(), count, "{made:?}");
    made
}

async fn an_answer_becomes_an_event_that_others_get_and_the_maker_does_not(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/maker", document("D-1"));
    let (maker, _) = erp
        .webhook(&receiver.url("/maker"), &[">"], acknowledging())
        .await;
    let config = json!({ "format": "cloudevents" });
    erp.webhook(&receiver.url("/other"), &["partner.>"], config)
        .await;
    let tested = erp.ask("webhook.test", json!({ "id": maker })).await;
    assert_eq!(tested["statusCode"], 201);

    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [("X-Correlation-Id", "c-1"), ("traceparent", &parent)];
    let body = order("e-1");
    erp.publish_with("sales.order.created", &headers, body)
        .await;

    receiver
        .wait_until(PATIENCE, |all| all.iter().any(|one| one.path == "/other"))
        .await;
    erp.wait_all_settled(PATIENCE).await;
    let made = wait_made(&erp, 1).await;
    let (subject, event) = &made[0];
    assert_eq!(subject, SUBJECT);
    let delivery = erp
        .wait_delivery(&maker, json!({ "status": "delivered" }))
        .await;
    assert_eq!(delivery["error"], Value::Null);
    let known = json!({
        "specversion": "1.0", "source": "/integration", "type": ACKNOWLEDGED,
        "subject": delivery["id"], "datacontenttype": "application/json", "tenantid": "default",
        "correlationid": "c-1", "causationid": "e-1", "actor": "system",
        "integrationwebhookid": maker, "integrationchain": maker,
    });
    for (name, value) in known.as_object().expect("an object") {
        assert_eq!(&event[name], value, "{name}");
    }
    assert_eq!(event["aggregateversion"], Value::Null);
    // The test and the order; what was made of its answer is not among them.
    let own: Vec<Value> = receiver
        .requests_to("/maker")
        .iter()
        .map(|request| request.json()["type"].clone())
        .collect();
    assert_eq!(own, ["webhook.test", "sales.order.created"]);
    let [request] = &receiver.requests_to("/other")[..] else {
        panic!("not once");
    };
    let body = std::str::from_utf8(&request.body).expect("text");
    let data =
        r#""data":{"number":"D-1","order":{"orderId":"e-1","totalNet":18450.00},"net":18450.00}"#;
    assert!(body.contains(data), "{body}");
    assert_eq!(request.json()["id"], event["id"]);
    let traceparent = request.header("traceparent");
    assert!(traceparent.contains(trace), "{traceparent}");
    let question = json!({ "eventId": event["id"], "webhookId": maker });
    let explained = erp.ask("delivery.explain", question).await;
    let reason = "the event was made of an answer to this webhook, which never gets it";
    assert_eq!(explained, json!({ "outcome": "filter", "reason": reason }));
}

async fn every_lane_makes_one_event_of_the_answer_that_was_a_success(site: Site) {
    let Site { erp, receiver, .. } = site;
    let failed = Answer::status(500).body(r#"{"documentNumber":"no"}"#);
    receiver.answer_in_turn("/retried", vec![failed, document("retried")]);
    receiver.answer("/ordered", document("ordered"));
    receiver.answer(
        "/slow",
        document("slow").after(std::time::Duration::from_secs(1)),
    );
    receiver.answer("/triggered", document("triggered"));
    let with = |more: Value| {
        let mut config = acknowledging();
        for (name, value) in more.as_object().expect("an object") {
            config[name] = value.clone();
        }
        config
    };
    let orders = ["sales.>"];
    let retries = with(json!({ "retryPolicy": { "maxRetries": 3, "backoffMs": 100 } }));
    erp.webhook(&receiver.url("/retried"), &orders, retries)
        .await;
    let ordered = with(json!({ "ordering": { "key": "'all'" } }));
    erp.webhook(&receiver.url("/ordered"), &orders, ordered)
        .await;
    erp.webhook(&receiver.url("/slow"), &orders, with(json!({})))
        .await;
    let (triggered, _) = erp
        .webhook(&receiver.url("/triggered"), &["none"], with(json!({})))
        .await;

    erp.order_created("e-1").await;
    let body = json!({ "id": triggered, "payload": { "orderId": "t-1" } });
    erp.ask("webhook.trigger", body).await;

    let made = wait_made(&erp, 4).await;
    erp.wait_all_settled(PATIENCE).await;
    let mut numbers: Vec<_> = made
        .iter()
        .map(|(_, event)| event["data"]["number"].as_str().expect("a text"))
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, ["ordered", "retried", "slow", "triggered"]);
    wait_made(&erp, 4).await;
}

async fn an_answer_that_cannot_become_an_event_is_delivered_all_the_same(site: Site) {
    let Site {
        erp,
        receiver,
        mut worker,
        ..
    } = site;
    let long = format!("[\"{}\"]", "x".repeat(64 * 1024));
    let table = [
        ("/empty", "", "response: the answer is empty"),
        (
            "/text",
            "OK",
            "response: the answer cannot be read: it is no JSON from byte 0 on",
        ),
        (
            "/long",
            &long,
            "response: the answer has more than 65536 bytes",
        ),
        (
            "/other",
            r#"{"number":1}"#,
            "response: there is no field \"documentNumber\" (line 1, column 21)",
        ),
    ];
    let mut webhooks = Vec::new();
    for (path, answer, _) in table {
        receiver.answer(path, Answer::status(200).body(answer.to_owned()));
        let url = receiver.url(path);
        webhooks.push(erp.webhook(&url, &["sales.>"], acknowledging()).await.0);
    }

    erp.order_created("e-1").await;

    for ((path, answer, error), webhook) in table.iter().zip(&webhooks) {
        let delivery = erp
            .wait_delivery(webhook, json!({ "status": "delivered" }))
            .await;
        assert_eq!(delivery["error"], *error, "{path}");
        assert_eq!(delivery["attemptCount"], 1);
        assert_eq!(delivery["attempts"][0]["error"], Value::Null);
        let kept = delivery["attempts"][0]["response"].as_str().unwrap_or("");
        assert_eq!(kept.len(), answer.len().min(2048), "{path}");
        assert_eq!(receiver.requests_to(path).len(), 1);
    }
    erp.wait_all_settled(PATIENCE).await;
    assert_eq!(made(&erp).await, []);
    let (_, metrics) = worker.ops("/metrics").await;
    let line = r#"integration_responses_total{result="fault"} 4"#;
    assert!(metrics.contains(line), "{metrics}");
}

async fn webhooks_that_answer_each_other_come_to_an_end(site: Site) {
    let Site { erp, receiver, .. } = site;
    for path in ["/a", "/b", "/c"] {
        receiver.answer(path, Answer::status(200).body(r#"{"ok":true}"#));
        let config = json!({ "response": { "event": "done" } });
        erp.webhook(&receiver.url(path), &[">"], config).await;
    }

    erp.order_created("e-1").await;

    // To three, of each answer to the two others, of each answer to the last one.
    receiver.wait_for(3 + 6 + 6, PATIENCE).await;
    let made = wait_made(&erp, 15).await;
    erp.wait_all_settled(PATIENCE).await;
    assert_eq!(receiver.requests().len(), 15);
    for (_, event) in made {
        let chain = event["integrationchain"].as_str().expect("a text");
        let mut ids: Vec<&str> = chain.split(',').collect();
        assert_eq!(ids.last().copied(), event["integrationwebhookid"].as_str());
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all, "{chain}");
    }
}

async fn an_event_that_the_stream_refuses_waits_by_itself_until_it_is_taken(site: Site) {
    let Site {
        erp,
        receiver,
        mut worker,
        ..
    } = site;
    receiver.answer("/maker", document("D-1"));
    erp.webhook(&receiver.url("/maker"), &["sales.>"], acknowledging())
        .await;
    let stream = erp.jetstream.get_stream("ERP_EVENTS").await.expect("there");
    let mut config = stream.cached_info().config.clone();
    let unlimited = config.max_message_size;
    // An order fits in, what is made of its answer does not.
    config.max_message_size = 300;
    let updated = erp.jetstream.update_stream(config.clone()).await;
    updated.expect("updated");

    erp.order_created("e-1").await;
    erp.wait_all_settled(PATIENCE).await;
    eventually(PATIENCE, async || {
        let (_, metrics) = worker.ops("/metrics").await;
        metrics
            .contains("integration_outbox_responses 1")
            .then_some(())
    })
    .await;
    // Meanwhile the worker's own events go out.
    let (late, _) = erp
        .webhook(&receiver.url("/late"), &["none"], json!({}))
        .await;
    erp.wait_event("webhook.created", |event| event["subject"] == *late)
        .await;
    let (_, health) = worker.ops("/health").await;
    let health: Value = serde_json::from_str(&health).expect("JSON");
    assert_eq!(health["responsesWaiting"], 1, "{health}");
    assert_eq!(made(&erp).await, []);

    config.max_message_size = unlimited;
    let updated = erp.jetstream.update_stream(config).await;
    updated.expect("updated");
    wait_made(&erp, 1).await;
}

#[tokio::test]
async fn an_event_that_would_be_larger_than_events_may_be_is_a_fault() {
    let (server, folder) = (NatsServer::start().await, tempfile::tempdir().expect("one"));
    let url = format!("sqlite://{}", folder.path().join("it.db").display());
    let environment = Environment::new(&server.url(), &url).with("MAX_EVENT_BYTES", "2KiB");
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    let mut webhooks = Vec::new();
    for (path, length) in [("/fits", 1000), ("/large", 2000)] {
        let answer = json!({ "text": "x".repeat(length) }).to_string();
        receiver.answer(path, Answer::status(200).body(answer));
        let config = json!({ "response": { "event": ACKNOWLEDGED } });
        let webhook = erp.webhook(&receiver.url(path), &["sales.>"], config).await;
        webhooks.push(webhook.0);
    }

    erp.order_created("e-1").await;

    let mut errors = Vec::new();
    for webhook in &webhooks {
        let delivered = json!({ "status": "delivered" });
        let delivery = erp.wait_delivery(webhook, delivered).await;
        errors.push(delivery["error"].as_str().unwrap_or("").to_owned());
    }
    assert_eq!(errors[0], "");
    assert!(
        errors[1].starts_with("response: the event would have 2"),
        "{errors:?}"
    );
    wait_made(&erp, 1).await;
    erp.wait_all_settled(PATIENCE).await;
    assert!(erp.read_stream("INTEGRATION_DEAD_LETTERS").await.is_empty());
}

/// What happens to a worker between the record of a success and the publication of its event, and
/// between that and its note that it is done.
#[tokio::test]
async fn a_worker_that_dies_around_the_publication_publishes_the_event_once() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &database.url());
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    receiver.answer("/maker", document("D-1"));
    erp.webhook(&receiver.url("/maker"), &["sales.>"], acknowledging())
        .await;
    let url = database.url();
    let hold = async |sql: &'static str, holder: Option<Uuid>| {
        let mut connection = PgConnection::connect(&url).await.expect("it connects");
        let done = sqlx::query(sql).bind(holder).execute(&mut connection).await;
        done.expect("it is done").rows_affected()
    };
    // Somebody else has the right to publish, and does not.
    let taken = "UPDATE outbox_relay SET holder = $1, lease_until = now() + interval '1 hour'";
    hold(taken, Some(Uuid::from_u128(7))).await;
    erp.order_created("e-1").await;
    let waits = "UPDATE outbox SET created_at = created_at
        WHERE is_response AND published_at IS NULL AND $1::uuid IS NULL";
    eventually(PATIENCE, async || {
        (hold(waits, None).await > 0).then_some(())
    })
    .await;

    worker.kill9();
    assert_eq!(made(&erp).await, []);
    let free = "UPDATE outbox_relay SET holder = $1, lease_until = NULL";
    hold(free, None).await;
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    wait_made(&erp, 1).await;

    let published = "UPDATE outbox SET published_at = NULL
        WHERE is_response AND published_at IS NOT NULL AND $1::uuid IS NULL";
    eventually(PATIENCE, async || {
        (hold(published, None).await > 0).then_some(())
    })
    .await;
    let again = "UPDATE outbox SET created_at = created_at
        WHERE is_response AND published_at IS NOT NULL AND $1::uuid IS NULL";
    eventually(PATIENCE, async || {
        (hold(again, None).await > 0).then_some(())
    })
    .await;
    wait_made(&erp, 1).await;
    assert_eq!(receiver.requests().len(), 1);
}
