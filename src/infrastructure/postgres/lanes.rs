//! Claims from the lanes of ordered deliveries.
//!
//! The index on the lanes has the front of each first, so a claim hops from lane to lane in it, one
//! probe each, and takes from those whose front is due. Lanes beyond the limit get their turn with the
//! next claim, which begins where this one ended.

use std::sync::{Mutex, PoisonError};

use sqlx::{
    Connection as _,
    postgres::{PgBindIterExt as _, PgConnection},
};
use uuid::Uuid;

use crate::{
    domain::{
        interfaces::{ClaimedLanes, LaneClaim, StoreError},
        values::Timestamp,
    },
    infrastructure::{buckets::Buckets, by_lane::by_lane},
};

use super::{
    claim::{ClaimRow, MAX_BYTES, cancel_orphans},
    error::during,
    pool::Pool,
    rate_limits,
    rows::delivery_columns,
};

const OPERATION: &str = "claim ordered deliveries";

/// The lane that the last claim ended with.
pub(super) type LastLane = Mutex<(Uuid, String)>;

/// A lane whose front is due.
#[derive(sqlx::FromRow)]
struct Front {
    webhook_id: Uuid,
    lane_key: String,
    lane_turn: i64,
    /// `None`: the webhook is gone.
    runs: Option<bool>,
    /// Whether it has a rate limit.
    is_limited: bool,
}

/// Implements [`crate::domain::interfaces::DeliveryStore::claim_lanes`].
pub(super) async fn claim_lanes(
    pool: &Pool,
    last: &LastLane,
    claim: &LaneClaim,
) -> Result<ClaimedLanes, StoreError> {
    if claim.lanes == 0 || claim.per_lane == 0 {
        return Ok(ClaimedLanes::default());
    }
    pool.bounded(OPERATION, async {
        let mut connection = pool.lend(OPERATION).await?;
        let claimed = claim_from(&mut connection, last, claim).await?;
        connection.give_back();
        Ok(claimed)
    })
    .await
}

async fn claim_from(
    connection: &mut PgConnection,
    last: &LastLane,
    claim: &LaneClaim,
) -> Result<ClaimedLanes, StoreError> {
    let from = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let fronts = due_fronts(connection, &from, claim).await?;
    // One webhook's turn is nobody's turn among all.
    if let (Some(end), None) = (fronts.last(), claim.only) {
        *last.lock().unwrap_or_else(PoisonError::into_inner) =
            (end.webhook_id, end.lane_key.clone());
    }
    let (running, gone): (Vec<Front>, Vec<Front>) =
        fronts.into_iter().partition(|front| front.runs.is_some());
    if !gone.is_empty() {
        cancel_orphans(
            connection,
            gone.iter().map(|front| front.webhook_id),
            claim.now,
        )
        .await?;
    }
    let (within, above): (Vec<Front>, Vec<Front>) = running
        .into_iter()
        .partition(|front| front.lane_turn <= claim.floor);
    let lanes = if within.is_empty() {
        Vec::new()
    } else {
        let mut rows = if within.iter().any(|front| front.is_limited) {
            take_within_limits(connection, &within, claim).await?
        } else {
            take(connection, &within, &Buckets::default(), claim).await?
        };
        rows.sort_by_key(|row| row.delivery.place());
        by_lane(rows.into_iter().map(|row| {
            let (webhook, key, _) = row.delivery.place();
            ((webhook, key), row.try_into())
        }))?
    };
    let next_token_at = if lanes.is_empty() {
        next_token_at(connection, claim).await?
    } else {
        None
    };
    Ok(ClaimedLanes {
        lanes,
        above_floor: !above.is_empty(),
        next_token_at,
    })
}

