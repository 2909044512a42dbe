//! A user of the worker, and the ERP: both know NATS alone.

use std::{fmt::Display, time::Duration};

use async_nats::{
    Client, HeaderMap, Request,
    jetstream::{self, message::StreamMessage, stream::Stream},
};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::time::sleep;

use super::{
    erp::{Message, TENANT},
    missed::{Missed, check, in_time},
};

/// How often something is asked again that nobody tells by himself.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// The subject that durable commands are answered on.
const REPLIES: &str = "demo.replies";

/// A connection to NATS.
#[derive(Debug)]
pub(super) struct User {
    client: Client,
    jetstream: jetstream::Context,
}

impl User {
    pub(super) async fn connect(url: &str) -> Result<Self, Missed> {
        let options = async_nats::ConnectOptions::new().name("integration-worker demo");
        let client = options
            .connect(url)
            .await
            .map_err(failed("connecting to NATS"))?;
        let jetstream = jetstream::new(client.clone());
        Ok(Self { client, jetstream })
    }

    /// Makes a request, and gives back what it was answered.
    pub(super) async fn ask(&self, action: &str, body: &Value) -> Result<Value, Missed> {
        let request = Request::new()
            .headers(headers([("X-Tenant-Id", TENANT), ("X-User-Id", "demo")]))
            .payload(body.to_string().into());
        let subject = format!("integration.api.{action}");
        let answer = self.client.send_request(subject, request);
        let answer = answer.await.map_err(failed(action))?;
        data_of(action, &answer.payload)
    }

    /// Publishes a durable command that is to be answered, and waits for the answer.
    pub(super) async fn command(&self, action: &str, body: &Value) -> Result<Value, Missed> {
        let mut answers = self
            .client
            .subscribe(REPLIES)
            .await
            .map_err(failed(action))?;
        let headers = headers([
            ("X-Tenant-Id", TENANT),
            ("X-User-Id", "demo"),
            ("Idempotency-Key", "demo-1"),
            ("Integration-Reply-To", REPLIES),
        ]);
        let subject = format!("integration.commands.{action}");
        self.publish(subject, headers, body.to_string()).await?;
        let answer = in_time("the reply to the command", async {
            let none = || Missed(format!("{action}: no reply"));
            answers.next().await.ok_or_else(none)
        });
        data_of(action, &answer.await?.payload)
    }

    /// Publishes what the ERP publishes, and waits until the stream has it.
    pub(super) async fn publish_event(&self, message: &Message) -> Result<(), Missed> {
        let pairs = message
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let subject = message.subject.clone();
        self.publish(subject, headers(pairs), message.body.clone())
            .await
    }

    async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        body: String,
    ) -> Result<(), Missed> {
        let what = format!("publishing on {subject}");
        let sending = self
            .jetstream
            .publish_with_headers(subject, headers, body.into());
        let stored = sending.await.map_err(failed(&what))?;
        stored.await.map_err(failed(&what))?;
        Ok(())
    }

    /// A stream by its name.
    pub(super) async fn stream(&self, name: &str) -> Result<Stream, Missed> {
        self.jetstream.get_stream(name).await.map_err(failed(name))
    }

    /// Waits until the worker has settled everything that the ERP has published.
    pub(super) async fn wait_settled(&self) -> Result<(), Missed> {
        let stream = self.stream("ERP_EVENTS").await?;
        in_time("the worker's consumer at the end of ERP_EVENTS", async {
            loop {
                let mut consumers = stream.consumers();
                if let Some(consumer) = consumers.next().await {
                    let consumer = consumer.map_err(failed("reading the consumer"))?;
                    if consumer.num_pending == 0 && consumer.num_ack_pending == 0 {
                        return Ok(());
                    }
                }
                sleep(ASK_EVERY).await;
            }
        })
        .await
    }

    /// Waits until so many deliveries fit the filter, and gives them back.
    pub(super) async fn wait_deliveries(
        &self,
        filter: &Value,
        count: usize,
    ) -> Result<Vec<Value>, Missed> {
        in_time(&format!("{count} deliveries with {filter}"), async {
            loop {
                let found = self.deliveries(filter).await?;
                if found.len() == count {
                    return Ok(found);
                }
                sleep(ASK_EVERY).await;
            }
        })
        .await
    }

    /// The deliveries that fit the filter.
    pub(super) async fn deliveries(&self, filter: &Value) -> Result<Vec<Value>, Missed> {
        let mut list = self.ask("delivery.list", filter).await?;
        match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => Err(Missed("delivery.list: no items in the answer".to_owned())),
        }
    }

    /// The newest dead letter of an event.
    pub(super) async fn dead_letter(&self) -> Result<StreamMessage, Missed> {
        let stream = self.stream("INTEGRATION_DEAD_LETTERS").await?;
        let subject = "integration.dead_letters.events";
        let letter = stream.get_last_raw_message_by_subject(subject).await;
        letter.map_err(failed("reading the dead letter"))
    }
}

fn headers<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name, value);
    }
    headers
}

/// What a reply carries when it tells of success.
fn data_of(action: &str, reply: &[u8]) -> Result<Value, Missed> {
    let mut reply: Value = serde_json::from_slice(reply).map_err(failed(action))?;
    let success = reply.get("success") == Some(&Value::Bool(true));
    check(success, format!("{action}: {reply}"))?;
    Ok(reply.get_mut("data").map(Value::take).unwrap_or_default())
}

fn failed<E: Display>(what: &str) -> impl Fn(E) -> Missed + use<'_, E> {
    move |error| Missed(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_action() {
        let data = data_of("a.b", br#"{"success":true,"data":{"id":"1"}}"#).unwrap();
        assert_eq!(data["id"], "1");
        for reply in [r#"{"success":false,"error":{}}"#, "{}", "no JSON"] {
            let missed = data_of("a.b", reply.as_bytes()).unwrap_err().to_string();
            assert!(missed.starts_with("a.b: "), "{missed}");
        }
    }
}
