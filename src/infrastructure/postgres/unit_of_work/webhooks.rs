//! Webhooks and their signing secrets within a unit of work.

use sqlx::{
    Connection as _, Postgres, Transaction,
    postgres::{PgBindIterExt as _, PgConnection},
};
use uuid::Uuid;

use crate::domain::{
    entities::{SigningSecret, Webhook, WebhookStatus},
    interfaces::{Child, Inserted, StoreError},
    values::{EventPattern, IntegrationId, TenantId, WebhookId},
};

use super::{
    super::{
        error::during,
        rows::{WebhookRow, all, select_webhooks},
        text::{clean, clean_opt},
    },
    integrations::{config, tags},
    settle,
};

const NAME: &str = "webhooks_name_key";

pub(super) async fn lock(
    connection: &mut PgConnection,
    tenant: &TenantId,
    id: WebhookId,
) -> Result<Option<Webhook>, StoreError> {
    const OPERATION: &str = "lock a webhook";
    let locked = sqlx::query("SELECT FROM webhooks WHERE id = $1 AND tenant = $2 FOR UPDATE")
        .bind(id.0)
        .bind(tenant.as_str())
        .fetch_optional(&mut *connection)
        .await
        .map_err(during(OPERATION))?;
    if locked.is_none() {
        return Ok(None);
    }
    // Read under the lock: after a wait, one statement would pair the new row with its old secrets.
    let row: Option<WebhookRow> = sqlx::query_as(select_webhooks!("", "WHERE w.id = $1"))
        .bind(id.0)
        .fetch_optional(connection)
        .await
        .map_err(during(OPERATION))?;
    row.map(Webhook::try_from).transpose()
}

pub(super) async fn lock_children(
    connection: &mut PgConnection,
    id: IntegrationId,
    limit: u32,
) -> Result<Vec<Child>, StoreError> {
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "SELECT id, name FROM webhooks WHERE integration_id = $1 ORDER BY id LIMIT $2 FOR UPDATE",
    )
    .bind(id.0)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await
    .map_err(during("lock the webhooks of an integration"))?;
    let children = rows.into_iter().map(|(id, name)| Child {
        id: WebhookId(id),
        name,
    });
    Ok(children.collect())
}

pub(super) async fn insert(
    connection: &mut PgConnection,
    new: &Webhook,
) -> Result<Inserted, StoreError> {
    const OPERATION: &str = "insert a webhook";
    let sealed = new.config.sealed.as_ref();
    let done = sqlx::query(
        "INSERT INTO webhooks (id, integration_id, tenant, name, description, tags, events, status,
             error, config, credentials, credentials_key_id, version, created_at, updated_at,
             created_by, updated_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
         ON CONFLICT (integration_id, name) DO NOTHING",
    )
    .bind(new.id.0)
    .bind(new.integration_id.0)
    .bind(new.meta.tenant.as_str())
    .bind(clean(&new.meta.name))
    .bind(clean_opt(new.meta.description.as_ref()))
    .bind(tags(&new.meta.tags))
    .bind(new.events.iter().map(EventPattern::as_str).bind_iter())
    .bind(new.status.as_str())
    .bind(error(&new.status).map(clean))
    .bind(config(&new.config.shown, OPERATION)?)
    .bind(sealed.map(|s| s.bytes.as_slice()))
    .bind(sealed.map(|s| s.key_id.as_str()))
    .bind(new.meta.version)
    .bind(new.meta.created_at)
    .bind(new.meta.updated_at)
    .bind(clean(&new.meta.created_by))
    .bind(clean(&new.meta.updated_by))
    .execute(&mut *connection)
    .await
    .map_err(during(OPERATION))?;
    if done.rows_affected() == 0 {
        return Ok(Inserted::NameTaken);
    }
    insert_secrets(connection, new.id, &new.secrets).await?;
    Ok(Inserted::Yes)
}

