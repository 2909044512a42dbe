//! The row of a replay.

use sqlx::{SqliteConnection, sqlite::SqliteRow};

use crate::{
    domain::{
        entities::{Replay, ReplayCursor},
        interfaces::{ReplayLease, StoreError},
        values::{ReplayId, TenantId, WebhookId},
    },
    infrastructure::replay_row::{self, ReplayRow},
};

use super::super::{error::failed, rows};

pub(super) fn read_row(row: &SqliteRow) -> Result<ReplayRow, StoreError> {
    let cells = rows::Cells::new(row, "replays");
    Ok(ReplayRow {
        id: cells.get("id")?,
        tenant: cells.get("tenant")?,
        webhook_id: cells.get("webhook_id")?,
        kind: cells.get("kind")?,
        since: cells.time("since")?,
        until: cells.time("until")?,
        statuses: cells.get("statuses")?,
        event_types: cells.get("event_types")?,
        status: cells.get("status")?,
        total: cells.get("total")?,
        done: cells.get("done")?,
        skipped: cells.get("skipped")?,
        cursor: cells.get("cursor")?,
        version: cells.get("version")?,
        error: cells.get("error")?,
        actor: cells.get("actor")?,
        correlation_id: cells.get("correlation_id")?,
        causation_id: cells.get("causation_id")?,
        created_at: cells.time("created_at")?,
        updated_at: cells.time("updated_at")?,
        completed_at: cells.optional_time("completed_at")?,
        lease_epoch: cells.get("lease_epoch")?,
    })
}

pub(super) async fn is_held(
    connection: &mut SqliteConnection,
    lease: ReplayLease,
    version: i64,
) -> Result<bool, StoreError> {
    let held: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM replays
        WHERE id = ?1 AND lease_epoch = ?2 AND version = ?3 AND status = 'running'",
    )
    .bind(lease.replay_id.0)
    .bind(lease.epoch)
    .bind(version)
    .fetch_optional(connection)
    .await
    .map_err(failed("look at the lease of a replay"))?;
    Ok(held.is_some())
}

pub(in super::super) async fn running(
    connection: &mut SqliteConnection,
    tenant: &TenantId,
) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT count(*) FROM replays WHERE status = 'running' AND tenant = ?1")
        .bind(tenant.as_str())
        .fetch_one(connection)
        .await
        .map_err(failed("count running replays"))
}

pub(in super::super) async fn insert(
    connection: &mut SqliteConnection,
    new: &Replay,
) -> Result<bool, StoreError> {
    let selection = &new.selection;
    let (statuses, event_types) = replay_row::lists(selection);
    let done = sqlx::query(
        "INSERT INTO replays (id, tenant, webhook_id, kind, since, until, statuses, event_types,
            status, total, done, skipped, cursor, version, error, actor, correlation_id,
            causation_id, created_at, updated_at, completed_at, free_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)
        ON CONFLICT DO NOTHING",
    )
    .bind(new.id.0)
    .bind(selection.tenant.as_str())
    .bind(selection.webhook_id.0)
    .bind(new.kind.as_str())
    .bind(selection.since.timestamp_millis())
    .bind(selection.until.timestamp_millis())
    .bind(statuses)
    .bind(event_types)
    .bind(new.status.as_str())
    .bind(new.total)
    .bind(new.done)
    .bind(new.skipped)
    .bind(new.cursor.map(ReplayCursor::to_text))
    .bind(new.version)
    .bind(&new.error)
    .bind(&new.actor)
    .bind(&new.correlation_id)
    .bind(&new.causation_id)
    .bind(new.created_at.timestamp_millis())
    .bind(new.updated_at.timestamp_millis())
    .bind(new.completed_at.map(|at| at.timestamp_millis()))
    .execute(connection)
    .await
    .map_err(failed("insert a replay"))?;
    Ok(done.rows_affected() > 0)
}

pub(in super::super) async fn one(
    connection: &mut SqliteConnection,
    tenant: &TenantId,
    webhook: WebhookId,
    id: ReplayId,
) -> Result<Option<Replay>, StoreError> {
    let row =
        sqlx::query("SELECT * FROM replays WHERE id = ?1 AND tenant = ?2 AND webhook_id = ?3")
            .bind(id.0)
            .bind(tenant.as_str())
            .bind(webhook.0)
            .fetch_optional(connection)
            .await
            .map_err(failed("read a replay"))?;
    row.map(|row| Replay::try_from(read_row(&row)?)).transpose()
}

pub(in super::super) async fn update(
    connection: &mut SqliteConnection,
    changed: &Replay,
) -> Result<(), StoreError> {
    match write(connection, changed).await? {
        0 => Err(StoreError::Conflict),
        _ => Ok(()),
    }
}

/// Everything that changes.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    replay: &Replay,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "UPDATE replays SET status = ?2, done = ?3, skipped = ?4, cursor = ?5, version = ?6,
            error = ?7, updated_at = ?8, completed_at = ?9
        WHERE id = ?1",
    )
    .bind(replay.id.0)
    .bind(replay.status.as_str())
    .bind(replay.done)
    .bind(replay.skipped)
    .bind(replay.cursor.map(ReplayCursor::to_text))
    .bind(replay.version)
    .bind(&replay.error)
    .bind(replay.updated_at.timestamp_millis())
    .bind(replay.completed_at.map(|at| at.timestamp_millis()))
    .execute(connection)
    .await
    .map_err(failed("write a replay"))?;
    Ok(done.rows_affected())
}
