//! Records batches of outcomes.
//!
//! The hot path is a batch of deliveries that succeeded at once: one statement, which is its own
//! transaction, one row each. Everything else (later attempts, events, leases) adds a statement for the
//! whole batch and a transaction around them.

use std::{borrow::Cow, collections::HashSet, hash::BuildHasher};

use sqlx::{
    Connection as _,
    postgres::{PgBindIterExt as _, PgConnection},
};
use uuid::Uuid;

use crate::domain::{
    entities::{Attempt, Delivery, DeliveryStatus},
    events::DomainEvent,
    interfaces::{FirstRecord, LeasedRecord, RecordBatch, StoreError, StoredEvent},
    values::DeliveryId,
};

use super::{
    error::during,
    outbox,
    pool::Pool,
    text::{clean, clean_opt},
};

const OPERATION: &str = "record deliveries";

/// How many bytes of events one statement may carry: the server takes messages below 1 GiB.
const MAX_STATEMENT_BYTES: usize = 64 << 20;

/// Implements [`crate::domain::interfaces::DeliveryStore::record`].
pub(super) async fn record(
    pool: &Pool,
    batch: &RecordBatch,
) -> Result<HashSet<DeliveryId>, StoreError> {
    if batch.first.is_empty() && batch.leased.is_empty() {
        return Ok(HashSet::new());
    }
    pool.bounded(OPERATION, async {
        let mut connection = pool.lend(OPERATION).await?;
        let changed = write(&mut connection, batch).await?;
        connection.give_back();
        Ok(changed)
    })
    .await
}

async fn write(
    connection: &mut PgConnection,
    batch: &RecordBatch,
) -> Result<HashSet<DeliveryId>, StoreError> {
    // In the order of their ids, so that two workers with the same rows never wait for each other.
    let first = by_id(&batch.first, |record| record.delivery.id);
    let leased = by_id(&batch.leased, |record| record.lease.delivery_id);
    let mut changed = HashSet::with_capacity(first.len() + leased.len());
    let chunks = by_bytes(&first);
    if leased.is_empty() && chunks.len() <= 1 && first.iter().all(|record| is_one_row(record)) {
        changed.extend(insert(connection, &first).await?);
        return Ok(changed);
    }

    let mut tx = connection.begin().await.map_err(during(OPERATION))?;
    // One statement per 64 MiB, which is one for all but the largest events.
    for chunk in chunks {
        changed.extend(insert(&mut tx, chunk).await?);
    }
    if !leased.is_empty() {
        changed.extend(update(&mut tx, &leased).await?);
    }
    insert_attempts(&mut tx, &later_attempts(&first, &leased, &changed)).await?;
    outbox::insert(&mut tx, &events(&first, &leased, &changed)).await?;
    tx.commit().await.map_err(during(OPERATION))?;
    Ok(changed)
}

/// Inserts one delivery that waits; answers whether it is new.
pub(super) async fn insert_one(
    connection: &mut PgConnection,
    delivery: &Delivery,
    event: &StoredEvent,
) -> Result<bool, StoreError> {
    let record = FirstRecord {
        delivery: delivery.clone(),
        attempt: None,
        event: Some(event.clone()),
        events: Vec::new(),
    };
    Ok(!insert(connection, &[&record]).await?.is_empty())
}

/// Whether nothing but the row of the delivery is to be written.
fn is_one_row(record: &FirstRecord) -> bool {
    record.events.is_empty() && record.attempt.as_ref().is_none_or(|a| a.number == 1)
}

/// References in the order of their ids; of several with one id, the first.
fn by_id<T>(records: &[T], id: impl Fn(&T) -> DeliveryId) -> Vec<&T> {
    let mut sorted: Vec<&T> = records.iter().collect();
    sorted.sort_by_key(|record| id(record));
    sorted.dedup_by_key(|record| id(record));
    sorted
}

