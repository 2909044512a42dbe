//! Claims from the lanes of ordered deliveries.
//!
//! The index on the lanes begins with the webhook and has the front of each lane first. So a claim hops
//! from webhook to webhook in it, and in those that run and are not excluded from lane to lane, one probe
//! each, and takes from those whose front is due. Lanes beyond the limit get their turn with the next
//! claim, which begins where this one ended.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

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
    /// Whether its front is up to the floor.
    is_settled: bool,
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
    let (fronts, above): (Vec<Front>, Vec<Front>) =
        fronts.into_iter().partition(|front| front.is_settled);
    // The turn of some webhooks is nobody's turn among all.
    if let (Some(end), None) = (fronts.last(), &claim.only) {
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
    let lanes = if running.is_empty() {
        Vec::new()
    } else {
        let mut rows = if running.iter().any(|front| front.is_limited) {
            take_within_limits(connection, &running, claim).await?
        } else {
            take(
                connection,
                &running.iter().map(Front::free).collect::<Vec<_>>(),
                claim,
            )
            .await?
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

impl Front {
    /// As it is where its webhook has no rate limit.
    fn free(&self) -> (&Self, i64) {
        (self, i64::MAX)
    }
}

/// The lanes that may be taken from, each with the tokens of its webhook. Of a webhook with a rate limit so
/// many as it has tokens, those first that have waited longest.
fn within_limits<'f>(fronts: &'f [Front], buckets: &Buckets) -> Vec<(&'f Front, i64)> {
    let (mut limited, free): (Vec<&Front>, Vec<&Front>) =
        fronts.iter().partition(|front| front.is_limited);
    limited.sort_by_key(|front| front.lane_turn);
    let mut taken: HashMap<Uuid, u32> = HashMap::new();
    let limited = limited.into_iter().filter_map(|front| {
        // Those that are not there are in another worker's hands.
        let tokens = buckets.tokens(front.webhook_id)?;
        let taken = taken.entry(front.webhook_id).or_default();
        *taken += 1;
        (*taken <= tokens).then_some((front, i64::from(tokens)))
    });
    limited.chain(free.into_iter().map(Front::free)).collect()
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
    let rows = take(&mut tx, &within_limits(fronts, &buckets), claim).await?;
    for row in &rows {
        buckets.take(row.delivery.webhook_id());
    }
    rate_limits::spend(&mut tx, buckets).await?;
    tx.commit().await.map_err(during(OPERATION))?;
    Ok(rows)
}

/// The lanes whose front is due and up to the floor, of webhooks that run and those that are gone: those
/// after the last lane first. Where there is none, one whose front is beyond the floor, if there is one.
/// Each step is asked for as far as the limit needs it and no further.
const FRONTS: &str = "
WITH RECURSIVE behind AS (
    (SELECT d.webhook_id FROM deliveries d
     WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
         AND d.webhook_id >= $1 AND NOT $6
     ORDER BY d.webhook_id LIMIT 1)
    UNION ALL
    SELECT n.webhook_id FROM behind b CROSS JOIN LATERAL (
        SELECT d.webhook_id FROM deliveries d
        WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
            AND d.webhook_id > b.webhook_id
        ORDER BY d.webhook_id LIMIT 1) n
), ahead AS (
    (SELECT d.webhook_id FROM deliveries d
     WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
         AND d.webhook_id <= $1 AND NOT $6
     ORDER BY d.webhook_id LIMIT 1)
    UNION ALL
    SELECT n.webhook_id FROM ahead a CROSS JOIN LATERAL (
        SELECT d.webhook_id FROM deliveries d
        WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
            AND d.webhook_id > a.webhook_id AND d.webhook_id <= $1
        ORDER BY d.webhook_id LIMIT 1) n
), waiting AS (
    SELECT webhook_id, CASE WHEN webhook_id = $1 THEN $2 END AS after_key,
        NULL::text AS last_key FROM behind
    UNION ALL
    SELECT webhook_id, NULL, CASE WHEN webhook_id = $1 THEN $2 END FROM ahead
    UNION ALL
    SELECT webhook_id, NULL, NULL FROM UNNEST($7::uuid[]) AS asked (webhook_id)
), webhooks_found AS (
    SELECT w.*, (
        SELECT h.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
        FROM webhooks h JOIN integrations i ON i.id = h.integration_id
        WHERE h.id = w.webhook_id) AS runs, (
        SELECT r.ready_at <= $3 FROM rate_limits r
        WHERE r.webhook_id = w.webhook_id) AS has_token
    FROM waiting w WHERE w.webhook_id <> ALL($4::uuid[])
), fronts AS (
    SELECT w.webhook_id, w.runs, w.has_token, l.lane_key, l.lane_turn, l.is_settled
    FROM webhooks_found w CROSS JOIN LATERAL (
        WITH RECURSIVE lanes AS (
            (SELECT * FROM (
                (SELECT d.lane_key, d.lane_turn, d.status, d.due_at FROM deliveries d
                 WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                     AND d.webhook_id = w.webhook_id AND w.after_key IS NULL
                 ORDER BY d.lane_key, d.lane_turn LIMIT 1)
                UNION ALL
                (SELECT d.lane_key, d.lane_turn, d.status, d.due_at FROM deliveries d
                 WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                     AND d.webhook_id = w.webhook_id AND d.lane_key > w.after_key
                 ORDER BY d.lane_key, d.lane_turn LIMIT 1)) first)
            UNION ALL
            SELECT n.* FROM lanes c CROSS JOIN LATERAL (
                SELECT d.lane_key, d.lane_turn, d.status, d.due_at FROM deliveries d
                WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                    AND d.webhook_id = w.webhook_id AND d.lane_key > c.lane_key
                ORDER BY d.lane_key, d.lane_turn LIMIT 1) n
            WHERE w.last_key IS NULL OR c.lane_key < w.last_key
        ), due AS (
            SELECT lane_key, lane_turn, lane_turn <= $8 OR w.runs IS NULL AS is_settled
            FROM lanes
            WHERE status = 'pending' AND due_at <= $3
                AND (w.last_key IS NULL OR lane_key <= w.last_key)
        ), settled AS (
            SELECT * FROM due WHERE is_settled LIMIT CASE WHEN $6 THEN 1 END
        )
        SELECT * FROM settled
        UNION ALL
        (SELECT * FROM due WHERE NOT is_settled AND NOT EXISTS (SELECT FROM settled) LIMIT 1)
    ) l
    WHERE w.runs IS DISTINCT FROM false AND w.has_token IS DISTINCT FROM false
), claimed AS (
    SELECT * FROM fronts WHERE is_settled LIMIT $5
), found AS (
    SELECT * FROM claimed
    UNION ALL
    (SELECT * FROM fronts WHERE NOT is_settled AND NOT EXISTS (SELECT FROM claimed) LIMIT 1)
)
SELECT webhook_id, lane_key, lane_turn, runs, has_token IS NOT NULL AS is_limited, is_settled
FROM found";

/// The fronts of lanes to take from, or one beyond the floor.
async fn due_fronts(
    connection: &mut PgConnection,
    from: &(Uuid, String),
    claim: &LaneClaim,
) -> Result<Vec<Front>, StoreError> {
    sqlx::query_as(FRONTS)
        .bind(from.0)
        .bind(&from.1)
        .bind(claim.now)
        .bind(claim.exclude.iter().map(|id| id.0).bind_iter())
        .bind(i64::from(claim.lanes))
        .bind(claim.only.is_some())
        .bind(claim.only.iter().flatten().map(|id| id.0).bind_iter())
        .bind(claim.floor)
        .fetch_all(connection)
        .await
        .map_err(during(OPERATION))
}

/// Takes leases on what stands at the front of these lanes without a gap: up to the first that is not
/// due, is leased, or is being changed by somebody else.
async fn take(
    connection: &mut PgConnection,
    fronts: &[(&Front, i64)],
    claim: &LaneClaim,
) -> Result<Vec<ClaimRow>, StoreError> {
    if fronts.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as(concat!(
        "WITH offered AS MATERIALIZED (
             SELECT o.id, o.lane_turn, l.lane, l.webhook_id, l.tokens, o.bytes,
                 row_number() OVER (PARTITION BY l.lane ORDER BY o.lane_turn) AS place
             FROM UNNEST($1::uuid[], $2::text[], $8::bigint[]) WITH ORDINALITY
                 AS l (webhook_id, lane_key, tokens, lane)
             CROSS JOIN LATERAL (SELECT * FROM (
                 SELECT d.id, d.lane_turn, octet_length(d.event_raw) AS bytes FROM deliveries d
                 WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                     AND d.webhook_id = l.webhook_id AND d.lane_key = l.lane_key
                 ORDER BY d.lane_turn LIMIT $3
             ) i LIMIT l.tokens) o
         ), locked AS MATERIALIZED (
             SELECT d.id FROM deliveries d
             WHERE d.id = ANY (ARRAY (SELECT id FROM offered))
                 AND d.status = 'pending' AND d.due_at <= $4 AND d.lane_turn <= $5
             FOR UPDATE SKIP LOCKED
         ), ends AS (
             SELECT o.lane, min(o.place) AS place FROM offered o
             WHERE NOT EXISTS (SELECT FROM locked k WHERE k.id = o.id) GROUP BY o.lane
         ), free AS (
             SELECT o.*, row_number() OVER (
                 PARTITION BY o.webhook_id ORDER BY o.place, o.lane_turn) AS nth
             FROM offered o LEFT JOIN ends e ON e.lane = o.lane
             WHERE e.place IS NULL OR o.place < e.place
         ), taken AS (
             SELECT id, sum(bytes) OVER turns - bytes AS bytes_before
             FROM free WHERE nth <= tokens
             WINDOW turns AS (ORDER BY place, lane ROWS UNBOUNDED PRECEDING)
         )
         UPDATE deliveries d
         SET lease_epoch = d.lease_epoch + 1, due_at = GREATEST(d.next_attempt_at, $7)
         FROM taken t WHERE d.id = t.id AND COALESCE(t.bytes_before, 0) < $6
         RETURNING ",
        delivery_columns!(),
        ", d.lease_epoch, d.event_meta, d.event_raw"
    ))
    .bind(fronts.iter().map(|(front, _)| front.webhook_id).bind_iter())
    .bind(
        fronts
            .iter()
            .map(|(front, _)| front.lane_key.as_str())
            .bind_iter(),
    )
    .bind(i64::from(claim.per_lane))
    .bind(claim.now)
    .bind(claim.floor)
    .bind(MAX_BYTES)
    .bind(claim.lease_until)
    .bind(fronts.iter().map(|(_, tokens)| *tokens).bind_iter())
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
         CROSS JOIN LATERAL (
             SELECT d.due_at FROM deliveries d WHERE d.status = 'pending' AND d.lane_key IS NOT NULL
                 AND d.webhook_id = r.webhook_id AND d.due_at <= $1
             LIMIT 1) due
         WHERE r.ready_at > $1 AND r.webhook_id <> ALL($2::uuid[])
             AND (NOT $3 OR r.webhook_id = ANY($4::uuid[]))",
    )
    .bind(claim.now)
    .bind(claim.exclude.iter().map(|id| id.0).bind_iter())
    .bind(claim.only.is_some())
    .bind(claim.only.iter().flatten().map(|id| id.0).bind_iter())
    .fetch_one(connection)
    .await
    .map_err(during(OPERATION))
}
