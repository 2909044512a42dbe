//! Records outcomes in batches, then tells them, then settles the messages that they belong to.
//!
//! Two stages, so that the database and the bus work at the same time: `record` writes a batch in one
//! transaction, `announce` publishes what the fast lane has delivered and acknowledges the events. A
//! batch is what has come in while the former one was under way: alone and at once when there is little
//! to do, a thousand at a time under load.

mod batch;

use std::{collections::HashSet, sync::Arc, time::Instant};

use metrics::{counter, histogram};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        events::BusinessEvent,
        interfaces::{FirstRecord, Lease, LeasedRecord, OutboxRow, RecordBatch, Store, StoreError},
        values::{DeliveryId, Timestamp},
    },
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{PUBLISHED, STORE_SECONDS},
    },
};

use super::{
    in_hand::{InHand, Ticket},
    leases::Leases,
    patience::until_done,
    ports::{BusError, EventPublisher},
    wakers::Wakers,
};

use batch::{Announcement, Batch, Written};

/// Stands for a text that the database refused.
const REFUSED_TEXT: &str = "the error's text could not be kept";

/// Deliveries in one transaction at most; what is to be recorded together is no more either.
pub const MAX_BATCH: usize = 1000;

/// The outcome of one delivery.
#[derive(Debug)]
pub enum Outcome {
    /// Of the fast lane.
    First {
        /// What to record.
        record: Box<FirstRecord>,
        /// What to publish once it is recorded; the rest goes through the outbox.
        announce: Option<OutboxRow>,
        /// What it carries.
        event: Arc<BusinessEvent>,
        /// The message that it belongs to.
        ticket: Arc<Ticket>,
        /// Bounds the deliveries in hand.
        permit: OwnedSemaphorePermit,
        /// Told whether this record was the first of the delivery, if somebody waits for that.
        recorded: Option<oneshot::Sender<bool>>,
        /// Whether it waits for nothing but a token of its webhook's rate limit.
        waits_for_token: bool,
    },
    /// It was recorded before: publish it again, in case the worker that did so died too early.
    Again {
        /// What to publish.
        announce: Option<OutboxRow>,
        /// The message that it belongs to.
        ticket: Arc<Ticket>,
    },
    /// Of the parked lane.
    Leased {
        /// What to record.
        record: Box<LeasedRecord>,
        /// Bounds the deliveries in hand.
        permit: OwnedSemaphorePermit,
    },
    /// Of a batch: all or nothing of it is recorded, unless the database refuses a part.
    Together {
        /// What to record.
        records: Vec<LeasedRecord>,
        /// Leases to give back, no attempt having been made under them.
        released: Vec<Lease>,
        /// When those are due again.
        at: Timestamp,
        /// Bounds the deliveries in hand: as many as there are here.
        permit: OwnedSemaphorePermit,
    },
    /// No attempt was made under this lease; due again at this time.
    Release {
        /// The lease to give back.
        lease: Lease,
        /// When it is due again.
        at: Timestamp,
        /// Bounds the deliveries in hand.
        permit: OwnedSemaphorePermit,
    },
}

/// Where outcomes are handed in.
pub type Outcomes = mpsc::Sender<Outcome>;

/// The recorder's ports.
pub struct Recorder {
    /// Where outcomes are recorded.
    pub store: Arc<dyn Store>,
    /// Where they are told.
    pub publisher: Arc<dyn EventPublisher>,
    /// What this worker has in hand.
    pub in_hand: Arc<InHand>,
    /// The leases that this worker holds.
    pub leases: Arc<Leases>,
    /// The outbox is woken when something was put into it, and the lanes when something waits for its
    /// turn, or what was in hand of one is.
    pub wakers: Arc<Wakers>,
    /// Ends the waiting for a dependency that is down.
    pub give_up: CancellationToken,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// Starts both stages; they end when every [`Outcomes`] is dropped and all is told. `capacity` bounds
    /// the outcomes that wait for the first stage, and the batches that wait for the second: what the bus
    /// does not take must not hold up what the database does.
    pub fn start(self, group: &Group, capacity: usize) -> Outcomes {
        let this = Arc::new(self);
        let (outcomes, incoming) = mpsc::channel(capacity);
        let (told, announcements) = mpsc::channel(capacity);
        group.spawn("record", Arc::clone(&this).record_all(incoming, told));
        group.spawn("announce", this.announce_all(announcements));
        outcomes
    }

