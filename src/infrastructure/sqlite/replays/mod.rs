//! Replays: who works on one, its pages, and what is shown of it.

mod page;
mod row;

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use crate::{
    domain::{
        entities::{Replay, ReplayCursor, ReplaySelection},
        events::DomainEvent,
        interfaces::{
            Candidate, Candidates, ClaimedReplay, Page, PageDone, PageRequest, ReplayLanes,
            ReplayLease, ReplayPage, ReplayStore, StoreError, StoredEvent, TypeCount,
        },
        values::{DeliveryId, TenantId, Timestamp, WebhookId},
    },
    infrastructure::replay_row::{self, LookedAt},
};

use super::{
    SqliteStore,
    batch::hex_array,
    error::failed,
    outbox,
    queries::{Bounds, to_page},
    rows,
};

pub(super) use row::{insert, one, running, update};
use row::{is_held, read_row, write};

const READ: &str = "read what a replay sends";

/// What is due of a webhook; of each of its lanes only the front, which is found by hopping from lane to
/// lane.
const DUE: &str = "
WITH RECURSIVE lanes (seq) AS (
    SELECT (SELECT d.seq FROM deliveries d
        WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
            AND d.webhook_id = ?1
        ORDER BY d.lane_key, d.lane_turn LIMIT 1)
    UNION ALL
    SELECT (SELECT n.seq FROM deliveries n
        WHERE n.lane_key IS NOT NULL AND (n.status = 'pending' OR n.lane_blocks)
            AND n.webhook_id = ?1 AND n.lane_key > c.lane_key
        ORDER BY n.lane_key, n.lane_turn LIMIT 1)
    FROM lanes l JOIN deliveries c ON c.seq = l.seq
)
SELECT count(*) FROM (
    SELECT 1 FROM deliveries
    WHERE status = 'pending' AND lane_key IS NULL AND NOT batched AND webhook_id = ?1
        AND due_at <= ?3
    UNION ALL
    SELECT 1 FROM deliveries
    WHERE status = 'pending' AND batched AND batch_id IS NULL AND webhook_id = ?1
        AND due_at <= ?3
    UNION ALL
    SELECT 1 FROM deliveries
    WHERE status = 'pending' AND batch_id IS NOT NULL AND webhook_id = ?1 AND due_at <= ?3
    UNION ALL
    SELECT 1 FROM lanes l CROSS JOIN deliveries d ON d.seq = l.seq
    WHERE d.status = 'pending' AND d.due_at <= ?3
    LIMIT ?2)";

