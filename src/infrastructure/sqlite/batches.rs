//! Claims of deliveries that go out together.
//!
//! All in one transaction of the writer, so that nothing changes between looking and taking.

use serde_json::json;
use sqlx::{SqliteConnection, sqlite::SqliteRow, types::Json};
use uuid::Uuid;

use crate::{
    domain::{
        entities::{BatchRule, Batching},
        interfaces::{BatchClaim, ClaimedBatches, ClaimedDelivery, StoreError},
        values::{BatchId, Timestamp, WebhookId},
    },
    infrastructure::by_batch::by_batch,
};

use super::{SqliteStore, batch::hex_array, claim::MAX_BYTES, error::failed, rate_limits, rows};

const CLAIM: &str = "claim batches";

/// Hops from webhook to webhook along the indexes on what waits (`hooks`), and keeps those that run and
/// have a batch that is due, or enough to make one of; the longest-due first.
pub(super) const WAITING: &str = "
WITH RECURSIVE hooks (id) AS (
    SELECT CASE WHEN ?4 IS NULL THEN (SELECT min(first) FROM (
        SELECT min(d.webhook_id) AS first FROM deliveries d
        WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
        UNION ALL
        SELECT min(d.webhook_id) FROM deliveries d
        WHERE d.status = 'pending' AND d.batch_id IS NOT NULL)) END
    UNION ALL
    SELECT (SELECT min(next) FROM (
        SELECT min(d.webhook_id) AS next FROM deliveries d
        WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL AND d.webhook_id > h.id
        UNION ALL
        SELECT min(d.webhook_id) FROM deliveries d
        WHERE d.status = 'pending' AND d.batch_id IS NOT NULL AND d.webhook_id > h.id))
    FROM hooks h WHERE h.id IS NOT NULL
), asked (id, made, new) AS MATERIALIZED (
    SELECT e.id,
        (SELECT min(d.due_at) FROM deliveries d
            WHERE d.status = 'pending' AND d.batch_id IS NOT NULL AND d.webhook_id = e.id),
        (SELECT min(d.due_at) FROM deliveries d
            WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL AND d.webhook_id = e.id)
    FROM (SELECT id FROM hooks UNION ALL SELECT unhex(value) FROM json_each(?4)) h
    CROSS JOIN webhooks e ON e.id = h.id
    CROSS JOIN integrations i ON i.id = e.integration_id
    WHERE e.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
        AND e.id NOT IN (SELECT unhex(value) FROM json_each(?2))
        AND NOT EXISTS (SELECT 1 FROM rate_limits l WHERE l.webhook_id = e.id AND l.ready_at > ?1)
)
SELECT a.id, a.made <= min(coalesce(a.new, ?1), ?1) AS made
FROM asked a LEFT JOIN batch_rules r ON r.webhook_id = a.id
WHERE a.made <= ?1 OR a.new <= ?1
    OR CASE WHEN ?8 THEN (SELECT count(*) >= coalesce(r.max_events, ?5) OR sum(bytes) >= coalesce(r.max_bytes, ?6)
        FROM (SELECT coalesce(length(v.raw), 0) AS bytes
            FROM deliveries d LEFT JOIN delivery_events v ON v.delivery = d.seq
            WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL AND d.webhook_id = a.id
            ORDER BY d.due_at LIMIT ?7)) END
ORDER BY coalesce(min(a.made, a.new), a.made, a.new), a.id
LIMIT ?3";

/// Of each of these webhooks, the batch that has been due for longest.
pub(super) const MADE: &str = "
WITH heads (batch) AS MATERIALIZED (
    SELECT (SELECT b.batch_id FROM deliveries b
        WHERE b.status = 'pending' AND b.batch_id IS NOT NULL AND b.webhook_id = unhex(j.value)
            AND b.due_at <= ?2
        ORDER BY b.due_at, b.batch_id LIMIT 1)
    FROM json_each(?1) j
), offered (seq, batch, bytes) AS MATERIALIZED (
    SELECT d.seq, h.batch, coalesce(length(v.raw), 0)
    FROM heads h
    CROSS JOIN deliveries d ON d.batch_id = h.batch AND d.status = 'pending' AND d.due_at <= ?2
    LEFT JOIN delivery_events v ON v.delivery = d.seq
), bytes (batch, before) AS MATERIALIZED (
    SELECT batch, sum(bytes) OVER (ORDER BY batch ROWS UNBOUNDED PRECEDING) - bytes
    FROM (SELECT batch, sum(bytes) AS bytes FROM offered GROUP BY batch)
)
SELECT d.*, v.meta, v.raw, t.batch AS taken_as
FROM bytes b
CROSS JOIN offered t ON t.batch = b.batch
CROSS JOIN deliveries d ON d.seq = t.seq
LEFT JOIN delivery_events v ON v.delivery = d.seq
WHERE b.before < ?3";

