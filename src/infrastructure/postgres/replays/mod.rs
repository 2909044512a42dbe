//! Replays: who works on one, its pages, and what is shown of it.

mod page;
mod row;

use async_trait::async_trait;
use sqlx::{Connection as _, postgres::PgBindIterExt as _};
use uuid::Uuid;

use crate::{
    domain::{
        entities::{Delivery, Replay, ReplayCursor, ReplaySelection},
        events::DomainEvent,
        interfaces::{
            Candidate, Candidates, ClaimedReplay, Page, PageDone, PageRequest, ReplayLanes,
            ReplayLease, ReplayPage, ReplayStore, StoreError, TypeCount,
        },
        values::{DeliveryId, TenantId, Timestamp, WebhookId},
    },
    infrastructure::replay_row::{self, LookedAt, ReplayRow},
};

use super::{
    PostgresStore,
    error::during,
    outbox,
    rows::{DeliveryRow, EventRow, all, delivery_columns},
};

pub(super) use row::{insert, locked, running, update};
use row::{lock, write};

const READ: &str = "read what a replay sends";

/// What is due of a webhook; of each of its lanes only the front, which is found by hopping from lane to
/// lane.
const DUE: &str = "
    WITH RECURSIVE lanes AS (
        (SELECT d.lane_key, d.status, d.due_at FROM deliveries d
         WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
             AND d.webhook_id = $1
         ORDER BY d.lane_key, d.lane_turn LIMIT 1)
        UNION ALL
        SELECT n.lane_key, n.status, n.due_at FROM lanes l CROSS JOIN LATERAL (
            SELECT d.lane_key, d.status, d.due_at FROM deliveries d
            WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                AND d.webhook_id = $1 AND d.lane_key > l.lane_key
            ORDER BY d.lane_key, d.lane_turn LIMIT 1) n
    )
    SELECT count(*) FROM (
        (SELECT 1 FROM deliveries WHERE status = 'pending' AND lane_key IS NULL
             AND NOT batched AND webhook_id = $1 AND due_at <= $3 LIMIT $2)
        UNION ALL
        (SELECT 1 FROM deliveries WHERE status = 'pending' AND batched
             AND batch_id IS NULL AND webhook_id = $1 AND due_at <= $3 LIMIT $2)
        UNION ALL
        (SELECT 1 FROM deliveries WHERE status = 'pending' AND batch_id IS NOT NULL
             AND webhook_id = $1 AND due_at <= $3 LIMIT $2)
        UNION ALL
        (SELECT 1 FROM lanes WHERE status = 'pending' AND due_at <= $3 LIMIT $2)
        LIMIT $2) p";

#[derive(sqlx::FromRow)]
struct CandidateRow {
    #[sqlx(flatten)]
    delivery: DeliveryRow,
    lease_epoch: i64,
    #[sqlx(flatten)]
    event: EventRow,
}

impl TryFrom<CandidateRow> for Candidate {
    type Error = StoreError;

    fn try_from(row: CandidateRow) -> Result<Self, StoreError> {
        let delivery = Delivery::try_from(row.delivery)?;
        let event = row.event.read(delivery.id).ok();
        Ok(Self {
            epoch: row.lease_epoch,
            event,
            delivery,
        })
    }
}

#[async_trait]
impl ReplayStore for PostgresStore {
    async fn count_recorded(
        &self,
        selection: &ReplaySelection,
        limit: i64,
    ) -> Result<Vec<TypeCount>, StoreError> {
        let rows: Vec<(String, bool, i64)> = sqlx::query_as(
            "SELECT c.event_type, c.is_pending, count(*)
             FROM (
                 SELECT d.event_type, d.status = 'pending' AS is_pending FROM deliveries d
                 WHERE d.webhook_id = $1 AND d.tenant = $2 AND d.created_at >= $3
                     AND d.created_at < $4
                     AND (cardinality($5::text[]) = 0 OR d.status = ANY($5::text[]))
                 LIMIT $6
             ) c
             GROUP BY c.event_type, c.is_pending",
        )
        .bind(selection.webhook_id.0)
        .bind(selection.tenant.as_str())
        .bind(selection.since)
        .bind(selection.until)
        .bind(selection.statuses.iter().map(|s| s.as_str()).bind_iter())
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(during("count deliveries"))?;
        let counts = rows
            .into_iter()
            .map(|(event_type, is_pending, count)| TypeCount {
                event_type,
                is_pending,
                count,
            });
        Ok(counts.collect())
    }

