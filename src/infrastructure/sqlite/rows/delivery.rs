//! Deliveries and their attempts.

use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::domain::{
    entities::{Attempt, Batching, Delivery, DeliveryStatus, LanePlace},
    interfaces::{ClaimedDelivery, Lease, StoreError, StoredEvent},
    values::{BatchId, DeliveryId, LaneKey, WebhookId},
};

use super::Cells;

const TABLE: &str = "deliveries";

pub(in super::super) fn delivery(row: &SqliteRow) -> Result<Delivery, StoreError> {
    let cells = Cells::new(row, TABLE);
    Ok(Delivery {
        id: DeliveryId(cells.get("id")?),
        tenant: cells.tenant()?,
        webhook_id: WebhookId(cells.get("webhook_id")?),
        event_id: cells.get("event_id")?,
        event_type: cells.get("event_type")?,
        correlation_id: cells.get("correlation_id")?,
        source_sequence: cells.get("source_sequence")?,
        status: cells.parse("status", DeliveryStatus::parse)?,
        attempt_count: cells.get("attempt_count")?,
        event_version: cells.get("event_version")?,
        budget_base: cells.get("budget_base")?,
        next_attempt_at: cells.optional_time("next_attempt_at")?,
        error: cells.get("error")?,
        created_at: cells.time("created_at")?,
        completed_at: cells.optional_time("completed_at")?,
        lane: lane(&cells)?,
        batch: Batching::from_parts(
            cells.get("batched")?,
            cells.get::<Option<Uuid>>("batch_id")?.map(BatchId),
        ),
    })
}

fn lane(cells: &Cells<'_>) -> Result<Option<LanePlace>, StoreError> {
    let Some(key) = cells.get::<Option<String>>("lane_key")? else {
        return Ok(None);
    };
    Ok(Some(LanePlace {
        key: LaneKey::kept(&key),
        turn: cells.present("lane_turn")?,
        blocks: cells.get("lane_blocks")?,
    }))
}

/// The first attempt, which stands in the delivery's row.
pub(in super::super) fn first_attempt(row: &SqliteRow) -> Result<Option<Attempt>, StoreError> {
    let cells = Cells::new(row, TABLE);
    let Some(started_at) = cells.optional_time("first_started_at")? else {
        return Ok(None);
    };
    Ok(Some(Attempt {
        number: 1,
        started_at,
        duration_ms: cells.present("first_duration_ms")?,
        status_code: cells.get("first_status_code")?,
        error: cells.get("first_error")?,
        response: cells.get("first_response")?,
    }))
}

/// A later attempt; `id` is its delivery's.
pub(in super::super) fn attempt(row: &SqliteRow) -> Result<Attempt, StoreError> {
    let cells = Cells::new(row, "attempts");
    Ok(Attempt {
        number: cells.get("number")?,
        started_at: cells.time("started_at")?,
        duration_ms: cells.get("duration_ms")?,
        status_code: cells.get("status_code")?,
        error: cells.get("error")?,
        response: cells.get("response")?,
    })
}

/// A delivery as it was before the claim that gave it the lease, with its event.
pub(in super::super) fn claimed(row: &SqliteRow) -> Result<ClaimedDelivery, StoreError> {
    let delivery = delivery(row)?;
    let cells = Cells::new(row, "delivery_events");
    if cells.is_null("raw")? {
        return Err(cells.bad("raw", "missing"));
    }
    Ok(ClaimedDelivery {
        lease: Lease {
            delivery_id: delivery.id,
            epoch: cells.get::<i64>("lease_epoch")?.saturating_add(1),
        },
        delivery,
        event: StoredEvent {
            meta: cells.get("meta")?,
            raw: cells.get::<Vec<u8>>("raw")?.into(),
        },
    })
}
