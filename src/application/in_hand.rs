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

/// How long a message rests of which a delivery could not be recorded.
const FAILED_REST: Duration = Duration::from_secs(30);

/// Bounds what is in hand, in events and in bytes.
pub type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// A message that was pulled. It is acknowledged when its last delivery is recorded and told; never
/// before. As long as it is open, the bus is told that the work goes on.
pub struct Ticket {
    number: u64,
    message: Box<dyn Settle>,
    /// Deliveries to come, and one for the sorting.
    remaining: AtomicUsize,
    failed: AtomicBool,
    taken: Instant,
    in_hand: Arc<InHand>,
    room: Mutex<Option<Room>>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// So many deliveries of it are to come, which take this room until it is settled.
    pub fn expect(&self, deliveries: usize, room: Room) {
        self.remaining.fetch_add(deliveries, Ordering::AcqRel);
        *lock(&self.room) = Some(room);
    }

    /// One delivery of it is recorded and told, or it is sorted.
    pub async fn done(&self) {
        if self.remaining.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        if self.failed.load(Ordering::Acquire) {
            self.rest(FAILED_REST).await;
            return;
        }
        self.close();
        histogram!(EVENT_SECONDS).record(self.taken.elapsed().as_secs_f64());
        if let Err(error) = self.message.ack().await {
            tracing::debug!(error = %Chain(&error), "a message was not acknowledged, it comes again");
        }
    }

    /// One delivery of it cannot be recorded: the message will come again.
    pub async fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.done().await;
    }

    /// Gives the message back; it comes again after the delay.
    pub async fn rest(&self, delay: Duration) {
        self.close();
        if let Err(error) = self.message.nak(delay).await {
            tracing::debug!(error = %Chain(&error), "a message was not given back, it comes again");
        }
    }

    /// The message, for who settles it otherwise; to be closed then.
    pub fn message(&self) -> &dyn Settle {
        self.message.as_ref()
    }

    /// It is in hand no longer, and its room is free.
    pub fn close(&self) {
        lock(&self.in_hand.tickets).remove(&self.number);
        drop(lock(&self.room).take());
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
    /// Takes a message in hand.
    pub fn ticket(self: &Arc<Self>, message: Box<dyn Settle>) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            message,
            remaining: AtomicUsize::new(1),
            failed: AtomicBool::new(false),
            taken: Instant::now(),
            in_hand: Arc::clone(self),
            room: Mutex::default(),
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
            ticket.rest(Duration::ZERO).await;
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
