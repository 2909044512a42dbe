//! The events and deliveries that this worker has taken and not yet settled.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::histogram;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    domain::values::DeliveryId,
    shared::{error_chain::Chain, metrics::EVENT_SECONDS},
};

use super::ports::Settle;

/// Bounds what is in hand, in events and in bytes.
pub type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// A message whose event is being delivered. It is acknowledged when its last delivery is recorded and
/// told; never before.
pub struct Ticket {
    number: u64,
    message: Box<dyn Settle>,
    remaining: AtomicUsize,
    failed: AtomicBool,
    taken: Instant,
    in_hand: Arc<InHand>,
    _room: Room,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// One delivery of it is recorded and told.
    pub async fn done(&self) {
        if self.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settle().await;
        }
    }

    /// One delivery of it cannot be recorded: the message will come again.
    pub async fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.done().await;
    }

    async fn settle(&self) {
        // Whoever holds the last end of it gives its room back.
        lock(&self.in_hand.tickets).remove(&self.number);
        let settled = if self.failed.load(Ordering::Acquire) {
            self.message.nak(Duration::from_secs(30)).await
        } else {
            histogram!(EVENT_SECONDS).record(self.taken.elapsed().as_secs_f64());
            self.message.ack().await
        };
        if let Err(error) = settled {
            tracing::debug!(error = %Chain(&error), "a message was not settled and will come again");
        }
    }

    async fn progress(&self) {
        if let Err(error) = self.message.progress().await {
            tracing::debug!(error = %Chain(&error), "the bus was not told of progress");
        }
    }
}

/// What is in hand.
#[derive(Debug, Default)]
pub struct InHand {
    deliveries: Mutex<HashSet<DeliveryId>>,
    tickets: Mutex<HashMap<u64, Arc<Ticket>>>,
    next: AtomicU64,
}

impl InHand {
    /// Takes a message in hand that has so many deliveries to come.
    pub fn ticket(
        self: &Arc<Self>,
        message: Box<dyn Settle>,
        deliveries: usize,
        room: Room,
    ) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            message,
            remaining: AtomicUsize::new(deliveries),
            failed: AtomicBool::new(false),
            taken: Instant::now(),
            in_hand: Arc::clone(self),
            _room: room,
        });
        lock(&self.tickets).insert(ticket.number, Arc::clone(&ticket));
        ticket
    }

    /// Takes all of these deliveries in hand, or none when one of them is already.
    #[must_use]
    pub fn take(&self, ids: &[DeliveryId]) -> bool {
        let mut deliveries = lock(&self.deliveries);
        if ids.iter().any(|id| deliveries.contains(id)) {
            return false;
        }
        deliveries.extend(ids);
        true
    }

    /// Lets deliveries go.
    pub fn release<'a>(&self, ids: impl IntoIterator<Item = &'a DeliveryId>) {
        let mut deliveries = lock(&self.deliveries);
        for id in ids {
            deliveries.remove(id);
        }
    }

    /// Tells the bus that the messages are still in hand.
    pub async fn signal_progress(&self) {
        for ticket in self.open() {
            ticket.progress().await;
        }
    }

    /// Gives every message back that is not settled; for shutdown, when nobody works on them any more.
    pub async fn give_back(&self) -> usize {
        let open = self.open();
        for ticket in &open {
            if let Err(error) = ticket.message.nak(Duration::ZERO).await {
                tracing::debug!(error = %Chain(&error), "a message was not given back");
            }
        }
        open.len()
    }

    fn open(&self) -> Vec<Arc<Ticket>> {
        lock(&self.tickets).values().map(Arc::clone).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
