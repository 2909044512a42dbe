//! The outbox: events that are committed and wait to be published.

use async_trait::async_trait;
use sqlx::postgres::{PgBindIterExt as _, PgConnection};
use uuid::Uuid;

use crate::domain::{
    events::DomainEvent,
    interfaces::{OutboxClaim, OutboxPostponement, OutboxRow, OutboxStore, StoreError},
    values::{Timestamp, TraceContext},
};

use super::{PostgresStore, error::during};

/// Adds events in this order; those whose id is there are left alone.
pub(super) async fn insert(
    connection: &mut PgConnection,
    events: &[&DomainEvent],
) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let each = || events.iter();
    let traces = || each().map(|e| e.context.trace.as_ref());
    sqlx::query(
        "INSERT INTO outbox (id, event_type, is_response, traceparent, tracestate, body, created_at)
         SELECT e.id, e.event_type, e.is_response, e.traceparent, e.tracestate, e.body, e.created_at
         FROM UNNEST($1::uuid[], $2::text[], $3::boolean[], $4::text[], $5::text[], $6::bytea[],
             $7::timestamptz[])
             WITH ORDINALITY AS e (id, event_type, is_response, traceparent, tracestate, body,
                 created_at, place)
         ORDER BY e.place
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(each().map(|e| e.id).bind_iter())
    .bind(each().map(|e| e.event_type.as_str()).bind_iter())
    .bind(each().map(|e| e.response.is_some()).bind_iter())
    .bind(traces().map(|t| t.map(TraceContext::parent)).bind_iter())
    .bind(traces().map(|t| t?.state()).bind_iter())
    .bind(each().map(|e| e.to_json()).bind_iter())
    .bind(each().map(|e| e.time).bind_iter())
    .execute(connection)
    .await
    .map_err(during("add events to the outbox"))?;
    Ok(())
}

/// The oldest ones, in their order, until they have so many bytes before them. The bodies themselves are
/// not read for that.
const OWN: &str = "
    SELECT id, event_type, is_response, traceparent, tracestate, body
    FROM (
        SELECT o.*, sum(octet_length(o.body)) OVER (ORDER BY o.position)
            - octet_length(o.body) AS before
        FROM (
            SELECT * FROM outbox
            WHERE published_at IS NULL AND NOT is_response AND $3::timestamptz IS NOT NULL
            ORDER BY position LIMIT $1
        ) o
    ) summed
    WHERE before < $2 ORDER BY position";

/// The same of those that are due; what was refused comes behind what is new.
const RESPONSES: &str = "
    SELECT id, event_type, is_response, traceparent, tracestate, body
    FROM (
        SELECT o.*, sum(octet_length(o.body)) OVER (ORDER BY o.due_at, o.position)
            - octet_length(o.body) AS before
        FROM (
            SELECT * FROM outbox
            WHERE published_at IS NULL AND is_response AND due_at <= $3
            ORDER BY due_at, position LIMIT $1
        ) o
    ) summed
    WHERE before < $2 ORDER BY due_at, position";

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    event_type: String,
    is_response: bool,
    traceparent: Option<String>,
    tracestate: Option<String>,
    body: Vec<u8>,
}

impl From<Row> for OutboxRow {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            event_type: row.event_type,
            is_response: row.is_response,
            trace: TraceContext::read(row.traceparent.as_deref(), row.tracestate.as_deref()),
            body: row.body,
        }
    }
}

