//! The outbox and what else is pruned with it.

use std::{sync::LazyLock, time::Duration};

use async_trait::async_trait;
use chrono::TimeDelta;
use sqlx::SqliteConnection;
use uuid::Uuid;

use crate::domain::{
    events::DomainEvent,
    interfaces::{OutboxClaim, OutboxPostponement, OutboxRow, OutboxStore, StoreError},
    values::{Timestamp, TraceContext},
};

use super::{
    SqliteStore,
    batch::{ManyRows, hex_array},
    error::failed,
    rows::Cells,
};

static INSERT: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        64,
        "INSERT INTO outbox (id, event_type, is_response, traceparent, tracestate, body, created_at)
        VALUES",
        7,
        "ON CONFLICT (id) DO NOTHING",
    )
});

/// Adds events in their order.
pub(super) async fn add_events(
    connection: &mut SqliteConnection,
    events: &[&DomainEvent],
) -> Result<(), StoreError> {
    for (sql, piece) in INSERT.pieces(events) {
        let mut query = sqlx::query(sql);
        for event in piece {
            let trace = event.context.trace.as_ref();
            query = query
                .bind(event.id)
                .bind(&event.event_type)
                .bind(event.response.is_some())
                .bind(trace.map(TraceContext::parent))
                .bind(trace.and_then(TraceContext::state))
                .bind(event.to_json())
                .bind(event.time.timestamp_millis());
        }
        let done = query.execute(&mut *connection).await;
        done.map_err(failed("write events to the outbox"))?;
    }
    Ok(())
}

/// The oldest ones, in their order, until they have so many bytes before them.
const OWN: &str = "
    SELECT o.id, o.event_type, o.is_response, o.traceparent, o.tracestate, o.body
    FROM (
        SELECT seq, sum(size) OVER (ORDER BY seq) - size AS before
        FROM (
            SELECT seq, length(body) AS size FROM outbox
            WHERE published_at IS NULL AND is_response = 0 AND ?3 IS NOT NULL
            ORDER BY seq LIMIT ?1
        )
    ) summed
    JOIN outbox o ON o.seq = summed.seq
    WHERE summed.before < ?2 ORDER BY o.seq";

/// The same of those that are due; what was refused comes behind what is new.
const RESPONSES: &str = "
    SELECT o.id, o.event_type, o.is_response, o.traceparent, o.tracestate, o.body
    FROM (
        SELECT seq, sum(size) OVER (ORDER BY due_at, seq) - size AS before
        FROM (
            SELECT seq, due_at, length(body) AS size FROM outbox
            WHERE published_at IS NULL AND is_response = 1 AND due_at <= ?3
            ORDER BY due_at, seq LIMIT ?1
        )
    ) summed
    JOIN outbox o ON o.seq = summed.seq
    WHERE summed.before < ?2 ORDER BY o.due_at, o.seq";

/// Answers whether nobody else was faster.
async fn take_lease(
    store: &SqliteStore,
    claim: &OutboxClaim,
    until: Timestamp,
) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "UPDATE outbox_lease SET holder = ?1, lease_until = ?3
        WHERE holder IS NULL OR holder = ?1 OR lease_until <= ?2",
    )
    .bind(claim.holder)
    .bind(claim.now.timestamp_millis())
    .bind(until.timestamp_millis());
    Ok(store.execute("take the relay's lease", query).await? > 0)
}

#[async_trait]
impl OutboxStore for SqliteStore {
    async fn outbox_batch(&self, claim: OutboxClaim) -> Result<Option<Vec<OutboxRow>>, StoreError> {
        const READ: &str = "read the outbox";
        let lease = TimeDelta::from_std(claim.lease).unwrap_or(TimeDelta::MAX);
        let until = claim.now.checked_add_signed(lease);
        let until = until.unwrap_or(Timestamp::MAX_UTC);
        // Asked several times a second for ever: a lease that is held long enough is not written anew, and
        // neither is one that somebody else holds.
        let mut connection = self.read(READ).await?;
        let (held, taken): (bool, bool) = sqlx::query_as(
            "SELECT coalesce(holder = ?1 AND lease_until >= ?3, false),
                coalesce(holder <> ?1 AND lease_until > ?2, false)
            FROM outbox_lease",
        )
        .bind(claim.holder)
        .bind(claim.now.timestamp_millis())
        .bind(
            claim
                .now
                .timestamp_millis()
                .midpoint(until.timestamp_millis()),
        )
        .fetch_one(&mut *connection)
        .await
        .map_err(failed(READ))?;
        if taken || !(held || take_lease(self, &claim, until).await?) {
            return Ok(None);
        }
        let rows = sqlx::query(if claim.responses { RESPONSES } else { OWN })
            .bind(claim.limit)
            .bind(claim.max_bytes)
            .bind(claim.now.timestamp_millis())
            .fetch_all(&mut *connection)
            .await
            .map_err(failed(READ))?;
        let rows = rows.iter().map(|row| {
            let cells = Cells::new(row, "outbox");
            let parent: Option<String> = cells.get("traceparent")?;
            let state: Option<String> = cells.get("tracestate")?;
            Ok(OutboxRow {
                id: cells.get("id")?,
                event_type: cells.get("event_type")?,
                is_response: cells.get("is_response")?,
                trace: TraceContext::read(parent.as_deref(), state.as_deref()),
                body: cells.get("body")?,
            })
        });
        rows.collect::<Result<_, StoreError>>().map(Some)
    }

    async fn outbox_postpone(
        &self,
        ids: &[Uuid],
        postponement: OutboxPostponement,
    ) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let millis = |wait: Duration| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        let query = sqlx::query(
            "UPDATE outbox SET refusals = refusals + 1,
                due_at = ?2 + min(?4, ?3 << min(refusals, 30))
            WHERE published_at IS NULL AND is_response = 1
                AND id IN (SELECT unhex(value) FROM json_each(?1))",
        )
        .bind(hex_array(ids.iter().copied()))
        .bind(postponement.now.timestamp_millis())
        .bind(millis(postponement.first))
        .bind(millis(postponement.longest));
        self.execute("postpone events", query).await?;
        Ok(())
    }

    async fn outbox_published(&self, ids: &[Uuid], now: Timestamp) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(
            "UPDATE outbox SET published_at = ?2 WHERE published_at IS NULL
            AND id IN (SELECT unhex(value) FROM json_each(?1))",
        )
        .bind(hex_array(ids.iter().copied()))
        .bind(now.timestamp_millis());
        self.execute("mark events as published", query).await?;
        Ok(())
    }

    async fn outbox_release(&self, holder: Uuid) -> Result<(), StoreError> {
        let query = sqlx::query(
            "UPDATE outbox_lease SET holder = NULL, lease_until = NULL WHERE holder = ?1",
        )
        .bind(holder);
        self.execute("release the outbox", query).await?;
        Ok(())
    }

    async fn prune_outbox(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let query = sqlx::query(
            "DELETE FROM outbox WHERE seq IN
                (SELECT seq FROM outbox WHERE published_at < ?1 ORDER BY published_at LIMIT ?2)",
        )
        .bind(before.timestamp_millis())
        .bind(limit);
        self.execute("prune the outbox", query).await
    }

    async fn prune_idempotency(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let query = sqlx::query(
            "DELETE FROM idempotency WHERE seq IN
                (SELECT seq FROM idempotency WHERE created_at < ?1 ORDER BY created_at LIMIT ?2)",
        )
        .bind(before.timestamp_millis())
        .bind(limit);
        self.execute("prune kept replies", query).await
    }
}