pub(super) async fn update(
    tx: &mut Transaction<'static, Postgres>,
    changed: &Webhook,
) -> Result<Inserted, StoreError> {
    const OPERATION: &str = "update a webhook";
    let sealed = changed.config.sealed.as_ref();
    let mut savepoint = tx.begin().await.map_err(during(OPERATION))?;
    let result = sqlx::query(
        "UPDATE webhooks
         SET name = $3, description = $4, tags = $5, events = $6, status = $7, error = $8,
             config = $9, credentials = $10, credentials_key_id = $11, version = $2,
             updated_at = $12, updated_by = $13
         WHERE id = $1 AND version = $2 - 1",
    )
    .bind(changed.id.0)
    .bind(changed.meta.version)
    .bind(clean(&changed.meta.name))
    .bind(clean_opt(changed.meta.description.as_ref()))
    .bind(tags(&changed.meta.tags))
    .bind(changed.events.iter().map(EventPattern::as_str).bind_iter())
    .bind(changed.status.as_str())
    .bind(error(&changed.status).map(clean))
    .bind(config(&changed.config.shown, OPERATION)?)
    .bind(sealed.map(|s| s.bytes.as_slice()))
    .bind(sealed.map(|s| s.key_id.as_str()))
    .bind(changed.meta.updated_at)
    .bind(clean(&changed.meta.updated_by))
    .execute(&mut *savepoint)
    .await;
    let updated = settle(savepoint, result, NAME, OPERATION).await?;
    if updated == Inserted::Yes {
        sqlx::query("DELETE FROM signing_secrets WHERE webhook_id = $1")
            .bind(changed.id.0)
            .execute(&mut **tx)
            .await
            .map_err(during(OPERATION))?;
        insert_secrets(tx, changed.id, &changed.secrets).await?;
    }
    Ok(updated)
}

pub(super) async fn delete(connection: &mut PgConnection, id: WebhookId) -> Result<(), StoreError> {
    let done = sqlx::query("DELETE FROM webhooks WHERE id = $1")
        .bind(id.0)
        .execute(connection)
        .await
        .map_err(during("delete a webhook"))?;
    match done.rows_affected() {
        0 => Err(StoreError::Conflict),
        _ => Ok(()),
    }
}

/// Answers them as they were.
pub(super) async fn delete_all_of(
    connection: &mut PgConnection,
    id: IntegrationId,
) -> Result<Vec<Webhook>, StoreError> {
    const OPERATION: &str = "delete the webhooks of an integration";
    sqlx::query("SELECT FROM webhooks WHERE integration_id = $1 ORDER BY id FOR UPDATE")
        .bind(id.0)
        .execute(&mut *connection)
        .await
        .map_err(during(OPERATION))?;
    // Read under the lock, as in `lock`.
    let rows: Vec<WebhookRow> = sqlx::query_as(select_webhooks!(
        "",
        "WHERE w.integration_id = $1 ORDER BY w.id"
    ))
    .bind(id.0)
    .fetch_all(&mut *connection)
    .await
    .map_err(during(OPERATION))?;
    let webhooks: Vec<Webhook> = all(rows)?;
    sqlx::query("DELETE FROM webhooks WHERE id = ANY($1::uuid[])")
        .bind(webhooks.iter().map(|webhook| webhook.id.0).bind_iter())
        .execute(connection)
        .await
        .map_err(during(OPERATION))?;
    Ok(webhooks)
}

async fn insert_secrets(
    connection: &mut PgConnection,
    webhook: WebhookId,
    secrets: &[SigningSecret],
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO signing_secrets (webhook_id, position, sealed, key_id, created_at, expires_at)
         SELECT $1, s.place - 1, s.sealed, s.key_id, s.created_at, s.expires_at
         FROM UNNEST($2::bytea[], $3::text[], $4::timestamptz[], $5::timestamptz[])
             WITH ORDINALITY AS s (sealed, key_id, created_at, expires_at, place)",
    )
    .bind(webhook.0)
    .bind(
        secrets
            .iter()
            .map(|s| s.sealed.bytes.as_slice())
            .bind_iter(),
    )
    .bind(secrets.iter().map(|s| s.sealed.key_id.as_str()).bind_iter())
    .bind(secrets.iter().map(|s| s.created_at).bind_iter())
    .bind(secrets.iter().map(|s| s.expires_at).bind_iter())
    .execute(connection)
    .await
    .map_err(during("write the signing secrets of a webhook"))?;
    Ok(())
}

fn error(status: &WebhookStatus) -> Option<&str> {
    match status {
        WebhookStatus::Error { error } => Some(error),
        _ => None,
    }
}
