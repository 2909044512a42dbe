//! The events and deliveries that this worker has taken and not yet settled.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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

/// A message whose event is being delivered. It is acknowledged when its last delivery is recorded and
/// told; never before.
pub struct Ticket {
    message: Box<dyn Settle>,
    remaining: AtomicUsize,
    failed: AtomicBool,
    taken: Instant,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// A message with so many deliveries to come; `permits` bound what is in hand, in events and bytes.
    pub fn new(
        message: Box<dyn Settle>,
        deliveries: usize,
        permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) -> Self {
        Self {
            message,
            remaining: AtomicUsize::new(deliveries),
            failed: AtomicBool::new(false),
            taken: Instant::now(),
            _permits: permits,
        }
    }

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

    fn is_open(&self) -> bool {
        self.remaining.load(Ordering::Acquire) > 0
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
}

impl InHand {
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

    /// Watches over a message, by its sequence, until it is settled.
    pub fn watch(&self, sequence: u64, ticket: &Arc<Ticket>) {
        lock(&self.tickets).insert(sequence, Arc::clone(ticket));
    }

    /// Tells the bus about the messages in hand, and forgets settled ones.
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
        let mut tickets = lock(&self.tickets);
        tickets.retain(|_, ticket| ticket.is_open());
        tickets.values().map(Arc::clone).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
