//! Publishes domain events and dead letters to their streams, and replies to plain subjects.

mod each;
mod letter;
mod oversize;

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap,
    header::{HeaderName, HeaderValue},
    jetstream::{
        self, Context,
        context::{PublishAckFuture, PublishError, PublishErrorKind},
        message::PublishMessage,
    },
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::timeout;

use crate::{
    application::ports::{BusError, DeadLetter, EventPublisher, Refusal, ReplyPublisher},
    domain::{events::DomainEvent, interfaces::OutboxRow, values::TraceContext},
    shared::error_chain::Chain,
};

use super::{
    connect::Connection,
    subjects::{SubjectPrefix, is_publishable},
    topology::Topology,
};

pub(super) use letter::is_kept as is_of_the_original;

/// How long the server may take to acknowledge one message.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long all of a batch may take.
const BATCH_TIMEOUT: Duration = Duration::from_secs(20);
/// Messages of one batch that wait for their acknowledgement at a time.
const WINDOW: usize = 512;
/// The same over all batches. An unawaited acknowledgement keeps its place in this, so it must be
/// far more than callers at a time have in their windows, or they wait for each other.
const MAX_IN_FLIGHT: usize = 64 * 1024;

pub(super) const MSG_ID: &str = "Nats-Msg-Id";

/// The publisher over JetStream.
pub struct JetStreamPublisher {
    client: Client,
    context: Context,
    prefix: SubjectPrefix,
    response_subject: String,
    topology: Arc<Topology>,
}

impl fmt::Debug for JetStreamPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamPublisher")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl JetStreamPublisher {
    /// Publishes below the prefix, and what is made of answers on `response_subject` + type; makes the
    /// topology's streams again where they are gone.
    pub fn new(
        connection: &Connection,
        prefix: SubjectPrefix,
        response_subject: String,
        topology: &Arc<Topology>,
    ) -> Self {
        let client = connection.client.clone();
        let context = jetstream::context::ContextBuilder::new()
            .timeout(ACK_TIMEOUT)
            .max_ack_inflight(MAX_IN_FLIGHT)
            .backpressure_on_inflight(true)
            .build(client.clone());
        Self {
            client,
            context,
            prefix,
            response_subject,
            topology: Arc::clone(topology),
        }
    }

    fn event_message(&self, row: &OutboxRow) -> PublishMessage {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", DomainEvent::CONTENT_TYPE);
        headers.insert(MSG_ID, row.id.to_string());
        let trace = row.trace.as_ref();
        let parent = trace.map(TraceContext::parent);
        let state = trace.and_then(TraceContext::state);
        for (name, value) in [("traceparent", parent), ("tracestate", state)] {
            // A trace context that is no header value is not worth an event.
            if let Some(Ok(value)) = value.map(str::parse::<HeaderValue>) {
                headers.insert(name, value);
            }
        }
        let limit = self
            .client
            .max_payload()
            .saturating_sub(oversize::wire_len(&headers));
        // What is made of an answer is the ERP's: it goes out as it is, or is refused.
        let body = if row.is_response {
            row.body.clone()
        } else {
            oversize::fitting(row, limit)
        };
        PublishMessage::build()
            .headers(headers)
            .payload(body.into())
    }

    async fn publish_all(&self, rows: &[OutboxRow]) -> Result<(), PublishError> {
        let mut waiting: VecDeque<PublishAckFuture> = VecDeque::with_capacity(WINDOW);
        for row in rows {
            if waiting.len() == WINDOW
                && let Some(oldest) = waiting.pop_front()
            {
                oldest.await?;
            }
            let message = self.event_message(row);
            let sent = self.context.send_publish(self.subject(row), message);
            waiting.push_back(sent.await?);
        }
        for sent in waiting {
            sent.await?;
        }
        Ok(())
    }

    fn subject(&self, row: &OutboxRow) -> String {
        if row.is_response {
            format!("{}{}", self.response_subject, row.event_type)
        } else {
            self.prefix.event(&row.event_type)
        }
    }

    async fn publish_letter(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        let shaped = letter::shape(letter, self.client.max_payload());
        let mut headers = HeaderMap::new();
        for (name, value) in &shaped.headers {
            // What the original had is valid unless its publisher was no client of ours.
            if let (Ok(name), Ok(value)) =
                (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
            {
                headers.append(name, value);
            }
        }
        let message = PublishMessage::build()
            .headers(headers)
            .payload(shaped.body);
        let subject = self.prefix.dead_letter(letter.kind);
        self.context.send_publish(subject, message).await?.await?;
        Ok(())
    }

    /// Makes streams that are gone.
    async fn mend_streams(&self) {
        let made = timeout(ACK_TIMEOUT, self.topology.ensure_streams(&self.context)).await;
        if let Ok(Err(error)) = made {
            tracing::warn!(error = %Chain(&error), "a stream is missing and cannot be created");
        }
    }

    /// The caller tries again in any case; where the stream is gone, that is what helps.
    async fn repaired(&self, what: String, error: PublishError) -> BusError {
        if error.kind() == PublishErrorKind::StreamNotFound {
            self.mend_streams().await;
        }
        BusError {
            what,
            source: error.into(),
        }
    }
}

#[async_trait]
impl EventPublisher for JetStreamPublisher {
    async fn publish(&self, rows: &[OutboxRow]) -> Result<(), BusError> {
        let what = || format!("{} domain events", rows.len());
        match timeout(BATCH_TIMEOUT, self.publish_all(rows)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.repaired(what(), error).await),
            Err(error) => Err(BusError {
                what: what(),
                source: error.into(),
            }),
        }
    }

    async fn publish_each(&self, rows: &[OutboxRow]) -> Result<Vec<Refusal>, BusError> {
        self.each(rows).await
    }

    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BusError> {
        match self.publish_letter(letter).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.repaired("a dead letter".to_owned(), error).await),
        }
    }
}

/// A subject that nobody may have replies published to.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no subject for replies: it has wildcards or white space, or is the worker's or the server's own"
)]
pub struct ReplySubjectError(String);

#[async_trait]
impl ReplyPublisher for JetStreamPublisher {
    async fn publish_plain(&self, subject: &str, body: Bytes) -> Result<(), BusError> {
        let failed = |source| BusError {
            what: "a reply".to_owned(),
            source,
        };
        if !is_publishable(subject) || self.prefix.covers(subject) {
            return Err(failed(ReplySubjectError(subject.to_owned()).into()));
        }
        let published = self.client.publish(subject.to_owned(), body);
        match timeout(ACK_TIMEOUT, published).await {
            Ok(published) => published.map_err(|error| failed(error.into())),
            Err(error) => Err(failed(error.into())),
        }
    }
}
