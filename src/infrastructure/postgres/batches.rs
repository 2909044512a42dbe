//! Claims of deliveries that go out together.
//!
//! A claim hops from webhook to webhook in the indexes on what waits (one probe each), asks which of them
//! have a batch that is due or enough to make one of, and takes one batch of each. Where there are more
//! webhooks than batches to take, the next claim begins where this one ended.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use sqlx::{
    Connection as _,
    postgres::{PgBindIterExt as _, PgConnection},
};
use uuid::Uuid;

use crate::{
    domain::{
        entities::BatchRule,
        interfaces::{BatchClaim, ClaimedBatches, StoreError},
        values::{Timestamp, WebhookId},
    },
    infrastructure::by_batch::by_batch,
};

use super::{
    claim::{ClaimRow, MAX_BYTES, cancel_orphans},
    error::during,
    pool::Pool,
    rate_limits,
    rows::delivery_columns,
};

const OPERATION: &str = "claim batches";

/// A webhook with something to send together.
#[derive(sqlx::FromRow)]
struct Candidate {
    webhook_id: Uuid,
    /// Whether a batch that was made before is due, and has been for as long as what waits.
    made: bool,
    /// `None`: the webhook is gone.
    runs: Option<bool>,
    /// Whether it has a rate limit.
    is_limited: bool,
}

/// Implements [`crate::domain::interfaces::DeliveryStore::claim_batches`].
pub(super) async fn claim_batches(
    pool: &Pool,
    last: &Mutex<Uuid>,
    claim: &BatchClaim,
) -> Result<ClaimedBatches, StoreError> {
    if claim.ids.is_empty() {
        return Ok(ClaimedBatches::default());
    }
    pool.bounded(OPERATION, async {
        let mut connection = pool.lend(OPERATION).await?;
        let rows = claim_from(&mut connection, last, claim).await?;
        let next_token_at = if rows.is_empty() {
            next_token_at(&mut connection, claim).await?
        } else {
            None
        };
        connection.give_back();
        Ok(ClaimedBatches {
            batches: by_batch(rows.into_iter().map(TryInto::try_into))?,
            next_token_at,
        })
    })
    .await
}

async fn claim_from(
    connection: &mut PgConnection,
    last: &Mutex<Uuid>,
    claim: &BatchClaim,
) -> Result<Vec<ClaimRow>, StoreError> {
    let from = *last.lock().unwrap_or_else(PoisonError::into_inner);
    let found = candidates(connection, from, claim).await?;
    if let Some(end) = found.last().filter(|_| claim.only.is_none()) {
        *last.lock().unwrap_or_else(PoisonError::into_inner) = end.webhook_id;
    }
    let (running, gone): (Vec<Candidate>, Vec<Candidate>) =
        found.into_iter().partition(|one| one.runs.is_some());
    if !gone.is_empty() {
        cancel_orphans(connection, gone.iter().map(|one| one.webhook_id), claim.now).await?;
    }
    if running.iter().any(|one| one.is_limited) {
        take_within_limits(connection, running, claim).await
    } else {
        take(connection, running, claim).await
    }
}

/// As [`take`], with a token for each batch of a webhook that has a rate limit.
async fn take_within_limits(
    connection: &mut PgConnection,
    mut webhooks: Vec<Candidate>,
    claim: &BatchClaim,
) -> Result<Vec<ClaimRow>, StoreError> {
    let mut tx = connection.begin().await.map_err(during(OPERATION))?;
    let limited = webhooks.iter().filter(|one| one.is_limited);
    let limited = limited.map(|one| one.webhook_id);
    let mut buckets = rate_limits::lock(&mut tx, limited, claim.now).await?;
    // Those that are limited and not among these are in another worker's hands.
    webhooks.retain(|one| {
        let tokens = buckets.tokens(one.webhook_id);
        !one.is_limited || tokens.is_some_and(|tokens| tokens > 0)
    });
    let rows = take(&mut tx, webhooks, claim).await?;
    // One batch of each.
    let taken: BTreeSet<Uuid> = rows.iter().map(|row| row.delivery.webhook_id()).collect();
    for webhook in taken {
        buckets.take(webhook);
    }
    rate_limits::spend(&mut tx, buckets).await?;
    tx.commit().await.map_err(during(OPERATION))?;
    Ok(rows)
}