#[async_trait]
impl ReplayStore for SqliteStore {
    async fn count_recorded(
        &self,
        selection: &ReplaySelection,
        limit: i64,
    ) -> Result<Vec<TypeCount>, StoreError> {
        const COUNT: &str = "count deliveries";
        let (statuses, _) = replay_row::lists(selection);
        let mut connection = self.read(COUNT).await?;
        let rows = sqlx::query(
            "SELECT event_type, is_pending, count(*) AS deliveries
            FROM (
                SELECT d.event_type, d.status = 'pending' AS is_pending
                FROM deliveries d INDEXED BY deliveries_of_webhook
                WHERE d.tenant = ?1 AND d.created_at >= ?2 AND d.created_at < ?3
                    AND d.webhook_id = ?4
                    AND (?5 = '[]' OR d.status IN (SELECT value FROM json_each(?5)))
                LIMIT ?6
            )
            GROUP BY event_type, is_pending",
        )
        .bind(selection.tenant.as_str())
        .bind(selection.since.timestamp_millis())
        .bind(selection.until.timestamp_millis())
        .bind(selection.webhook_id.0)
        .bind(statuses)
        .bind(limit)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed(COUNT))?;
        let counts = rows.iter().map(|row| {
            Ok(TypeCount {
                event_type: row.try_get("event_type").map_err(failed(COUNT))?,
                is_pending: row.try_get("is_pending").map_err(failed(COUNT))?,
                count: row.try_get("deliveries").map_err(failed(COUNT))?,
            })
        });
        counts.collect()
    }

    async fn claim_replay(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Result<Option<ClaimedReplay>, StoreError> {
        const CLAIM: &str = "claim a replay";
        // A reader looks whether there is anything, so that looking holds up nobody who writes.
        let mut reader = self.read(CLAIM).await?;
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM replays WHERE status = 'running' AND free_at <= ?1 LIMIT 1",
        )
        .bind(now.timestamp_millis())
        .fetch_optional(&mut *reader)
        .await
        .map_err(failed(CLAIM))?;
        drop(reader);
        if found.is_none() {
            return Ok(None);
        }
        let mut connection = self.writer.acquire().await.map_err(failed(CLAIM))?;
        let row = sqlx::query(
            "UPDATE replays SET free_at = ?2, lease_epoch = lease_epoch + 1
            WHERE id = (SELECT f.id FROM replays f WHERE f.status = 'running' AND f.free_at <= ?1
                ORDER BY f.free_at LIMIT 1)
            RETURNING *",
        )
        .bind(now.timestamp_millis())
        .bind(lease_until.timestamp_millis())
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed(CLAIM))?;
        row.map(|row| replay_row::claimed(read_row(&row)?))
            .transpose()
    }

    async fn free_replay(&self, lease: ReplayLease, at: Timestamp) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "UPDATE replays SET free_at = ?3
            WHERE id = ?1 AND lease_epoch = ?2 AND status = 'running'",
        )
        .bind(lease.replay_id.0)
        .bind(lease.epoch)
        .bind(at.timestamp_millis());
        Ok(self.execute("free a replay", query).await? > 0)
    }

    async fn replay_candidates(
        &self,
        replay: &Replay,
        limit: usize,
    ) -> Result<Candidates, StoreError> {
        let mut connection = self.read(READ).await?;
        let rows = replay_row::look_at(&replay.selection, limit);
        let looked_at = looked_at(&mut connection, replay, rows).await?;
        let (chosen, cursor) = replay_row::choose(&replay.selection, looked_at, limit);
        let rows = sqlx::query(
            "SELECT d.*, e.meta, e.raw FROM json_each(?1) j
            CROSS JOIN deliveries d ON d.seq = j.value
            LEFT JOIN delivery_events e ON e.delivery = d.seq
            ORDER BY d.lane_turn, d.created_at, d.id",
        )
        .bind(sqlx::types::Json(chosen))
        .fetch_all(&mut *connection)
        .await
        .map_err(failed(READ))?;
        Ok(replay_row::candidates(rows.iter().map(candidate), cursor))
    }

    async fn record_page(
        &self,
        claimed: &ClaimedReplay,
        page: &ReplayPage,
        now: Timestamp,
    ) -> Result<Option<PageDone>, StoreError> {
        page::record(self, claimed, page, now).await
    }

    async fn end_replay(
        &self,
        lease: ReplayLease,
        ended: &Replay,
        event: &DomainEvent,
    ) -> Result<bool, StoreError> {
        const END: &str = "end a replay";
        let mut transaction = self.write(END).await?;
        let held = is_held(&mut transaction, lease, ended.version - 1).await?;
        if held {
            write(&mut transaction, ended).await?;
            outbox::add_events(&mut transaction, &[event]).await?;
        }
        transaction.commit().await.map_err(failed(END))?;
        Ok(held)
    }

    async fn due_of(
        &self,
        webhook: WebhookId,
        now: Timestamp,
        limit: u32,
    ) -> Result<u32, StoreError> {
        const COUNT: &str = "count what is due of a webhook";
        let mut connection = self.read(COUNT).await?;
        sqlx::query_scalar(DUE)
            .bind(webhook.0)
            .bind(limit)
            .bind(now.timestamp_millis())
            .fetch_one(&mut *connection)
            .await
            .map_err(failed(COUNT))
    }

    async fn replay_lanes(
        &self,
        webhook: WebhookId,
        now: Timestamp,
        limit: u32,
    ) -> Result<ReplayLanes, StoreError> {
        const COUNT: &str = "count what waits for a replay";
        let mut connection = self.read(COUNT).await?;
        let (waiting, due) = sqlx::query_as(
            "SELECT count(*), count(*) FILTER (WHERE place = 1 AND due_at <= ?2)
            FROM (SELECT due_at,
                    row_number() OVER (PARTITION BY lane_key ORDER BY lane_turn) AS place
                FROM (SELECT lane_key, lane_turn, due_at FROM deliveries
                        INDEXED BY deliveries_replay_lanes
                    WHERE status = 'pending' AND substr(lane_key, 1, 7) = 'replay:'
                        AND webhook_id = ?1
                    ORDER BY lane_key, lane_turn LIMIT ?3))",
        )
        .bind(webhook.0)
        .bind(now.timestamp_millis())
        .bind(limit)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed(COUNT))?;
        Ok(ReplayLanes { waiting, due })
    }

    async fn list_replays(
        &self,
        tenant: &TenantId,
        webhook: WebhookId,
        page: &PageRequest,
    ) -> Result<Page<Replay>, StoreError> {
        const LIST: &str = "list replays";
        let mut connection = self.read(LIST).await?;
        let bounds = Bounds::new(None, None, page);
        let rows = sqlx::query(
            "SELECT * FROM replays
            WHERE webhook_id = ?1 AND tenant = ?2 AND (created_at, id) < (?3, ?4)
            ORDER BY created_at DESC, id DESC LIMIT ?5",
        )
        .bind(webhook.0)
        .bind(tenant.as_str())
        .bind(bounds.before)
        .bind(bounds.before_id)
        .bind(bounds.rows)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed(LIST))?;
        to_page(&rows, page, |row| Replay::try_from(read_row(row)?))
    }

    async fn prune_replays(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        const PRUNE: &str = "prune replays";
        let mut reader = self.read(PRUNE).await?;
        let found: Vec<Uuid> = sqlx::query_scalar(
            "SELECT id FROM replays WHERE status <> 'running' AND completed_at < ?1 LIMIT ?2",
        )
        .bind(before.timestamp_millis())
        .bind(limit)
        .fetch_all(&mut *reader)
        .await
        .map_err(failed(PRUNE))?;
        drop(reader);
        if found.is_empty() {
            return Ok(0);
        }
        let query = sqlx::query(
            "DELETE FROM replays WHERE id IN (SELECT unhex(value) FROM json_each(?1))
                AND status <> 'running'",
        )
        .bind(hex_array(found.into_iter()));
        self.execute(PRUNE, query).await
    }
}

