//! The row of a replay.

use sqlx::postgres::PgConnection;

use crate::{
    domain::{
        entities::{Replay, ReplayCursor},
        interfaces::{ReplayLease, StoreError},
        values::{ReplayId, TenantId, WebhookId},
    },
    infrastructure::replay_row::{self, ReplayRow},
};

use super::super::{
    error::during,
    text::{clean, clean_opt},
};

/// Whether the lease still holds; nobody changes the replay until the end of the transaction.
pub(super) async fn lock(
    connection: &mut PgConnection,
    lease: ReplayLease,
    version: i64,
) -> Result<bool, StoreError> {
    let held = sqlx::query(
        "SELECT 1 FROM replays
         WHERE id = $1 AND lease_epoch = $2 AND version = $3 AND status = 'running' FOR UPDATE",
    )
    .bind(lease.replay_id.0)
    .bind(lease.epoch)
    .bind(version)
    .fetch_optional(connection)
    .await
    .map_err(during("lock a replay"))?;
    Ok(held.is_some())
}

pub(in super::super) async fn running(
    connection: &mut PgConnection,
    tenant: &TenantId,
) -> Result<i64, StoreError> {
    const OPERATION: &str = "count running replays";
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('replays ' || $1, 0))")
        .bind(tenant.as_str())
        .execute(&mut *connection)
        .await
        .map_err(during(OPERATION))?;
    sqlx::query_scalar("SELECT count(*) FROM replays WHERE tenant = $1 AND status = 'running'")
        .bind(tenant.as_str())
        .fetch_one(connection)
        .await
        .map_err(during(OPERATION))
}

pub(in super::super) async fn insert(
    connection: &mut PgConnection,
    new: &Replay,
) -> Result<bool, StoreError> {
    let selection = &new.selection;
    let (statuses, event_types) = replay_row::lists(selection);
    let done = sqlx::query(
        "INSERT INTO replays (id, tenant, webhook_id, kind, since, until, statuses, event_types,
             status, total, done, skipped, cursor, version, error, actor, correlation_id,
             causation_id, created_at, updated_at, completed_at, free_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
             $19, $20, $21, 'epoch')
         ON CONFLICT DO NOTHING",
    )
    .bind(new.id.0)
    .bind(selection.tenant.as_str())
    .bind(selection.webhook_id.0)
    .bind(new.kind.as_str())
    .bind(selection.since)
    .bind(selection.until)
    .bind(statuses)
    .bind(event_types)
    .bind(new.status.as_str())
    .bind(new.total)
    .bind(new.done)
    .bind(new.skipped)
    .bind(new.cursor.map(ReplayCursor::to_text))
    .bind(new.version)
    .bind(&new.error)
    .bind(clean(&new.actor))
    .bind(clean(&new.correlation_id))
    .bind(clean(&new.causation_id))
    .bind(new.created_at)
    .bind(new.updated_at)
    .bind(new.completed_at)
    .execute(connection)
    .await
    .map_err(during("insert a replay"))?;
    Ok(done.rows_affected() > 0)
}

pub(in super::super) async fn locked(
    connection: &mut PgConnection,
    tenant: &TenantId,
    webhook: WebhookId,
    id: ReplayId,
) -> Result<Option<Replay>, StoreError> {
    let row: Option<ReplayRow> = sqlx::query_as(
        "SELECT r.* FROM replays r WHERE r.id = $1 AND r.tenant = $2 AND r.webhook_id = $3
         FOR UPDATE",
    )
    .bind(id.0)
    .bind(tenant.as_str())
    .bind(webhook.0)
    .fetch_optional(connection)
    .await
    .map_err(during("lock a replay"))?;
    row.map(Replay::try_from).transpose()
}

pub(in super::super) async fn update(
    connection: &mut PgConnection,
    changed: &Replay,
) -> Result<(), StoreError> {
    match write(connection, changed).await? {
        0 => Err(StoreError::Conflict),
        _ => Ok(()),
    }
}

/// Everything that changes; the row is locked.
pub(super) async fn write(
    connection: &mut PgConnection,
    replay: &Replay,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "UPDATE replays
         SET status = $2, done = $3, skipped = $4, cursor = $5, version = $6, error = $7,
             updated_at = $8, completed_at = $9
         WHERE id = $1",
    )
    .bind(replay.id.0)
    .bind(replay.status.as_str())
    .bind(replay.done)
    .bind(replay.skipped)
    .bind(replay.cursor.map(ReplayCursor::to_text))
    .bind(replay.version)
    .bind(clean_opt(replay.error.as_ref()))
    .bind(replay.updated_at)
    .bind(replay.completed_at)
    .execute(connection)
    .await
    .map_err(during("write a replay"))?;
    Ok(done.rows_affected())
}
