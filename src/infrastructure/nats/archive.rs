//! The source stream, read back by sequence through the server's API.
//!
//! Not by a consumer, and not by direct gets: both send messages as they were published, and one whose
//! headers the client cannot read would end the connection that everything else goes over. The API
//! writes them as JSON. It needs no setting of the stream, and leaves nothing behind on the server.

use std::{fmt, sync::Arc, time::Duration};

use async_nats::Client;
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chrono::DateTime;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    application::{
        event_archive::{
            ArchiveBounds, ArchiveLimit, ArchivePage, ArchivePlace, ArchiveStart, EventArchive,
        },
        ports::{BusError, SourceMessage},
    },
    domain::values::{Timestamp, truncate_to_millis},
};

use super::{connect::Connection, source::parsed, topology::Topology};

/// Messages that are read at a time; so many may be in memory beyond the bytes of a page.
const AT_A_TIME: usize = 32;
/// How long one answer of the server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How the server says that something is not there.
const NOT_FOUND: u64 = 404;

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// The source stream.
pub struct JetStreamArchive {
    client: Client,
    topology: Arc<Topology>,
}

impl fmt::Debug for JetStreamArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamArchive")
            .field("stream", &self.topology.erp.name)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Answer {
    error: Option<Value>,
}

#[derive(Deserialize)]
struct StreamInfo {
    state: StreamState,
}

#[derive(Deserialize)]
struct StreamState {
    messages: u64,
    first_seq: u64,
    first_ts: DateTime<chrono::Utc>,
    last_seq: u64,
    last_ts: DateTime<chrono::Utc>,
}

#[derive(Deserialize)]
struct StoredMessage {
    message: Stored,
}

/// As the server writes it; texts in it are base64.
#[derive(Deserialize)]
struct Stored {
    subject: String,
    seq: u64,
    time: DateTime<chrono::Utc>,
    hdrs: Option<String>,
    data: Option<String>,
}

impl JetStreamArchive {
    /// The source stream of an installation.
    pub fn new(connection: &Connection, topology: &Arc<Topology>) -> Self {
        Self {
            client: connection.client.clone(),
            topology: Arc::clone(topology),
        }
    }

    /// Asks the server's API; `None` where what is asked for is not there.
    async fn ask<T: DeserializeOwned>(
        &self,
        action: &str,
        body: Value,
    ) -> Result<Option<T>, BusError> {
        let stream = &self.topology.erp.name;
        let asked = async {
            let subject = format!("$JS.API.STREAM.{action}.{stream}");
            let asked = self.client.request(subject, body.to_string().into());
            let answer = timeout(ANSWER_TIMEOUT, asked).await??;
            let Answer { error } = serde_json::from_slice(&answer.payload)?;
            match error {
                None => Ok(Some(serde_json::from_slice(&answer.payload)?)),
                Some(error) if error.get("code").and_then(Value::as_u64) == Some(NOT_FOUND) => {
                    Ok(None)
                }
                Some(error) => Err(Fault::from(error.to_string())),
            }
        };
        asked.await.map_err(|source: Fault| BusError {
            what: format!("the reading of the stream {stream}"),
            source,
        })
    }

    async fn state(&self) -> Result<Option<StreamState>, BusError> {
        let info: Option<StreamInfo> = self.ask("INFO", json!({})).await?;
        Ok(info.map(|i| i.state).filter(|state| state.messages > 0))
    }

    /// The message at a sequence. The server takes 0 for no sequence at all.
    async fn read(&self, sequence: u64) -> Result<Option<Stored>, BusError> {
        if sequence == 0 {
            return Ok(None);
        }
        let found: Option<StoredMessage> = self.ask("MSG.GET", json!({ "seq": sequence })).await?;
        Ok(found.map(|found| found.message))
    }

    /// The first message from a sequence on.
    async fn next(&self, sequence: u64) -> Result<Option<Stored>, BusError> {
        let question = json!({ "seq": sequence.max(1), "next_by_subj": ">" });
        let found: Option<StoredMessage> = self.ask("MSG.GET", question).await?;
        Ok(found.map(|found| found.message))
    }