async fn take(
    connection: &mut PgConnection,
    webhooks: Vec<Candidate>,
    claim: &BatchClaim,
) -> Result<Vec<ClaimRow>, StoreError> {
    let (made, new): (Vec<Candidate>, Vec<Candidate>) =
        webhooks.into_iter().partition(|one| one.made);
    let mut rows = Vec::new();
    if !made.is_empty() {
        rows.extend(take_made(connection, &made, claim).await?);
    }
    if !new.is_empty() {
        rows.extend(take_new(connection, &new, claim).await?);
    }
    Ok(rows)
}

/// When a webhook gets a token that has none and something to send together.
async fn next_token_at(
    connection: &mut PgConnection,
    claim: &BatchClaim,
) -> Result<Option<Timestamp>, StoreError> {
    sqlx::query_scalar(
        "SELECT min(r.ready_at) FROM rate_limits r
         WHERE r.ready_at > $1 AND r.webhook_id <> ALL($2::uuid[])
             AND (NOT $3 OR r.webhook_id = ANY ($4::uuid[]))
             AND (EXISTS (SELECT FROM deliveries d
                     WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
                         AND d.webhook_id = r.webhook_id)
                 OR EXISTS (SELECT FROM deliveries d
                     WHERE d.status = 'pending' AND d.batch_id IS NOT NULL
                         AND d.webhook_id = r.webhook_id AND d.due_at <= $1))",
    )
    .bind(claim.now)
    .bind(claim.exclude.iter().map(|id| id.0).bind_iter())
    .bind(claim.only.is_some())
    .bind(claim.only.iter().flatten().map(|id| id.0).bind_iter())
    .fetch_one(connection)
    .await
    .map_err(during(OPERATION))
}

/// The webhooks with a batch to take that run and have a token, if they need one, and those that are gone: those after `from` first.
async fn candidates(
    connection: &mut PgConnection,
    from: Uuid,
    claim: &BatchClaim,
) -> Result<Vec<Candidate>, StoreError> {
    let default = BatchRule::default();
    // Whether there is enough for a batch is asked last, and only where nothing is due.
    sqlx::query_as(
        "WITH RECURSIVE hooks (id) AS (
             SELECT LEAST(
                 (SELECT d.webhook_id FROM deliveries d
                  WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
                  ORDER BY d.webhook_id LIMIT 1),
                 (SELECT d.webhook_id FROM deliveries d
                  WHERE d.status = 'pending' AND d.batch_id IS NOT NULL
                  ORDER BY d.webhook_id LIMIT 1))
             WHERE NOT $8
             UNION ALL
             SELECT LEAST(
                 (SELECT d.webhook_id FROM deliveries d
                  WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
                      AND d.webhook_id > h.id ORDER BY d.webhook_id LIMIT 1),
                 (SELECT d.webhook_id FROM deliveries d
                  WHERE d.status = 'pending' AND d.batch_id IS NOT NULL
                      AND d.webhook_id > h.id ORDER BY d.webhook_id LIMIT 1))
             FROM hooks h WHERE h.id IS NOT NULL
         ), offered AS (
             SELECT h.id, (
                     SELECT d.due_at FROM deliveries d
                     WHERE d.status = 'pending' AND d.batch_id IS NOT NULL AND d.webhook_id = h.id
                     ORDER BY d.due_at LIMIT 1) AS made_at, (
                     SELECT d.due_at FROM deliveries d
                     WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
                         AND d.webhook_id = h.id
                     ORDER BY d.due_at LIMIT 1) AS new_at, (
                     SELECT w.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
                     FROM webhooks w JOIN integrations i ON i.id = w.integration_id
                     WHERE w.id = h.id) AS runs, (
                     SELECT r.ready_at <= $2 FROM rate_limits r
                     WHERE r.webhook_id = h.id) AS has_token
             FROM (SELECT id FROM hooks UNION ALL SELECT id FROM UNNEST($4::uuid[]) AS named (id)) h
             WHERE h.id IS NOT NULL AND h.id <> ALL($3::uuid[])
         ), asked AS MATERIALIZED (
             SELECT o.id AS webhook_id, o.runs, o.has_token,
                 COALESCE(o.new_at <= $2, false) AS is_due,
                 COALESCE(o.made_at <= LEAST(o.new_at, $2), false) AS made
             FROM offered o ORDER BY o.id <= $1, o.id
         )
         SELECT a.webhook_id, a.made, a.runs, a.has_token IS NOT NULL AS is_limited FROM asked a
         WHERE a.runs IS NULL OR a.runs AND a.has_token IS DISTINCT FROM false AND (a.made OR a.is_due
             OR CASE WHEN $9 THEN (
                 SELECT o.events >= COALESCE(r.max_events, $6) OR o.bytes >= COALESCE(r.max_bytes, $7)
                 FROM (SELECT) one
                 LEFT JOIN batch_rules r ON r.webhook_id = a.webhook_id
                 CROSS JOIN LATERAL (
                     SELECT count(*) AS events, sum(w.bytes) AS bytes
                     FROM (SELECT octet_length(d.event_raw) AS bytes FROM deliveries d
                         WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
                             AND d.webhook_id = a.webhook_id
                         ORDER BY d.due_at LIMIT COALESCE(r.max_events, $6)) w) o) END)
         LIMIT $5",
    )
    .bind(from)
    .bind(claim.now)
    .bind(claim.exclude.iter().map(|id| id.0).bind_iter())
    .bind(claim.only.iter().flatten().map(|id| id.0).bind_iter())
    .bind(i64::try_from(claim.ids.len()).unwrap_or(i64::MAX))
    .bind(i64::from(default.max_events))
    .bind(i64::from(default.max_bytes))
    .bind(claim.only.is_some())
    .bind(claim.enough)
    .fetch_all(connection)
    .await
    .map_err(during(OPERATION))
}

