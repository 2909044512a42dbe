//! The other side of the bus: an ERP that publishes events, users who send commands, and everybody
//! who listens to the domain events.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::StreamExt as _;
use ring::hmac;
use serde_json::{Value, json};

use super::{PATIENCE, eventually, nats, receiver::Received};

pub(crate) struct Erp {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
}

impl Erp {
    pub(crate) async fn connect(url: &str) -> Self {
        let client = nats::client(url).await;
        let jetstream = jetstream::new(client.clone());
        Self { client, jetstream }
    }

    /// Publishes and waits until the stream has it: its sequence.
    pub(crate) async fn publish(&self, subject: &str, body: impl Into<Bytes>) -> u64 {
        self.publish_with(subject, &[], body).await
    }

    pub(crate) async fn publish_with(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> u64 {
        let (body, headers) = (body.into(), header_map(headers));
        // A server that restarts meanwhile takes it at the next try; the event's id makes it one event.
        eventually(PATIENCE, async || {
            let sending = self.jetstream.publish_with_headers(
                subject.to_owned(),
                headers.clone(),
                body.clone(),
            );
            Some(sending.await.ok()?.await.ok()?.sequence)
        })
        .await
    }

    /// An event in the ERP's own envelope.
    pub(crate) async fn order_created(&self, id: &str) -> u64 {
        self.publish("sales.order.created", order(id)).await
    }

    /// Publishes many without waiting for each.
    pub(crate) async fn publish_all(&self, subject: &str, bodies: impl Iterator<Item = String>) {
        let mut waiting = Vec::new();
        for body in bodies {
            let sent = self
                .jetstream
                .publish(subject.to_owned(), body.into())
                .await;
            waiting.push(sent.expect("it is sent"));
        }
        for ack in waiting {
            ack.await.expect("the stream takes it");
        }
    }

    /// A fixture of `tests/fixtures/erp-events`, as the ERP really sends it.
    pub(crate) async fn fixture(&self, name: &str) -> Value {
        let path = format!(
            "{}/tests/fixtures/erp-events/{name}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = std::fs::read_to_string(path).expect("the fixture is there");
        let fixture: Value = serde_json::from_str(&text).expect("it is JSON");
        let headers: Vec<(&str, &str)> = fixture["headers"]
            .as_object()
            .expect("headers")
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str().expect("a text")))
            .collect();
        let subject = fixture["subject"].as_str().expect("a subject");
        self.publish_with(subject, &headers, fixture["body"].to_string())
            .await;
        fixture
    }