/// As [`take`], with a token for each row of a webhook that has a rate limit.
async fn take_within_limits(
    connection: &mut PgConnection,
    fronts: &[Front],
    claim: &LaneClaim,
) -> Result<Vec<ClaimRow>, StoreError> {
    let mut tx = connection.begin().await.map_err(during(OPERATION))?;
    let limited = fronts.iter().filter(|front| front.is_limited);
    let limited = limited.map(|front| front.webhook_id);
    let mut buckets = rate_limits::lock(&mut tx, limited, claim.now).await?;
    let rows = take(&mut tx, fronts, &buckets, claim).await?;
    for row in &rows {
        buckets.take(row.delivery.webhook_id());
    }
    rate_limits::spend(&mut tx, buckets).await?;
    tx.commit().await.map_err(during(OPERATION))?;
    Ok(rows)
}

/// The lanes whose front is due, of webhooks that run and those that are gone: those after `from` first.
async fn due_fronts(
    connection: &mut PgConnection,
    from: &(Uuid, String),
    claim: &LaneClaim,
) -> Result<Vec<Front>, StoreError> {
    sqlx::query_as(
        "WITH RECURSIVE behind AS (
             (SELECT d.webhook_id, d.lane_key, d.lane_turn, d.status, d.due_at FROM deliveries d
              WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                  AND (d.webhook_id, d.lane_key) > ($1, $2)
              ORDER BY d.webhook_id, d.lane_key, d.lane_turn LIMIT 1)
             UNION ALL
             SELECT n.* FROM behind b CROSS JOIN LATERAL (
                 SELECT d.webhook_id, d.lane_key, d.lane_turn, d.status, d.due_at FROM deliveries d
                 WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                     AND (d.webhook_id, d.lane_key) > (b.webhook_id, b.lane_key)
                 ORDER BY d.webhook_id, d.lane_key, d.lane_turn LIMIT 1) n
         ), ahead AS (
             (SELECT d.webhook_id, d.lane_key, d.lane_turn, d.status, d.due_at FROM deliveries d
              WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                  AND (d.webhook_id, d.lane_key) <= ($1, $2)
              ORDER BY d.webhook_id, d.lane_key, d.lane_turn LIMIT 1)
             UNION ALL
             SELECT n.* FROM ahead a CROSS JOIN LATERAL (
                 SELECT d.webhook_id, d.lane_key, d.lane_turn, d.status, d.due_at FROM deliveries d
                 WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                     AND (d.webhook_id, d.lane_key) > (a.webhook_id, a.lane_key)
                     AND (d.webhook_id, d.lane_key) <= ($1, $2)
                 ORDER BY d.webhook_id, d.lane_key, d.lane_turn LIMIT 1) n
         ), fronts AS (
             SELECT l.webhook_id, l.lane_key, l.lane_turn, (
                 SELECT w.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
                 FROM webhooks w JOIN integrations i ON i.id = w.integration_id
                 WHERE w.id = l.webhook_id) AS runs, (
                 SELECT r.ready_at <= $3 FROM rate_limits r
                 WHERE r.webhook_id = l.webhook_id) AS has_token
             FROM (SELECT * FROM behind UNION ALL SELECT * FROM ahead) l
             WHERE l.status = 'pending' AND l.due_at <= $3 AND l.webhook_id <> ALL($4::uuid[])
                 AND ($6::uuid IS NULL OR l.webhook_id = $6)
         )
         SELECT webhook_id, lane_key, lane_turn, runs, has_token IS NOT NULL AS is_limited FROM fronts
         WHERE runs IS DISTINCT FROM false AND has_token IS DISTINCT FROM false LIMIT $5",
    )
    .bind(from.0)
    .bind(&from.1)
    .bind(claim.now)
    .bind(claim.exclude.iter().map(|id| id.0).bind_iter())
    .bind(i64::from(claim.lanes))
    .bind(claim.only.map(|id| id.0))
    .fetch_all(connection)
    .await
    .map_err(during(OPERATION))
}