/// Takes leases on the batch of each of these webhooks that has been due for longest, unless somebody
/// else is changing a part of it.
async fn take_made(
    connection: &mut PgConnection,
    webhooks: &[Candidate],
    claim: &BatchClaim,
) -> Result<Vec<ClaimRow>, StoreError> {
    sqlx::query_as(concat!(
        "WITH heads AS MATERIALIZED (
             SELECT b.batch_id FROM UNNEST($1::uuid[]) AS l (webhook_id)
             CROSS JOIN LATERAL (
                 SELECT d.batch_id FROM deliveries d
                 WHERE d.status = 'pending' AND d.batch_id IS NOT NULL
                     AND d.webhook_id = l.webhook_id AND d.due_at <= $2
                 ORDER BY d.due_at, d.batch_id LIMIT 1
             ) b
         ), offered AS MATERIALIZED (
             SELECT d.id, d.batch_id FROM heads h JOIN deliveries d ON d.batch_id = h.batch_id
             WHERE d.status = 'pending' AND d.batch_id IS NOT NULL AND d.due_at <= $2
         ), locked AS MATERIALIZED (
             SELECT d.id, COALESCE(octet_length(d.event_raw), 0) AS bytes FROM deliveries d
             WHERE d.id = ANY (ARRAY (SELECT id FROM offered))
                 AND d.status = 'pending' AND d.batch_id IS NOT NULL AND d.due_at <= $2
             FOR UPDATE SKIP LOCKED
         ), whole AS (
             SELECT o.batch_id, sum(k.bytes)::bigint AS bytes
             FROM offered o LEFT JOIN locked k ON k.id = o.id
             GROUP BY o.batch_id HAVING count(k.id) = count(*)
         ), taken AS (
             SELECT w.batch_id, (sum(w.bytes) OVER turns - w.bytes)::bigint AS bytes_before
             FROM whole w WINDOW turns AS (ORDER BY w.batch_id ROWS UNBOUNDED PRECEDING)
         )
         UPDATE deliveries d
         SET lease_epoch = d.lease_epoch + 1, due_at = GREATEST(d.next_attempt_at, $3)
         FROM taken t JOIN offered o ON o.batch_id = t.batch_id
         WHERE d.id = o.id AND t.bytes_before < $4
         RETURNING ",
        delivery_columns!(),
        ", d.lease_epoch, d.event_meta, d.event_raw"
    ))
    .bind(webhooks.iter().map(|one| one.webhook_id).bind_iter())
    .bind(claim.now)
    .bind(claim.lease_until)
    .bind(MAX_BYTES)
    .fetch_all(connection)
    .await
    .map_err(during(OPERATION))
}

