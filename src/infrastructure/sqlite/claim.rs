//! Claiming what is due.
//!
//! A reader looks for candidates, so that looking holds nobody up; the writer then takes those that are
//! still as they were read. Every change of a row but a renewal raises its `lease_epoch`, and a renewal
//! moves `due_at`, so a row that has the epoch and is due is the row that was read.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use sqlx::{Row as _, sqlite::SqliteRow};
use uuid::Uuid;

use crate::{
    domain::{
        interfaces::{ClaimRequest, Claimed, ClaimedDelivery, StoreError},
        values::Timestamp,
    },
    infrastructure::buckets::Buckets,
};

use super::{
    SqliteStore, backlog,
    batch::{ManyRows, hex_array},
    error::failed,
    rate_limits, rows,
};

const CLAIM: &str = "claim due deliveries";
/// How often a claim that others were quicker at looks again.
const TRIES: u32 = 5;
/// How many bytes of events one claim may bring, beyond its first delivery.
pub(super) const MAX_BYTES: i64 = 64 << 20;

pub(super) async fn claim_due(
    store: &SqliteStore,
    request: &ClaimRequest,
) -> Result<Claimed, StoreError> {
    backlog::work_off(store).await?;
    rate_limits::follow_clock(store, request.now).await?;
    for _ in 0..TRIES {
        let (candidates, next_token_at) = candidates(store, request).await?;
        if candidates.is_empty() {
            return Ok(Claimed {
                deliveries: Vec::new(),
                next_token_at,
            });
        }
        let taken = take(store, request, &candidates).await?;
        if !taken.is_empty() {
            return Ok(Claimed {
                deliveries: understood(&candidates, &taken)?,
                next_token_at,
            });
        }
    }
    Ok(Claimed::default())
}

/// A row that cannot be understood must not hold up the others: it is leased as they are, comes back
/// when that lease ends, and is told of only when there is nothing else.
fn understood(
    candidates: &[SqliteRow],
    taken: &HashSet<Uuid>,
) -> Result<Vec<ClaimedDelivery>, StoreError> {
    let mut claimed = Vec::with_capacity(taken.len());
    let mut broken = None;
    for row in candidates {
        match rows::claimed(row) {
            Ok(delivery) if taken.contains(&delivery.lease.delivery_id.0) => claimed.push(delivery),
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "a due delivery cannot be attempted");
                broken = Some(error);
            }
        }
    }
    match broken {
        Some(error) if claimed.is_empty() => Err(error),
        _ => Ok(claimed),
    }
}

/// Jumps from webhook to webhook along the index (`waiting`), so that neither the rows of a webhook that
/// does not run nor a long queue cost anything; takes the webhooks whose oldest row is oldest
/// (`runnable`), and of each its oldest rows (`due`): first the first of each, then the second of each,
/// and so on. Of a webhook with a rate limit (`limited`) so many rows as it has tokens, so that the others
/// take no room.
pub(super) const CANDIDATES: &str = "
WITH RECURSIVE waiting (webhook_id) AS (
    SELECT min(webhook_id) FROM deliveries WHERE status = 'pending' AND lane_key IS NULL AND NOT batched
    UNION ALL
    SELECT (SELECT min(d.webhook_id) FROM deliveries d
        WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id > w.webhook_id)
    FROM waiting w WHERE w.webhook_id IS NOT NULL
), limited (webhook_id, tokens) AS MATERIALIZED (
    SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?7)
), runnable (webhook_id, tokens) AS MATERIALIZED (
    SELECT e.id, l.tokens
    FROM waiting w
    CROSS JOIN webhooks e ON e.id = w.webhook_id
    CROSS JOIN integrations i ON i.id = e.integration_id
    LEFT JOIN limited l ON l.webhook_id = e.id
    WHERE e.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
        AND e.id NOT IN (SELECT unhex(value) FROM json_each(?2))
        AND (?6 IS NULL OR e.id IN (SELECT unhex(value) FROM json_each(?6)))
        AND (l.tokens IS NOT NULL OR NOT EXISTS (
            SELECT 1 FROM rate_limits r WHERE r.webhook_id = e.id))
        AND (SELECT min(d.due_at) FROM deliveries d
            WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id = e.id) <= ?1
    ORDER BY (SELECT min(d.due_at) FROM deliveries d
            WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id = e.id)
    LIMIT ?3
), due (seq, turn, due_at) AS MATERIALIZED (
    SELECT t.seq, t.turn, t.due_at FROM (SELECT d.seq, d.due_at, r.tokens,
        row_number() OVER (PARTITION BY d.webhook_id ORDER BY d.due_at, d.seq) AS turn
    FROM runnable r
    CROSS JOIN deliveries d ON d.seq IN (SELECT o.seq FROM deliveries o
        WHERE o.status = 'pending' AND o.lane_key IS NULL AND NOT o.batched AND o.webhook_id = r.webhook_id
            AND o.due_at <= ?1
        ORDER BY o.due_at, o.next_attempt_at, o.seq LIMIT ?4)) t
    WHERE t.tokens IS NULL OR t.turn <= t.tokens
    ORDER BY 2, 3, 1
    LIMIT ?3
), taken (seq, place, bytes_before) AS MATERIALIZED (
    SELECT due.seq, row_number() OVER turns,
        sum(coalesce(length(e.raw), 0)) OVER turns - coalesce(length(e.raw), 0)
    FROM due LEFT JOIN delivery_events e ON e.delivery = due.seq
    WINDOW turns AS (ORDER BY due.turn, due.due_at, due.seq ROWS UNBOUNDED PRECEDING)
)
SELECT d.*, e.meta, e.raw
FROM taken CROSS JOIN deliveries d ON d.seq = taken.seq
LEFT JOIN delivery_events e ON e.delivery = d.seq
WHERE taken.bytes_before < ?5
ORDER BY taken.place";