/// Parts whose events are no larger than [`MAX_STATEMENT_BYTES`], or a single one.
fn by_bytes<'a, 'b>(mut records: &'a [&'b FirstRecord]) -> Vec<&'a [&'b FirstRecord]> {
    let mut parts = Vec::with_capacity(1);
    while !records.is_empty() {
        let mut bytes = 0_usize;
        let fitting = records.iter().take_while(|record| {
            bytes += record
                .event
                .as_ref()
                .map_or(0, |e| e.raw.len() + e.meta.len());
            bytes <= MAX_STATEMENT_BYTES
        });
        let (part, rest) = records.split_at(fitting.count().max(1));
        parts.push(part);
        records = rest;
    }
    parts
}

fn later_attempts<'a, S: BuildHasher>(
    first: &[&'a FirstRecord],
    leased: &[&'a LeasedRecord],
    changed: &HashSet<DeliveryId, S>,
) -> Vec<(Uuid, &'a Attempt)> {
    let first = first.iter().map(|r| (r.delivery.id, r.attempt.as_ref()));
    let leased = leased
        .iter()
        .map(|r| (r.lease.delivery_id, r.attempt.as_ref()));
    first
        .chain(leased)
        .filter(|(id, _)| changed.contains(id))
        .filter_map(|(id, attempt)| Some((id.0, attempt.filter(|a| a.number != 1)?)))
        .collect()
}

fn events<'a, S: BuildHasher>(
    first: &[&'a FirstRecord],
    leased: &[&'a LeasedRecord],
    changed: &HashSet<DeliveryId, S>,
) -> Vec<&'a DomainEvent> {
    let first = first.iter().map(|r| (r.delivery.id, &r.events));
    let leased = leased.iter().map(|r| (r.lease.delivery_id, &r.events));
    first
        .chain(leased)
        .filter(|(id, _)| changed.contains(id))
        .flat_map(|(_, events)| events)
        .collect()
}

fn batch_of(delivery: &Delivery) -> Option<Uuid> {
    delivery.batch.id().map(|id| id.0)
}

/// Inserts first records, in the order of their ids, and answers which are new.
pub(super) async fn insert(
    connection: &mut PgConnection,
    records: &[&FirstRecord],
) -> Result<Vec<DeliveryId>, StoreError> {
    let deliveries = || records.iter().map(|record| &record.delivery);
    let attempts = || {
        records
            .iter()
            .map(|record| number_one(record.attempt.as_ref()))
    };
    let events = || records.iter().map(|record| record.event.as_ref());
    let new = sqlx::query_scalar(
        "INSERT INTO deliveries (id, tenant, webhook_id, event_id, event_type, correlation_id,
             source_sequence, status, attempt_count, event_version, budget_base, next_attempt_at,
             error, created_at, completed_at, first_started_at, first_duration_ms,
             first_status_code, first_error, first_response, event_meta, event_raw, lane_key,
             lane_turn, lane_blocks, batched, batch_id, due_at)
         SELECT r.*, r.next_attempt_at
         FROM UNNEST($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[],
             $7::bigint[], $8::text[], $9::integer[], $10::bigint[], $11::integer[],
             $12::timestamptz[], $13::text[], $14::timestamptz[], $15::timestamptz[],
             $16::timestamptz[], $17::bigint[], $18::integer[], $19::text[], $20::text[],
             $21::text[], $22::bytea[], $23::text[], $24::bigint[], $25::boolean[],
             $26::boolean[], $27::uuid[])
             AS r (id, tenant, webhook_id, event_id, event_type, correlation_id, source_sequence,
                 status, attempt_count, event_version, budget_base, next_attempt_at)
         ON CONFLICT (id) DO NOTHING
         RETURNING id",
    )
    .bind(deliveries().map(|d| d.id.0).bind_iter())
    .bind(deliveries().map(|d| d.tenant.as_str()).bind_iter())
    .bind(deliveries().map(|d| d.webhook_id.0).bind_iter())
    .bind(deliveries().map(|d| clean(&d.event_id)).bind_iter())
    .bind(deliveries().map(|d| clean(&d.event_type)).bind_iter())
    .bind(
        deliveries()
            .map(|d| clean_opt(d.correlation_id.as_ref()))
            .bind_iter(),
    )
    .bind(deliveries().map(|d| d.source_sequence).bind_iter())
    .bind(deliveries().map(|d| d.status.as_str()).bind_iter())
    .bind(deliveries().map(|d| d.attempt_count).bind_iter())
    .bind(deliveries().map(|d| d.event_version).bind_iter())
    .bind(deliveries().map(|d| d.budget_base).bind_iter())
    .bind(deliveries().map(|d| d.next_attempt_at).bind_iter())
    .bind(deliveries().map(error_of).bind_iter())
    .bind(deliveries().map(|d| d.created_at).bind_iter())
    .bind(deliveries().map(|d| d.completed_at).bind_iter())
    .bind(attempts().map(|a| Some(a?.started_at)).bind_iter())
    .bind(attempts().map(|a| Some(a?.duration_ms)).bind_iter())
    .bind(
        attempts()
            .map(|a| a?.status_code.map(i32::from))
            .bind_iter(),
    )
    .bind(attempts().map(|a| clean_opt(a?.error.as_ref())).bind_iter())
    .bind(
        attempts()
            .map(|a| clean_opt(a?.response.as_ref()))
            .bind_iter(),
    )
    .bind(events().map(|e| Some(clean(&e?.meta))).bind_iter())
    .bind(events().map(|e| Some(e?.raw.as_ref())).bind_iter())
    .bind(deliveries().map(Delivery::lane_key).bind_iter())
    .bind(deliveries().map(Delivery::lane_turn).bind_iter())
    .bind(deliveries().map(Delivery::blocks).bind_iter())
    .bind(deliveries().map(|d| d.batch.is_shared()).bind_iter())
    .bind(deliveries().map(batch_of).bind_iter())
    .fetch_all(connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(new.into_iter().map(DeliveryId).collect())
}

/// Writes what was done under leases, ends them, and answers which had not been lost.
async fn update(
    connection: &mut PgConnection,
    records: &[&LeasedRecord],
) -> Result<Vec<DeliveryId>, StoreError> {
    let deliveries = || records.iter().map(|record| &record.delivery);
    let attempts = || {
        records
            .iter()
            .map(|record| number_one(record.attempt.as_ref()))
    };
    // Locked by id first: a join takes its rows in an order of its own, and whoever cancels the
    // deliveries of a webhook meanwhile would wait for us as we wait for them. They are counted, not
    // joined: that runs first, once, and no plan compares each row with each.
    let held = sqlx::query_scalar(
        "WITH locked AS MATERIALIZED (
             SELECT l.id FROM deliveries l WHERE l.id = ANY($1::uuid[]) ORDER BY l.id FOR UPDATE
         )
         UPDATE deliveries d
         SET status = r.status, attempt_count = r.attempt_count, event_version = r.event_version,
             budget_base = r.budget_base, next_attempt_at = r.next_attempt_at, error = r.error,
             completed_at = r.completed_at, due_at = r.next_attempt_at,
             lease_epoch = d.lease_epoch + 1,
             first_started_at = COALESCE(d.first_started_at, r.first_started_at),
             first_duration_ms = COALESCE(d.first_duration_ms, r.first_duration_ms),
             first_status_code = COALESCE(d.first_status_code, r.first_status_code),
             first_error = COALESCE(d.first_error, r.first_error),
             first_response = COALESCE(d.first_response, r.first_response),
             event_meta = CASE WHEN r.keeps_event THEN d.event_meta END,
             event_raw = CASE WHEN r.keeps_event THEN d.event_raw END,
             lane_blocks = r.lane_blocks, batch_id = r.batch_id
         FROM UNNEST($1::uuid[], $2::bigint[], $3::text[], $4::integer[], $5::bigint[],
             $6::integer[], $7::timestamptz[], $8::text[], $9::timestamptz[], $10::timestamptz[],
             $11::bigint[], $12::integer[], $13::text[], $14::text[], $15::boolean[], $16::boolean[],
             $17::uuid[])
             AS r (id, epoch, status, attempt_count, event_version, budget_base, next_attempt_at,
                 error, completed_at, first_started_at, first_duration_ms, first_status_code,
                 first_error, first_response, keeps_event, lane_blocks,
                 batch_id)
         WHERE (SELECT count(*) FROM locked) > 0
             AND d.id = r.id AND d.lease_epoch = r.epoch AND d.status = 'pending'
         RETURNING d.id",
    )
    .bind(records.iter().map(|r| r.lease.delivery_id.0).bind_iter())
    .bind(records.iter().map(|r| r.lease.epoch).bind_iter())
    .bind(deliveries().map(|d| d.status.as_str()).bind_iter())
    .bind(deliveries().map(|d| d.attempt_count).bind_iter())
    .bind(deliveries().map(|d| d.event_version).bind_iter())
    .bind(deliveries().map(|d| d.budget_base).bind_iter())
    .bind(deliveries().map(|d| d.next_attempt_at).bind_iter())
    .bind(deliveries().map(error_of).bind_iter())
    .bind(deliveries().map(|d| d.completed_at).bind_iter())
    .bind(attempts().map(|a| Some(a?.started_at)).bind_iter())
    .bind(attempts().map(|a| Some(a?.duration_ms)).bind_iter())
    .bind(
        attempts()
            .map(|a| a?.status_code.map(i32::from))
            .bind_iter(),
    )
    .bind(attempts().map(|a| clean_opt(a?.error.as_ref())).bind_iter())
    .bind(
        attempts()
            .map(|a| clean_opt(a?.response.as_ref()))
            .bind_iter(),
    )
    .bind(deliveries().map(|d| keeps_event(d.status)).bind_iter())
    .bind(deliveries().map(Delivery::blocks).bind_iter())
    .bind(deliveries().map(batch_of).bind_iter())
    .fetch_all(connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(held.into_iter().map(DeliveryId).collect())
}

fn error_of(delivery: &Delivery) -> Option<Cow<'_, str>> {
    clean_opt(delivery.error.as_ref())
}

