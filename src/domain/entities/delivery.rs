//! A delivery: one event to one webhook.

use crate::domain::values::{BatchId, DeliveryId, LaneKey, TenantId, Timestamp, WebhookId};

use super::InvalidTransition;

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeliveryStatus {
    /// Waiting for its next attempt.
    Pending,
    /// Answered with 2xx.
    Delivered,
    /// Out of attempts.
    Exhausted,
    /// Called off by a user, or its webhook is gone.
    Cancelled,
}

impl DeliveryStatus {
    /// All states.
    pub const ALL: [Self; 4] = [
        Self::Pending,
        Self::Delivered,
        Self::Exhausted,
        Self::Cancelled,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Exhausted => "exhausted",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// One request that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// From 1.
    pub number: i32,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: i64,
    /// The answer's status; `None` when there was no answer.
    pub status_code: Option<u16>,
    /// Set when it was no success: `HTTP 500`, `timeout`, …
    pub error: Option<String>,
    /// The first 2 KiB of the answer, as text.
    pub response: Option<String>,
}

/// One event to one webhook, without the event itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id, also the `webhook-id`.
    pub id: DeliveryId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Where it goes.
    pub webhook_id: WebhookId,
    /// What it carries.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// Carried into events and logs.
    pub correlation_id: Option<String>,
    /// The event's sequence in the source stream; `None` for `trigger` and `test`.
    pub source_sequence: Option<i64>,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// Attempts made.
    pub attempt_count: i32,
    /// `aggregateversion` of its latest domain event; 0 before the first.
    pub event_version: i64,
    /// Attempts made when its retry budget (last) began: `retry` grants the whole schedule anew.
    pub budget_base: i32,
    /// When it is due; set exactly while it is pending.
    pub next_attempt_at: Option<Timestamp>,
    /// The error of the latest attempt, or why it was not attempted.
    pub error: Option<String>,
    /// When it was taken in.
    pub created_at: Timestamp,
    /// When it left `pending`.
    pub completed_at: Option<Timestamp>,
    /// Where it has its turn; `None` where it need not wait for others.
    pub lane: Option<LanePlace>,
    /// Whether it goes out together with others.
    pub batch: Batching,
}

/// Whether a delivery shares its requests with others of its webhook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Batching {
    /// It has requests of its own.
    #[default]
    Alone,
    /// It goes out with the next batch, at the latest when it is due.
    Waits,
    /// It belongs to this batch, and is tried again with the others of it.
    In(BatchId),
}

impl Batching {
    /// Whether it shares its requests.
    pub fn is_shared(self) -> bool {
        self != Self::Alone
    }

    /// The batch that it belongs to.
    pub fn id(self) -> Option<BatchId> {
        match self {
            Self::In(id) => Some(id),
            Self::Alone | Self::Waits => None,
        }
    }

    /// As a store keeps it: whether it is shared, and the batch.
    pub fn from_parts(shared: bool, id: Option<BatchId>) -> Self {
        match id {
            Some(id) => Self::In(id),
            None if shared => Self::Waits,
            None => Self::Alone,
        }
    }
}

/// The place of a delivery among those of the same webhook and ordering key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanePlace {
    /// The ordering key.
    pub key: LaneKey,
    /// Its turn: the event's sequence in the source stream; less [`Self::AHEAD`], when that stream is no
    /// more.
    pub turn: i64,
    /// Whether those behind it go on waiting although it is exhausted.
    pub blocks: bool,
}

impl LanePlace {
    /// More than any sequence, so that what is behind by it is in front of all turns of a stream.
    pub const AHEAD: i64 = 1 << 62;
}

impl Delivery {
    /// `exhausted`, `cancelled`, `pending` → due now, with its whole retry schedule anew. One that goes out
    /// with others joins the next batch, which goes at once.
    ///
    /// # Errors
    /// Refused when it is delivered.
    pub fn retry(&mut self, now: Timestamp) -> Result<(), InvalidTransition> {
        if self.status == DeliveryStatus::Delivered {
            return Err(InvalidTransition {
                entity: "delivery",
                state: "delivered",
                remedy: "only a pending, exhausted or cancelled delivery can be retried",
            });
        }
        self.reopen(now);
        Ok(())
    }

    /// Any state → due now, with its whole retry schedule anew.
    pub fn reopen(&mut self, now: Timestamp) {
        self.status = DeliveryStatus::Pending;
        self.budget_base = self.attempt_count;
        self.next_attempt_at = Some(now);
        self.completed_at = None;
        if self.batch.is_shared() {
            self.batch = Batching::Waits;
        }
        self.unblock();
    }

    /// `pending` → `cancelled`; `false` when it is cancelled already. So too one that is exhausted and
    /// blocks its lane, which goes on then.
    ///
    /// # Errors
    /// Refused when it is delivered or exhausted.
    pub fn cancel(&mut self, now: Timestamp) -> Result<bool, InvalidTransition> {
        match self.status {
            DeliveryStatus::Cancelled => Ok(false),
            DeliveryStatus::Exhausted if self.blocks() => {
                self.unblock();
                self.status = DeliveryStatus::Cancelled;
                self.completed_at = Some(now);
                Ok(true)
            }
            DeliveryStatus::Pending => {
                self.status = DeliveryStatus::Cancelled;
                self.next_attempt_at = None;
                self.completed_at = Some(now);
                Ok(true)
            }
            DeliveryStatus::Delivered | DeliveryStatus::Exhausted => Err(InvalidTransition {
                entity: "delivery",
                state: self.status.as_str(),
                remedy: "only a pending delivery can be cancelled",
            }),
        }
    }

    /// Its ordering key.
    pub fn lane_key(&self) -> Option<&str> {
        self.lane.as_ref().map(|lane| lane.key.as_str())
    }

    /// Its turn in its lane.
    pub fn lane_turn(&self) -> Option<i64> {
        self.lane.as_ref().map(|lane| lane.turn)
    }

    /// Whether those behind it wait although it is exhausted.
    pub fn blocks(&self) -> bool {
        self.lane.as_ref().is_some_and(|lane| lane.blocks)
    }

    /// Those behind it go on waiting until it is retried or cancelled; nothing where it has no place, or
    /// one among what a replay sends.
    pub fn block_lane(&mut self) {
        if let Some(lane) = &mut self.lane
            && !lane.key.is_of_replay()
        {
            lane.blocks = true;
        }
    }

    /// As [`Self::reopen`], for a replay: behind what else the replay sends of its ordering key, and in
    /// nobody else's way. One that blocks its lane keeps its place there, for those that wait behind it.
    pub fn replay(&mut self, now: Timestamp) {
        let blocks = self.blocks();
        self.reopen(now);
        if let Some(lane) = self.lane.as_mut().filter(|_| !blocks) {
            lane.key = lane.key.of_replay();
        }
    }

    fn unblock(&mut self) {
        if let Some(lane) = &mut self.lane {
            lane.blocks = false;
        }
    }
}
