//! Claims due deliveries, fairly over the webhooks.
//!
//! The backlog of one webhook must not be in the way of the others, however long it is and whether it
//! may be worked on or not. So the index on what is pending begins with the webhook, and a claim hops
//! from webhook to webhook in it (one probe each), asks which of them run, and then takes the oldest
//! rows of each, a share per webhook. Where there are more webhooks than rows to take, the next claim
//! begins where this one ended.

use std::sync::{Mutex, PoisonError};

use sqlx::{
    Connection as _,
    postgres::{PgBindIterExt as _, PgConnection},
};
use uuid::Uuid;

use crate::{
    domain::{
        entities::Delivery,
        interfaces::{ClaimRequest, Claimed, ClaimedDelivery, Lease, StoreError},
        values::Timestamp,
    },
    shared::error_chain::Chain,
};

use super::{
    error::during,
    pool::Pool,
    rate_limits,
    rows::{DeliveryRow, EventRow, delivery_columns},
};

const OPERATION: &str = "claim due deliveries";

/// How many deliveries of deleted webhooks one claim cancels at most.
const ORPHANS: i64 = 1_000;

/// How many bytes of events one claim may bring, beyond its first delivery.
pub(super) const MAX_BYTES: i64 = 64 << 20;

#[derive(sqlx::FromRow)]
pub(super) struct ClaimRow {
    #[sqlx(flatten)]
    pub(super) delivery: DeliveryRow,
    #[sqlx(flatten)]
    event: EventRow,
    lease_epoch: i64,
}

impl TryFrom<ClaimRow> for ClaimedDelivery {
    type Error = StoreError;

    fn try_from(row: ClaimRow) -> Result<Self, StoreError> {
        let delivery = Delivery::try_from(row.delivery)?;
        Ok(Self {
            lease: Lease {
                delivery_id: delivery.id,
                epoch: row.lease_epoch,
            },
            event: row.event.read(delivery.id)?,
            delivery,
        })
    }
}

/// A webhook with due deliveries, or, without one, when the next token comes.
#[derive(sqlx::FromRow)]
struct Found {
    webhook_id: Option<Uuid>,
    runs: Option<bool>,
    is_limited: bool,
    next_token_at: Option<Timestamp>,
}

/// A webhook with due deliveries.
struct Lane {
    webhook_id: Uuid,
    /// `None`: the webhook is gone.
    runs: Option<bool>,
    /// Whether it has a rate limit.
    is_limited: bool,
}

impl Found {
    fn lane(self) -> Option<Lane> {
        Some(Lane {
            webhook_id: self.webhook_id?,
            runs: self.runs,
            is_limited: self.is_limited,
        })
    }
}

/// Implements [`crate::domain::interfaces::DeliveryStore::claim_due`].
pub(super) async fn claim_due(
    pool: &Pool,
    claimed_up_to: &Mutex<Uuid>,
    request: &ClaimRequest,
) -> Result<Claimed, StoreError> {
    if request.limit == 0 || request.per_webhook == 0 {
        return Ok(Claimed::default());
    }
    let (mut connection, mut begun) = pool
        .bounded(OPERATION, async {
            let mut connection = pool.lend(OPERATION).await?;
            let begun = begin(&mut connection, claimed_up_to, request).await?;
            Ok((connection, begun))
        })
        .await?;
    let free = take(&mut connection, &begun.free, begun.room, request);
    match pool.bounded(OPERATION, free).await {
        Ok(rows) => {
            connection.give_back();
            begun.rows.extend(rows);
        }
        // Those have their leases and have paid for them.
        Err(error) if !begun.rows.is_empty() => {
            tracing::error!(error = %Chain(&error), "a part of what is due could not be claimed");
        }
        Err(error) => return Err(error),
    }
    Ok(Claimed {
        deliveries: read(begun.rows)?,
        next_token_at: begun.next_token_at,
    })
}

/// A claim that has taken what needs tokens.
struct Begun {
    rows: Vec<ClaimRow>,
    next_token_at: Option<Timestamp>,
    /// The webhooks that need none, each with how many rows it may offer.
    free: Vec<(Uuid, i64)>,
    /// What is left for them.
    room: Room,
}

