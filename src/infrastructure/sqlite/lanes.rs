//! Claims from the lanes of ordered deliveries.
//!
//! What is taken of a lane is decided in a transaction of the writer, so that nothing changes between
//! deciding and taking.

use std::collections::{HashMap, HashSet};

use sqlx::SqliteConnection;
use uuid::Uuid;

use crate::{
    domain::interfaces::{ClaimedLanes, LaneClaim, StoreError},
    infrastructure::{buckets::Buckets, by_lane::by_lane},
};

use super::{SqliteStore, batch::hex_array, claim::MAX_BYTES, error::failed, rate_limits, rows};

const CLAIM: &str = "claim ordered deliveries";

/// Hops from webhook to webhook along the index on the lanes (`waiting`), or takes those that are asked for,
/// and in those that run and are not excluded (`runnable`) from lane to lane, which has its front first
/// (`lanes`). Keeps those whose front is due (`due`): those up to the floor first, and of these the
/// longest-due; one of each webhook where some are asked for.
pub(super) const FRONTS: &str = "
WITH RECURSIVE waiting (webhook_id) AS (
    SELECT unhex(value) FROM json_each(?4)
    UNION ALL
    SELECT min(d.webhook_id) FROM deliveries d INDEXED BY deliveries_lanes
    WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks) AND ?4 IS NULL
    UNION ALL
    SELECT (SELECT min(d.webhook_id) FROM deliveries d INDEXED BY deliveries_lanes
        WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
            AND d.webhook_id > w.webhook_id)
    FROM waiting w WHERE w.webhook_id IS NOT NULL AND ?4 IS NULL
), runnable (webhook_id) AS MATERIALIZED (
    SELECT e.id
    FROM waiting w
    CROSS JOIN webhooks e ON e.id = w.webhook_id
    CROSS JOIN integrations i ON i.id = e.integration_id
    WHERE e.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
        AND e.id NOT IN (SELECT unhex(value) FROM json_each(?2))
        AND NOT EXISTS (SELECT 1 FROM rate_limits l WHERE l.webhook_id = e.id AND l.ready_at > ?1)
), lanes (webhook_id, seq) AS (
    SELECT r.webhook_id, (SELECT d.seq FROM deliveries d INDEXED BY deliveries_lanes
        WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
            AND d.webhook_id = r.webhook_id
        ORDER BY d.lane_key, d.lane_turn LIMIT 1)
    FROM runnable r
    UNION ALL
    SELECT l.webhook_id, (SELECT n.seq FROM deliveries n INDEXED BY deliveries_lanes
        WHERE n.lane_key IS NOT NULL AND (n.status = 'pending' OR n.lane_blocks)
            AND n.webhook_id = l.webhook_id AND n.lane_key > c.lane_key
        ORDER BY n.lane_key, n.lane_turn LIMIT 1)
    FROM lanes l JOIN deliveries c ON c.seq = l.seq
), due (seq, webhook_id, lane_turn, due_at, nth) AS (
    SELECT d.seq, d.webhook_id, d.lane_turn, d.due_at, row_number() OVER (
        PARTITION BY d.webhook_id ORDER BY d.lane_turn > ?5, d.due_at, d.seq)
    FROM lanes l CROSS JOIN deliveries d ON d.seq = l.seq
    WHERE d.status = 'pending' AND d.due_at <= ?1
)
SELECT seq, webhook_id, lane_turn FROM due
WHERE ?4 IS NULL OR nth = 1
ORDER BY lane_turn > ?5, due_at, seq
LIMIT ?3";

/// Of each of these fronts, given by their `seq`, its lane up to the first that is not due or beyond the
/// floor; of all lanes of a webhook with a rate limit as many as it has tokens, which are given with each.
pub(super) const FOREMOST: &str = "
WITH offered (seq, webhook_id, turn, lane, tokens, place, free) AS MATERIALIZED (
    SELECT d.seq, d.webhook_id, d.lane_turn, f.seq, j.value ->> 1,
        row_number() OVER (PARTITION BY f.seq ORDER BY d.lane_turn),
        d.status = 'pending' AND d.due_at <= ?2 AND d.lane_turn <= ?3
    FROM json_each(?1) j
    CROSS JOIN deliveries f ON f.seq = j.value ->> 0
    CROSS JOIN deliveries d ON d.seq IN (SELECT o.seq FROM deliveries o INDEXED BY deliveries_lanes
        WHERE o.lane_key IS NOT NULL AND (o.status = 'pending' OR o.lane_blocks)
            AND o.webhook_id = f.webhook_id AND o.lane_key = f.lane_key
        ORDER BY o.lane_turn LIMIT ?4)
), ends (lane, place) AS MATERIALIZED (
    SELECT lane, min(place) FROM offered WHERE NOT free GROUP BY lane
), within (seq, lane, place, tokens, nth) AS MATERIALIZED (
    SELECT p.seq, p.lane, p.place, p.tokens,
        row_number() OVER (PARTITION BY p.webhook_id ORDER BY p.place, p.turn)
    FROM offered p
    LEFT JOIN ends e ON e.lane = p.lane
    WHERE e.place IS NULL OR p.place < e.place
), taken (seq, lane, place, bytes_before) AS MATERIALIZED (
    SELECT w.seq, w.lane, w.place,
        sum(coalesce(length(v.raw), 0)) OVER turns - coalesce(length(v.raw), 0)
    FROM within w
    LEFT JOIN delivery_events v ON v.delivery = w.seq
    WHERE w.tokens IS NULL OR w.nth <= w.tokens
    WINDOW turns AS (ORDER BY w.place, w.lane ROWS UNBOUNDED PRECEDING)
)
SELECT d.*, v.meta, v.raw, t.lane, t.place
FROM taken t CROSS JOIN deliveries d ON d.seq = t.seq
LEFT JOIN delivery_events v ON v.delivery = d.seq
WHERE t.bytes_before < ?5
ORDER BY t.lane, t.place";