    async fn claim_replay(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Result<Option<ClaimedReplay>, StoreError> {
        let row: Option<ReplayRow> = sqlx::query_as(
            "UPDATE replays r SET free_at = $2, lease_epoch = r.lease_epoch + 1
             WHERE r.id = (
                 SELECT f.id FROM replays f WHERE f.status = 'running' AND f.free_at <= $1
                 ORDER BY f.free_at LIMIT 1 FOR UPDATE SKIP LOCKED)
             RETURNING r.*",
        )
        .bind(now)
        .bind(lease_until)
        .fetch_optional(&self.pool)
        .await
        .map_err(during("claim a replay"))?;
        row.map(replay_row::claimed).transpose()
    }

    async fn free_replay(&self, lease: ReplayLease, at: Timestamp) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE replays SET free_at = $3
             WHERE id = $1 AND lease_epoch = $2 AND status = 'running'",
        )
        .bind(lease.replay_id.0)
        .bind(lease.epoch)
        .bind(at)
        .execute(&self.pool)
        .await
        .map_err(during("free a replay"))?;
        Ok(done.rows_affected() > 0)
    }

    async fn replay_candidates(
        &self,
        replay: &Replay,
        limit: usize,
    ) -> Result<Candidates, StoreError> {
        let rows = replay_row::look_at(&replay.selection, limit);
        let looked_at = looked_at(self, replay, rows).await?;
        let (ids, cursor) = replay_row::choose(&replay.selection, looked_at, limit);
        let rows: Vec<CandidateRow> = sqlx::query_as(concat!(
            "SELECT ",
            delivery_columns!(),
            ", d.lease_epoch, d.event_meta, d.event_raw
             FROM deliveries d WHERE d.id = ANY($1::uuid[]) ORDER BY d.lane_turn, d.created_at, d.id"
        ))
        .bind(ids)
        .fetch_all(&self.pool)
        .await
        .map_err(during(READ))?;
        let rows = rows.into_iter().map(Candidate::try_from);
        Ok(replay_row::candidates(rows, cursor))
    }

    async fn record_page(
        &self,
        claimed: &ClaimedReplay,
        page: &ReplayPage,
        now: Timestamp,
    ) -> Result<Option<PageDone>, StoreError> {
        const OPERATION: &str = "record a page of a replay";
        self.pool
            .bounded(OPERATION, async {
                let mut connection = self.pool.lend(OPERATION).await?;
                let done = page::record(&mut connection, claimed, page, now).await?;
                connection.give_back();
                Ok(done)
            })
            .await
    }

    async fn end_replay(
        &self,
        lease: ReplayLease,
        ended: &Replay,
        event: &DomainEvent,
    ) -> Result<bool, StoreError> {
        const OPERATION: &str = "end a replay";
        self.pool
            .bounded(OPERATION, async {
                let mut connection = self.pool.lend(OPERATION).await?;
                let mut tx = connection.begin().await.map_err(during(OPERATION))?;
                let held = lock(&mut tx, lease, ended.version - 1).await?;
                if held {
                    write(&mut tx, ended).await?;
                    outbox::insert(&mut tx, &[event]).await?;
                }
                tx.commit().await.map_err(during(OPERATION))?;
                connection.give_back();
                Ok(held)
            })
            .await
    }

    async fn due_of(
        &self,
        webhook: WebhookId,
        now: Timestamp,
        limit: u32,
    ) -> Result<u32, StoreError> {
        let count: i64 = sqlx::query_scalar(DUE)
            .bind(webhook.0)
            .bind(i64::from(limit))
            .bind(now)
            .fetch_one(&self.pool)
            .await
            .map_err(during("count what is due of a webhook"))?;
        Ok(u32::try_from(count).unwrap_or(limit))
    }

    async fn replay_lanes(
        &self,
        webhook: WebhookId,
        now: Timestamp,
        limit: u32,
    ) -> Result<ReplayLanes, StoreError> {
        let (waiting, due): (i64, i64) = sqlx::query_as(
            "SELECT count(*), count(*) FILTER (WHERE p.place = 1 AND p.due_at <= $2)
             FROM (SELECT f.due_at,
                     row_number() OVER (PARTITION BY f.lane_key ORDER BY f.lane_turn) AS place
                 FROM (SELECT lane_key, lane_turn, due_at FROM deliveries
                     WHERE status = 'pending' AND substr(lane_key, 1, 7) = 'replay:'
                         AND webhook_id = $1
                     ORDER BY lane_key, lane_turn LIMIT $3) f) p",
        )
        .bind(webhook.0)
        .bind(now)
        .bind(i64::from(limit))
        .fetch_one(&self.pool)
        .await
        .map_err(during("count what waits for a replay"))?;
        let count = |rows| u32::try_from(rows).unwrap_or(limit);
        Ok(ReplayLanes {
            waiting: count(waiting),
            due: count(due),
        })
    }

    async fn list_replays(
        &self,
        tenant: &TenantId,
        webhook: WebhookId,
        page: &PageRequest,
    ) -> Result<Page<Replay>, StoreError> {
        let (after_time, after_id) = page.after.unzip();
        let mut rows: Vec<ReplayRow> = sqlx::query_as(
            "SELECT r.* FROM replays r WHERE r.webhook_id = $1 AND r.tenant = $2
                 AND ($3::timestamptz IS NULL OR (r.created_at, r.id) < ($3, $4::uuid))
             ORDER BY r.created_at DESC, r.id DESC LIMIT $5",
        )
        .bind(webhook.0)
        .bind(tenant.as_str())
        .bind(after_time)
        .bind(after_id)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(&self.pool)
        .await
        .map_err(during("list replays"))?;
        let more = rows.len() > page.limit as usize;
        rows.truncate(page.limit as usize);
        Ok(Page {
            items: all(rows)?,
            more,
        })
    }

    async fn prune_replays(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "DELETE FROM replays WHERE id = ANY (ARRAY (
                 SELECT id FROM replays WHERE status <> 'running' AND completed_at < $1
                 ORDER BY completed_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        )
        .bind(before)
        .bind(i64::from(limit))
        .execute(&self.pool)
        .await
        .map_err(during("prune replays"))?;
        Ok(done.rows_affected())
    }
}

