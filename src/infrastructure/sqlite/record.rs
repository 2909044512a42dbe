//! Recording outcomes, a batch in one transaction.
//!
//! The usual batch, first records that were delivered and carry no events, is one statement for every
//! 64 of them and nothing else.

use std::{collections::HashSet, sync::LazyLock};

use sqlx::{
    Row as _, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteQueryResult},
};
use uuid::Uuid;

use crate::domain::{
    entities::{Attempt, Delivery, DeliveryStatus},
    events::DomainEvent,
    interfaces::{FirstRecord, LeasedRecord, RecordBatch, StoreError, StoredEvent},
    values::DeliveryId,
};

use super::{
    SqliteStore,
    batch::{ManyRows, hex_array},
    error::failed,
    outbox,
};

const RECORD: &str = "record deliveries";

pub(super) async fn record(
    store: &SqliteStore,
    batch: &RecordBatch,
) -> Result<HashSet<DeliveryId>, StoreError> {
    if batch.first.is_empty() && batch.leased.is_empty() {
        return Ok(HashSet::new());
    }
    let mut transaction = store.write(RECORD).await?;
    let inserted = insert(&mut transaction, &batch.first).await?;
    let updated = update(&mut transaction, &batch.leased).await?;

    let first = once_each(&batch.first, &inserted, |record| record.delivery.id);
    let leased = once_each(&batch.leased, &updated, |record| record.lease.delivery_id);
    keep_events(&mut transaction, &first).await?;
    cancel_orphans(&mut transaction, &first).await?;
    let attempts = first
        .iter()
        .map(|record| (record.delivery.id, &record.attempt))
        .chain(
            leased
                .iter()
                .map(|record| (record.lease.delivery_id, &record.attempt)),
        );
    insert_attempts(&mut transaction, attempts).await?;
    let outbox: Vec<&DomainEvent> = first
        .iter()
        .flat_map(|record| &record.events)
        .chain(leased.iter().flat_map(|record| &record.events))
        .collect();
    outbox::add_events(&mut transaction, &outbox).await?;
    transaction.commit().await.map_err(failed(RECORD))?;

    let mut changed = inserted;
    changed.extend(updated);
    Ok(changed)
}

/// Deliveries that were never attempted, in somebody else's transaction; answers which are new.
pub(super) async fn insert_unattempted(
    connection: &mut SqliteConnection,
    records: &[FirstRecord],
) -> Result<HashSet<DeliveryId>, StoreError> {
    let inserted = insert(connection, records).await?;
    let first = once_each(records, &inserted, |record| record.delivery.id);
    keep_events(connection, &first).await?;
    cancel_orphans(connection, &first).await?;
    let told: Vec<&DomainEvent> = first.iter().flat_map(|record| &record.events).collect();
    outbox::add_events(connection, &told).await?;
    Ok(inserted)
}

async fn keep_events(
    connection: &mut SqliteConnection,
    first: &[&FirstRecord],
) -> Result<(), StoreError> {
    let events = first.iter().filter_map(|record| {
        let event = record.event.as_ref()?;
        Some((record.delivery.id, event))
    });
    insert_events(connection, &events.collect::<Vec<_>>()).await
}

/// The records that changed something: of two with one id, the first did.
fn once_each<'a, T>(
    records: &'a [T],
    changed: &HashSet<DeliveryId>,
    id: impl Fn(&T) -> DeliveryId,
) -> Vec<&'a T> {
    let mut left = changed.clone();
    records
        .iter()
        .filter(|record| left.remove(&id(record)))
        .collect()
}

/// A delivery that waits, of a unit of work.
pub(super) async fn insert_waiting(
    connection: &mut SqliteConnection,
    new: &Delivery,
    event: &StoredEvent,
) -> Result<(), StoreError> {
    for (sql, _) in INSERT.pieces(&[new]) {
        let query = bind_first(sqlx::query(sql), new, None);
        let done = query.execute(&mut *connection).await;
        if done.map_err(failed(RECORD))?.rows_affected() == 0 {
            return Err(StoreError::Conflict);
        }
    }
    insert_events(connection, &[(new.id, event)]).await
}

