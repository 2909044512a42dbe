//! The trace of an event goes on into its deliveries and into every event that they cause.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, jetstream::consumer::pull::OrderedConfig};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    eventually,
    receiver::Answer,
    site::{Site, on_both},
};

on_both!(
    the_trace_state_goes_into_every_attempt_and_the_events_about_it,
    what_deliveries_change_about_a_webhook_belongs_to_their_trace,
);

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const STATE: &str = "vendor=1,other@system=t61rcWkgMzE";

async fn traced_order(erp: &Erp, id: &str, correlation: &str) {
    let headers = [
        ("traceparent", PARENT),
        ("tracestate", STATE),
        ("X-Correlation-Id", correlation),
    ];
    erp.publish_with("sales.order.created", &headers, order(id))
        .await;
}

/// The domain events of this type so far: headers and bodies.
async fn told(erp: &Erp, kind: &str) -> Vec<(HeaderMap, Value)> {
    let stream = erp.jetstream.get_stream("INTEGRATION_EVENTS").await;
    let config = OrderedConfig {
        filter_subject: format!("integration.events.{kind}"),
        ..OrderedConfig::default()
    };
    let consumer = stream.expect("it is there").create_consumer(config).await;
    let consumer = consumer.expect("a consumer");
    let count = usize::try_from(consumer.cached_info().num_pending).expect("few");
    let messages = consumer.messages().await.expect("messages").take(count);
    let read = messages.map(|message| {
        let message = message.expect("a message");
        let body = serde_json::from_slice(&message.payload).expect("it is JSON");
        (message.headers.clone().unwrap_or_default(), body)
    });
    tokio::time::timeout(Duration::from_secs(10), read.collect())
        .await
        .expect("all come")
}

/// Waits for an event of this type, which must carry the trace; its body.
async fn traced(erp: &Erp, kind: &str) -> Value {
    let (headers, body) =
        eventually(PATIENCE, async || told(erp, kind).await.into_iter().next()).await;
    let header = |name| headers.get(name).map(HeaderValue::as_str);
    assert_eq!(
        (header("traceparent"), header("tracestate")),
        (Some(PARENT), Some(STATE)),
        "{kind}"
    );
    body
}

async fn the_trace_state_goes_into_every_attempt_and_the_events_about_it(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/fine", Answer::status(200));
    receiver.answer_in_turn("/flaky", vec![Answer::status(500), Answer::status(200)]);
    receiver.answer("/down", Answer::status(500));
    let policy = json!({ "retryPolicy": { "maxRetries": 1, "backoffMs": 100 } });
    erp.webhook(&receiver.url("/fine"), &["*.>"], json!({}))
        .await;
    traced_order(&erp, "e-1", "c-1").await;
    traced(&erp, "webhook.triggered").await;

    erp.webhook(&receiver.url("/flaky"), &["*.>"], policy.clone())
        .await;
    erp.webhook(&receiver.url("/down"), &["*.>"], policy).await;
    traced_order(&erp, "e-2", "c-2").await;

    traced(&erp, "webhook.failed").await;
    traced(&erp, "webhook.exhausted").await;
    // Of the first attempts at `/fine`, and of the second one at `/flaky`.
    let all = eventually(PATIENCE, async || {
        let all = told(&erp, "webhook.triggered").await;
        (all.len() == 3).then_some(all)
    });
    for (headers, body) in all.await {
        let state = headers.get("tracestate").map(HeaderValue::as_str);
        assert_eq!(state, Some(STATE), "{body}");
    }
    let requests = receiver.requests();
    assert_eq!(requests.len(), 2 + 2 + 2);
    for request in requests {
        let parent = request.header("traceparent").to_owned();
        assert!(parent.starts_with(&format!("00-{TRACE}-")), "{parent}");
        assert_eq!(request.header("tracestate"), STATE, "{}", request.path);
    }
}

async fn what_deliveries_change_about_a_webhook_belongs_to_their_trace(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/fine", Answer::status(200));
    receiver.answer("/gone", Answer::status(410));
    erp.webhook(&receiver.url("/fine"), &["*.>"], json!({}))
        .await;
    erp.webhook(&receiver.url("/gone"), &["*.>"], json!({}))
        .await;

    traced_order(&erp, "e-1", "c-1").await;

    for kind in ["webhook.activated", "webhook.disabled"] {
        let event = traced(&erp, kind).await;
        assert_eq!(
            (&event["correlationid"], &event["causationid"]),
            (&json!("c-1"), &json!("e-1")),
            "{kind}"
        );
    }
}