async fn begin(
    connection: &mut PgConnection,
    claimed_up_to: &Mutex<Uuid>,
    request: &ClaimRequest,
) -> Result<Begun, StoreError> {
    let from = *claimed_up_to.lock().unwrap_or_else(PoisonError::into_inner);
    let found = due_lanes(connection, from, request).await?;
    let next_token_at = found.iter().find_map(|found| found.next_token_at);
    let lanes = found.into_iter().filter_map(Found::lane);
    let lanes: Vec<Lane> = lanes.collect();
    if let Some(last) = lanes.last().filter(|_| request.only.is_none()) {
        *claimed_up_to.lock().unwrap_or_else(PoisonError::into_inner) = last.webhook_id;
    }
    let (running, orphaned): (Vec<Lane>, Vec<Lane>) =
        lanes.into_iter().partition(|lane| lane.runs.is_some());
    if !orphaned.is_empty() {
        let gone = orphaned.iter().map(|lane| lane.webhook_id);
        cancel_orphans(connection, gone, request.now).await?;
    }
    let all = running.len();
    let share = 2 * i64::from(request.limit) / i64::try_from(all).unwrap_or(1).max(1) + 1;
    // No webhook needs to offer more than its share and some, in case that others have less.
    let each = share.min(i64::from(request.per_webhook));
    let (limited, free): (Vec<Lane>, Vec<Lane>) =
        running.into_iter().partition(|lane| lane.is_limited);
    let mut room = Room {
        rows: i64::from(request.limit),
        bytes: MAX_BYTES,
    };
    let mut rows = Vec::new();
    if !limited.is_empty() {
        let part = room.part(limited.len(), all);
        rows = take_within_limits(connection, &limited, each, (part, request)).await?;
        room.use_up(&rows);
    }
    let free = free.iter().map(|lane| (lane.webhook_id, each)).collect();
    Ok(Begun {
        rows,
        next_token_at,
        free,
        room,
    })
}

/// What a claim may take.
#[derive(Clone, Copy)]
struct Room {
    rows: i64,
    /// One row more is taken as long as there are any.
    bytes: i64,
}

impl Room {
    /// What `some` of `all` webhooks may take of it, so that the others get theirs too.
    fn part(self, some: usize, all: usize) -> Self {
        let all = i64::try_from(all).unwrap_or(i64::MAX).max(1);
        let some = i64::try_from(some).unwrap_or(i64::MAX).min(all);
        let part = |whole: i64| (whole.saturating_mul(some) + all - 1) / all;
        Self {
            rows: part(self.rows),
            bytes: part(self.bytes),
        }
    }

    fn use_up(&mut self, rows: &[ClaimRow]) {
        self.rows -= i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let bytes: usize = rows.iter().map(|row| row.event.size()).sum();
        self.bytes -= i64::try_from(bytes).unwrap_or(i64::MAX);
    }
}

/// Of each webhook `each` at most, and no more than it has tokens. One that is locked has its tokens in
/// another worker's hands.
async fn take_within_limits(
    connection: &mut PgConnection,
    lanes: &[Lane],
    each: i64,
    (room, request): (Room, &ClaimRequest),
) -> Result<Vec<ClaimRow>, StoreError> {
    let mut tx = connection.begin().await.map_err(during(OPERATION))?;
    let webhooks = lanes.iter().map(|lane| lane.webhook_id);
    let mut buckets = rate_limits::lock(&mut tx, webhooks.clone(), request.now).await?;
    let offers = webhooks.filter_map(|webhook| {
        let tokens = i64::from(buckets.tokens(webhook)?);
        (tokens > 0).then_some((webhook, tokens.min(each)))
    });
    let offers: Vec<(Uuid, i64)> = offers.collect();
    let rows = take(&mut tx, &offers, room, request).await?;
    for row in &rows {
        buckets.take(row.delivery.webhook_id());
    }
    rate_limits::spend(&mut tx, buckets).await?;
    tx.commit().await.map_err(during(OPERATION))?;
    Ok(rows)
}