    /// The sequence of the first message that is not older than `time`, or the one after the last.
    async fn sequence_at(&self, state: &StreamState, time: Timestamp) -> Result<u64, BusError> {
        let (mut low, mut high) = (state.first_seq, state.last_seq.saturating_add(1));
        while low < high {
            let middle = low + (high - low) / 2;
            match self.next(middle).await? {
                Some(found) if found.seq < high => {
                    if truncate_to_millis(found.time) < time {
                        low = found.seq + 1;
                    } else {
                        high = middle;
                    }
                }
                // Nothing between here and what is known to be late enough.
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Reads on from `page.next` to `last` until the page is full.
    async fn fill(
        &self,
        page: &mut ArchivePage,
        last: u64,
        limit: ArchiveLimit,
    ) -> Result<(), BusError> {
        let messages = limit.messages.clamp(1, ArchiveLimit::MAX_MESSAGES);
        let to = last.min(page.next.saturating_add(messages as u64 - 1));
        let reading = stream::iter(page.next..=to).map(|at| async move {
            let found = self.read(at).await?;
            Ok::<_, BusError>((at, found))
        });
        let mut reading = reading.buffered(AT_A_TIME);
        let (mut bytes, mut is_gap) = (0_usize, true);
        while let Some((at, found)) = reading.try_next().await? {
            is_gap &= found.is_none();
            if let Some(message) = found.and_then(message_of) {
                bytes = bytes.saturating_add(message.body.len());
                if bytes > limit.bytes && !page.messages.is_empty() {
                    return Ok(());
                }
                page.messages.push(message);
            }
            page.next = at.saturating_add(1);
        }
        // Over a gap in one leap.
        if is_gap && page.next <= last {
            let after = self.next(page.next).await?;
            page.next = after.map_or(last.saturating_add(1), |found| found.seq);
        }
        Ok(())
    }
}

#[async_trait]
impl EventArchive for JetStreamArchive {
    async fn bounds(&self) -> Result<Option<ArchiveBounds>, BusError> {
        let place = |sequence, time| ArchivePlace {
            sequence,
            published_at: truncate_to_millis(time),
        };
        Ok(self.state().await?.map(|state| ArchiveBounds {
            first: place(state.first_seq, state.first_ts),
            last: place(state.last_seq, state.last_ts),
        }))
    }

    async fn message(&self, sequence: u64) -> Result<Option<SourceMessage>, BusError> {
        Ok(self.read(sequence).await?.and_then(message_of))
    }

    async fn page(&self, from: ArchiveStart, limit: ArchiveLimit) -> Result<ArchivePage, BusError> {
        let state = self.state().await?;
        let asked = match from {
            ArchiveStart::Sequence(sequence) => sequence.max(1),
            ArchiveStart::Time(_) => 1,
        };
        let mut page = ArchivePage {
            next: asked,
            is_end: true,
            ..ArchivePage::default()
        };
        let Some(state) = state else {
            return Ok(page);
        };
        page.next = match from {
            ArchiveStart::Sequence(_) => asked.max(state.first_seq),
            ArchiveStart::Time(time) => self.sequence_at(&state, time).await?,
        };
        if page.next <= state.last_seq {
            self.fill(&mut page, state.last_seq, limit).await?;
        }
        page.is_end = page.next > state.last_seq;
        Ok(page)
    }
}

/// `None` where the client could not read it, as then it is a dead letter and never an event.
fn message_of(stored: Stored) -> Option<SourceMessage> {
    let bytes = |text: Option<String>| STANDARD.decode(text.unwrap_or_default()).ok();
    if stored.subject.contains(char::REPLACEMENT_CHARACTER) {
        return None;
    }
    Some(SourceMessage {
        subject: stored.subject,
        headers: parsed(&bytes(stored.hdrs)?).ok()?,
        body: Bytes::from(bytes(stored.data)?),
        sequence: stored.seq,
        published_at: truncate_to_millis(stored.time),
        deliveries: 0,
    })
}
