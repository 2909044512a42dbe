//! The registry as the data plane reads it.
//!
//! Every unit of work that changed a webhook or an integration ends with [`changed`]: it moves the
//! counter, whose row lock is held until the commit, so that the versions of the log stand in the order
//! of the commits and no reader sees a version before the changes that belong to it.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::{
    Connection as _,
    postgres::{PgBindIterExt as _, PgConnection},
};
use uuid::Uuid;

use crate::domain::{
    entities::Webhook,
    interfaces::{
        RegistryChange, RegistryDelta, RegistryReader, RegistryWebhook, StoreError,
        UnreadableWebhook,
    },
    values::WebhookId,
};

use super::{
    PostgresStore,
    error::during,
    rows::{WebhookRow, select_webhooks},
};

const OPERATION: &str = "read the registry";

/// How many versions the log goes back.
const KEPT_VERSIONS: i64 = 100_000;

/// Counts one change and logs what it was.
pub(super) async fn changed(
    connection: &mut PgConnection,
    changes: &[RegistryChange],
) -> Result<(), StoreError> {
    if changes.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH state AS (
             UPDATE registry_state SET version = version + 1 RETURNING version
         ), forgotten AS (
             DELETE FROM registry_changes c USING state s WHERE c.version <= s.version - $3
         )
         INSERT INTO registry_changes (version, entity, entity_id)
         SELECT s.version, c.entity, c.entity_id
         FROM state s CROSS JOIN UNNEST($1::text[], $2::uuid[]) AS c (entity, entity_id)
         ON CONFLICT DO NOTHING",
    )
    .bind(changes.iter().map(|change| columns(*change).0).bind_iter())
    .bind(changes.iter().map(|change| columns(*change).1).bind_iter())
    .bind(KEPT_VERSIONS)
    .execute(connection)
    .await
    .map_err(during("count a change of the registry"))?;
    Ok(())
}

fn columns(change: RegistryChange) -> (&'static str, Uuid) {
    match change {
        RegistryChange::Webhook(id) => ("webhook", id.0),
        RegistryChange::Integration(id) => ("integration", id.0),
    }
}

#[derive(sqlx::FromRow)]
struct RegistryRow {
    #[sqlx(flatten)]
    webhook: WebhookRow,
    integration_runs: bool,
}

impl TryFrom<RegistryRow> for RegistryWebhook {
    type Error = StoreError;

    fn try_from(row: RegistryRow) -> Result<Self, StoreError> {
        Ok(Self {
            webhook: Webhook::try_from(row.webhook)?,
            integration_runs: row.integration_runs,
        })
    }
}

macro_rules! select_registry {
    ($rest:literal) => {
        select_webhooks!(
            ", (SELECT i.status IN ('pending', 'active') FROM integrations i
                WHERE i.id = w.integration_id) AS integration_runs",
            $rest
        )
    };
}

#[async_trait]
impl RegistryReader for PostgresStore {
    async fn registry_version(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT version FROM registry_state")
            .fetch_one(&self.pool)
            .await
            .map_err(during("read the version of the registry"))
    }

    async fn registry_delta(&self, since: i64) -> Result<RegistryDelta, StoreError> {
        self.pool
            .bounded(OPERATION, async {
                let mut connection = self.pool.lend(OPERATION).await?;
                let delta = delta(&mut connection, since).await?;
                connection.give_back();
                Ok(delta)
            })
            .await
    }
}

async fn delta(connection: &mut PgConnection, since: i64) -> Result<RegistryDelta, StoreError> {
    let mut tx = connection
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .map_err(during(OPERATION))?;
    // Every version has left its line in the log, so what follows `since` is there if the next one is.
    let (version, is_logged): (i64, bool) = sqlx::query_as(
        "SELECT s.version, $1 > 0 AND ($1 = s.version
                 OR EXISTS (SELECT FROM registry_changes c WHERE c.version = $1 + 1))
             FROM registry_state s",
    )
    .bind(since)
    .fetch_one(&mut *tx)
    .await
    .map_err(during(OPERATION))?;
    let delta = if is_logged {
        changes(&mut tx, since, version).await?
    } else {
        everything(&mut tx, version).await?
    };
    tx.commit().await.map_err(during(OPERATION))?;
    Ok(delta)
}

async fn everything(
    connection: &mut PgConnection,
    version: i64,
) -> Result<RegistryDelta, StoreError> {
    let rows: Vec<RegistryRow> = sqlx::query_as(select_registry!(""))
        .fetch_all(connection)
        .await
        .map_err(during(OPERATION))?;
    let read = understood(rows);
    Ok(RegistryDelta {
        version,
        full: true,
        changed: read.webhooks,
        unreadable: read.unreadable,
        removed: read.nobodys,
    })
}

async fn changes(
    connection: &mut PgConnection,
    since: i64,
    version: i64,
) -> Result<RegistryDelta, StoreError> {
    let named: Vec<Uuid> = sqlx::query_scalar(
        "SELECT DISTINCT entity_id FROM registry_changes
         WHERE version > $1 AND entity = 'webhook'",
    )
    .bind(since)
    .fetch_all(&mut *connection)
    .await
    .map_err(during(OPERATION))?;
    let rows: Vec<RegistryRow> = sqlx::query_as(select_registry!(
        "WHERE w.id IN (
             SELECT entity_id FROM registry_changes WHERE version > $1 AND entity = 'webhook'
             UNION
             SELECT o.id FROM registry_changes c JOIN webhooks o ON o.integration_id = c.entity_id
             WHERE c.version > $1 AND c.entity = 'integration')"
    ))
    .bind(since)
    .fetch_all(&mut *connection)
    .await
    .map_err(during(OPERATION))?;
    let found: HashSet<Uuid> = rows.iter().map(|row| row.webhook.id()).collect();
    let mut read = understood(rows);
    let gone = named.into_iter().filter(|id| !found.contains(id));
    read.nobodys.extend(gone.map(WebhookId));
    Ok(RegistryDelta {
        version,
        full: false,
        changed: read.webhooks,
        unreadable: read.unreadable,
        removed: read.nobodys,
    })
}

#[derive(Default)]
struct Understood {
    webhooks: Vec<RegistryWebhook>,
    unreadable: Vec<UnreadableWebhook>,
    /// They cannot be read, and no event is meant for them.
    nobodys: Vec<WebhookId>,
}

/// One that cannot be read must not stop all others.
fn understood(rows: Vec<RegistryRow>) -> Understood {
    let mut read = Understood::default();
    for row in rows {
        let id = WebhookId(row.webhook.id());
        let runs = row.integration_runs;
        let needed = row.webhook.needed();
        match (RegistryWebhook::try_from(row), needed) {
            (Ok(webhook), _) => read.webhooks.push(webhook),
            (Err(error), Some(needed)) if runs => read.unreadable.push(UnreadableWebhook {
                problem: error.to_string(),
                ..needed
            }),
            (Err(error), _) => {
                tracing::error!(%error, "a webhook cannot be read and gets nothing");
                read.nobodys.push(id);
            }
        }
    }
    read
}