/// Of each of these webhooks, the oldest that wait, as many as their rule lets.
pub(super) const NEW: &str = "
WITH offered (seq, batch, place, bytes, max_events, max_bytes) AS MATERIALIZED (
    SELECT d.seq, unhex(j.value ->> 1), row_number() OVER turns,
        sum(coalesce(length(v.raw), 0)) OVER turns,
        coalesce(r.max_events, ?2), coalesce(r.max_bytes, ?3)
    FROM json_each(?1) j
    LEFT JOIN batch_rules r ON r.webhook_id = unhex(j.value ->> 0)
    CROSS JOIN deliveries d ON d.seq IN (SELECT o.seq FROM deliveries o
        WHERE o.status = 'pending' AND o.batched AND o.batch_id IS NULL
            AND o.webhook_id = unhex(j.value ->> 0)
        ORDER BY o.due_at, o.created_at, o.seq LIMIT ?4)
    LEFT JOIN delivery_events v ON v.delivery = d.seq
    WINDOW turns AS (PARTITION BY j.key ORDER BY d.due_at, d.created_at, d.seq
        ROWS UNBOUNDED PRECEDING)
)
SELECT d.*, v.meta, v.raw, t.batch AS taken_as
FROM offered t
CROSS JOIN deliveries d ON d.seq = t.seq
LEFT JOIN delivery_events v ON v.delivery = d.seq
WHERE t.place <= t.max_events AND (t.place = 1 OR t.bytes <= t.max_bytes)";

/// A webhook with a batch to take, and whether it was made before and has been due for as long as what waits.
type Candidate = (Uuid, bool);

pub(super) async fn claim_batches(
    store: &SqliteStore,
    claim: &BatchClaim,
) -> Result<ClaimedBatches, StoreError> {
    if claim.ids.is_empty() {
        return Ok(ClaimedBatches::default());
    }
    // A reader looks whether there is anything, so that looking holds up nobody who writes.
    let mut reader = store.read(CLAIM).await?;
    if candidates(&mut reader, claim).await?.is_empty() {
        return Ok(ClaimedBatches {
            batches: Vec::new(),
            next_token_at: next_token_at(&mut reader, claim).await?,
        });
    }
    drop(reader);
    let mut transaction = store.write(CLAIM).await?;
    let found = candidates(&mut transaction, claim).await?;
    let all = found.iter().map(|one| one.0);
    let mut buckets = rate_limits::lock(&mut transaction, all, claim.now).await?;
    // One batch of each.
    let found = found.into_iter().filter(|one| buckets.take(one.0));
    let (made, new): (Vec<Candidate>, Vec<Candidate>) = found.partition(|one| one.1);
    let mut taken = take_made(&mut transaction, &made, claim).await?;
    taken.extend(take_new(&mut transaction, &new, claim).await?);
    lease(&mut transaction, &taken, claim).await?;
    rate_limits::spend(&mut transaction, buckets).await?;
    transaction.commit().await.map_err(failed(CLAIM))?;
    Ok(ClaimedBatches {
        batches: by_batch(taken.iter().map(|row| claimed(row, claim)))?,
        next_token_at: None,
    })
}

/// When a webhook gets a token that has none and something to send together.
async fn next_token_at(
    connection: &mut SqliteConnection,
    claim: &BatchClaim,
) -> Result<Option<Timestamp>, StoreError> {
    let next: Option<i64> = sqlx::query_scalar(
        "SELECT min(r.ready_at) FROM rate_limits r
        WHERE r.ready_at > ?1 AND r.webhook_id NOT IN (SELECT unhex(value) FROM json_each(?2))
            AND (?3 IS NULL OR r.webhook_id IN (SELECT unhex(value) FROM json_each(?3)))
            AND (EXISTS (SELECT 1 FROM deliveries d
                    WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
                        AND d.webhook_id = r.webhook_id)
                OR EXISTS (SELECT 1 FROM deliveries d
                    WHERE d.status = 'pending' AND d.batch_id IS NOT NULL
                        AND d.webhook_id = r.webhook_id AND d.due_at <= ?1))",
    )
    .bind(claim.now.timestamp_millis())
    .bind(hex_array(claim.exclude.iter().map(|id| id.0)))
    .bind(only(claim))
    .fetch_one(connection)
    .await
    .map_err(failed("look for the next token"))?;
    Ok(next.and_then(rows::to_time))
}

fn only(claim: &BatchClaim) -> Option<String> {
    let only = claim.only.as_ref()?;
    Some(hex_array(only.iter().map(|id| id.0)))
}

