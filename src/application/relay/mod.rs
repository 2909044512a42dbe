//! Publishes the events of the outbox, the worker's own in their order. One worker does it at a time; the
//! others stand by. Events made of answers go beside them, in [`responses`].

pub mod responses;

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::counter;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::interfaces::{OutboxClaim, OutboxRow, Store},
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{LOOP_FAULTS, PUBLISHED},
    },
};

use super::{
    health::Health,
    ports::{Clock, EventPublisher},
    wakers::Wakers,
};

/// Events published together at most.
pub const MAX_BATCH: u32 = 1000;
/// The bodies of the events that are read at a time, in bytes; the one that goes beyond is the last.
pub const MAX_BYTES: u32 = 8 * 1024 * 1024;
/// The bodies of the events that are published together, in bytes, unless one alone has more: even a slow
/// line takes them in the time that it has.
pub const MAX_WAVE_BYTES: usize = 4 * 1024 * 1024;
/// How long the relay's lease holds: after the death of its worker the outbox waits this long.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often the outbox is looked at when nothing wakes the relay.
pub const POLL_EVERY: Duration = Duration::from_millis(250);
/// How long the relay waits after a fault.
pub const FAULT_WAIT: Duration = Duration::from_secs(1);

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// The relay's ports.
pub struct Relay {
    /// Where the events wait.
    pub store: Arc<dyn Store>,
    /// Where they go.
    pub publisher: Arc<dyn EventPublisher>,
    /// Time and ids.
    pub clock: Arc<dyn Clock>,
    /// Rings when events were committed.
    pub wakers: Arc<Wakers>,
    /// Told of every turn of the loop.
    pub health: Arc<Health>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl Relay {
    /// Publishes until the group is stopping; then once more what is there, and gives the lease up.
    pub fn start(self, group: &Group) {
        group.spawn_loop("relay", self.run(group.stopping()));
    }

    async fn run(self, stopping: CancellationToken) {
        let holder = self.clock.new_id();
        tokio::join!(
            self.own_events(holder, &stopping),
            self.responses(holder, &stopping)
        );
        if let Err(error) = self.store.outbox_release(holder).await {
            tracing::debug!(error = %Chain(&error), "the relay's lease was not given up and will run out");
        }
    }

    async fn own_events(&self, holder: Uuid, stopping: &CancellationToken) {
        while !stopping.is_cancelled() {
            self.health.beat("relay");
            match self.turn(holder).await {
                // There may be more.
                Ok(published) if published > 0 => {}
                Ok(_) => rest(stopping, &self.wakers.outbox).await,
                Err(error) => faulted("relay", &error, stopping).await,
            }
        }
        while let Ok(published) = self.turn(holder).await
            && published > 0
        {}
    }

    fn claim(&self, holder: Uuid, responses: bool) -> OutboxClaim {
        OutboxClaim {
            holder,
            now: self.clock.store_now(),
            lease: LEASE,
            responses,
            limit: MAX_BATCH,
            max_bytes: MAX_BYTES,
        }
    }

    /// Publishes one batch; answers how many events of it were published.
    async fn turn(&self, holder: Uuid) -> Result<usize, Fault> {
        let Some(rows) = self.store.outbox_batch(self.claim(holder, false)).await? else {
            return Ok(0);
        };
        let begun = Instant::now();
        let mut published = 0;
        for wave in waves(rows) {
            // The lease is renewed by the next turn, well before it runs out.
            if begun.elapsed() > LEASE / 4 {
                break;
            }
            self.publisher.publish(&wave).await?;
            let ids: Vec<Uuid> = wave.iter().map(|row| row.id).collect();
            self.store.outbox_published(&ids, self.clock.now()).await?;
            counter!(PUBLISHED).increment(wave.len() as u64);
            published += wave.len();
        }
        Ok(published)
    }
}

/// Waits for news, or for the next look without any.
async fn rest(stopping: &CancellationToken, news: &Notify) {
    tokio::select! {
        () = stopping.cancelled() => {}
        () = news.notified() => {}
        () = tokio::time::sleep(POLL_EVERY) => {}
    }
}

/// Tells of the fault and waits it out, whatever is committed meanwhile: a busy worker would publish the same
/// batch again and again.
async fn faulted(name: &'static str, error: &Fault, stopping: &CancellationToken) {
    counter!(LOOP_FAULTS, "loop" => name).increment(1);
    tracing::warn!(error = %Chain(error.as_ref()), "committed events could not be published");
    tokio::select! {
        () = stopping.cancelled() => {}
        () = tokio::time::sleep(FAULT_WAIT) => {}
    }
}

/// The part of an event that says whom it is about.
#[derive(Deserialize)]
struct About<'a> {
    #[serde(borrow)]
    subject: Cow<'a, str>,
}

