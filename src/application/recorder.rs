//! Records outcomes in batches, then tells them, then settles the messages that they belong to.
//!
//! Two stages, so that the database and the bus work at the same time: `record` writes a batch in one
//! transaction, `announce` publishes what the fast lane has delivered and acknowledges the events. A
//! batch is what has come in while the former one was under way: alone and at once when there is little
//! to do, a thousand at a time under load.

use std::{collections::HashSet, sync::Arc, time::Instant};

use metrics::{counter, histogram};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
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

/// Outcomes in one transaction at most.
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
        /// The message that it belongs to.
        ticket: Arc<Ticket>,
        /// Bounds the deliveries in hand.
        permit: OwnedSemaphorePermit,
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

/// What is published and settled after a batch is recorded.
#[derive(Debug, Default)]
struct Announcement {
    rows: Vec<OutboxRow>,
    tickets: Vec<Arc<Ticket>>,
}

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
    /// The outbox is woken when something was put into it.
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
    /// Starts both stages; they end when every [`Outcomes`] is dropped and all is told.
    pub fn start(self, group: &Group, capacity: usize) -> Outcomes {
        let this = Arc::new(self);
        let (outcomes, incoming) = mpsc::channel(capacity);
        let (told, announcements) = mpsc::channel(2);
        group.spawn("record", Arc::clone(&this).record_all(incoming, told));
        group.spawn("announce", this.announce_all(announcements));
        outcomes
    }

    async fn record_all(
        self: Arc<Self>,
        mut incoming: mpsc::Receiver<Outcome>,
        told: mpsc::Sender<Announcement>,
    ) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while incoming.recv_many(&mut batch, MAX_BATCH).await > 0 {
            let announcement = self.record(std::mem::take(&mut batch)).await;
            if told.send(announcement).await.is_err() {
                return;
            }
        }
    }

    async fn record(&self, outcomes: Vec<Outcome>) -> Announcement {
        let mut batch = Sorted::default();
        for outcome in outcomes {
            batch.add(outcome);
        }
        self.release(&batch.releases).await;
        let failed = self.write(&batch.records).await;
        self.in_hand
            .release(batch.records.first.iter().map(|r| &r.delivery.id));
        self.leases
            .forget(batch.records.leased.iter().map(|r| r.lease.delivery_id));
        self.leases
            .forget(batch.releases.iter().map(|(lease, _)| lease.delivery_id));
        batch.into_announcement(&failed).await
    }

    /// Answers the deliveries that could not be recorded.
    async fn write(&self, records: &RecordBatch) -> HashSet<DeliveryId> {
        if records.first.is_empty() && records.leased.is_empty() {
            return HashSet::new();
        }
        let start = Instant::now();
        let written = self.try_write(records).await;
        histogram!(STORE_SECONDS, "operation" => "record").record(start.elapsed().as_secs_f64());
        let failed = match written {
            Some(Ok(())) => HashSet::new(),
            Some(Err(error)) => self.write_one_by_one(records, &error).await,
            // Stopping while the database is down: the messages and leases bring them again.
            None => ids(records).collect(),
        };
        let has_events = records.first.iter().any(|r| !r.events.is_empty())
            || records.leased.iter().any(|r| !r.events.is_empty());
        if has_events {
            self.wakers.outbox.notify_one();
        }
        failed
    }

    async fn try_write(&self, records: &RecordBatch) -> Option<Result<(), StoreError>> {
        until_done(
            &self.give_up,
            "record outcomes",
            StoreError::is_final,
            || async { self.store.record(records).await.map(drop) },
        )
        .await
    }

    /// One row that the database refuses must not hold a thousand others back.
    async fn write_one_by_one(
        &self,
        records: &RecordBatch,
        error: &StoreError,
    ) -> HashSet<DeliveryId> {
        tracing::error!(error = %Chain(error), "a batch was refused, recording its outcomes one by one");
        let mut failed = HashSet::new();
        let first = records.first.iter().map(|r| RecordBatch {
            first: vec![r.clone()],
            leased: Vec::new(),
        });
        let leased = records.leased.iter().map(|r| RecordBatch {
            first: Vec::new(),
            leased: vec![r.clone()],
        });
        for single in first.chain(leased) {
            match self.try_write(&single).await {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    let delivery = ids(&single).next();
                    tracing::error!(?delivery, error = %Chain(&error), "an outcome cannot be recorded");
                    failed.extend(delivery);
                }
                None => failed.extend(ids(&single)),
            }
        }
        failed
    }

    async fn release(&self, releases: &[(Lease, Timestamp)]) {
        let Some(latest) = releases.iter().map(|(_, at)| *at).max() else {
            return;
        };
        let leases: Vec<Lease> = releases.iter().map(|(lease, _)| *lease).collect();
        let released = until_done(
            &self.give_up,
            "release leases",
            |_: &StoreError| false,
            || self.store.release(&leases, latest),
        );
        if released.await.is_none() {
            tracing::debug!("leases were not given back and will run out");
        }
    }

    async fn announce_all(self: Arc<Self>, mut announcements: mpsc::Receiver<Announcement>) {
        while let Some(Announcement { rows, tickets }) = announcements.recv().await {
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
        }
    }
}

fn ids(records: &RecordBatch) -> impl Iterator<Item = DeliveryId> {
    let leased = records.leased.iter().map(|r| r.lease.delivery_id);
    records.first.iter().map(|r| r.delivery.id).chain(leased)
}

/// A batch of outcomes by what is to be done with them. The permits go when it does.
#[derive(Debug, Default)]
struct Sorted {
    records: RecordBatch,
    /// One for each of `records.first`, in the same order.
    tickets: Vec<(Option<OutboxRow>, Arc<Ticket>)>,
    again: Vec<(Option<OutboxRow>, Arc<Ticket>)>,
    releases: Vec<(Lease, Timestamp)>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Sorted {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::First {
                record,
                announce,
                ticket,
                permit,
            } => {
                self.records.first.push(*record);
                self.tickets.push((announce, ticket));
                self.permits.push(permit);
            }
            Outcome::Again { announce, ticket } => self.again.push((announce, ticket)),
            Outcome::Leased { record, permit } => {
                self.records.leased.push(*record);
                self.permits.push(permit);
            }
            Outcome::Release { lease, at, permit } => {
                self.releases.push((lease, at));
                self.permits.push(permit);
            }
        }
    }

    async fn into_announcement(self, failed: &HashSet<DeliveryId>) -> Announcement {
        let mut announcement = Announcement::default();
        for (record, (row, ticket)) in self.records.first.iter().zip(self.tickets) {
            if failed.contains(&record.delivery.id) {
                ticket.fail().await;
            } else {
                announcement.rows.extend(row);
                announcement.tickets.push(ticket);
            }
        }
        for (row, ticket) in self.again {
            announcement.rows.extend(row);
            announcement.tickets.push(ticket);
        }
        announcement
    }
}