#[async_trait]
impl OutboxStore for PostgresStore {
    async fn outbox_batch(&self, claim: OutboxClaim) -> Result<Option<Vec<OutboxRow>>, StoreError> {
        const OPERATION: &str = "read the outbox";
        // Asked several times a second for ever: a lease that a crash takes back harms nobody, so it is
        // not worth a wait for the disk.
        let held = sqlx::query(
            "WITH setting AS (SELECT set_config('synchronous_commit', 'off', true) AS set)
             UPDATE outbox_relay SET holder = $1, lease_until = $2
             FROM setting
             WHERE setting.set = 'off' AND (holder IS NULL OR holder = $1 OR lease_until <= $3)",
        )
        .bind(claim.holder)
        .bind(claim.now + claim.lease)
        .bind(claim.now)
        .execute(&self.pool)
        .await
        .map_err(during(OPERATION))?;
        if held.rows_affected() == 0 {
            return Ok(None);
        }
        let rows: Vec<Row> = sqlx::query_as(if claim.responses { RESPONSES } else { OWN })
            .bind(i64::from(claim.limit))
            .bind(i64::from(claim.max_bytes))
            .bind(claim.now)
            .fetch_all(&self.pool)
            .await
            .map_err(during(OPERATION))?;
        Ok(Some(rows.into_iter().map(OutboxRow::from).collect()))
    }

    async fn outbox_postpone(
        &self,
        ids: &[Uuid],
        postponement: OutboxPostponement,
    ) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "UPDATE outbox SET refusals = refusals + 1,
                 due_at = $2 + interval '1 second'
                     * LEAST($4::float8, $3::float8 * power(2, LEAST(refusals, 30)))
             WHERE id = ANY($1::uuid[]) AND published_at IS NULL AND is_response",
        )
        .bind(ids)
        .bind(postponement.now)
        .bind(postponement.first.as_secs_f64())
        .bind(postponement.longest.as_secs_f64())
        .execute(&self.pool)
        .await
        .map_err(during("postpone events"))?;
        Ok(())
    }

    async fn outbox_published(&self, ids: &[Uuid], now: Timestamp) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "UPDATE outbox SET published_at = $2
             WHERE id = ANY($1::uuid[]) AND published_at IS NULL",
        )
        .bind(ids)
        .bind(now)
        .execute(&self.pool)
        .await
        .map_err(during("mark events as published"))?;
        Ok(())
    }

    async fn outbox_release(&self, holder: Uuid) -> Result<(), StoreError> {
        sqlx::query("UPDATE outbox_relay SET holder = NULL, lease_until = NULL WHERE holder = $1")
            .bind(holder)
            .execute(&self.pool)
            .await
            .map_err(during("give the relay's lease up"))?;
        Ok(())
    }

    async fn prune_outbox(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        // The worker's own are published in the order of their positions, so the first ones are the
        // oldest, and no index on the time is needed.
        let done = sqlx::query(
            "WITH first AS MATERIALIZED (
                 (SELECT position FROM outbox
                  WHERE published_at IS NOT NULL AND NOT is_response ORDER BY position LIMIT $2)
                 UNION ALL
                 (SELECT position FROM outbox
                  WHERE published_at < $1 AND published_at IS NOT NULL AND is_response
                  ORDER BY published_at LIMIT $2)
             ), oldest AS MATERIALIZED (
                 SELECT o.position FROM first f JOIN outbox o ON o.position = f.position
                 WHERE o.published_at < $1
                 ORDER BY o.position LIMIT $2
                 FOR UPDATE OF o SKIP LOCKED
             )
             DELETE FROM outbox o USING oldest WHERE o.position = oldest.position",
        )
        .bind(before)
        .bind(i64::from(limit))
        .execute(&self.pool)
        .await
        .map_err(during("prune the outbox"))?;
        Ok(done.rows_affected())
    }

    async fn prune_idempotency(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "WITH oldest AS MATERIALIZED (
                 SELECT tenant, action, key FROM idempotency
                 WHERE created_at < $1 ORDER BY created_at LIMIT $2
                 FOR UPDATE SKIP LOCKED
             )
             DELETE FROM idempotency i USING oldest o
             WHERE i.tenant = o.tenant AND i.action = o.action AND i.key = o.key",
        )
        .bind(before)
        .bind(i64::from(limit))
        .execute(&self.pool)
        .await
        .map_err(during("prune the replies of commands"))?;
        Ok(done.rows_affected())
    }
}