/// Makes a batch of the oldest of each of these webhooks, and takes leases on it. Whether there is enough
/// is asked again of what it could lock: somebody else may have been quicker.
async fn take_new(
    connection: &mut PgConnection,
    webhooks: &[Candidate],
    claim: &BatchClaim,
) -> Result<Vec<ClaimRow>, StoreError> {
    let default = BatchRule::default();
    sqlx::query_as(concat!(
        "WITH rules AS MATERIALIZED (
             SELECT g.webhook_id, g.batch_id, COALESCE(r.max_events, $5) AS max_events,
                 COALESCE(r.max_bytes, $6) AS max_bytes
             FROM UNNEST($1::uuid[], $2::uuid[]) AS g (webhook_id, batch_id)
             LEFT JOIN batch_rules r ON r.webhook_id = g.webhook_id
         ), offered AS MATERIALIZED (
             SELECT o.id, o.due_at, l.batch_id, l.max_events, l.max_bytes,
                 row_number() OVER turns AS place, sum(o.bytes) OVER turns AS bytes
             FROM rules l
             CROSS JOIN LATERAL (
                 SELECT d.id, d.due_at, d.created_at,
                     COALESCE(octet_length(d.event_raw), 0) AS bytes
                 FROM deliveries d
                 WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
                     AND d.webhook_id = l.webhook_id
                 ORDER BY d.due_at, d.created_at LIMIT l.max_events
                 FOR UPDATE SKIP LOCKED
             ) o
             WINDOW turns AS (PARTITION BY l.batch_id ORDER BY o.due_at, o.created_at, o.id
                 ROWS UNBOUNDED PRECEDING)
         ), ready AS (
             SELECT batch_id FROM offered GROUP BY batch_id
             HAVING min(due_at) <= $3 OR count(*) >= min(max_events)
                 OR max(bytes) >= min(max_bytes)
         ), taken AS (
             SELECT o.id, o.batch_id FROM offered o JOIN ready r ON r.batch_id = o.batch_id
             WHERE o.place = 1 OR o.bytes <= o.max_bytes
         )
         UPDATE deliveries d
         SET lease_epoch = d.lease_epoch + 1, batch_id = t.batch_id,
             next_attempt_at = LEAST(d.next_attempt_at, $3), due_at = $4
         FROM taken t WHERE d.id = t.id
         RETURNING ",
        delivery_columns!(),
        ", d.lease_epoch, d.event_meta, d.event_raw"
    ))
    .bind(webhooks.iter().map(|one| one.webhook_id).bind_iter())
    .bind(
        claim
            .ids
            .iter()
            .take(webhooks.len())
            .map(|id| id.0)
            .bind_iter(),
    )
    .bind(claim.now)
    .bind(claim.lease_until)
    .bind(i64::from(default.max_events))
    .bind(i64::from(default.max_bytes))
    .fetch_all(connection)
    .await
    .map_err(during(OPERATION))
}

/// Implements [`crate::domain::interfaces::UnitOfWork::put_batch_rule`].
pub(super) async fn put_rule(
    connection: &mut PgConnection,
    webhook: WebhookId,
    rule: Option<&BatchRule>,
) -> Result<(), StoreError> {
    const OPERATION: &str = "keep the batch rule of a webhook";
    let Some(rule) = rule else {
        sqlx::query("DELETE FROM batch_rules WHERE webhook_id = $1")
            .bind(webhook.0)
            .execute(connection)
            .await
            .map_err(during(OPERATION))?;
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO batch_rules (webhook_id, max_events, max_bytes) VALUES ($1, $2, $3)
         ON CONFLICT (webhook_id) DO UPDATE
         SET max_events = excluded.max_events, max_bytes = excluded.max_bytes",
    )
    .bind(webhook.0)
    .bind(i32::try_from(rule.max_events).unwrap_or(i32::MAX))
    .bind(i32::try_from(rule.max_bytes).unwrap_or(i32::MAX))
    .execute(connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(())
}