/// The webhooks with due deliveries that run and have a token, if they need one, and those that are gone:
/// those after `from` first, at most `limit`. Then, when the next token comes that something waits for.
async fn due_lanes(
    connection: &mut PgConnection,
    from: Uuid,
    request: &ClaimRequest,
) -> Result<Vec<Found>, StoreError> {
    // The answer of `runs` stands in a subquery, so that it is asked for one lane after the other, and
    // for none beyond the limit.
    sqlx::query_as(
        "WITH RECURSIVE behind AS (
             (SELECT d.webhook_id, d.due_at FROM deliveries d
              WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id > $1
              ORDER BY d.webhook_id, d.due_at LIMIT 1)
             UNION ALL
             SELECT n.webhook_id, n.due_at FROM behind b CROSS JOIN LATERAL (
                 SELECT d.webhook_id, d.due_at FROM deliveries d
                 WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched
                     AND d.webhook_id > b.webhook_id
                 ORDER BY d.webhook_id, d.due_at LIMIT 1) n
         ), ahead AS (
             (SELECT d.webhook_id, d.due_at FROM deliveries d
              WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id <= $1
              ORDER BY d.webhook_id, d.due_at LIMIT 1)
             UNION ALL
             SELECT n.webhook_id, n.due_at FROM ahead a CROSS JOIN LATERAL (
                 SELECT d.webhook_id, d.due_at FROM deliveries d
                 WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id > a.webhook_id
                     AND d.webhook_id <= $1
                 ORDER BY d.webhook_id, d.due_at LIMIT 1) n
         ), lanes AS (
             SELECT l.webhook_id, (
                 SELECT w.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
                 FROM webhooks w JOIN integrations i ON i.id = w.integration_id
                 WHERE w.id = l.webhook_id) AS runs, (
                 SELECT r.ready_at <= $2 FROM rate_limits r
                 WHERE r.webhook_id = l.webhook_id) AS has_token
             FROM (SELECT * FROM behind UNION ALL SELECT * FROM ahead) l
             WHERE l.due_at <= $2 AND l.webhook_id <> ALL($3::uuid[])
                 AND (NOT $5 OR l.webhook_id = ANY($6::uuid[]))
         )
         (SELECT g.id AS webhook_id, NULL::boolean AS runs, false AS is_limited,
              NULL::timestamptz AS next_token_at FROM deleted_webhooks g LIMIT 1)
         UNION ALL
         (SELECT webhook_id, runs, has_token IS NOT NULL, NULL FROM lanes
          WHERE runs IS DISTINCT FROM false AND has_token IS DISTINCT FROM false LIMIT $4)
         UNION ALL
         (SELECT NULL, NULL, true, min(r.ready_at) FROM rate_limits r
          CROSS JOIN LATERAL (
              SELECT d.due_at FROM deliveries d WHERE d.status = 'pending' AND d.lane_key IS NULL
                  AND NOT d.batched AND d.webhook_id = r.webhook_id AND d.due_at <= $2
              ORDER BY d.due_at LIMIT 1) due
          WHERE r.ready_at > $2 AND r.webhook_id <> ALL($3::uuid[])
              AND (NOT $5 OR r.webhook_id = ANY($6::uuid[])))",
    )
    .bind(from)
    .bind(request.now)
    .bind(request.exclude.iter().map(|id| id.0).bind_iter())
    .bind(i64::from(request.limit))
    .bind(request.only.is_some())
    .bind(request.only.iter().flatten().map(|id| id.0).bind_iter())
    .fetch_all(connection)
    .await
    .map_err(during(OPERATION))
}

/// Takes leases on the oldest due rows of these webhooks, in turns; of each so many.
async fn take(
    connection: &mut PgConnection,
    offers: &[(Uuid, i64)],
    room: Room,
    request: &ClaimRequest,
) -> Result<Vec<ClaimRow>, StoreError> {
    // A number for all of them, so that the planner knows what to expect; no more than a webhook offers
    // is read and locked.
    let most = offers.iter().map(|(_, offered)| *offered).max();
    let Some(most) = most.filter(|_| room.rows > 0 && room.bytes > 0) else {
        return Ok(Vec::new());
    };
    // Of rows that are due at the same time, those are taken that come first in the index (it falls back
    // on `ctid`). Otherwise some would be passed by again and again, and keep dead entries around them
    // alive that every later claim has to read.
    sqlx::query_as(concat!(
        "WITH offered AS MATERIALIZED (
             SELECT o.id, o.due_at, o.bytes,
                 row_number() OVER (
                     PARTITION BY l.webhook_id ORDER BY o.due_at, o.created_at, o.place) AS turn
             FROM UNNEST($1::uuid[], $7::bigint[]) AS l (webhook_id, offered)
             CROSS JOIN LATERAL (SELECT * FROM (
                 SELECT d.id, d.ctid AS place, d.due_at, d.created_at,
                     octet_length(d.event_raw) AS bytes
                 FROM deliveries d
                 WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id = l.webhook_id
                     AND d.due_at <= $2
                 ORDER BY d.due_at, d.created_at LIMIT $3
                 FOR UPDATE SKIP LOCKED
             ) i LIMIT l.offered) o
         ), taken AS (
             SELECT t.id FROM (
                 SELECT id, sum(bytes) OVER turns - bytes AS bytes_before,
                     row_number() OVER turns AS place
                 FROM offered
                 WINDOW turns AS (ORDER BY turn, due_at, id ROWS UNBOUNDED PRECEDING)
             ) t
             WHERE t.place <= $4 AND COALESCE(t.bytes_before, 0) < $5
         )
         UPDATE deliveries d
         SET lease_epoch = d.lease_epoch + 1, due_at = GREATEST(d.next_attempt_at, $6)
         FROM taken WHERE d.id = taken.id
         RETURNING ",
        delivery_columns!(),
        ", d.lease_epoch, d.event_meta, d.event_raw"
    ))
    .bind(offers.iter().map(|(webhook, _)| *webhook).bind_iter())
    .bind(request.now)
    .bind(most)
    .bind(room.rows)
    .bind(room.bytes)
    .bind(request.lease_until)
    .bind(offers.iter().map(|(_, offered)| *offered).bind_iter())
    .fetch_all(connection)
    .await
    .map_err(during(OPERATION))
}

