//! The change counter and the change log.

use std::sync::LazyLock;

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use crate::domain::{
    interfaces::{
        RegistryChange, RegistryDelta, RegistryReader, RegistryWebhook, StoreError,
        UnreadableWebhook,
    },
    values::WebhookId,
};

use super::{
    SqliteStore,
    batch::ManyRows,
    entities::select_webhooks,
    error::failed,
    rows::{self, Cells},
};

/// So many versions back the log reaches.
const KEPT_VERSIONS: i64 = 100_000;

static INSERT: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        64,
        "INSERT INTO registry_changes (version, kind, id) VALUES",
        3,
        "ON CONFLICT DO NOTHING",
    )
});

/// Counts one change of the registry and logs what changed.
pub(super) async fn changed(
    connection: &mut SqliteConnection,
    changes: &[RegistryChange],
) -> Result<(), StoreError> {
    const CHANGE: &str = "log a change of the registry";
    if changes.is_empty() {
        return Ok(());
    }
    let (version, pruned_to): (i64, i64) = sqlx::query_as(
        "UPDATE registry_state SET version = version + 1,
            pruned_to = max(pruned_to, version + 1 - ?1)
        RETURNING version, pruned_to",
    )
    .bind(KEPT_VERSIONS)
    .fetch_one(&mut *connection)
    .await
    .map_err(failed(CHANGE))?;
    for (sql, piece) in INSERT.pieces(changes) {
        let mut query = sqlx::query(sql);
        for change in piece {
            let (kind, id) = match change {
                RegistryChange::Webhook(id) => ("webhook", id.0),
                RegistryChange::Integration(id) => ("integration", id.0),
            };
            query = query.bind(version).bind(kind).bind(id);
        }
        let done = query.execute(&mut *connection).await;
        done.map_err(failed(CHANGE))?;
    }
    sqlx::query("DELETE FROM registry_changes WHERE version <= ?1")
        .bind(pruned_to)
        .execute(connection)
        .await
        .map_err(failed(CHANGE))?;
    Ok(())
}

const READ: &str = "read the registry";

#[async_trait]
impl RegistryReader for SqliteStore {
    async fn registry_version(&self) -> Result<i64, StoreError> {
        let mut connection = self.read(READ).await?;
        sqlx::query_scalar("SELECT version FROM registry_state WHERE only = 1")
            .fetch_one(&mut *connection)
            .await
            .map_err(failed(READ))
    }

    async fn registry_delta(&self, since: i64) -> Result<RegistryDelta, StoreError> {
        let mut snapshot = self.readers.begin().await.map_err(failed(READ))?;
        let (version, pruned_to): (i64, i64) =
            sqlx::query_as("SELECT version, pruned_to FROM registry_state WHERE only = 1")
                .fetch_one(&mut *snapshot)
                .await
                .map_err(failed(READ))?;
        // Greater than the counter is what another database counted.
        let full = since <= 0 || since < pruned_to || since > version;
        let rows = if full {
            all(&mut snapshot).await
        } else if since == version {
            Ok(Vec::new())
        } else {
            changed_since(&mut snapshot, since).await
        };
        let rows = rows.map_err(failed(READ))?;
        snapshot.commit().await.map_err(failed(READ))?;
        let mut delta = RegistryDelta {
            version,
            full,
            changed: Vec::with_capacity(rows.len()),
            unreadable: Vec::new(),
            removed: Vec::new(),
        };
        for row in &rows {
            let id: Uuid = row.try_get("changed_id").map_err(failed(READ))?;
            match found(row) {
                Ok(Some(webhook)) => delta.changed.push(webhook),
                Ok(None) => delta.removed.push(WebhookId(id)),
                // One of them must not stop all others.
                Err(error) => {
                    if let Some(unreadable) = needed(row, &error) {
                        delta.unreadable.push(unreadable);
                    } else {
                        tracing::error!(%error, "a webhook cannot be read and gets nothing");
                        delta.removed.push(WebhookId(id));
                    }
                }
            }
        }
        Ok(delta)
    }
}

async fn all(connection: &mut SqliteConnection) -> Result<Vec<SqliteRow>, sqlx::Error> {
    sqlx::query(select_webhooks!(
        "e.id AS changed_id, i.status IN ('pending', 'active') AS integration_runs, ",
        "FROM webhooks e CROSS JOIN integrations i ON i.id = e.integration_id"
    ))
    .fetch_all(connection)
    .await
}

async fn changed_since(
    connection: &mut SqliteConnection,
    since: i64,
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    sqlx::query(concat!(
        "WITH changed (id) AS (
            SELECT id FROM registry_changes WHERE version > ?1 AND kind = 'webhook'
            UNION
            SELECT w.id FROM registry_changes c
            CROSS JOIN webhooks w ON w.integration_id = c.id
            WHERE c.version > ?1 AND c.kind = 'integration'
        ) ",
        select_webhooks!(
            "changed.id AS changed_id, i.status IN ('pending', 'active') AS integration_runs, ",
            "FROM changed LEFT JOIN webhooks e ON e.id = changed.id
            LEFT JOIN integrations i ON i.id = e.integration_id"
        )
    ))
    .bind(since)
    .fetch_all(connection)
    .await
}

/// The webhook, unless it is gone.
fn found(row: &SqliteRow) -> Result<Option<RegistryWebhook>, StoreError> {
    let cells = Cells::new(row, "webhooks");
    if cells.is_null("id")? {
        return Ok(None);
    }
    Ok(Some(RegistryWebhook {
        webhook: rows::webhook(row)?,
        integration_runs: cells.get("integration_runs")?,
    }))
}

/// What is needed of a webhook that cannot be read; `None` when no event is meant for it.
fn needed(row: &SqliteRow, error: &StoreError) -> Option<UnreadableWebhook> {
    let runs = Cells::new(row, "webhooks").get::<bool>("integration_runs");
    if !runs.is_ok_and(|runs| runs) {
        return None;
    }
    rows::needed_of_webhook(row, error.to_string())
}
