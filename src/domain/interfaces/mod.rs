//! What the domain asks of its store. Two adapters keep these promises, and one contract suite
//! (`tests/store_contract`) holds both to them.
//!
//! The control plane (commands) works in a [`UnitOfWork`]; the data plane (deliveries, outbox) in
//! whole-set methods that hold their transaction inside.

mod deliveries;
mod error;
mod outbox;
mod queries;
mod registry;
mod replays;
mod sealed;
mod tokens;
mod unit_of_work;

pub use deliveries::{
    BatchClaim, Blocker, ClaimRequest, Claimed, ClaimedBatch, ClaimedBatches, ClaimedDelivery,
    ClaimedLanes, DeliveryStore, FirstRecord, LaneClaim, Lease, LeasedRecord, RecordBatch,
    StoredEvent,
};
pub use error::StoreError;
pub use outbox::{OutboxClaim, OutboxPostponement, OutboxRow, OutboxStore};
pub use queries::{DeliveryFilter, EntityFilter, Page, PageRequest, Queries, StoreStats};
pub use registry::{
    RegistryChange, RegistryDelta, RegistryReader, RegistryWebhook, UnreadableWebhook,
};
pub use replays::{
    Candidate, Candidates, ClaimedReplay, PageDone, Reopened, ReplayLanes, ReplayLease, ReplayPage,
    ReplayStore, TypeCount,
};
pub use sealed::{Resealed, SealedKind, SealedPlace, SealedStore, StoredSealed};
pub use tokens::{StoredToken, TokenState, TokenStore};
pub use unit_of_work::{
    AuditRow, Child, CommandKey, Inserted, StoredReply, UnitOfWork, UnitOfWorkFactory,
};

/// Everything that a store offers.
pub trait Store:
    UnitOfWorkFactory
    + DeliveryStore
    + OutboxStore
    + RegistryReader
    + Queries
    + SealedStore
    + ReplayStore
    + TokenStore
{
}

impl<T> Store for T where
    T: UnitOfWorkFactory
        + DeliveryStore
        + OutboxStore
        + RegistryReader
        + Queries
        + SealedStore
        + ReplayStore
        + TokenStore
{
}
