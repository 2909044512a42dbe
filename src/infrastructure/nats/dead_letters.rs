//! The box of dead letters over its stream.
//!
//! It is read through the server's API by sequence, not by a consumer: so whatever somebody published
//! there can be read, too, and nothing is left behind on the server.

use std::{fmt, sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap,
    header::{HeaderName, HeaderValue},
    jetstream::{self, Context, message::PublishMessage},
};
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::DateTime;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    application::{
        dead_letter_box::{BoxState, DeadLetterBox, KeptLetter, LetterId, SendAgainError, Slice},
        ports::BusError,
    },
    domain::values::{Timestamp, truncate_to_millis},
};

use super::{
    connect::Connection,
    publisher::{self, is_of_the_original},
    source::readable,
    subjects::{SubjectPrefix, is_publishable, is_taken_by},
    topology::Topology,
};

/// How many letters are read in one step; each may have as many bytes as NATS takes.
const SLICE: u64 = 16;
/// How many of them at a time.
const AT_A_TIME: usize = 8;
/// How long one answer of the server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How the server says that something is not there.
const NOT_FOUND: u64 = 404;

/// The stream of dead letters.
pub struct JetStreamDeadLetters {
    client: Client,
    context: Context,
    prefix: SubjectPrefix,
    topology: Arc<Topology>,
}

impl fmt::Debug for JetStreamDeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamDeadLetters")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// What a stream holds, and what it takes.
struct Info {
    state: BoxState,
    first: u64,
    last: u64,
    subjects: Vec<String>,
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

impl JetStreamDeadLetters {
    /// The box of an installation.
    pub fn new(connection: &Connection, prefix: SubjectPrefix, topology: &Arc<Topology>) -> Self {
        let client = connection.client.clone();
        let context = jetstream::context::ContextBuilder::new()
            .timeout(ANSWER_TIMEOUT)
            .build(client.clone());
        Self {
            client,
            context,
            prefix,
            topology: Arc::clone(topology),
        }
    }

    fn stream(&self) -> &str {
        &self.topology.dead_letters.name
    }

    /// Asks the server's API; `None` where what is asked for is not there.
    async fn ask(&self, action: &str, stream: &str, body: Value) -> Result<Option<Value>, Fault> {
        let subject = format!("$JS.API.STREAM.{action}.{stream}");
        let asked = self.client.request(subject, body.to_string().into());
        let answer = timeout(ANSWER_TIMEOUT, asked).await??;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        match answer.get("error") {
            None => Ok(Some(answer)),
            Some(error) if error.get("code").and_then(Value::as_u64) == Some(NOT_FOUND) => Ok(None),
            Some(error) => Err(error.to_string().into()),
        }
    }

    async fn info(&self, stream: &str) -> Result<Info, BusError> {
        let what = || format!("the question about the stream {stream}");
        let answer = self
            .ask("INFO", stream, json!({}))
            .await
            .map_err(failed(what()))?;
        let answer = answer.ok_or_else(|| failed(what())("there is no such stream".into()))?;
        Ok(info_of(&answer))
    }

    /// The letter at a sequence, or, with `next`, the first one from there on.
    async fn read(&self, sequence: u64, next: bool) -> Result<Option<KeptLetter>, BusError> {
        let mut question = json!({ "seq": sequence });
        if next {
            question["next_by_subj"] = ">".into();
        }
        let answer = self.ask("MSG.GET", self.stream(), question).await;
        let answer = answer.map_err(failed("the reading of a dead letter".to_owned()))?;
        Ok(answer.and_then(|answer| self.letter_of(answer.get("message")?)))
    }

    async fn read_range(&self, from: u64, to: u64) -> Result<Vec<KeptLetter>, BusError> {
        let reading = stream::iter(from..=to).map(|sequence| self.read(sequence, false));
        let found: Vec<_> = reading.buffered(AT_A_TIME).try_collect().await?;
        let without_body = |letter| KeptLetter {
            body: bytes::Bytes::new(),
            ..letter
        };
        Ok(found.into_iter().flatten().map(without_body).collect())
    }

    /// The greatest sequence of a letter from `first`, which has one, up to `last`.
    async fn last_within(&self, first: u64, last: u64) -> Result<u64, BusError> {
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.read(middle, true).await? {
                Some(letter) if letter.sequence <= high => low = letter.sequence,
                _ => high = middle - 1,
            }
        }
        Ok(low)
    }