async fn candidates(
    connection: &mut SqliteConnection,
    claim: &BatchClaim,
) -> Result<Vec<Candidate>, StoreError> {
    let default = BatchRule::default();
    let rows = sqlx::query(WAITING)
        .bind(claim.now.timestamp_millis())
        .bind(hex_array(claim.exclude.iter().map(|id| id.0)))
        .bind(i64::try_from(claim.ids.len()).unwrap_or(i64::MAX))
        .bind(only(claim))
        .bind(default.max_events)
        .bind(default.max_bytes)
        .bind(*BatchRule::EVENTS.end())
        .bind(claim.enough)
        .fetch_all(connection)
        .await
        .map_err(failed(CLAIM))?;
    let found = rows.iter().map(|row| {
        let cells = rows::Cells::new(row, "webhooks");
        let made: Option<bool> = cells.get("made")?;
        Ok((cells.get("id")?, made == Some(true)))
    });
    found.collect()
}

async fn take_made(
    connection: &mut SqliteConnection,
    webhooks: &[Candidate],
    claim: &BatchClaim,
) -> Result<Vec<SqliteRow>, StoreError> {
    sqlx::query(MADE)
        .bind(hex_array(webhooks.iter().map(|one| one.0)))
        .bind(claim.now.timestamp_millis())
        .bind(MAX_BYTES)
        .fetch_all(connection)
        .await
        .map_err(failed(CLAIM))
}

async fn take_new(
    connection: &mut SqliteConnection,
    webhooks: &[Candidate],
    claim: &BatchClaim,
) -> Result<Vec<SqliteRow>, StoreError> {
    let default = BatchRule::default();
    let pairs = webhooks.iter().zip(&claim.ids);
    let pairs = pairs.map(|((webhook, _), batch)| json!([webhook.simple(), batch.0.simple()]));
    sqlx::query(NEW)
        .bind(Json(pairs.collect::<Vec<_>>()))
        .bind(default.max_events)
        .bind(default.max_bytes)
        .bind(*BatchRule::EVENTS.end())
        .fetch_all(connection)
        .await
        .map_err(failed(CLAIM))
}

/// Leases what was taken, and writes down to which batch each belongs.
async fn lease(
    connection: &mut SqliteConnection,
    taken: &[SqliteRow],
    claim: &BatchClaim,
) -> Result<(), StoreError> {
    let places = taken.iter().map(|row| {
        let cells = rows::Cells::new(row, "deliveries");
        let (seq, batch): (i64, Uuid) = (cells.get("seq")?, cells.get("taken_as")?);
        Ok(json!([seq, batch.simple()]))
    });
    let places: Vec<_> = places.collect::<Result<_, StoreError>>()?;
    sqlx::query(
        "UPDATE deliveries SET lease_epoch = lease_epoch + 1, batch_id = unhex(v.value ->> 1),
            next_attempt_at = min(next_attempt_at, ?2), due_at = ?3
        FROM json_each(?1) v WHERE deliveries.seq = v.value ->> 0",
    )
    .bind(Json(places))
    .bind(claim.now.timestamp_millis())
    .bind(claim.lease_until.timestamp_millis())
    .execute(connection)
    .await
    .map_err(failed(CLAIM))?;
    Ok(())
}

/// The row was read before [`lease`] changed it.
fn claimed(row: &SqliteRow, claim: &BatchClaim) -> Result<ClaimedDelivery, StoreError> {
    let mut one = rows::claimed(row)?;
    let batch = rows::Cells::new(row, "deliveries").get("taken_as")?;
    one.delivery.batch = Batching::In(BatchId(batch));
    one.delivery.next_attempt_at = one.delivery.next_attempt_at.map(|at| at.min(claim.now));
    Ok(one)
}

/// Implements [`crate::domain::interfaces::UnitOfWork::put_batch_rule`].
pub(super) async fn put_rule(
    connection: &mut SqliteConnection,
    webhook: WebhookId,
    rule: Option<&BatchRule>,
) -> Result<(), StoreError> {
    const KEEP: &str = "keep the batch rule of a webhook";
    let Some(rule) = rule else {
        sqlx::query("DELETE FROM batch_rules WHERE webhook_id = ?1")
            .bind(webhook.0)
            .execute(connection)
            .await
            .map_err(failed(KEEP))?;
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO batch_rules (webhook_id, max_events, max_bytes) VALUES (?1, ?2, ?3)
        ON CONFLICT (webhook_id) DO UPDATE SET
            max_events = excluded.max_events, max_bytes = excluded.max_bytes",
    )
    .bind(webhook.0)
    .bind(rule.max_events)
    .bind(rule.max_bytes)
    .execute(connection)
    .await
    .map_err(failed(KEEP))?;
    Ok(())
}
