//! A batch of outcomes, sorted by what is to be done with them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    iter::Peekable,
    sync::Arc,
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{
    application::{delivery_events, in_hand::Ticket},
    domain::{
        entities::{Attempt, Delivery},
        events::BusinessEvent,
        interfaces::{Lease, LeasedRecord, OutboxRow, RecordBatch},
        values::{DeliveryId, Timestamp},
    },
};

use super::{MAX_BATCH, Outcome};

/// What is published and settled after a batch is recorded.
#[derive(Debug, Default)]
pub(super) struct Announcement {
    pub(super) rows: Vec<OutboxRow>,
    pub(super) tickets: Vec<Arc<Ticket>>,
    /// Whether some wait for their turn.
    pub(super) has_ordered: bool,
    /// Whether some wait to go out with others.
    pub(super) has_batched: bool,
    /// Whether some wait for a token of their webhook's rate limit.
    pub(super) has_limited: bool,
}

/// What became of a batch's records.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Could not be recorded.
    pub(super) failed: HashSet<DeliveryId>,
    /// Had been recorded before, as it stands in the store.
    pub(super) before: HashMap<DeliveryId, (Delivery, Option<Attempt>)>,
}

impl Written {
    /// Whether it was recorded now, and not before.
    fn is_new(&self, id: DeliveryId) -> bool {
        !self.failed.contains(&id) && !self.before.contains_key(&id)
    }
}

/// What belongs to a first record.
#[derive(Debug)]
struct First {
    announce: Option<OutboxRow>,
    event: Arc<BusinessEvent>,
    ticket: Arc<Ticket>,
    recorded: Option<oneshot::Sender<bool>>,
    waits_for_token: bool,
}

/// A batch of outcomes; the permits go when it does.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) records: RecordBatch,
    /// One for each of `records.first`, in the same order.
    firsts: Vec<First>,
    again: Vec<(Option<OutboxRow>, Arc<Ticket>)>,
    releases: BTreeMap<Timestamp, Vec<Lease>>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Batch {
    /// What goes into the next transaction of `outcomes`: as many as it may hold, and none of them in
    /// parts. `None` when there are no more.
    pub(super) fn of(outcomes: &mut Peekable<impl Iterator<Item = Outcome>>) -> Option<Self> {
        let first = outcomes.next()?;
        let mut deliveries = first.deliveries();
        let mut batch = Self::default();
        batch.add(first);
        while let Some(next) = outcomes.next_if(|one| deliveries + one.deliveries() <= MAX_BATCH) {
            deliveries += next.deliveries();
            batch.add(next);
        }
        Some(batch)
    }

    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::First {
                record,
                announce,
                event,
                ticket,
                permit,
                recorded,
                waits_for_token,
            } => {
                self.records.first.push(*record);
                self.firsts.push(First {
                    announce,
                    event,
                    ticket,
                    recorded,
                    waits_for_token,
                });
                self.permits.push(permit);
            }
            Outcome::Again { announce, ticket } => self.again.push((announce, ticket)),
            Outcome::Leased { record, permit } => {
                self.records.leased.push(*record);
                self.permits.push(permit);
            }
            Outcome::Together {
                records,
                released,
                at,
                permit,
            } => {
                self.records.leased.extend(records);
                self.release(released, at);
                self.permits.push(permit);
            }
            Outcome::Release { lease, at, permit } => {
                self.release([lease], at);
                self.permits.push(permit);
            }
        }
    }

    /// Whether what is behind some of it in its order may go once it is recorded or given back.
    pub(super) fn lets_lanes_go_on(&self) -> bool {
        let has_lane = |r: &LeasedRecord| r.delivery.lane.is_some();
        let given_back = self.releases.values().any(|leases| !leases.is_empty());
        given_back || self.records.leased.iter().any(has_lane)
    }

    fn release(&mut self, leases: impl IntoIterator<Item = Lease>, at: Timestamp) {
        let due = self.releases.entry(up_to_the_second(at)).or_default();
        due.extend(leases);
    }

    /// The leases to give back, by when their deliveries are due again; once.
    pub(super) fn take_releases(&mut self) -> BTreeMap<Timestamp, Vec<Lease>> {
        std::mem::take(&mut self.releases)
    }

    /// The leases on what was recorded while its first attempt goes on.
    pub(super) fn moved_aside(&self, written: &Written) -> Vec<Lease> {
        let firsts = self.records.first.iter().zip(&self.firsts);
        let aside = firsts.filter(|(record, first)| {
            first.recorded.is_some() && written.is_new(record.delivery.id)
        });
        let leases = aside.map(|(record, _)| Lease::first(record.delivery.id));
        leases.collect()
    }

    /// What is to be told now. The messages of what failed come again.
    pub(super) async fn into_announcement(self, written: &Written) -> Announcement {
        let mut announcement = Announcement::default();
        for (record, first) in self.records.first.iter().zip(self.firsts) {
            let First {
                announce,
                event,
                ticket,
                recorded,
                waits_for_token,
            } = first;
            let id = record.delivery.id;
            announcement.has_ordered |= record.delivery.lane.is_some();
            announcement.has_limited |= waits_for_token;
            announcement.has_batched |= record.delivery.batch.is_shared();
            if let Some(recorded) = recorded {
                // Whoever asked may be gone.
                recorded.send(written.is_new(id)).unwrap_or_default();
            }
            if written.failed.contains(&id) {
                ticket.fail().await;
                continue;
            }
            // What is told is what the store holds, not what was attempted here.
            let row = match written.before.get(&id) {
                Some((delivery, attempt)) => {
                    delivery_events::first_success(delivery, attempt.as_ref(), &event)
                }
                None => announce,
            };
            announcement.rows.extend(row);
            announcement.tickets.push(ticket);
        }
        for (row, ticket) in self.again {
            announcement.rows.extend(row);
            announcement.tickets.push(ticket);
        }
        announcement
    }
}

