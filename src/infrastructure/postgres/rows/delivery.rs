//! Deliveries, their attempts, and the events that they keep.

use uuid::Uuid;

use crate::domain::{
    entities::{Attempt, Batching, Delivery, DeliveryStatus, LanePlace},
    interfaces::{StoreError, StoredEvent},
    values::{BatchId, DeliveryId, LaneKey, Timestamp, WebhookId},
};

use super::{RowRef, entity::tenant};

const TABLE: &str = "deliveries";

/// The columns of a [`DeliveryRow`], of the table `d`.
macro_rules! delivery_columns {
    () => {
        "d.id, d.tenant, d.webhook_id, d.event_id, d.event_type, d.correlation_id,
         d.source_sequence, d.status, d.attempt_count, d.event_version, d.budget_base,
         d.next_attempt_at, d.error, d.created_at, d.completed_at, d.lane_key, d.lane_turn,
         d.lane_blocks, d.batched, d.batch_id"
    };
}
pub(in super::super) use delivery_columns;

#[derive(Debug, Clone, sqlx::FromRow)]
pub(in super::super) struct DeliveryRow {
    pub(super) id: Uuid,
    pub(super) tenant: String,
    pub(super) webhook_id: Uuid,
    pub(super) event_id: String,
    pub(super) event_type: String,
    pub(super) correlation_id: Option<String>,
    pub(super) source_sequence: Option<i64>,
    pub(super) status: String,
    pub(super) attempt_count: i32,
    pub(super) event_version: i64,
    pub(super) budget_base: i32,
    pub(super) next_attempt_at: Option<Timestamp>,
    pub(super) error: Option<String>,
    pub(super) created_at: Timestamp,
    pub(super) completed_at: Option<Timestamp>,
    pub(super) lane_key: Option<String>,
    pub(super) lane_turn: Option<i64>,
    pub(super) lane_blocks: bool,
    pub(super) batched: bool,
    pub(super) batch_id: Option<Uuid>,
}

impl DeliveryRow {
    pub(in super::super) fn webhook_id(&self) -> Uuid {
        self.webhook_id
    }

    /// Its place, for sorting.
    pub(in super::super) fn place(&self) -> (Uuid, Option<String>, Option<i64>) {
        (self.webhook_id, self.lane_key.clone(), self.lane_turn)
    }
}

impl TryFrom<DeliveryRow> for Delivery {
    type Error = StoreError;

    fn try_from(row: DeliveryRow) -> Result<Self, StoreError> {
        let this = RowRef {
            table: TABLE,
            id: row.id,
        };
        let status = DeliveryStatus::parse(&row.status)
            .ok_or_else(|| this.broken("status", "unknown status"))?;
        if (status == DeliveryStatus::Pending) != row.next_attempt_at.is_some() {
            return Err(this.broken("next_attempt_at", "it is set exactly while pending"));
        }
        let lane = match (row.lane_key, row.lane_turn) {
            (Some(key), Some(turn)) => Some(LanePlace {
                key: LaneKey::kept(&key),
                turn,
                blocks: row.lane_blocks,
            }),
            (None, None) => None,
            _ => return Err(this.broken("lane_turn", "it is set exactly with lane_key")),
        };
        Ok(Self {
            id: DeliveryId(row.id),
            tenant: tenant(&row.tenant, this)?,
            webhook_id: WebhookId(row.webhook_id),
            event_id: row.event_id,
            event_type: row.event_type,
            correlation_id: row.correlation_id,
            source_sequence: row.source_sequence,
            status,
            attempt_count: row.attempt_count,
            event_version: row.event_version,
            budget_base: row.budget_base,
            next_attempt_at: row.next_attempt_at,
            error: row.error,
            created_at: row.created_at,
            completed_at: row.completed_at,
            lane,
            batch: Batching::from_parts(row.batched, row.batch_id.map(BatchId)),
        })
    }
}

/// Attempt 1, which is kept in the row of its delivery.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(in super::super) struct FirstAttemptRow {
    #[sqlx(rename = "first_started_at")]
    pub(super) started_at: Option<Timestamp>,
    #[sqlx(rename = "first_duration_ms")]
    pub(super) duration_ms: Option<i64>,
    #[sqlx(rename = "first_status_code")]
    pub(super) status_code: Option<i32>,
    #[sqlx(rename = "first_error")]
    pub(super) error: Option<String>,
    #[sqlx(rename = "first_response")]
    pub(super) response: Option<String>,
}

impl FirstAttemptRow {
    /// `None` when there was no attempt yet.
    pub(in super::super) fn read(self, id: DeliveryId) -> Result<Option<Attempt>, StoreError> {
        let Some(started_at) = self.started_at else {
            return Ok(None);
        };
        let this = RowRef {
            table: TABLE,
            id: id.0,
        };
        Ok(Some(Attempt {
            number: 1,
            started_at,
            duration_ms: self
                .duration_ms
                .ok_or_else(|| this.broken("first_duration_ms", "it is missing"))?,
            status_code: status_code(self.status_code)
                .map_err(|problem| this.broken("first_status_code", problem))?,
            error: self.error,
            response: self.response,
        }))
    }
}

/// A later attempt.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(in super::super) struct AttemptRow {
    pub(super) delivery_id: Uuid,
    pub(super) number: i32,
    pub(super) started_at: Timestamp,
    pub(super) duration_ms: i64,
    pub(super) status_code: Option<i32>,
    pub(super) error: Option<String>,
    pub(super) response: Option<String>,
}

impl TryFrom<AttemptRow> for Attempt {
    type Error = StoreError;

    fn try_from(row: AttemptRow) -> Result<Self, StoreError> {
        let this = RowRef {
            table: "attempts",
            id: row.delivery_id,
        };
        Ok(Self {
            number: row.number,
            started_at: row.started_at,
            duration_ms: row.duration_ms,
            status_code: status_code(row.status_code)
                .map_err(|problem| this.broken("status_code", problem))?,
            error: row.error,
            response: row.response,
        })
    }
}

fn status_code(column: Option<i32>) -> Result<Option<u16>, &'static str> {
    column
        .map(|code| u16::try_from(code).map_err(|_| "it is no HTTP status"))
        .transpose()
}

/// The event of a delivery that is still to be made.
#[derive(Clone, sqlx::FromRow)]
pub(in super::super) struct EventRow {
    pub(super) event_meta: Option<String>,
    pub(super) event_raw: Option<Vec<u8>>,
}

impl EventRow {
    /// Of its message, in bytes.
    pub(in super::super) fn size(&self) -> usize {
        self.event_raw.as_ref().map_or(0, Vec::len)
    }

    pub(in super::super) fn read(self, id: DeliveryId) -> Result<StoredEvent, StoreError> {
        let this = RowRef {
            table: TABLE,
            id: id.0,
        };
        Ok(StoredEvent {
            meta: self
                .event_meta
                .ok_or_else(|| this.broken("event_meta", "it is missing while pending"))?,
            raw: self
                .event_raw
                .ok_or_else(|| this.broken("event_raw", "it is missing while pending"))?
                .into(),
        })
    }
}