    /// A request; the whole reply.
    pub(crate) async fn request(
        &self,
        action: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Value {
        let subject = format!("integration.api.{action}");
        let request = async_nats::Request::new()
            .payload(body.to_string().into())
            .headers(header_map(headers))
            .timeout(Some(Duration::from_secs(20)));
        let answer = self
            .client
            .send_request(subject, request)
            .await
            .expect("an answer");
        serde_json::from_slice(&answer.payload).expect("the answer is JSON")
    }

    /// A request that succeeds: its data.
    pub(crate) async fn ask(&self, action: &str, body: Value) -> Value {
        let reply = self.request(action, &[], &body).await;
        assert_eq!(reply["success"], true, "{action}: {reply}");
        reply["data"].clone()
    }

    /// Publishes a durable command.
    pub(crate) async fn command(&self, action: &str, headers: &[(&str, &str)], body: &Value) {
        let subject = format!("integration.commands.{action}");
        self.publish_with(&subject, headers, body.to_string()).await;
    }

    /// An integration and a webhook of it: the webhook's id and secret.
    pub(crate) async fn webhook(
        &self,
        url: &str,
        events: &[&str],
        config: Value,
    ) -> (String, String) {
        let webhook = self.new_webhook(url, events, config).await;
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        (text(&webhook["id"]), text(&webhook["secret"]))
    }

    /// An integration and a webhook of it, as its `create` answers.
    pub(crate) async fn new_webhook(&self, url: &str, events: &[&str], config: Value) -> Value {
        let mut full = json!({ "url": url });
        for (name, value) in config.as_object().expect("an object") {
            full[name] = value.clone();
        }
        let name = uuid_of(url);
        let integration = self
            .ask(
                "integration.create",
                json!({ "name": name, "type": "webhook", "config": {} }),
            )
            .await;
        self.ask(
            "webhook.create",
            json!({
                "name": "w", "integrationId": integration["id"], "events": events, "config": full,
            }),
        )
        .await
    }

    /// All domain events so far, oldest first.
    pub(crate) async fn events(&self) -> Vec<Value> {
        self.read_stream("INTEGRATION_EVENTS")
            .await
            .into_iter()
            .map(|(_, body)| body)
            .collect()
    }

    /// All messages of a stream: subject and body.
    pub(crate) async fn read_stream(&self, name: &str) -> Vec<(String, Value)> {
        let mut stream = self
            .jetstream
            .get_stream(name)
            .await
            .expect("the stream is there");
        let count = stream.info().await.expect("it tells").state.messages;
        if count == 0 {
            return Vec::new();
        }
        let config = jetstream::consumer::pull::OrderedConfig::default();
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let messages = consumer.messages().await.expect("messages");
        let read = messages
            .take(usize::try_from(count).expect("few"))
            .map(|message| {
                let message = message.expect("a message");
                let body = serde_json::from_slice(&message.payload).unwrap_or(Value::Null);
                (message.subject.to_string(), body)
            });
        tokio::time::timeout(PATIENCE, read.collect())
            .await
            .expect("all come")
    }

    /// Waits for a domain event.
    pub(crate) async fn wait_event(&self, kind: &str, matches: impl Fn(&Value) -> bool) -> Value {
        eventually(PATIENCE, async || {
            self.events()
                .await
                .into_iter()
                .find(|event| event["type"] == kind && matches(event))
        })
        .await
    }

    /// Waits until no message of the ERP's stream is left to be settled.
    pub(crate) async fn wait_all_settled(&self, timeout: Duration) {
        eventually(timeout, async || {
            let stream = self.jetstream.get_stream("ERP_EVENTS").await.ok()?;
            // Those that read the stream for a test are not meant.
            let mut consumers = stream.consumers();
            let info = loop {
                let info = consumers.next().await?.ok()?;
                if info.config.durable_name.is_some() {
                    break info;
                }
            };
            (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
        })
        .await;
    }

    /// Waits until a delivery of this webhook passes the filters; with its attempts.
    pub(crate) async fn wait_delivery(&self, webhook: &str, filters: Value) -> Value {
        let mut body = filters;
        body["webhookId"] = json!(webhook);
        eventually(PATIENCE, async || {
            let list = self.ask("delivery.list", body.clone()).await;
            let found = list["items"].as_array()?.first()?["id"].clone();
            Some(self.ask("delivery.get", json!({ "id": found })).await)
        })
        .await
    }
}

/// The body of an order event.
pub(crate) fn order(id: &str) -> String {
    format!(
        r#"{{"eventId":"{id}","eventType":"sales.order.created","occurredAt":"2026-11-02T08:14:09.120Z","tenantId":"default","payload":{{"orderId":"{id}","totalNet":18450.00}}}}"#
    )
}

fn uuid_of(text: &str) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, text.as_bytes()).to_string()
}

fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, *value);
    }
    map
}

/// Whether the request is signed with this `whsec_` secret, as Standard Webhooks says.
pub(crate) fn is_signed(request: &Received, secret: &str) -> bool {
    let key = STANDARD
        .decode(secret.trim_start_matches("whsec_"))
        .expect("base64");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let mut signed = format!(
        "{}.{}.",
        request.header("webhook-id"),
        request.header("webhook-timestamp")
    )
    .into_bytes();
    signed.extend_from_slice(&request.body);
    request.header("webhook-signature").split(' ').any(|one| {
        let tag = one
            .strip_prefix("v1,")
            .and_then(|tag| STANDARD.decode(tag).ok());
        tag.is_some_and(|tag| hmac::verify(&key, &signed, &tag).is_ok())
    })
}