async fn candidates(
    store: &SqliteStore,
    request: &ClaimRequest,
) -> Result<(Vec<SqliteRow>, Option<Timestamp>), StoreError> {
    let only = request.only.as_ref();
    let only = only.map(|all| hex_array(all.iter().map(|id| id.0)));
    let mut connection = store.read(CLAIM).await?;
    let limited = rate_limits::ready(&mut connection, request.now).await?;
    let found = sqlx::query(CANDIDATES)
        .bind(request.now.timestamp_millis())
        .bind(hex_array(request.exclude.iter().map(|id| id.0)))
        .bind(request.limit)
        .bind(request.per_webhook)
        .bind(MAX_BYTES)
        .bind(only)
        .bind(limited)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed(CLAIM))?;
    let next =
        rate_limits::next_token_at(&mut connection, request.now, &request.exclude, false).await?;
    Ok((found, next))
}

static TAKE: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        64,
        "WITH v (seq, id, epoch, now, until) AS (VALUES",
        5,
        ")
        UPDATE deliveries SET lease_epoch = lease_epoch + 1, due_at = max(next_attempt_at, v.until)
        FROM v
        WHERE deliveries.seq = v.seq AND deliveries.id = v.id AND deliveries.lease_epoch = v.epoch
            AND deliveries.status = 'pending' AND deliveries.due_at <= v.now
        RETURNING deliveries.id, deliveries.webhook_id",
    )
});

/// Of each webhook with a rate limit as many as it has tokens.
fn within_limits<'r>(
    candidates: &'r [SqliteRow],
    buckets: &Buckets,
    webhook: impl Fn(&SqliteRow) -> Uuid,
) -> Vec<&'r SqliteRow> {
    let mut wanted: HashMap<Uuid, u32> = HashMap::new();
    let mut within = Vec::with_capacity(candidates.len());
    for row in candidates {
        let webhook = webhook(row);
        if let Some(tokens) = buckets.tokens(webhook) {
            let wanted = wanted.entry(webhook).or_default();
            if *wanted == tokens {
                continue;
            }
            *wanted += 1;
        }
        within.push(row);
    }
    within
}

/// Answers the ids of those that it got.
async fn take(
    store: &SqliteStore,
    request: &ClaimRequest,
    candidates: &[SqliteRow],
) -> Result<HashSet<Uuid>, StoreError> {
    let mut taken = HashSet::with_capacity(candidates.len());
    let mut transaction = store.write(CLAIM).await?;
    let webhook = |row: &SqliteRow| row.try_get::<Uuid, _>("webhook_id").unwrap_or_default();
    let webhooks: HashSet<Uuid> = candidates.iter().map(webhook).collect();
    let mut buckets =
        rate_limits::lock(&mut transaction, webhooks.into_iter(), request.now).await?;
    let candidates = within_limits(candidates, &buckets, webhook);
    for (sql, piece) in TAKE.pieces(&candidates) {
        let mut query = sqlx::query(sql);
        for row in piece {
            let raw = |column| row.try_get::<Vec<u8>, _>(column).map_err(failed(CLAIM));
            let number = |column| row.try_get::<i64, _>(column).map_err(failed(CLAIM));
            query = query
                .bind(number("seq")?)
                .bind(raw("id")?)
                .bind(number("lease_epoch")?)
                .bind(request.now.timestamp_millis())
                .bind(request.lease_until.timestamp_millis());
        }
        let rows = query.fetch_all(&mut *transaction).await;
        for row in rows.map_err(failed(CLAIM))? {
            let id: Vec<u8> = row.try_get("id").map_err(failed(CLAIM))?;
            taken.insert(Uuid::from_slice(&id).unwrap_or_default());
            buckets.take(webhook(&row));
        }
    }
    rate_limits::spend(&mut transaction, buckets).await?;
    transaction.commit().await.map_err(failed(CLAIM))?;
    Ok(taken)
}