/// Takes leases on what stands at the front of these lanes without a gap: up to the first that is not
/// due, is leased, or is being changed by somebody else.
async fn take(
    connection: &mut PgConnection,
    fronts: &[Front],
    buckets: &Buckets,
    claim: &LaneClaim,
) -> Result<Vec<ClaimRow>, StoreError> {
    let tokens = |front: &Front| match buckets.tokens(front.webhook_id) {
        Some(tokens) => i64::from(tokens),
        // Its tokens are in another worker's hands.
        None if front.is_limited => 0,
        None => i64::MAX,
    };
    sqlx::query_as(concat!(
        "WITH offered AS MATERIALIZED (
             SELECT o.id, l.lane, l.webhook_id, l.tokens, o.bytes,
                 row_number() OVER (PARTITION BY l.lane ORDER BY o.lane_turn) AS place
             FROM UNNEST($1::uuid[], $2::text[], $8::bigint[]) WITH ORDINALITY
                 AS l (webhook_id, lane_key, tokens, lane)
             CROSS JOIN LATERAL (
                 SELECT d.id, d.lane_turn, octet_length(d.event_raw) AS bytes FROM deliveries d
                 WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                     AND d.webhook_id = l.webhook_id AND d.lane_key = l.lane_key
                 ORDER BY d.lane_turn LIMIT $3
             ) o
         ), locked AS MATERIALIZED (
             SELECT d.id FROM deliveries d
             WHERE d.id = ANY (ARRAY (SELECT id FROM offered))
                 AND d.status = 'pending' AND d.due_at <= $4 AND d.lane_turn <= $5
             FOR UPDATE SKIP LOCKED
         ), ends AS (
             SELECT o.lane, min(o.place) AS place FROM offered o
             WHERE NOT EXISTS (SELECT FROM locked k WHERE k.id = o.id) GROUP BY o.lane
         ), taken AS (
             SELECT o.id, o.tokens, sum(o.bytes) OVER turns - o.bytes AS bytes_before,
                 row_number() OVER (PARTITION BY o.webhook_id ORDER BY o.place, o.lane) AS nth
             FROM offered o LEFT JOIN ends e ON e.lane = o.lane
             WHERE e.place IS NULL OR o.place < e.place
             WINDOW turns AS (ORDER BY o.place, o.lane ROWS UNBOUNDED PRECEDING)
         )
         UPDATE deliveries d
         SET lease_epoch = d.lease_epoch + 1, due_at = GREATEST(d.next_attempt_at, $7)
         FROM taken t WHERE d.id = t.id AND COALESCE(t.bytes_before, 0) < $6 AND t.nth <= t.tokens
         RETURNING ",
        delivery_columns!(),
        ", d.lease_epoch, d.event_meta, d.event_raw"
    ))
    .bind(fronts.iter().map(|front| front.webhook_id).bind_iter())
    .bind(
        fronts
            .iter()
            .map(|front| front.lane_key.as_str())
            .bind_iter(),
    )
    .bind(i64::from(claim.per_lane))
    .bind(claim.now)
    .bind(claim.floor)
    .bind(MAX_BYTES)
    .bind(claim.lease_until)
    .bind(fronts.iter().map(tokens).bind_iter())
    .fetch_all(connection)
    .await
    .map_err(during(OPERATION))
}

/// When a webhook gets a token that has none and whose lanes are due.
async fn next_token_at(
    connection: &mut PgConnection,
    claim: &LaneClaim,
) -> Result<Option<Timestamp>, StoreError> {
    sqlx::query_scalar(
        "SELECT min(r.ready_at) FROM rate_limits r
         WHERE r.ready_at > $1 AND r.webhook_id <> ALL($2::uuid[])
             AND ($3::uuid IS NULL OR r.webhook_id = $3)
             AND EXISTS (SELECT FROM deliveries d WHERE d.status = 'pending'
                 AND d.lane_key IS NOT NULL AND d.webhook_id = r.webhook_id AND d.due_at <= $1)",
    )
    .bind(claim.now)
    .bind(claim.exclude.iter().map(|id| id.0).bind_iter())
    .bind(claim.only.map(|id| id.0))
    .fetch_one(connection)
    .await
    .map_err(during(OPERATION))
}