impl Outcome {
    /// How many deliveries it speaks of.
    fn deliveries(&self) -> usize {
        match self {
            Self::Together {
                records, released, ..
            } => records.len() + released.len(),
            Self::First { .. }
            | Self::Again { .. }
            | Self::Leased { .. }
            | Self::Release { .. } => 1,
        }
    }
}

/// Few moments make few statements.
fn up_to_the_second(at: Timestamp) -> Timestamp {
    let over = u64::from(at.timestamp_subsec_millis());
    if over == 0 {
        at
    } else {
        at + Duration::from_millis(1000 - over)
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::{
        entities::{Batching, DeliveryStatus},
        interfaces::LeasedRecord,
        values::{TenantId, WebhookId},
    };

    use super::*;

    #[test]
    fn releases_are_due_at_whole_seconds_and_never_earlier() {
        let epoch = chrono::DateTime::UNIX_EPOCH;
        for (given, expected) in [(0, 0), (1, 1000), (999, 1000), (1000, 1000), (1001, 2000)] {
            let rounded = up_to_the_second(epoch + Duration::from_millis(given));
            assert_eq!(rounded, epoch + Duration::from_millis(expected), "{given}");
        }
    }

    /// An outcome of so many deliveries together, the last one given back without an attempt.
    fn together(deliveries: usize) -> Outcome {
        let room = Arc::new(tokio::sync::Semaphore::new(1));
        let lease = |n: usize| Lease {
            delivery_id: DeliveryId(uuid::Uuid::from_u128(n as u128)),
            epoch: 1,
        };
        let record = |n| LeasedRecord {
            lease: lease(n),
            delivery: waiting(),
            attempt: None,
            events: Vec::new(),
        };
        Outcome::Together {
            records: (1..deliveries).map(record).collect(),
            released: vec![lease(0)],
            at: chrono::DateTime::UNIX_EPOCH,
            permit: room.try_acquire_owned().unwrap(),
        }
    }

    fn waiting() -> Delivery {
        let tenant = TenantId::try_new("t").unwrap();
        Delivery {
            id: DeliveryId(uuid::Uuid::nil()),
            tenant,
            webhook_id: WebhookId(uuid::Uuid::nil()),
            event_id: "e-1".to_owned(),
            event_type: "a.b".to_owned(),
            correlation_id: None,
            source_sequence: None,
            status: DeliveryStatus::Pending,
            attempt_count: 0,
            event_version: 0,
            budget_base: 0,
            next_attempt_at: None,
            error: None,
            created_at: chrono::DateTime::UNIX_EPOCH,
            completed_at: None,
            lane: None,
            batch: Batching::Waits,
        }
    }

    #[test]
    fn a_transaction_holds_a_thousand_deliveries_and_no_part_of_what_goes_together() {
        for (given, expected) in [
            (vec![], vec![]),
            (vec![400, 400, 400, 100], vec![800, 500]),
            (vec![1000, 1, 999, 1], vec![1000, 1000, 1]),
            (vec![1000; 128], vec![1000; 128]),
            // More than there can be, and yet whole.
            (vec![1, 1001, 1], vec![1, 1001, 1]),
        ] {
            let mut outcomes = given.iter().map(|n| together(*n)).peekable();
            let batches = std::iter::from_fn(|| Batch::of(&mut outcomes));
            let sizes = batches.map(|batch| {
                let released: usize = batch.releases.values().map(Vec::len).sum();
                batch.records.leased.len() + released
            });
            assert_eq!(sizes.collect::<Vec<_>>(), expected, "{given:?}");
        }
    }
}