// ---- First records ------------------------------------------------------------------------

static INSERT: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        64,
        "INSERT INTO deliveries (id, tenant, webhook_id, event_id, event_type, correlation_id,
            source_sequence, status, attempt_count, event_version, budget_base, next_attempt_at,
            due_at, error, created_at, completed_at, first_started_at, first_duration_ms,
            first_status_code, first_error, first_response, lane_key, lane_turn, lane_blocks,
            batched, batch_id)
        VALUES",
        26,
        "ON CONFLICT (id) DO NOTHING",
    )
});

type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

fn bind_first<'q>(query: Bound<'q>, delivery: &Delivery, attempt: Option<&Attempt>) -> Bound<'q> {
    let due = delivery.next_attempt_at.map(|at| at.timestamp_millis());
    let query = query
        .bind(delivery.id.0)
        .bind(delivery.tenant.as_str().to_owned())
        .bind(delivery.webhook_id.0)
        .bind(delivery.event_id.clone())
        .bind(delivery.event_type.clone())
        .bind(delivery.correlation_id.clone())
        .bind(delivery.source_sequence)
        .bind(delivery.status.as_str())
        .bind(delivery.attempt_count)
        .bind(delivery.event_version)
        .bind(delivery.budget_base)
        .bind(due)
        .bind(due)
        .bind(delivery.error.clone())
        .bind(delivery.created_at.timestamp_millis())
        .bind(delivery.completed_at.map(|at| at.timestamp_millis()));
    bind_inline(query, attempt)
        .bind(delivery.lane_key().map(str::to_owned))
        .bind(delivery.lane_turn())
        .bind(delivery.blocks())
        .bind(delivery.batch.is_shared())
        .bind(delivery.batch.id().map(|id| id.0))
}

/// The first attempt, which stands in the delivery's row.
fn bind_inline<'q>(query: Bound<'q>, attempt: Option<&Attempt>) -> Bound<'q> {
    let first = attempt.filter(|attempt| attempt.number == 1);
    query
        .bind(first.map(|attempt| attempt.started_at.timestamp_millis()))
        .bind(first.map(|attempt| attempt.duration_ms))
        .bind(first.and_then(|attempt| attempt.status_code))
        .bind(first.and_then(|attempt| attempt.error.clone()))
        .bind(first.and_then(|attempt| attempt.response.clone()))
}

/// Answers which were not there before.
async fn insert(
    connection: &mut SqliteConnection,
    records: &[FirstRecord],
) -> Result<HashSet<DeliveryId>, StoreError> {
    let mut inserted = HashSet::with_capacity(records.len());
    for (sql, piece) in INSERT.pieces(records) {
        let mut query = sqlx::query(sql);
        for record in piece {
            query = bind_first(query, &record.delivery, record.attempt.as_ref());
        }
        let done = query.execute(&mut *connection).await;
        let done = done.map_err(failed(RECORD))?;
        if usize::try_from(done.rows_affected()) == Ok(piece.len()) {
            inserted.extend(piece.iter().map(|record| record.delivery.id));
        } else {
            inserted.extend(newest(connection, &done).await?);
        }
    }
    Ok(inserted)
}

/// The ids that an insert has added. `seq` is always one more than the greatest, so they are the last
/// ones; asking `RETURNING id` instead would make the usual batch pay for the unusual one.
async fn newest(
    connection: &mut SqliteConnection,
    insert: &SqliteQueryResult,
) -> Result<Vec<DeliveryId>, StoreError> {
    let count = i64::try_from(insert.rows_affected()).unwrap_or(i64::MAX);
    if count == 0 {
        return Ok(Vec::new());
    }
    let last = insert.last_insert_rowid();
    let ids: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM deliveries WHERE seq > ?1 AND seq <= ?2")
            .bind(last.saturating_sub(count))
            .bind(last)
            .fetch_all(connection)
            .await
            .map_err(failed(RECORD))?;
    Ok(ids.into_iter().map(DeliveryId).collect())
}

