//! Claims from the lanes of ordered deliveries.
//!
//! What is taken of a lane is decided in a transaction of the writer, so that nothing changes between
//! deciding and taking.

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

/// Hops from webhook to webhook along the index on the lanes (`waiting`), or takes those that are asked for,
/// and in those that run and are not excluded (`runnable`) from lane to lane, which has its front first
/// (`lanes`). Keeps those whose front is due (`due`): those up to the floor first, and of these the
/// longest-due; one of each webhook where some are asked for.
pub(super) const FRONTS: &str = "
WITH RECURSIVE waiting (webhook_id) AS (
    SELECT unhex(value) FROM json_each(?4)
    UNION ALL
    SELECT min(d.webhook_id) FROM deliveries d
    WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks) AND ?4 IS NULL
    UNION ALL
    SELECT (SELECT min(d.webhook_id) FROM deliveries d
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
    SELECT r.webhook_id, (SELECT d.seq FROM deliveries d
        WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
            AND d.webhook_id = r.webhook_id
        ORDER BY d.lane_key, d.lane_turn LIMIT 1)
    FROM runnable r
    UNION ALL
    SELECT l.webhook_id, (SELECT n.seq FROM deliveries n
        WHERE n.lane_key IS NOT NULL AND (n.status = 'pending' OR n.lane_blocks)
            AND n.webhook_id = l.webhook_id AND n.lane_key > c.lane_key
        ORDER BY n.lane_key, n.lane_turn LIMIT 1)
    FROM lanes l JOIN deliveries c ON c.seq = l.seq
), due (seq, lane_turn, due_at, nth) AS (
    SELECT d.seq, d.lane_turn, d.due_at, row_number() OVER (
        PARTITION BY d.webhook_id ORDER BY d.lane_turn > ?5, d.due_at, d.seq)
    FROM lanes l CROSS JOIN deliveries d ON d.seq = l.seq
    WHERE d.status = 'pending' AND d.due_at <= ?1
)
SELECT seq, lane_turn FROM due
WHERE ?4 IS NULL OR nth = 1
ORDER BY lane_turn > ?5, due_at, seq
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
    SELECT p.seq, p.lane, p.place,
        sum(coalesce(length(v.raw), 0)) OVER turns - coalesce(length(v.raw), 0)
    FROM offered p
    LEFT JOIN ends e ON e.lane = p.lane
    LEFT JOIN delivery_events v ON v.delivery = p.seq
    WHERE e.place IS NULL OR p.place < e.place
    WINDOW turns AS (ORDER BY p.place, p.lane ROWS UNBOUNDED PRECEDING)
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
    let within: Vec<i64> = within.iter().map(|front| front.seq).collect();
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
        above_floor: false,
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
            turn: cells.present("lane_turn")?,
        })
    });
    fronts.collect()
}