/// Whether a delivery in this state may still need its event.
fn keeps_event(status: DeliveryStatus) -> bool {
    matches!(status, DeliveryStatus::Pending | DeliveryStatus::Exhausted)
}

/// The attempt, if it is the one that is kept in the row of the delivery.
fn number_one(attempt: Option<&Attempt>) -> Option<&Attempt> {
    attempt.filter(|attempt| attempt.number == 1)
}

async fn insert_attempts(
    connection: &mut PgConnection,
    attempts: &[(Uuid, &Attempt)],
) -> Result<(), StoreError> {
    if attempts.is_empty() {
        return Ok(());
    }
    let each = || attempts.iter().map(|(_, attempt)| *attempt);
    sqlx::query(
        "INSERT INTO attempts (delivery_id, number, started_at, duration_ms, status_code, error,
             response)
         SELECT * FROM UNNEST($1::uuid[], $2::integer[], $3::timestamptz[], $4::bigint[],
             $5::integer[], $6::text[], $7::text[])
         ON CONFLICT (delivery_id, number) DO NOTHING",
    )
    .bind(attempts.iter().map(|(id, _)| *id).bind_iter())
    .bind(each().map(|a| a.number).bind_iter())
    .bind(each().map(|a| a.started_at).bind_iter())
    .bind(each().map(|a| a.duration_ms).bind_iter())
    .bind(each().map(|a| a.status_code.map(i32::from)).bind_iter())
    .bind(each().map(|a| clean_opt(a.error.as_ref())).bind_iter())
    .bind(each().map(|a| clean_opt(a.response.as_ref())).bind_iter())
    .execute(connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(())
}
