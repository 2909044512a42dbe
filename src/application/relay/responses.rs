//! Publishes events that are made of answers. No order is promised of them, so one that is refused waits by
//! itself, and neither the others nor the worker's own events wait with it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use metrics::counter;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    application::ports::Refusal,
    domain::interfaces::OutboxPostponement,
    shared::{error_chain::Chain, metrics::PUBLISHED},
};

use super::{FAULT_WAIT, Fault, Relay, faulted, rest};

/// How long an event waits that was refused for the first time; each further wait is twice as long.
pub const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait of an event that is refused.
pub const LONGEST_WAIT: Duration = Duration::from_hours(1);
/// How often the log says that events on one subject are refused.
const TELL_EVERY: Duration = Duration::from_mins(10);
/// Subjects of which that is remembered.
const MAX_SUBJECTS: usize = 1000;
/// What may still be published while the worker stops: the lease is not held up by a refusal.
const LAST_TURN: Duration = Duration::from_millis(250);

/// What came of one batch.
#[derive(Debug, Default, Clone, Copy)]
struct Turn {
    taken: usize,
    refused: usize,
}

impl Relay {
    /// Ends at once when the worker stops: what is cut off is published again, under the same ids.
    pub(super) async fn responses(&self, holder: Uuid, stopping: &CancellationToken) {
        let mut told = Told::default();
        while !stopping.is_cancelled() {
            self.health.beat("responses");
            let turn = tokio::select! {
                () = stopping.cancelled() => break,
                turn = self.response_turn(holder, &mut told) => turn,
            };
            match turn {
                Ok(Turn {
                    taken: 0,
                    refused: 0,
                }) => {
                    rest(stopping, &self.wakers.responses).await;
                }
                // Who refused all of them is given time.
                Ok(Turn { taken: 0, .. }) => tokio::select! {
                    () = stopping.cancelled() => {}
                    () = tokio::time::sleep(FAULT_WAIT) => {}
                },
                Ok(_) => {}
                Err(error) => faulted("responses", &error, stopping).await,
            }
        }
        let last = self.response_turn(holder, &mut told);
        if !matches!(tokio::time::timeout(LAST_TURN, last).await, Ok(Ok(_))) {
            tracing::debug!("events made of answers are left to the next worker");
        }
    }

    async fn response_turn(&self, holder: Uuid, told: &mut Told) -> Result<Turn, Fault> {
        let Some(rows) = self.store.outbox_batch(self.claim(holder, true)).await? else {
            return Ok(Turn::default());
        };
        if rows.is_empty() {
            return Ok(Turn::default());
        }
        let refused = self.publisher.publish_each(&rows).await?;
        told.tell(&refused, Instant::now());
        let refused: Vec<Uuid> = refused.into_iter().map(|refusal| refusal.id).collect();
        let ids = rows.iter().map(|row| row.id);
        let taken: Vec<Uuid> = ids.filter(|id| !refused.contains(id)).collect();
        self.store
            .outbox_published(&taken, self.clock.now())
            .await?;
        counter!(PUBLISHED).increment(taken.len() as u64);
        let postponement = OutboxPostponement {
            now: self.clock.store_now(),
            first: FIRST_WAIT,
            longest: LONGEST_WAIT,
        };
        self.store.outbox_postpone(&refused, postponement).await?;
        Ok(Turn {
            taken: taken.len(),
            refused: refused.len(),
        })
    }
}

/// When the log last said of a subject that events are refused there.
#[derive(Debug, Default)]
struct Told(HashMap<String, Instant>);

impl Told {
    fn tell(&mut self, refused: &[Refusal], now: Instant) {
        for refusal in refused {
            if self.is_new(&refusal.subject, now) {
                tracing::warn!(
                    subject = refusal.subject, event = %refusal.id,
                    error = %Chain(refusal.source.as_ref()),
                    "an event made of an answer is refused and waits, as others on its subject do: a \
                     stream has to capture the subject (ERP_RESPONSE_SUBJECT and the event's type; \
                     ERP_SUBJECTS when the stream is made), take a message of that size, have room, \
                     and let this worker publish"
                );
            }
        }
    }

    fn is_new(&mut self, subject: &str, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < TELL_EVERY;
        if self.0.get(subject).is_some_and(recent) {
            return false;
        }
        if self.0.len() >= MAX_SUBJECTS {
            self.0.clear();
        }
        self.0.insert(subject.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_speaks_of_a_subject_now_and_then() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert!(told.is_new("erp.a", now) && told.is_new("erp.b", now));
        assert!(!told.is_new("erp.a", now + TELL_EVERY / 2));
        assert!(told.is_new("erp.a", now + TELL_EVERY));
        for n in 0..2 * MAX_SUBJECTS {
            assert!(told.is_new(&format!("erp.{n}"), now));
        }
        assert!(told.0.len() <= MAX_SUBJECTS);
    }
}