async fn looked_at(
    store: &PostgresStore,
    replay: &Replay,
    rows: i64,
) -> Result<Vec<LookedAt<Uuid>>, StoreError> {
    if let Some(after) = replay_row::after_turn(replay.cursor) {
        let with_turns = with_turns(store, &replay.selection, after, rows).await?;
        if !with_turns.is_empty() {
            return Ok(with_turns);
        }
    }
    let selection = &replay.selection;
    let (after_time, after_id) = replay_row::after(replay.cursor).unzip();
    // First in the order of an index, so that no sort looks cheaper to a planner that takes the table for
    // a small one; what came at the same time is sorted after that.
    let rows: Vec<(Timestamp, Uuid, String, i64)> = sqlx::query_as(
        "SELECT n.created_at, n.id, n.event_type, n.bytes
         FROM (
             SELECT d.created_at, d.id, d.event_type,
                 COALESCE(octet_length(d.event_raw), 0)::bigint AS bytes
             FROM deliveries d
             WHERE d.webhook_id = $1 AND d.tenant = $2 AND d.created_at < $4 AND d.lane_key IS NULL
                 AND d.created_at >= GREATEST($3, $6::timestamptz)
                 AND (cardinality($5::text[]) = 0 OR d.status = ANY($5::text[]))
                 AND ($6 IS NULL OR (d.created_at, d.id) > ($6, $7::uuid))
             ORDER BY d.created_at FETCH FIRST ($8) ROWS WITH TIES
         ) n
         ORDER BY n.created_at, n.id LIMIT $8",
    )
    .bind(selection.webhook_id.0)
    .bind(selection.tenant.as_str())
    .bind(selection.since)
    .bind(selection.until)
    .bind(selection.statuses.iter().map(|s| s.as_str()).bind_iter())
    .bind(after_time)
    .bind(after_id)
    .bind(rows)
    .fetch_all(&store.pool)
    .await
    .map_err(during(READ))?;
    let looked_at = rows
        .into_iter()
        .map(|(at, id, event_type, bytes)| LookedAt {
            place: ReplayCursor::Delivery(at, DeliveryId(id)),
            event_type,
            bytes,
            row: id,
        });
    Ok(looked_at.collect())
}

/// Those with a place in a lane, by their turns.
async fn with_turns(
    store: &PostgresStore,
    selection: &ReplaySelection,
    (after_turn, after_id): (i64, Uuid),
    rows: i64,
) -> Result<Vec<LookedAt<Uuid>>, StoreError> {
    let rows: Vec<(i64, Uuid, String, i64)> = sqlx::query_as(
        "SELECT d.lane_turn, d.id, d.event_type, COALESCE(octet_length(d.event_raw), 0)::bigint
         FROM deliveries d
         WHERE d.webhook_id = $1 AND d.tenant = $2 AND d.lane_key IS NOT NULL
             AND d.created_at >= $3 AND d.created_at < $4
             AND (cardinality($5::text[]) = 0 OR d.status = ANY($5::text[]))
             AND (d.lane_turn, d.id) > ($6, $7)
         ORDER BY d.lane_turn, d.id LIMIT $8",
    )
    .bind(selection.webhook_id.0)
    .bind(selection.tenant.as_str())
    .bind(selection.since)
    .bind(selection.until)
    .bind(selection.statuses.iter().map(|s| s.as_str()).bind_iter())
    .bind(after_turn)
    .bind(after_id)
    .bind(rows)
    .fetch_all(&store.pool)
    .await
    .map_err(during(READ))?;
    let looked_at = rows
        .into_iter()
        .map(|(turn, id, event_type, bytes)| LookedAt {
            place: ReplayCursor::Turn(turn, DeliveryId(id)),
            event_type,
            bytes,
            row: id,
        });
    Ok(looked_at.collect())
}
