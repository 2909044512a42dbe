//! One message of a stream: what it is, and how it is settled.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, HeaderMap, Message, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;

use crate::{
    application::ports::{BusError, Settle, SourceMessage},
    domain::values::{Timestamp, truncate_to_millis},
};

/// How long a settlement may wait for room in the client: while the connection is away its queue
/// fills up.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Splits a delivered message into its content and the handle to settle it. `None` for one that no
/// consumer has sent.
pub(super) fn split(
    client: &Arc<Client>,
    message: Message,
) -> Option<(SourceMessage, Box<dyn Settle>)> {
    let reply = message.reply?;
    let place = Place::parse(&reply)?;
    let content = SourceMessage {
        subject: message.subject.into_string(),
        headers: message.headers.as_ref().map(headers).unwrap_or_default(),
        body: message.payload,
        sequence: place.sequence,
        published_at: place.published_at,
        deliveries: place.deliveries,
    };
    let client = Arc::clone(client);
    Some((content, Box::new(Settlement { client, reply })))
}

fn headers(map: &HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
        .map(|(name, value)| (name.to_string(), value.as_str().to_owned()))
        .collect()
}

/// What the reply subject of a delivered message says about it.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    sequence: u64,
    published_at: Timestamp,
    deliveries: i64,
}

impl Place {
    /// `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<…>.<nanoseconds>.<pending>`, or the
    /// longer form of newer servers with a domain and an account before the stream.
    fn parse(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let before = match rest.split('.').count() {
            7 => 2,
            9.. => 4,
            _ => return None,
        };
        let mut tokens = rest.split('.').skip(before);
        let deliveries = tokens.next()?.parse().ok()?;
        let sequence = tokens.next()?.parse().ok()?;
        let nanoseconds: i64 = tokens.nth(1)?.parse().ok()?;
        Some(Self {
            sequence,
            published_at: truncate_to_millis(DateTime::from_timestamp_nanos(nanoseconds)),
            deliveries,
        })
    }
}

/// Settles one message. No answer of the server is awaited: a settlement that is lost means that
/// the message comes again.
struct Settlement {
    client: Arc<Client>,
    reply: Subject,
}

impl Settlement {
    async fn say(&self, what: &'static str, body: Bytes) -> Result<(), BusError> {
        let published = self.client.publish(self.reply.clone(), body);
        let failed = |source| BusError {
            what: format!("the {what} of a message"),
            source,
        };
        match tokio::time::timeout(SETTLE_TIMEOUT, published).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(error.into())),
            Err(error) => Err(failed(error.into())),
        }
    }
}

#[async_trait]
impl Settle for Settlement {
    async fn ack(&self) -> Result<(), BusError> {
        self.say("acknowledgement", Bytes::from_static(b"+ACK"))
            .await
    }

    async fn progress(&self) -> Result<(), BusError> {
        self.say("sign of progress", Bytes::from_static(b"+WPI"))
            .await
    }

    async fn nak(&self, delay: Duration) -> Result<(), BusError> {
        let body = if delay.is_zero() {
            Bytes::from_static(b"-NAK")
        } else {
            Bytes::from(format!(r#"-NAK {{"delay":{}}}"#, delay.as_nanos()))
        };
        self.say("postponement", body).await
    }

    async fn terminate(&self) -> Result<(), BusError> {
        self.say("termination", Bytes::from_static(b"+TERM")).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_reply_subject_are_read() {
        let expected = Place {
            sequence: 100,
            published_at: DateTime::from_timestamp_millis(1_790_230_470_084).unwrap(),
            deliveries: 3,
        };
        for reply in [
            "$JS.ACK.events.durable.3.100.7.1790230470084404000.42",
            "$JS.ACK._.szMpdrwD.events.durable.3.100.7.1790230470084404000.42",
            "$JS.ACK.hub.szMpdrwD.events.durable.3.100.7.1790230470084404000.42.x.y",
        ] {
            assert_eq!(Place::parse(reply).as_ref(), Some(&expected), "{reply}");
        }
    }

    #[test]
    fn any_other_reply_subject_is_not() {
        for reply in [
            "",
            "_INBOX.a.b",
            "$JS.ACK.events.durable.3.100.7.1790230470084404000",
            "$JS.ACK.events.durable.x.100.7.1790230470084404000.42",
            "$JS.ACK.events.durable.3.100.7.99999999999999999999.42",
        ] {
            assert_eq!(Place::parse(reply), None, "{reply}");
        }
    }
}