pub(super) async fn claim_lanes(
    store: &SqliteStore,
    claim: &LaneClaim,
) -> Result<ClaimedLanes, StoreError> {
    if claim.lanes == 0 || claim.per_lane == 0 {
        return Ok(ClaimedLanes::default());
    }
    // A reader looks for fronts, so that looking holds up nobody who writes; the writer takes what is then
    // in front of these lanes.
    let mut reader = store.read(CLAIM).await?;
    let (within, above): (Vec<Front>, Vec<Front>) = fronts(&mut reader, claim)
        .await?
        .into_iter()
        .partition(|front| front.turn <= claim.floor);
    let next_token_at =
        rate_limits::next_token_at(&mut reader, claim.now, &claim.exclude, true).await?;
    drop(reader);
    if within.is_empty() {
        return Ok(ClaimedLanes {
            lanes: Vec::new(),
            above_floor: !above.is_empty(),
            next_token_at,
        });
    }
    let mut transaction = store.write(CLAIM).await?;
    let webhooks: HashSet<Uuid> = within.iter().map(|front| front.webhook).collect();
    let mut buckets = rate_limits::lock(&mut transaction, webhooks.into_iter(), claim.now).await?;
    let within = within_limits(within, &buckets);
    let taken = sqlx::query(FOREMOST)
        .bind(sqlx::types::Json(within))
        .bind(claim.now.timestamp_millis())
        .bind(claim.floor)
        .bind(claim.per_lane)
        .bind(MAX_BYTES)
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed(CLAIM))?;
    for row in &taken {
        buckets.take(rows::Cells::new(row, "deliveries").get("webhook_id")?);
    }
    rate_limits::spend(&mut transaction, buckets).await?;
    let ids: Vec<Uuid> = taken
        .iter()
        .map(|row| rows::Cells::new(row, "deliveries").get("id"))
        .collect::<Result<_, _>>()?;
    sqlx::query(
        "UPDATE deliveries SET lease_epoch = lease_epoch + 1, due_at = max(next_attempt_at, ?2)
        WHERE id IN (SELECT unhex(value) FROM json_each(?1))",
    )
    .bind(hex_array(ids.into_iter()))
    .bind(claim.lease_until.timestamp_millis())
    .execute(&mut *transaction)
    .await
    .map_err(failed(CLAIM))?;
    transaction.commit().await.map_err(failed(CLAIM))?;
    let taken = taken.iter().map(|row| {
        let lane: i64 = rows::Cells::new(row, "deliveries").get("lane")?;
        Ok((lane, rows::claimed(row)))
    });
    Ok(ClaimedLanes {
        lanes: by_lane(taken.collect::<Result<Vec<_>, StoreError>>()?)?,
        above_floor: false,
        next_token_at,
    })
}

/// The fronts to take from by their `seq`, each with the tokens of its webhook where that has a rate limit:
/// of such a webhook as many as it has tokens, those first that have waited longest.
fn within_limits(mut fronts: Vec<Front>, buckets: &Buckets) -> Vec<(i64, Option<u32>)> {
    fronts.sort_by_key(|front| front.turn);
    let mut taken: HashMap<Uuid, u32> = HashMap::new();
    let within = fronts.into_iter().filter_map(|front| {
        let tokens = buckets.tokens(front.webhook);
        let taken = taken.entry(front.webhook).or_default();
        *taken += 1;
        tokens
            .is_none_or(|tokens| *taken <= tokens)
            .then_some((front.seq, tokens))
    });
    within.collect()
}

/// The front of a lane.
struct Front {
    seq: i64,
    webhook: Uuid,
    turn: i64,
}

async fn fronts(
    connection: &mut SqliteConnection,
    claim: &LaneClaim,
) -> Result<Vec<Front>, StoreError> {
    let only = claim.only.as_ref();
    let only = only.map(|all| hex_array(all.iter().map(|id| id.0)));
    let rows = sqlx::query(FRONTS)
        .bind(claim.now.timestamp_millis())
        .bind(hex_array(claim.exclude.iter().map(|id| id.0)))
        .bind(claim.lanes)
        .bind(only)
        .bind(claim.floor)
        .fetch_all(connection)
        .await
        .map_err(failed(CLAIM))?;
    let fronts = rows.iter().map(|row| {
        let cells = rows::Cells::new(row, "deliveries");
        Ok(Front {
            seq: cells.get("seq")?,
            webhook: cells.get("webhook_id")?,
            turn: cells.present("lane_turn")?,
        })
    });
    fronts.collect()
}