    fn letter_of(&self, message: &Value) -> Option<KeptLetter> {
        let text = |name: &str| message.get(name).and_then(Value::as_str);
        let bytes = |name| text(name).and_then(|text| STANDARD.decode(text).ok());
        let subject = text("subject")?;
        let kinds = ["commands", "events"].into_iter();
        let kind = { kinds }.find(|kind| self.prefix.dead_letter(kind) == subject)?;
        let head = readable(&bytes("hdrs").unwrap_or_default());
        let header = |name: &str| {
            let found = head.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        let body = bytes("data").unwrap_or_default();
        let origin = |name: &str| header(&format!("Integration-Origin-{name}"));
        Some(KeptLetter {
            sequence: message.get("seq")?.as_u64()?,
            added_at: time(text("time")?)?,
            kind,
            reason: header("Integration-Reason").unwrap_or_default(),
            tenant: header("Integration-Tenant"),
            subject: origin("Subject").unwrap_or_default(),
            stream: origin("Stream").unwrap_or_default(),
            origin_sequence: origin("Sequence").and_then(|text| text.parse().ok()),
            published_at: origin("Time").and_then(|text| time(&text)),
            headers: { head.iter() }
                .filter(|(name, _)| is_of_the_original(name))
                .cloned()
                .collect(),
            size: body.len(),
            body: body.into(),
        })
    }

    async fn check_destination(&self, letter: &KeptLetter) -> Result<String, SendAgainError> {
        let stream = match letter.kind {
            "commands" => &self.topology.commands.name,
            _ => &self.topology.erp.name,
        };
        let subjects = self.info(stream).await?.subjects;
        let taken = |pattern: &String| is_taken_by(&letter.subject, pattern);
        if is_publishable(&letter.subject) && subjects.iter().any(taken) {
            return Ok(stream.clone());
        }
        Err(SendAgainError::Refused(format!(
            "it came on the subject {:?}, which the stream {stream} does not take: it takes {}",
            letter.subject,
            subjects.join(", ")
        )))
    }
}

#[async_trait]
impl DeadLetterBox for JetStreamDeadLetters {
    async fn state(&self) -> Result<BoxState, BusError> {
        Ok(self.info(self.stream()).await?.state)
    }

    async fn letter(&self, id: LetterId) -> Result<Option<KeptLetter>, BusError> {
        // The server takes 0 for no sequence at all.
        if id.sequence == 0 {
            return Ok(None);
        }
        let found = self.read(id.sequence, false).await?;
        Ok(found.filter(|letter| letter.id() == id))
    }

    async fn newest(&self, from: Option<u64>) -> Result<Slice, BusError> {
        let info = self.info(self.stream()).await?;
        let top = from.map_or(info.last, |from| from.min(info.last));
        if info.state.count == 0 || top < info.first {
            return Ok(Slice::default());
        }
        let low = info.first.max(top.saturating_sub(SLICE - 1));
        let mut letters = self.read_range(low, top).await?;
        letters.reverse();
        let mut next = (low > info.first).then(|| low - 1);
        // Over a gap in one leap.
        if let (true, Some(below)) = (letters.is_empty(), next) {
            next = Some(self.last_within(info.first, below).await?);
        }
        Ok(Slice { letters, next })
    }

    async fn oldest(&self, from: u64) -> Result<Slice, BusError> {
        let info = self.info(self.stream()).await?;
        let from = from.max(info.first).max(1);
        if info.state.count == 0 || from > info.last {
            return Ok(Slice::default());
        }
        let Some(first) = self.read(from, true).await? else {
            return Ok(Slice::default());
        };
        let high = info.last.min(first.sequence.saturating_add(SLICE - 1));
        Ok(Slice {
            letters: self.read_range(first.sequence, high).await?,
            next: (high < info.last).then(|| high + 1),
        })
    }

    async fn send_again(&self, letter: &KeptLetter) -> Result<(), SendAgainError> {
        let stream = self.check_destination(letter).await?;
        let mut headers = HeaderMap::new();
        for (name, value) in &letter.headers {
            if let (Ok(name), Ok(value)) =
                (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
            {
                headers.append(name, value);
            }
        }
        let message_id = format!("{}-{}", self.stream(), letter.id());
        headers.insert(publisher::MSG_ID, message_id);
        let message = PublishMessage::build()
            .headers(headers)
            .expected_stream(stream)
            .payload(letter.body.clone());
        let failed = |error: jetstream::context::PublishError| {
            failed("a dead letter that is sent again".to_owned())(error.into())
        };
        let sent = self.context.send_publish(letter.subject.clone(), message);
        sent.await.map_err(failed)?.await.map_err(failed)?;
        Ok(())
    }

    async fn remove(&self, id: LetterId) -> Result<(), BusError> {
        if self.letter(id).await?.is_none() {
            return Ok(());
        }
        // Overwritten, not only marked: it may hold what nobody is to find.
        let question = json!({ "seq": id.sequence });
        let asked = self.ask("MSG.DELETE", self.stream(), question).await;
        asked
            .map(drop)
            .map_err(failed("the deletion of a dead letter".to_owned()))
    }
}

fn failed(what: String) -> impl FnOnce(Fault) -> BusError {
    |source| BusError { what, source }
}

fn info_of(answer: &Value) -> Info {
    let number = |of: &str| answer.pointer(of).and_then(Value::as_u64).unwrap_or(0);
    let count = number("/state/messages");
    let first_time = answer.pointer("/state/first_ts").and_then(Value::as_str);
    let max_age = number("/config/max_age");
    let subjects = answer.pointer("/config/subjects").and_then(Value::as_array);
    let subjects = subjects.into_iter().flatten().filter_map(Value::as_str);
    Info {
        state: BoxState {
            count,
            oldest: first_time.filter(|_| count > 0).and_then(time),
            max_age: (max_age > 0).then(|| Duration::from_nanos(max_age)),
        },
        first: number("/state/first_seq"),
        last: number("/state/last_seq"),
        subjects: subjects.map(str::to_owned).collect(),
    }
}

fn time(text: &str) -> Option<Timestamp> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    Some(truncate_to_millis(time.to_utc()))
}
