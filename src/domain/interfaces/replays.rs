//! Replays at work: who works on one, and its pages.

use async_trait::async_trait;

use crate::domain::{
    entities::{Delivery, Replay, ReplayCursor, ReplaySelection},
    events::DomainEvent,
    values::{ReplayId, TenantId, Timestamp, WebhookId},
};

use super::{FirstRecord, Lease, Page, PageRequest, StoreError, StoredEvent};

/// The right to work on a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayLease {
    /// Which replay.
    pub replay_id: ReplayId,
    /// The fencing number: it grows with every claim.
    pub epoch: i64,
}

/// A replay to work on, under a lease.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedReplay {
    /// The right to work on it.
    pub lease: ReplayLease,
    /// As it stands.
    pub replay: Replay,
}

/// How many deliveries there are of one event type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeCount {
    /// The event type.
    pub event_type: String,
    /// Whether they wait anyway.
    pub is_pending: bool,
    /// How many.
    pub count: i64,
}

/// A recorded delivery that may go out again.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// As it stands.
    pub delivery: Delivery,
    /// Its fencing number.
    pub epoch: i64,
    /// What it carries, where that is still kept with it.
    pub event: Option<StoredEvent>,
}

/// The next recorded deliveries of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidates {
    /// Those with a place in a lane in the order of their turns, then the others in the order of their
    /// creation.
    pub items: Vec<Candidate>,
    /// Rows that this program does not understand.
    pub broken: i64,
    /// How far was looked; `None` when there is nothing more.
    pub cursor: Option<ReplayCursor>,
}

/// A recorded delivery that goes out again.
#[derive(Debug, Clone, PartialEq)]
pub struct Reopened {
    /// Pending and due.
    pub delivery: Delivery,
    /// The fencing number that it had.
    pub epoch: i64,
    /// What it carries.
    pub event: StoredEvent,
}

/// What a page of a replay changes.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayPage {
    /// Deliveries that go out again.
    pub reopened: Vec<Reopened>,
    /// Deliveries that were never recorded.
    pub first: Vec<FirstRecord>,
    /// Deliveries that are left alone.
    pub skipped: i64,
    /// How far the replay has come with it.
    pub cursor: ReplayCursor,
    /// Until when whoever records the page has the leases on its deliveries; `None` leaves them to the
    /// lanes.
    pub lease_until: Option<Timestamp>,
}

/// A page that was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct PageDone {
    /// The replay as it stands now.
    pub replay: Replay,
    /// The leases on those deliveries of the page that are changed and pending, where leases were asked
    /// for.
    pub leases: Vec<Lease>,
}

/// What waits in the lanes that replays of a webhook have to themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayLanes {
    /// Deliveries.
    pub waiting: u32,
    /// Lanes whose front is due.
    pub due: u32,
}

/// The store of replays.
#[async_trait]
pub trait ReplayStore: Send + Sync {
    /// Counts the recorded deliveries of a selection by their types, up to `limit` deliveries of any
    /// type; locks nothing.
    async fn count_recorded(
        &self,
        selection: &ReplaySelection,
        limit: i64,
    ) -> Result<Vec<TypeCount>, StoreError>;

    /// Claims the running replay that waits longest for somebody to work on it. No two claims get the
    /// same one while a lease holds.
    async fn claim_replay(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Result<Option<ClaimedReplay>, StoreError>;

    /// Changes when somebody may work on a replay (again): prolongs a lease, or gives it up. `false`
    /// when it was lost, or the replay has ended.
    async fn free_replay(&self, lease: ReplayLease, at: Timestamp) -> Result<bool, StoreError>;

    /// The recorded deliveries of a replay after its cursor, at most `limit`; locks nothing. Others are
    /// passed over, and there may be none although there are more.
    async fn replay_candidates(
        &self,
        replay: &Replay,
        limit: usize,
    ) -> Result<Candidates, StoreError>;

    /// Records a page in one transaction: its deliveries, the replay with its counts, and its event.
    /// Deliveries that somebody changed meanwhile count as left alone. `None`, and nothing is changed,
    /// when the lease was lost, the replay has ended, or its webhook is gone.
    async fn record_page(
        &self,
        claimed: &ClaimedReplay,
        page: &ReplayPage,
        now: Timestamp,
    ) -> Result<Option<PageDone>, StoreError>;

    /// Writes a replay that has ended, with its event; `false` when the lease was lost.
    async fn end_replay(
        &self,
        lease: ReplayLease,
        ended: &Replay,
        event: &DomainEvent,
    ) -> Result<bool, StoreError>;

    /// How many deliveries of a webhook are due and need nobody else to go first: of a lane its front at
    /// most. Counted up to `limit`.
    async fn due_of(
        &self,
        webhook: WebhookId,
        now: Timestamp,
        limit: u32,
    ) -> Result<u32, StoreError>;

    /// What waits in the lanes that replays of a webhook have to themselves; of all that waits `limit` is
    /// looked at.
    async fn replay_lanes(
        &self,
        webhook: WebhookId,
        now: Timestamp,
        limit: u32,
    ) -> Result<ReplayLanes, StoreError>;

    /// The replays of a webhook.
    async fn list_replays(
        &self,
        tenant: &TenantId,
        webhook: WebhookId,
        page: &PageRequest,
    ) -> Result<Page<Replay>, StoreError>;

    /// Deletes replays that ended before `before`, at most `limit`; answers how many.
    async fn prune_replays(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError>;
}