/// Cancels a batch of what still waits for webhooks that are gone: because it was too much to be cancelled
/// with them, or was parked just then and not seen.
pub(super) async fn cancel_orphans(
    connection: &mut PgConnection,
    webhooks: impl Iterator<Item = Uuid> + Clone,
    now: Timestamp,
) -> Result<(), StoreError> {
    const OPERATION: &str = "cancel deliveries of deleted webhooks";
    sqlx::query(
        "WITH orphaned AS MATERIALIZED (
             SELECT l.id FROM deliveries l
             WHERE l.id = ANY (ARRAY (
                     (SELECT d.id FROM deliveries d WHERE d.status = 'pending'
                          AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id = ANY($1::uuid[]) LIMIT $3)
                     UNION ALL
                     (SELECT d.id FROM deliveries d WHERE d.status = 'pending'
                          AND d.lane_key IS NOT NULL AND d.webhook_id = ANY($1::uuid[]) LIMIT $3)
                     UNION ALL
                     (SELECT d.id FROM deliveries d WHERE d.status = 'pending' AND d.batched
                          AND d.batch_id IS NULL AND d.webhook_id = ANY($1::uuid[]) LIMIT $3)
                     UNION ALL
                     (SELECT d.id FROM deliveries d WHERE d.status = 'pending'
                          AND d.batch_id IS NOT NULL AND d.webhook_id = ANY($1::uuid[]) LIMIT $3)))
                 AND l.status = 'pending'
             FOR UPDATE SKIP LOCKED
         )
         UPDATE deliveries d
         SET status = 'cancelled', completed_at = $2, next_attempt_at = NULL, due_at = NULL,
             lease_epoch = d.lease_epoch + 1, event_meta = NULL, event_raw = NULL
         FROM orphaned o WHERE d.id = o.id",
    )
    .bind(webhooks.clone().bind_iter())
    .bind(now)
    .bind(ORPHANS)
    .execute(&mut *connection)
    .await
    .map_err(during(OPERATION))?;
    // A statement of its own: only now it sees what is left.
    sqlx::query(
        "DELETE FROM deleted_webhooks g WHERE g.id = ANY($1::uuid[])
             AND NOT EXISTS (SELECT FROM deliveries d
                 WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id = g.id)
             AND NOT EXISTS (SELECT FROM deliveries d
                 WHERE d.status = 'pending' AND d.lane_key IS NOT NULL AND d.webhook_id = g.id)
             AND NOT EXISTS (SELECT FROM deliveries d WHERE d.status = 'pending' AND d.batched
                 AND d.batch_id IS NULL AND d.webhook_id = g.id)
             AND NOT EXISTS (SELECT FROM deliveries d
                 WHERE d.status = 'pending' AND d.batch_id IS NOT NULL AND d.webhook_id = g.id)",
    )
    .bind(webhooks.bind_iter())
    .execute(connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(())
}

/// Oldest first. A broken row keeps its lease, so that it is not in the way of the others until it is
/// tried again; where there is nothing else, it is the answer.
fn read(rows: Vec<ClaimRow>) -> Result<Vec<ClaimedDelivery>, StoreError> {
    let mut claimed = Vec::with_capacity(rows.len());
    let mut broken = None;
    for row in rows {
        match ClaimedDelivery::try_from(row) {
            Ok(delivery) => claimed.push(delivery),
            Err(error) => {
                tracing::error!(%error, "a parked delivery cannot be read and is left aside");
                broken = Some(error);
            }
        }
    }
    match broken {
        Some(error) if claimed.is_empty() => Err(error),
        _ => {
            claimed.sort_by_key(|c| {
                (
                    c.delivery.next_attempt_at,
                    c.delivery.created_at,
                    c.delivery.id,
                )
            });
            Ok(claimed)
        }
    }
}