/// Cancels what waits for a webhook that was deleted since the event was matched: nobody else would.
async fn cancel_orphans(
    connection: &mut SqliteConnection,
    inserted: &[&FirstRecord],
) -> Result<(), StoreError> {
    let waiting = inserted
        .iter()
        .filter(|record| record.delivery.status == DeliveryStatus::Pending);
    let waiting = waiting.map(|record| record.delivery.id.0);
    let waiting: Vec<Uuid> = waiting.collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let orphans: Vec<i64> = sqlx::query_scalar(
        "UPDATE deliveries SET status = 'cancelled', next_attempt_at = NULL, due_at = NULL,
            completed_at = created_at, lease_epoch = lease_epoch + 1
        WHERE id IN (SELECT unhex(value) FROM json_each(?1))
            AND NOT EXISTS (SELECT 1 FROM webhooks WHERE webhooks.id = webhook_id)
        RETURNING seq",
    )
    .bind(hex_array(waiting.into_iter()))
    .fetch_all(&mut *connection)
    .await
    .map_err(failed(RECORD))?;
    delete_events(connection, &orphans).await
}

// ---- Records under a lease ----------------------------------------------------------------

/// The lease ends with it: its number grows, so the same record again finds it lost.
static UPDATE: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        64,
        "WITH v (id, epoch, status, attempt_count, event_version, budget_base, next_attempt_at,
            error, completed_at, started_at, duration_ms, status_code, first_error, response,
            lane_blocks, batch_id)
        AS (VALUES",
        16,
        ")
        UPDATE deliveries SET
            status = v.status, attempt_count = v.attempt_count, event_version = v.event_version,
            budget_base = v.budget_base, next_attempt_at = v.next_attempt_at,
            due_at = v.next_attempt_at, error = v.error, completed_at = v.completed_at,
            lease_epoch = lease_epoch + 1, lane_blocks = v.lane_blocks,
            batch_id = v.batch_id,
            first_started_at = coalesce(first_started_at, v.started_at),
            first_duration_ms = coalesce(first_duration_ms, v.duration_ms),
            first_status_code = coalesce(first_status_code, v.status_code),
            first_error = coalesce(deliveries.first_error, v.first_error),
            first_response = coalesce(first_response, v.response)
        FROM v
        WHERE deliveries.id = v.id AND deliveries.lease_epoch = v.epoch
            AND deliveries.status = 'pending'
        RETURNING deliveries.seq, deliveries.id, deliveries.status",
    )
});

/// Answers which leases still held.
async fn update(
    connection: &mut SqliteConnection,
    records: &[LeasedRecord],
) -> Result<HashSet<DeliveryId>, StoreError> {
    let mut updated = HashSet::with_capacity(records.len());
    let mut done_with: Vec<i64> = Vec::new();
    for (sql, piece) in UPDATE.pieces(records) {
        let mut query = sqlx::query(sql);
        for record in piece {
            query = bind_leased(query, record);
        }
        let rows = query.fetch_all(&mut *connection).await;
        for row in rows.map_err(failed(RECORD))? {
            let id: Uuid = row.try_get("id").map_err(failed(RECORD))?;
            updated.insert(DeliveryId(id));
            let status: &str = row.try_get("status").map_err(failed(RECORD))?;
            if !keeps_event(status) {
                done_with.push(row.try_get("seq").map_err(failed(RECORD))?);
            }
        }
    }
    delete_events(connection, &done_with).await?;
    Ok(updated)
}

