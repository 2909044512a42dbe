//! Messages that the client library cannot read: it drops the connection at one, or dies of it. So
//! they are looked for where they can be read, and put aside, before anything is pulled.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use async_nats::{Client, HeaderName};
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chrono::DateTime;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    application::{
        dead_letters,
        ports::{BusError, Clock, DeadLetter, EventPublisher, Settle},
    },
    domain::values::{TenantId, truncate_to_millis},
};

use super::ConsumerSpec;

/// Messages that are read at a time.
const AT_A_TIME: usize = 16;
/// Most messages of one search; where more are open, the next one begins further on.
const MAX_RANGE: usize = 100_000;
/// How long one answer of the server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// How a message is put aside that cannot be pulled.
pub struct Burial {
    /// For the dead letter.
    pub publisher: Arc<dyn EventPublisher>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// `commands` or `events`.
    pub kind: &'static str,
    /// Whose they are: their headers cannot be trusted.
    pub tenant: TenantId,
}

impl fmt::Debug for Burial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Burial")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Puts aside every message that was delivered, is not settled, and cannot be read by the client.
pub(super) async fn clear(
    client: &Client,
    spec: &ConsumerSpec,
    burial: &Burial,
) -> Result<(), Fault> {
    let stream = &spec.stream;
    let consumer = spec.config.durable_name.as_deref().unwrap_or_default();
    let subject = format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}");
    let info = ask(client, subject, Bytes::new()).await?;
    let number = |of: &str| info.pointer(of).and_then(Value::as_u64);
    if number("/num_ack_pending").unwrap_or_default() == 0 {
        return Ok(());
    }
    let floor = number("/ack_floor/stream_seq").unwrap_or_default();
    let last = number("/delivered/stream_seq").unwrap_or_default();
    let mut found = stream::iter(floor.saturating_add(1)..=last)
        .take(MAX_RANGE)
        .map(|sequence| read(client, stream, sequence))
        .buffered(AT_A_TIME);
    while let Some(message) = found.try_next().await? {
        let Some((letter, nanoseconds)) = message.and_then(|m| letter(&m, stream, burial)) else {
            continue;
        };
        // The server finds what is open by its sequence in the stream; it takes any number for the
        // deliveries and for the consumer's own sequence.
        let reply = format!(
            "$JS.ACK.{stream}.{consumer}.1.{}.1.{nanoseconds}.0",
            letter.sequence
        );
        let client = client.clone();
        let now = burial.clock.now();
        let publisher = burial.publisher.as_ref();
        let message = Unpulled { client, reply };
        dead_letters::bury(publisher, &letter, &burial.tenant, now, &message).await?;
    }
    Ok(())
}

async fn ask(client: &Client, subject: String, body: Bytes) -> Result<Value, Fault> {
    let answer = timeout(ANSWER_TIMEOUT, client.request(subject, body)).await??;
    Ok(serde_json::from_slice(&answer.payload)?)
}

/// `None` where there is no message of this sequence any more.
async fn read(client: &Client, stream: &str, sequence: u64) -> Result<Option<Value>, Fault> {
    let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
    let body = json!({ "seq": sequence }).to_string();
    let mut answer = ask(client, subject, body.into()).await?;
    match answer.get("error") {
        None => Ok(answer.get_mut("message").map(Value::take)),
        Some(error) if error.get("code").and_then(Value::as_u64) == Some(404) => Ok(None),
        Some(error) => Err(error.to_string().into()),
    }
}

/// The dead letter of a message, and its nanosecond of publication; `None` when it can be pulled.
fn letter(message: &Value, stream: &str, burial: &Burial) -> Option<(DeadLetter, i64)> {
    let text = |name: &str| message.get(name).and_then(Value::as_str);
    let bytes = |name| text(name).and_then(|text| STANDARD.decode(text).ok());
    let subject = text("subject")?;
    let head = bytes("hdrs").unwrap_or_default();
    let fault = if subject.contains(char::REPLACEMENT_CHARACTER) {
        "the subject is not UTF-8"
    } else {
        fault(&head)?
    };
    let published_at = DateTime::parse_from_rfc3339(text("time")?).ok()?.to_utc();
    let letter = DeadLetter {
        kind: burial.kind,
        reason: format!("malformed_headers: {fault}"),
        tenant: burial.tenant.to_string(),
        subject: subject.to_owned(),
        stream: stream.to_owned(),
        sequence: message.get("seq")?.as_u64()?,
        published_at: truncate_to_millis(published_at),
        headers: readable(&head),
        body: bytes("data").unwrap_or_default().into(),
    };
    Some((
        letter,
        published_at.timestamp_nanos_opt().unwrap_or_default(),
    ))
}

