//! A page of a replay: its deliveries, the replay and its event in one transaction.

use sqlx::{
    Connection as _,
    postgres::{PgBindIterExt as _, PgConnection},
};
use uuid::Uuid;

use crate::domain::{
    events::DomainEvent,
    interfaces::{ClaimedReplay, FirstRecord, Lease, PageDone, ReplayPage, StoreError},
    values::{DeliveryId, Timestamp, WebhookId},
};

use super::{
    super::{error::during, outbox, record, text::clean},
    row::{lock, write},
};

pub(super) async fn record(
    connection: &mut PgConnection,
    claimed: &ClaimedReplay,
    page: &ReplayPage,
    now: Timestamp,
) -> Result<Option<PageDone>, StoreError> {
    const OPERATION: &str = "record a page of a replay";
    let mut tx = connection.begin().await.map_err(during(OPERATION))?;
    let mut replay = claimed.replay.clone();
    if !lock(&mut tx, claimed.lease, replay.version).await?
        || !is_there(&mut tx, replay.selection.webhook_id).await?
    {
        tx.rollback().await.map_err(during(OPERATION))?;
        return Ok(None);
    }
    let mut leases = reopen(&mut tx, page).await?;
    let mut first: Vec<&FirstRecord> = page.first.iter().collect();
    first.sort_by_key(|record| record.delivery.id);
    let new = if first.is_empty() {
        Vec::new()
    } else {
        record::insert(&mut tx, &first).await?
    };
    let told = first
        .iter()
        .filter(|record| new.contains(&record.delivery.id));
    let told: Vec<&DomainEvent> = told.flat_map(|record| &record.events).collect();
    outbox::insert(&mut tx, &told).await?;
    let done = count(leases.len() + new.len());
    let skipped = page.skipped + count(page.reopened.len() + first.len()) - done;
    match page.lease_until {
        Some(until) => leases.extend(lease_new(&mut tx, &new, until).await?),
        None => leases.clear(),
    }
    let event = replay.come_further(done, skipped, page.cursor, now);
    write(&mut tx, &replay).await?;
    outbox::insert(&mut tx, &event.iter().collect::<Vec<_>>()).await?;
    tx.commit().await.map_err(during(OPERATION))?;
    Ok(Some(PageDone { replay, leases }))
}

/// Nobody is to wait for a webhook that is gone; it stays until the page is recorded.
async fn is_there(connection: &mut PgConnection, webhook: WebhookId) -> Result<bool, StoreError> {
    let found = sqlx::query("SELECT 1 FROM webhooks WHERE id = $1 FOR KEY SHARE")
        .bind(webhook.0)
        .fetch_optional(connection)
        .await
        .map_err(during("look for the webhook of a replay"))?;
    Ok(found.is_some())
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// Makes recorded deliveries pending again, those that are still as they were read.
async fn reopen(
    connection: &mut PgConnection,
    page: &ReplayPage,
) -> Result<Vec<Lease>, StoreError> {
    if page.reopened.is_empty() {
        return Ok(Vec::new());
    }
    let rows = || page.reopened.iter();
    // Locked by id first, as batches of outcomes do it.
    let reopened: Vec<(Uuid, i64)> = sqlx::query_as(
        "WITH locked AS MATERIALIZED (
             SELECT l.id FROM deliveries l WHERE l.id = ANY($1::uuid[]) ORDER BY l.id FOR UPDATE
         )
         UPDATE deliveries d
         SET status = 'pending', budget_base = r.budget_base, next_attempt_at = r.next_attempt_at,
             due_at = GREATEST(r.next_attempt_at, $7::timestamptz), completed_at = NULL,
             lease_epoch = d.lease_epoch + 1, lane_blocks = false,
             event_meta = r.event_meta, event_raw = r.event_raw, batched = r.batched,
             batch_id = r.batch_id, lane_key = r.lane_key
         FROM UNNEST($1::uuid[], $2::bigint[], $3::integer[], $4::timestamptz[], $5::text[],
             $6::bytea[], $8::boolean[], $9::uuid[], $10::text[])
             AS r (id, epoch, budget_base, next_attempt_at, event_meta, event_raw, batched,
                 batch_id, lane_key)
         WHERE (SELECT count(*) FROM locked) > 0
             AND d.id = r.id AND d.lease_epoch = r.epoch AND d.status <> 'pending'
         RETURNING d.id, d.lease_epoch",
    )
    .bind(rows().map(|r| r.delivery.id.0).bind_iter())
    .bind(rows().map(|r| r.epoch).bind_iter())
    .bind(rows().map(|r| r.delivery.budget_base).bind_iter())
    .bind(rows().map(|r| r.delivery.next_attempt_at).bind_iter())
    .bind(rows().map(|r| clean(&r.event.meta)).bind_iter())
    .bind(rows().map(|r| r.event.raw.as_ref()).bind_iter())
    .bind(page.lease_until)
    .bind(rows().map(|r| r.delivery.batch.is_shared()).bind_iter())
    .bind(
        rows()
            .map(|r| r.delivery.batch.id().map(|id| id.0))
            .bind_iter(),
    )
    .bind(rows().map(|r| r.delivery.lane_key()).bind_iter())
    .fetch_all(connection)
    .await
    .map_err(during("reopen deliveries"))?;
    Ok(reopened.into_iter().map(lease).collect())
}

async fn lease_new(
    connection: &mut PgConnection,
    new: &[DeliveryId],
    until: Timestamp,
) -> Result<Vec<Lease>, StoreError> {
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let leased: Vec<(Uuid, i64)> = sqlx::query_as(
        "UPDATE deliveries d SET lease_epoch = d.lease_epoch + 1,
             due_at = GREATEST(d.next_attempt_at, $2)
         WHERE d.id = ANY($1::uuid[]) AND d.status = 'pending'
         RETURNING d.id, d.lease_epoch",
    )
    .bind(new.iter().map(|id| id.0).bind_iter())
    .bind(until)
    .fetch_all(connection)
    .await
    .map_err(during("lease deliveries"))?;
    Ok(leased.into_iter().map(lease).collect())
}

fn lease((id, epoch): (Uuid, i64)) -> Lease {
    Lease {
        delivery_id: DeliveryId(id),
        epoch,
    }
}