/// The n-th events of all subjects are the n-th wave. What is published together may be taken in any
/// order when the connection breaks in between, so a wave begins only when the former one is taken. One
/// that has [`MAX_WAVE_BYTES`] is cut there: it has to be taken before its time is up.
fn waves(rows: Vec<OutboxRow>) -> Vec<Vec<OutboxRow>> {
    let mut waves: Vec<Vec<OutboxRow>> = Vec::new();
    let mut next: HashMap<String, usize> = HashMap::new();
    for row in rows {
        let about: Result<About<'_>, _> = serde_json::from_slice(&row.body);
        let subject = about
            .map(|about| about.subject.into_owned())
            .unwrap_or_default();
        let wave = next.entry(subject).or_default();
        if waves.len() == *wave {
            waves.push(Vec::new());
        }
        waves[*wave].push(row);
        *wave += 1;
    }
    waves.into_iter().flat_map(cut).collect()
}

fn cut(wave: Vec<OutboxRow>) -> Vec<Vec<OutboxRow>> {
    let (mut pieces, mut bytes) = (vec![Vec::new()], 0);
    for row in wave {
        bytes += row.body.len();
        if let Some(piece) = pieces.last_mut()
            && (bytes <= MAX_WAVE_BYTES || piece.is_empty())
        {
            piece.push(row);
        } else {
            bytes = row.body.len();
            pieces.push(vec![row]);
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_events_about_one_subject_are_in_different_waves() {
        let row = |n: u128, subject: &str| OutboxRow {
            is_response: false,
            id: Uuid::from_u128(n),
            event_type: "a.b".to_owned(),
            trace: None,
            body: format!(r#"{{"subject":"{subject}","data":{{"subject":"x"}}}}"#).into_bytes(),
        };
        let rows = vec![
            row(1, "a"),
            row(2, "b"),
            row(3, "a"),
            row(4, "c"),
            row(5, "a"),
            row(6, "b"),
        ];
        let waves: Vec<Vec<u128>> = waves(rows)
            .iter()
            .map(|wave| wave.iter().map(|row| row.id.as_u128()).collect())
            .collect();
        assert_eq!(waves, [vec![1, 2, 4], vec![3, 6], vec![5]]);
    }

    #[test]
    fn a_wave_ends_at_its_bytes_and_holds_one_event_at_least() {
        let row = |n: u128, mib: usize| OutboxRow {
            is_response: false,
            id: Uuid::from_u128(n),
            event_type: "a.b".to_owned(),
            trace: None,
            body: {
                let text = "x".repeat(mib * 1024 * 1024 - 64);
                format!(r#"{{"subject":"{n}","data":"{text}"}}"#).into_bytes()
            },
        };
        let rows = [3, 1, 5, 1, 1, 1, 1, 1]
            .into_iter()
            .zip(1..)
            .map(|(mib, n)| row(n, mib))
            .collect();
        let sizes: Vec<usize> = waves(rows).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 4, 1]);
        assert!(waves(Vec::new()).is_empty());
    }
}