/// What the client would stumble over.
fn fault(head: &[u8]) -> Option<&'static str> {
    parsed(head).err()
}

/// The headers as the client reads them, by its own rules, step by step; or what it would stumble over.
pub(in crate::infrastructure::nats) fn parsed(
    head: &[u8],
) -> Result<Vec<(String, String)>, &'static str> {
    let mut headers = Vec::new();
    if head.is_empty() {
        return Ok(headers);
    }
    let head = str::from_utf8(head).map_err(|_| "they are not UTF-8")?;
    let mut lines = head.lines().peekable();
    let version = lines.next().and_then(|line| line.strip_prefix("NATS/1.0"));
    let version = version.ok_or("they do not begin with NATS/1.0")?;
    let status = version.trim().split(' ').next().unwrap_or_default();
    if !status.is_empty() {
        // If it can be read, it would be taken for the server's own.
        return Err("there is a status");
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or("a line has no colon")?;
        if HeaderName::from_str(name).is_err() {
            return Err("a name has characters that are not allowed");
        }
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        value.truncate(value.trim_end().len());
        if value.contains(['\r', '\n']) {
            return Err("a value has a carriage return");
        }
        headers.push((name.to_owned(), value));
    }
    Ok(headers)
}

/// The lines that can be kept, with spaces for what cannot.
pub(in crate::infrastructure::nats) fn readable(head: &[u8]) -> Vec<(String, String)> {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    String::from_utf8_lossy(head)
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| !name.is_empty() && HeaderName::from_str(name).is_ok())
        .map(|(name, value)| {
            let value: String = value.chars().map(clean).collect();
            (name.to_owned(), value.trim().to_owned())
        })
        .collect()
}

/// A message that was delivered, and never arrived. Each settlement is confirmed by the server.
struct Unpulled {
    client: Client,
    reply: String,
}

impl Unpulled {
    async fn say(&self, body: &'static str) -> Result<(), BusError> {
        let said = self.client.request(self.reply.clone(), body.into()).await;
        said.map(drop).map_err(|error| BusError {
            what: "the settlement of a message that cannot be read".to_owned(),
            source: error.into(),
        })
    }
}

#[async_trait]
impl Settle for Unpulled {
    async fn ack(&self) -> Result<(), BusError> {
        self.say("+ACK").await
    }

    async fn progress(&self) -> Result<(), BusError> {
        self.say("+WPI").await
    }

    async fn nak(&self, _delay: Duration) -> Result<(), BusError> {
        self.say("-NAK").await
    }

    async fn terminate(&self) -> Result<(), BusError> {
        self.say("+TERM").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_cannot_read_is_found() {
        for (head, is_poison) in [
            (b"".as_slice(), false),
            (b"NATS/1.0\r\nA: b\r\n\r\n", false),
            (b"NATS/1.0\r\nA: b\r\n c\r\n\r\n", false),
            ("NATS/1.0\r\nA: \u{fc}\r\n\r\n".as_bytes(), false),
            (b"NATS/1.0\r\nA:\r\n\r\n", false),
            (b"NATS/1.0\r\nA: b\rc\r\n\r\n", true),
            (b"NATS/1.0\r\nA: \xfc\r\n\r\n", true),
            (b"NATS/1.0\r\nA b: c\r\n\r\n", true),
            ("NATS/1.0\r\n\u{fc}: c\r\n\r\n".as_bytes(), true),
            (b"NATS/1.0\r\nno colon\r\n\r\n", true),
            (b"NATS/2.0\r\nA: b\r\n\r\n", true),
            (b"NATS/1.0 x\r\nA: b\r\n\r\n", true),
            (b"NATS/1.0 503\r\nA: b\r\n\r\n", true),
        ] {
            let found = fault(head);
            assert_eq!(found.is_some(), is_poison, "{head:?}: {found:?}");
        }
    }
}
