//! Claims from the lanes of ordered deliveries.
//!
//! All in one transaction of the writer, so that nothing changes between looking and taking.

use std::collections::HashSet;

use sqlx::{SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use crate::{
    domain::{
        interfaces::{ClaimedLanes, LaneClaim, StoreError},
        values::Timestamp,
    },
    infrastructure::by_lane::by_lane,
};

use super::{SqliteStore, batch::hex_array, claim::MAX_BYTES, error::failed, rate_limits, rows};

const CLAIM: &str = "claim ordered deliveries";

/// Hops from lane to lane along the index, which has the front of each first (`lanes`), and keeps
/// those whose front is due (`fronts`), the longest-due first.
pub(super) const FRONTS: &str = "
WITH RECURSIVE lanes (seq) AS (
    SELECT (SELECT d.seq FROM deliveries d
        WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
        ORDER BY d.webhook_id, d.lane_key, d.lane_turn LIMIT 1)
    UNION ALL
    SELECT (SELECT n.seq FROM deliveries n
        WHERE n.lane_key IS NOT NULL AND (n.status = 'pending' OR n.lane_blocks)
            AND (n.webhook_id, n.lane_key) > (c.webhook_id, c.lane_key)
        ORDER BY n.webhook_id, n.lane_key, n.lane_turn LIMIT 1)
    FROM lanes l JOIN deliveries c ON c.seq = l.seq
)
SELECT d.seq, d.id, d.webhook_id, d.lane_key, d.lane_turn
FROM lanes l
CROSS JOIN deliveries d ON d.seq = l.seq
CROSS JOIN webhooks e ON e.id = d.webhook_id
CROSS JOIN integrations i ON i.id = e.integration_id
WHERE d.status = 'pending' AND d.due_at <= ?1
    AND e.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
    AND e.id NOT IN (SELECT unhex(value) FROM json_each(?2))
    AND (?4 IS NULL OR e.id = ?4)
    AND NOT EXISTS (SELECT 1 FROM rate_limits l WHERE l.webhook_id = e.id AND l.ready_at > ?1)
ORDER BY d.due_at, d.seq
LIMIT ?3";

/// Of each of these fronts, given by their `seq`, its lane up to the first that is not due or beyond the
/// floor.
pub(super) const FOREMOST: &str = "
WITH offered (seq, lane, place, free) AS MATERIALIZED (
    SELECT d.seq, f.seq,
        row_number() OVER (PARTITION BY f.seq ORDER BY d.lane_turn),
        d.status = 'pending' AND d.due_at <= ?2 AND d.lane_turn <= ?3
    FROM json_each(?1) j
    CROSS JOIN deliveries f ON f.seq = j.value
    CROSS JOIN deliveries d ON d.seq IN (SELECT o.seq FROM deliveries o
        WHERE o.lane_key IS NOT NULL AND (o.status = 'pending' OR o.lane_blocks)
            AND o.webhook_id = f.webhook_id AND o.lane_key = f.lane_key
        ORDER BY o.lane_turn LIMIT ?4)
), ends (lane, place) AS MATERIALIZED (
    SELECT lane, min(place) FROM offered WHERE NOT free GROUP BY lane
), taken (seq, lane, place, bytes_before) AS MATERIALIZED (
    SELECT o.seq, o.lane, o.place,
        sum(coalesce(length(v.raw), 0)) OVER turns - coalesce(length(v.raw), 0)
    FROM offered o
    LEFT JOIN ends e ON e.lane = o.lane
    LEFT JOIN delivery_events v ON v.delivery = o.seq
    WHERE e.place IS NULL OR o.place < e.place
    WINDOW turns AS (ORDER BY o.place, o.lane ROWS UNBOUNDED PRECEDING)
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
    // A reader looks whether there is anything, so that looking holds up nobody who writes.
    let mut reader = store.read(CLAIM).await?;
    let fronts = fronts(&mut reader, claim).await?;
    let next_token_at =
        rate_limits::next_token_at(&mut reader, claim.now, &claim.exclude, true).await?;
    drop(reader);
    let above_floor = fronts.iter().any(|front| front.turn > claim.floor);
    if !fronts.iter().any(|front| front.turn <= claim.floor) {
        return Ok(ClaimedLanes {
            lanes: Vec::new(),
            above_floor,
            next_token_at,
        });
    }
    let mut transaction = store.write(CLAIM).await?;
    let within = self::fronts(&mut transaction, claim).await?;
    let within: Vec<i64> = within
        .iter()
        .filter(|front| front.turn <= claim.floor)
        .map(|front| front.seq)
        .collect();
    let taken = sqlx::query(FOREMOST)
        .bind(sqlx::types::Json(within))
        .bind(claim.now.timestamp_millis())
        .bind(claim.floor)
        .bind(claim.per_lane)
        .bind(MAX_BYTES)
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed(CLAIM))?;
    let taken = within_limits(&mut transaction, taken, claim.now).await?;
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
        above_floor,
        next_token_at,
    })
}

/// Takes a token for each of these rows whose webhook has a rate limit, first for the front of each lane,
/// then for the second, and so on, and leaves out those for which there is none. The order stays.
async fn within_limits(
    connection: &mut SqliteConnection,
    rows: Vec<SqliteRow>,
    now: Timestamp,
) -> Result<Vec<SqliteRow>, StoreError> {
    let webhook = |row| rows::Cells::new(row, "deliveries").get::<Uuid>("webhook_id");
    let webhooks: HashSet<Uuid> = rows.iter().map(webhook).collect::<Result<_, _>>()?;
    let mut buckets = rate_limits::lock(connection, webhooks.into_iter(), now).await?;
    let mut turns = Vec::with_capacity(rows.len());
    for row in rows {
        let cells = rows::Cells::new(&row, "deliveries");
        let (lane, place): (i64, i64) = (cells.get("lane")?, cells.get("place")?);
        turns.push((place, lane, cells.get::<Uuid>("webhook_id")?, row));
    }
    turns.sort_by_key(|(place, lane, ..)| (*place, *lane));
    turns.retain(|(_, _, webhook, _)| buckets.take(*webhook));
    turns.sort_by_key(|(place, lane, ..)| (*lane, *place));
    rate_limits::spend(connection, buckets).await?;
    Ok(turns.into_iter().map(|(.., row)| row).collect())
}

/// The front of a lane.
struct Front {
    seq: i64,
    turn: i64,
}

async fn fronts(
    connection: &mut SqliteConnection,
    claim: &LaneClaim,
) -> Result<Vec<Front>, StoreError> {
    let rows = sqlx::query(FRONTS)
        .bind(claim.now.timestamp_millis())
        .bind(hex_array(claim.exclude.iter().map(|id| id.0)))
        .bind(claim.lanes)
        .bind(claim.only.map(|id| id.0))
        .fetch_all(connection)
        .await
        .map_err(failed(CLAIM))?;
    let fronts = rows.iter().map(|row| {
        let cells = rows::Cells::new(row, "deliveries");
        Ok(Front {
            seq: cells.get("seq")?,
            turn: cells.present("lane_turn")?,
        })
    });
    fronts.collect()
}