fn bind_leased<'q>(query: Bound<'q>, record: &LeasedRecord) -> Bound<'q> {
    let delivery = &record.delivery;
    let query = query
        .bind(record.lease.delivery_id.0)
        .bind(record.lease.epoch)
        .bind(delivery.status.as_str())
        .bind(delivery.attempt_count)
        .bind(delivery.event_version)
        .bind(delivery.budget_base)
        .bind(delivery.next_attempt_at.map(|at| at.timestamp_millis()))
        .bind(delivery.error.clone())
        .bind(delivery.completed_at.map(|at| at.timestamp_millis()));
    bind_inline(query, record.attempt.as_ref())
        .bind(delivery.blocks())
        .bind(delivery.batch.id().map(|id| id.0))
}

async fn delete_events(
    connection: &mut SqliteConnection,
    deliveries: &[i64],
) -> Result<(), StoreError> {
    if deliveries.is_empty() {
        return Ok(());
    }
    sqlx::query("DELETE FROM delivery_events WHERE delivery IN (SELECT value FROM json_each(?1))")
        .bind(sqlx::types::Json(deliveries))
        .execute(connection)
        .await
        .map_err(failed(RECORD))?;
    Ok(())
}

// ---- What hangs on a delivery -------------------------------------------------------------

/// Few at a time: an event may have a megabyte, and what is bound is a copy.
static INSERT_EVENTS: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        16,
        "WITH v (id, meta, raw) AS (VALUES",
        3,
        ")
        INSERT INTO delivery_events (delivery, meta, raw)
        SELECT d.seq, v.meta, v.raw FROM v CROSS JOIN deliveries d ON d.id = v.id",
    )
});

pub(super) async fn insert_events(
    connection: &mut SqliteConnection,
    events: &[(DeliveryId, &StoredEvent)],
) -> Result<(), StoreError> {
    for (sql, piece) in INSERT_EVENTS.pieces(events) {
        let mut query = sqlx::query(sql);
        for (delivery, event) in piece {
            query = query
                .bind(delivery.0)
                .bind(&event.meta)
                .bind(event.raw.as_ref());
        }
        let done = query.execute(&mut *connection).await;
        done.map_err(failed(RECORD))?;
    }
    Ok(())
}

static INSERT_ATTEMPTS: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        64,
        "WITH v (id, number, started_at, duration_ms, status_code, error, response) AS (VALUES",
        7,
        ")
        INSERT INTO attempts (delivery, number, started_at, duration_ms, status_code, error, response)
        SELECT d.seq, v.number, v.started_at, v.duration_ms, v.status_code, v.error, v.response
        FROM v CROSS JOIN deliveries d ON d.id = v.id
        WHERE true ON CONFLICT (delivery, number) DO NOTHING",
    )
});

/// All but the first attempts, which stand in the delivery's row.
async fn insert_attempts<'a>(
    connection: &mut SqliteConnection,
    attempts: impl Iterator<Item = (DeliveryId, &'a Option<Attempt>)>,
) -> Result<(), StoreError> {
    let later: Vec<(DeliveryId, &Attempt)> = attempts
        .filter_map(|(delivery, attempt)| Some((delivery, attempt.as_ref()?)))
        .filter(|(_, attempt)| attempt.number != 1)
        .collect();
    for (sql, piece) in INSERT_ATTEMPTS.pieces(&later) {
        let mut query = sqlx::query(sql);
        for (delivery, attempt) in piece {
            query = query
                .bind(delivery.0)
                .bind(attempt.number)
                .bind(attempt.started_at.timestamp_millis())
                .bind(attempt.duration_ms)
                .bind(attempt.status_code)
                .bind(&attempt.error)
                .bind(&attempt.response);
        }
        let done = query.execute(&mut *connection).await;
        done.map_err(failed(RECORD))?;
    }
    Ok(())
}

/// Whether the event of a delivery may be needed again.
fn keeps_event(status: &str) -> bool {
    let kept = [DeliveryStatus::Pending, DeliveryStatus::Exhausted];
    kept.iter().any(|kept| kept.as_str() == status)
}
