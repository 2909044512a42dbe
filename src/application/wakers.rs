//! Wakes loops of this worker at once, when it knows that there is work; other workers find it by polling.

use tokio::sync::Notify;

/// One bell for each loop that polls the database.
#[derive(Debug, Default)]
pub struct Wakers {
    /// Deliveries became due.
    pub parked: Notify,
    /// Ordered deliveries may have become due.
    pub lanes: Notify,
    /// A replay began.
    pub replays: Notify,
    /// Deliveries that go out together may have become due, or enough.
    pub batches: Notify,
    /// Events were committed to the outbox.
    pub outbox: Notify,
    /// Events made of answers were committed to it.
    pub responses: Notify,
}