    async fn record_all(
        self: Arc<Self>,
        mut incoming: mpsc::Receiver<Outcome>,
        told: mpsc::Sender<Announcement>,
    ) {
        let mut outcomes = Vec::with_capacity(MAX_BATCH);
        while incoming.recv_many(&mut outcomes, MAX_BATCH).await > 0 {
            let mut rest = outcomes.drain(..).peekable();
            while let Some(batch) = Batch::of(&mut rest) {
                let announcement = self.record(batch).await;
                if announcement.tickets.is_empty() {
                    continue;
                }
                if told.send(announcement).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn record(&self, mut batch: Batch) -> Announcement {
        let lets_lanes_go_on = batch.lets_lanes_go_on();
        for (at, leases) in batch.take_releases() {
            self.release(&leases, at).await;
            self.leases.forget(&leases);
        }
        let began = Instant::now();
        let written = self.write(&batch.records).await;
        for lease in batch.moved_aside(&written) {
            self.leases.hold(lease, began);
        }
        self.in_hand
            .release(batch.records.first.iter().map(|r| &r.delivery.id));
        self.leases
            .forget(batch.records.leased.iter().map(|r| &r.lease));
        if lets_lanes_go_on {
            self.wakers.lanes.notify_one();
        }
        batch.into_announcement(&written).await
    }

    async fn write(&self, records: &RecordBatch) -> Written {
        if records.first.is_empty() && records.leased.is_empty() {
            return Written::default();
        }
        let start = Instant::now();
        let written = self.try_write(records).await;
        histogram!(STORE_SECONDS, "operation" => "record").record(start.elapsed().as_secs_f64());
        let written = match written {
            Some(Ok(changed)) => self.look_up(records, &changed).await,
            Some(Err(error)) => self.write_one_by_one(records, &error).await,
            None => Written::given_up(records),
        };
        let has_events = records.first.iter().any(|r| !r.events.is_empty())
            || records.leased.iter().any(|r| !r.events.is_empty());
        if has_events {
            self.wakers.outbox.notify_one();
        }
        let first = records.first.iter().flat_map(|r| &r.events);
        let leased = records.leased.iter().flat_map(|r| &r.events);
        if first.chain(leased).any(|event| event.response.is_some()) {
            self.wakers.responses.notify_one();
        }
        written
    }

    /// Reads what was recorded before by somebody else (or by us, when the answer to a commit was lost):
    /// that is what is told.
    async fn look_up(&self, records: &RecordBatch, changed: &HashSet<DeliveryId>) -> Written {
        let first = records.first.iter().map(|r| r.delivery.id);
        let unchanged: Vec<DeliveryId> = first.filter(|id| !changed.contains(id)).collect();
        if unchanged.is_empty() {
            return Written::default();
        }
        let read = || self.store.recorded(&unchanged);
        let never = |_: &StoreError| false;
        match until_done(&self.give_up, "read deliveries", never, read).await {
            Some(Ok(rows)) => Written {
                before: rows.into_iter().map(|row| (row.0.id, row)).collect(),
                ..Written::default()
            },
            _ => Written::given_up(records),
        }
    }

    async fn try_write(
        &self,
        records: &RecordBatch,
    ) -> Option<Result<HashSet<DeliveryId>, StoreError>> {
        let write = || self.store.record(records);
        until_done(
            &self.give_up,
            "record outcomes",
            StoreError::is_final,
            write,
        )
        .await
    }

    /// One row that the database refuses must not hold a thousand others back.
    async fn write_one_by_one(&self, records: &RecordBatch, error: &StoreError) -> Written {
        tracing::error!(error = %Chain(error), "a batch was refused, recording its outcomes one by one");
        let mut written = Written::default();
        for single in singles(records) {
            let one = match self.try_write(&single).await {
                Some(Ok(changed)) => self.look_up(&single, &changed).await,
                Some(Err(error)) => {
                    let delivery = ids(&single).next();
                    tracing::error!(?delivery, error = %Chain(&error), "an outcome was refused");
                    self.write_bare(single).await
                }
                None => Written::given_up(&single),
            };
            written.failed.extend(one.failed);
            written.before.extend(one.before);
        }
        written
    }

    /// The last resort: the outcome without the stranger's texts.
    async fn write_bare(&self, mut single: RecordBatch) -> Written {
        let first = single
            .first
            .iter_mut()
            .map(|r| (&mut r.delivery, &mut r.attempt));
        let leased = single
            .leased
            .iter_mut()
            .map(|r| (&mut r.delivery, &mut r.attempt));
        for (delivery, attempt) in first.chain(leased) {
            delivery.error = delivery.error.as_ref().map(|_| REFUSED_TEXT.to_owned());
            if let Some(attempt) = attempt {
                attempt.response = None;
                attempt.error = attempt.error.as_ref().map(|_| REFUSED_TEXT.to_owned());
            }
        }
        match self.try_write(&single).await {
            Some(Ok(changed)) => self.look_up(&single, &changed).await,
            Some(Err(_)) | None => Written::given_up(&single),
        }
    }

    async fn release(&self, leases: &[Lease], at: Timestamp) {
        let release = || self.store.release(leases, at);
        let never = |_: &StoreError| false;
        if until_done(&self.give_up, "release leases", never, release)
            .await
            .is_none()
        {
            tracing::debug!("leases were not given back and will run out");
        }
    }

    async fn announce_all(self: Arc<Self>, mut announcements: mpsc::Receiver<Announcement>) {
        while let Some(announcement) = announcements.recv().await {
            let Announcement {
                rows,
                tickets,
                has_ordered,
                has_batched,
                has_limited,
            } = announcement;
            if !rows.is_empty() {
                let never = |_: &BusError| false;
                let publish = || self.publisher.publish(&rows);
                if until_done(&self.give_up, "publish outcomes", never, publish)
                    .await
                    .is_none()
                {
                    // Not acknowledged: the messages come again, and their outcomes are told then.
                    continue;
                }
                counter!(PUBLISHED).increment(rows.len() as u64);
            }
            for ticket in tickets {
                ticket.done().await;
            }
            if has_ordered {
                self.wakers.lanes.notify_one();
            }
            if has_batched {
                self.wakers.batches.notify_one();
            }
            if has_limited {
                self.wakers.parked.notify_one();
            }
        }
    }
}

/// Each outcome as a batch of its own.
fn singles(records: &RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let first = records.first.iter().map(|r| RecordBatch {
        first: vec![r.clone()],
        leased: Vec::new(),
    });
    let leased = records.leased.iter().map(|r| RecordBatch {
        first: Vec::new(),
        leased: vec![r.clone()],
    });
    first.chain(leased)
}

impl Written {
    /// Nothing of it is known to be recorded: the messages and leases bring it again.
    fn given_up(records: &RecordBatch) -> Self {
        Self {
            failed: ids(records).collect(),
            ..Self::default()
        }
    }
}

fn ids(records: &RecordBatch) -> impl Iterator<Item = DeliveryId> {
    let leased = records.leased.iter().map(|r| r.lease.delivery_id);
    records.first.iter().map(|r| r.delivery.id).chain(leased)
}