fn candidate(row: &SqliteRow) -> Result<Candidate, StoreError> {
    let delivery = rows::delivery(row)?;
    let cells = rows::Cells::new(row, "delivery_events");
    let event = if cells.is_null("raw")? {
        None
    } else {
        Some(StoredEvent {
            meta: cells.get("meta")?,
            raw: cells.get::<Vec<u8>>("raw")?.into(),
        })
    };
    Ok(Candidate {
        delivery,
        epoch: cells.get("lease_epoch")?,
        event,
    })
}

/// Each with its `seq`.
async fn looked_at(
    connection: &mut SqliteConnection,
    replay: &Replay,
    rows: i64,
) -> Result<Vec<LookedAt<i64>>, StoreError> {
    if let Some(after) = replay_row::after_turn(replay.cursor) {
        let with_turns = with_turns(connection, &replay.selection, after, rows).await?;
        if !with_turns.is_empty() {
            return Ok(with_turns);
        }
    }
    let selection = &replay.selection;
    let (statuses, _) = replay_row::lists(selection);
    // No id is less than the empty one.
    let (from, from_id) = match replay_row::after(replay.cursor) {
        Some((at, id)) => (at.max(selection.since), id.as_bytes().to_vec()),
        None => (selection.since, Vec::new()),
    };
    let rows = sqlx::query(
        "SELECT d.seq, d.id, d.created_at, d.event_type,
            coalesce((SELECT length(e.raw) FROM delivery_events e WHERE e.delivery = d.seq), 0)
                AS bytes
        FROM deliveries d INDEXED BY deliveries_of_webhook
        WHERE d.tenant = ?1 AND (d.created_at, d.id) > (?2, ?3) AND d.created_at < ?4
            AND d.webhook_id = ?5 AND d.lane_key IS NULL
            AND (?6 = '[]' OR d.status IN (SELECT value FROM json_each(?6)))
        ORDER BY d.created_at, d.id LIMIT ?7",
    )
    .bind(selection.tenant.as_str())
    .bind(from.timestamp_millis())
    .bind(from_id)
    .bind(selection.until.timestamp_millis())
    .bind(selection.webhook_id.0)
    .bind(statuses)
    .bind(rows)
    .fetch_all(connection)
    .await
    .map_err(failed(READ))?;
    let looked_at = rows.iter().map(|row| {
        let cells = rows::Cells::new(row, "deliveries");
        let id = DeliveryId(cells.get("id")?);
        look_at(cells, ReplayCursor::Delivery(cells.time("created_at")?, id))
    });
    looked_at.collect()
}

/// Those with a place in a lane, by their turns.
async fn with_turns(
    connection: &mut SqliteConnection,
    selection: &ReplaySelection,
    (after_turn, after_id): (i64, Uuid),
    rows: i64,
) -> Result<Vec<LookedAt<i64>>, StoreError> {
    let (statuses, _) = replay_row::lists(selection);
    let rows = sqlx::query(
        "SELECT d.seq, d.id, d.lane_turn, d.event_type,
            coalesce((SELECT length(e.raw) FROM delivery_events e WHERE e.delivery = d.seq), 0)
                AS bytes
        FROM deliveries d INDEXED BY deliveries_by_turn
        WHERE d.webhook_id = ?1 AND d.lane_key IS NOT NULL AND (d.lane_turn, d.id) > (?2, ?3)
            AND d.tenant = ?4 AND d.created_at >= ?5 AND d.created_at < ?6
            AND (?7 = '[]' OR d.status IN (SELECT value FROM json_each(?7)))
        ORDER BY d.lane_turn, d.id LIMIT ?8",
    )
    .bind(selection.webhook_id.0)
    .bind(after_turn)
    .bind(after_id)
    .bind(selection.tenant.as_str())
    .bind(selection.since.timestamp_millis())
    .bind(selection.until.timestamp_millis())
    .bind(statuses)
    .bind(rows)
    .fetch_all(connection)
    .await
    .map_err(failed(READ))?;
    let looked_at = rows.iter().map(|row| {
        let cells = rows::Cells::new(row, "deliveries");
        let id = DeliveryId(cells.get("id")?);
        look_at(cells, ReplayCursor::Turn(cells.present("lane_turn")?, id))
    });
    looked_at.collect()
}

fn look_at(cells: rows::Cells<'_>, place: ReplayCursor) -> Result<LookedAt<i64>, StoreError> {
    Ok(LookedAt {
        place,
        event_type: cells.get("event_type")?,
        bytes: cells.get("bytes")?,
        row: cells.get("seq")?,
    })
}
