//! The inbox of a source: requests go out with its address, messages and their end come in.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use async_nats::{Client, Message, PublishError, StatusCode, SubscribeError, Subscriber};
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::ConsumerSpec;

/// How long the server waits for the first message.
const EXPIRES: Duration = Duration::from_secs(1);
/// How much longer its answer may take.
const GRACE: Duration = Duration::from_secs(2);
/// How long a pull that has messages waits for the next one.
const GATHER: Duration = Duration::from_millis(20);
/// Most bytes of one pull, unless one message alone may be larger.
const MAX_PULL_BYTES: usize = 32 * 1024 * 1024;

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// There are messages, or there is nothing now.
    Served,
    /// The server did not serve it; perhaps others wait already.
    NotServed,
    /// Nobody answers for the consumer: it was deleted, or JetStream is not there yet.
    ConsumerGone,
    /// The subscription has ended.
    Closed,
}

pub(super) struct Inbox {
    subscriber: Subscriber,
    address: String,
    next_subject: String,
    request: Option<Request>,
    requests: u64,
    ready: VecDeque<Message>,
}

/// What is under way.
struct Request {
    reply: String,
    left: usize,
    deadline: Instant,
    /// A request does not outlive its connection.
    connection: u64,
}

impl Inbox {
    pub(super) async fn open(client: &Client, spec: &ConsumerSpec) -> Result<Self, SubscribeError> {
        let address = client.new_inbox();
        let consumer = spec.config.durable_name.as_deref().unwrap_or_default();
        Ok(Self {
            subscriber: client.subscribe(format!("{address}.*")).await?,
            address,
            next_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", spec.stream),
            request: None,
            requests: 0,
            ready: VecDeque::new(),
        })
    }

    /// Requests messages, unless a request is under way already.
    pub(super) async fn ask(&mut self, client: &Client, batch: usize) -> Result<(), PublishError> {
        let connection = client.statistics().connects.load(Ordering::Relaxed);
        let alive = |r: &Request| r.connection == connection && r.deadline > Instant::now();
        if self.request.as_ref().is_some_and(alive) {
            return Ok(());
        }
        self.requests += 1;
        let reply = format!("{}.{}", self.address, self.requests);
        let max_bytes = MAX_PULL_BYTES.max(client.max_payload().saturating_mul(2));
        // Both together mean: wait for the first message, then send what is there and no more.
        let body = json!({
            "batch": batch,
            "expires": u64::try_from(EXPIRES.as_nanos()).unwrap_or(u64::MAX),
            "no_wait": true,
            "max_bytes": max_bytes,
        });
        // Remembered first: this may be abandoned at any await.
        self.request = Some(Request {
            reply: reply.clone(),
            left: batch,
            deadline: Instant::now() + EXPIRES + GRACE,
            connection,
        });
        let subject = self.next_subject.clone();
        let body = body.to_string().into();
        let sent = client.publish_with_reply(subject, reply, body).await;
        if sent.is_err() {
            self.request = None;
        }
        sent
    }

    /// Takes in what has arrived already; whether there is any.
    pub(super) fn take_in_arrived(&mut self) -> bool {
        while let Some(Some(message)) = self.subscriber.next().now_or_never() {
            let _ending = self.take_in(message);
        }
        !self.ready.is_empty()
    }

    /// Waits for messages until there are `max`, the request has ended, or no more come at once.
    pub(super) async fn gather(&mut self, max: usize) -> Ending {
        while self.ready.len() < max
            && let Some(request) = &self.request
        {
            let until = if self.ready.is_empty() {
                request.deadline
            } else {
                request.deadline.min(Instant::now() + GATHER)
            };
            match timeout_at(until, self.subscriber.next()).await {
                Ok(Some(message)) => {
                    if let Some(ending) = self.take_in(message) {
                        return self.with_what_is_ready(ending);
                    }
                }
                Ok(None) => return self.with_what_is_ready(Ending::Closed),
                Err(_) if self.ready.is_empty() => {
                    self.request = None;
                    return Ending::NotServed;
                }
                Err(_) => break,
            }
        }
        Ending::Served
    }

    /// What there is, at most `max`.
    pub(super) fn take(&mut self, max: usize) -> Vec<Message> {
        let count = max.min(self.ready.len());
        self.ready.drain(..count).collect()
    }

    fn with_what_is_ready(&self, ending: Ending) -> Ending {
        if self.ready.is_empty() || ending == Ending::ConsumerGone {
            ending
        } else {
            Ending::Served
        }
    }

    /// `Some` when that was the end of the request.
    fn take_in(&mut self, message: Message) -> Option<Ending> {
        let Some(status) = message.status.filter(|status| *status != StatusCode::OK) else {
            self.ready.push_back(message);
            let request = self.request.as_mut()?;
            request.left = request.left.saturating_sub(1);
            if request.left == 0 {
                self.request = None;
                return Some(Ending::Served);
            }
            return None;
        };
        // The end of an earlier request says nothing about this one.
        let is_current = |r: &Request| r.reply == message.subject.as_str();
        if !self.request.as_ref().is_some_and(is_current) || status.as_u16() < 200 {
            return None;
        }
        self.request = None;
        Some(ending(
            status,
            message.description.as_deref().unwrap_or_default(),
        ))
    }
}

/// What a status that ends a request means.
fn ending(status: StatusCode, description: &str) -> Ending {
    let description = description.to_ascii_lowercase();
    match status.as_u16() {
        503 => Ending::ConsumerGone,
        409 if description.contains("deleted") => Ending::ConsumerGone,
        404 => Ending::Served,
        408 if !description.contains("pending") => Ending::Served,
        409 if description.contains("maxbytes") => Ending::Served,
        other => {
            tracing::debug!(status = other, description, "a pull was not served");
            Ending::NotServed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_how_a_pull_ended() {
        for (status, description, expected) in [
            (404, "No Messages", Ending::Served),
            (408, "Request Timeout", Ending::Served),
            (408, "Requests Pending", Ending::NotServed),
            (409, "Message Size Exceeds MaxBytes", Ending::Served),
            (409, "Consumer Deleted", Ending::ConsumerGone),
            (409, "Leadership Change", Ending::NotServed),
            (409, "Server Shutdown", Ending::NotServed),
            (400, "Bad Request", Ending::NotServed),
            (503, "No Responders", Ending::ConsumerGone),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(ending(status, description), expected, "{description}");
        }
    }
}
