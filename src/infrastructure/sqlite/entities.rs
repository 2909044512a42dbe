//! Integrations and webhooks in a unit of work.

use std::sync::LazyLock;

use serde::Serialize;
use sqlx::{SqliteConnection, error::ErrorKind};

use crate::domain::{
    entities::{Integration, IntegrationStatus, SigningSecret, Webhook, WebhookStatus},
    interfaces::{Child, Inserted, StoreError},
    values::{IntegrationId, TenantId, Timestamp, WebhookId},
};

use super::{backlog, batch::ManyRows, error::failed, rows};

macro_rules! select_integrations {
    ($rest:literal) => {
        concat!("SELECT e.* FROM integrations e ", $rest)
    };
}

/// Webhooks with their secrets; they are `e`.
macro_rules! select_webhooks {
    ($rest:literal) => {
        select_webhooks!("", $rest)
    };
    ($columns:literal, $rest:literal) => {
        concat!(
            "SELECT ",
            $columns,
            "e.*, (SELECT json_group_array(json_object('sealed', hex(s.sealed), 'key_id', s.key_id,
                'created_at', s.created_at, 'expires_at', s.expires_at) ORDER BY s.position)
                FROM signing_secrets s WHERE s.webhook_id = e.id) AS secrets ",
            $rest
        )
    };
}

pub(super) use {select_integrations, select_webhooks};

pub(super) async fn integration(
    connection: &mut SqliteConnection,
    tenant: &TenantId,
    id: IntegrationId,
) -> Result<Option<Integration>, StoreError> {
    let row = sqlx::query(select_integrations!("WHERE e.id = ?1 AND e.tenant = ?2"))
        .bind(id.0)
        .bind(tenant.as_str())
        .fetch_optional(connection)
        .await
        .map_err(failed("read an integration"))?;
    row.map(|row| rows::integration(&row)).transpose()
}

pub(super) async fn insert_integration(
    connection: &mut SqliteConnection,
    new: &Integration,
) -> Result<Inserted, StoreError> {
    let (meta, sealed) = (&new.meta, new.config.sealed.as_ref());
    let done = sqlx::query(
        "INSERT INTO integrations (id, tenant, name, description, tags, version, created_at,
            updated_at, created_by, updated_by, type, status, error, config, credentials,
            credentials_key_id)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (tenant, name) DO NOTHING",
    )
    .bind(new.id.0)
    .bind(meta.tenant.as_str())
    .bind(&meta.name)
    .bind(&meta.description)
    .bind(to_json(&meta.tags))
    .bind(meta.version)
    .bind(meta.created_at.timestamp_millis())
    .bind(meta.updated_at.timestamp_millis())
    .bind(&meta.created_by)
    .bind(&meta.updated_by)
    .bind(new.kind.as_str())
    .bind(new.status.as_str())
    .bind(integration_error(&new.status))
    .bind(to_json(&new.config.shown))
    .bind(sealed.map(|sealed| sealed.bytes.as_slice()))
    .bind(sealed.map(|sealed| sealed.key_id.as_str()))
    .execute(connection)
    .await
    .map_err(failed("insert an integration"))?;
    Ok(inserted(done.rows_affected()))
}

pub(super) async fn update_integration(
    connection: &mut SqliteConnection,
    changed: &Integration,
) -> Result<Inserted, StoreError> {
    let (meta, sealed) = (&changed.meta, changed.config.sealed.as_ref());
    let done = sqlx::query(
        "UPDATE integrations SET name = ?, description = ?, tags = ?, updated_at = ?,
            updated_by = ?, type = ?, status = ?, error = ?, config = ?, credentials = ?,
            credentials_key_id = ?, version = version + 1
        WHERE id = ? AND version = ?",
    )
    .bind(&meta.name)
    .bind(&meta.description)
    .bind(to_json(&meta.tags))
    .bind(meta.updated_at.timestamp_millis())
    .bind(&meta.updated_by)
    .bind(changed.kind.as_str())
    .bind(changed.status.as_str())
    .bind(integration_error(&changed.status))
    .bind(to_json(&changed.config.shown))
    .bind(sealed.map(|sealed| sealed.bytes.as_slice()))
    .bind(sealed.map(|sealed| sealed.key_id.as_str()))
    .bind(changed.id.0)
    .bind(meta.version - 1)
    .execute(connection)
    .await;
    updated(done, "update an integration")
}

pub(super) async fn delete_integration(
    connection: &mut SqliteConnection,
    id: IntegrationId,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM integrations WHERE id = ?1")
        .bind(id.0)
        .execute(connection)
        .await
        .map_err(failed("delete an integration"))?;
    Ok(())
}

pub(super) async fn webhooks_of(
    connection: &mut SqliteConnection,
    id: IntegrationId,
    limit: u32,
) -> Result<Vec<Child>, StoreError> {
    let rows =
        sqlx::query("SELECT id, name FROM webhooks WHERE integration_id = ?1 ORDER BY id LIMIT ?2")
            .bind(id.0)
            .bind(limit)
            .fetch_all(connection)
            .await
            .map_err(failed("read the webhooks of an integration"))?;
    let children = rows.iter().map(|row| {
        let cells = rows::Cells::new(row, "webhooks");
        Ok(Child {
            id: WebhookId(cells.get("id")?),
            name: cells.get("name")?,
        })
    });
    children.collect()
}

pub(super) async fn webhook(
    connection: &mut SqliteConnection,
    tenant: &TenantId,
    id: WebhookId,
) -> Result<Option<Webhook>, StoreError> {
    let row = sqlx::query(select_webhooks!(
        "FROM webhooks e WHERE e.id = ?1 AND e.tenant = ?2"
    ))
    .bind(id.0)
    .bind(tenant.as_str())
    .fetch_optional(connection)
    .await
    .map_err(failed("read a webhook"))?;
    row.map(|row| rows::webhook(&row)).transpose()
}

pub(super) async fn insert_webhook(
    connection: &mut SqliteConnection,
    new: &Webhook,
) -> Result<Inserted, StoreError> {
    let (meta, sealed) = (&new.meta, new.config.sealed.as_ref());
    let done = sqlx::query(
        "INSERT INTO webhooks (id, integration_id, tenant, name, description, tags, version,
            created_at, updated_at, created_by, updated_by, events, status, error, config,
            credentials, credentials_key_id)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (integration_id, name) DO NOTHING",
    )
    .bind(new.id.0)
    .bind(new.integration_id.0)
    .bind(meta.tenant.as_str())
    .bind(&meta.name)
    .bind(&meta.description)
    .bind(to_json(&meta.tags))
    .bind(meta.version)
    .bind(meta.created_at.timestamp_millis())
    .bind(meta.updated_at.timestamp_millis())
    .bind(&meta.created_by)
    .bind(&meta.updated_by)
    .bind(to_json(&new.events))
    .bind(new.status.as_str())
    .bind(webhook_error(&new.status))
    .bind(to_json(&new.config.shown))
    .bind(sealed.map(|sealed| sealed.bytes.as_slice()))
    .bind(sealed.map(|sealed| sealed.key_id.as_str()))
    .execute(&mut *connection)
    .await
    .map_err(failed("insert a webhook"))?;
    let inserted = inserted(done.rows_affected());
    if inserted == Inserted::Yes {
        insert_secrets(connection, new.id, &new.secrets).await?;
    }
    Ok(inserted)
}

pub(super) async fn update_webhook(
    connection: &mut SqliteConnection,
    changed: &Webhook,
) -> Result<Inserted, StoreError> {
    const UPDATE: &str = "update a webhook";
    let (meta, sealed) = (&changed.meta, changed.config.sealed.as_ref());
    let done = sqlx::query(
        "UPDATE webhooks SET name = ?, description = ?, tags = ?, updated_at = ?, updated_by = ?,
            events = ?, status = ?, error = ?, config = ?, credentials = ?, credentials_key_id = ?,
            version = version + 1
        WHERE id = ? AND version = ?",
    )
    .bind(&meta.name)
    .bind(&meta.description)
    .bind(to_json(&meta.tags))
    .bind(meta.updated_at.timestamp_millis())
    .bind(&meta.updated_by)
    .bind(to_json(&changed.events))
    .bind(changed.status.as_str())
    .bind(webhook_error(&changed.status))
    .bind(to_json(&changed.config.shown))
    .bind(sealed.map(|sealed| sealed.bytes.as_slice()))
    .bind(sealed.map(|sealed| sealed.key_id.as_str()))
    .bind(changed.id.0)
    .bind(meta.version - 1)
    .execute(&mut *connection)
    .await;
    let updated = updated(done, UPDATE)?;
    if updated == Inserted::Yes {
        sqlx::query("DELETE FROM signing_secrets WHERE webhook_id = ?1")
            .bind(changed.id.0)
            .execute(&mut *connection)
            .await
            .map_err(failed(UPDATE))?;
        insert_secrets(connection, changed.id, &changed.secrets).await?;
    }
    Ok(updated)
}

static INSERT_SECRETS: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        4,
        "INSERT INTO signing_secrets (webhook_id, position, sealed, key_id, created_at, expires_at)
        VALUES",
        6,
        "",
    )
});

async fn insert_secrets(
    connection: &mut SqliteConnection,
    webhook: WebhookId,
    secrets: &[SigningSecret],
) -> Result<(), StoreError> {
    let placed: Vec<(i64, &SigningSecret)> = (0..).zip(secrets).collect();
    for (sql, piece) in INSERT_SECRETS.pieces(&placed) {
        let mut query = sqlx::query(sql);
        for (position, secret) in piece {
            query = query
                .bind(webhook.0)
                .bind(position)
                .bind(secret.sealed.bytes.as_slice())
                .bind(&secret.sealed.key_id)
                .bind(secret.created_at.timestamp_millis())
                .bind(secret.expires_at.map(|end| end.timestamp_millis()));
        }
        let done = query.execute(&mut *connection).await;
        done.map_err(failed("insert the secrets of a webhook"))?;
    }
    Ok(())
}

/// Its secrets go with it.
pub(super) async fn delete_webhook(
    connection: &mut SqliteConnection,
    id: WebhookId,
    now: Timestamp,
) -> Result<(), StoreError> {
    const DELETE: &str = "delete a webhook";
    backlog::cancel_or_note(connection, &[id], now).await?;
    sqlx::query("DELETE FROM webhooks WHERE id = ?1")
        .bind(id.0)
        .execute(connection)
        .await
        .map_err(failed(DELETE))?;
    Ok(())
}

/// Answers them as they were.
pub(super) async fn delete_webhooks_of(
    connection: &mut SqliteConnection,
    id: IntegrationId,
    now: Timestamp,
) -> Result<Vec<Webhook>, StoreError> {
    const DELETE: &str = "delete the webhooks of an integration";
    let rows = sqlx::query(select_webhooks!(
        "FROM webhooks e WHERE e.integration_id = ?1 ORDER BY e.id"
    ))
    .bind(id.0)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed(DELETE))?;
    let webhooks: Vec<Webhook> = rows.iter().map(rows::webhook).collect::<Result<_, _>>()?;
    let ids: Vec<WebhookId> = webhooks.iter().map(|webhook| webhook.id).collect();
    backlog::cancel_or_note(connection, &ids, now).await?;
    sqlx::query("DELETE FROM webhooks WHERE integration_id = ?1")
        .bind(id.0)
        .execute(connection)
        .await
        .map_err(failed(DELETE))?;
    Ok(webhooks)
}

fn inserted(rows: u64) -> Inserted {
    if rows == 0 {
        Inserted::NameTaken
    } else {
        Inserted::Yes
    }
}

/// Besides the name, nothing that is unique can change. A refused statement leaves no trace in its
/// transaction.
fn updated(
    done: Result<sqlx::sqlite::SqliteQueryResult, sqlx::Error>,
    operation: &'static str,
) -> Result<Inserted, StoreError> {
    match done {
        Ok(done) if done.rows_affected() == 0 => Err(StoreError::Conflict),
        Ok(_) => Ok(Inserted::Yes),
        Err(sqlx::Error::Database(error)) if error.kind() == ErrorKind::UniqueViolation => {
            Ok(Inserted::NameTaken)
        }
        Err(error) => Err(failed(operation)(error)),
    }
}

fn integration_error(status: &IntegrationStatus) -> Option<&str> {
    match status {
        IntegrationStatus::Error { error } => Some(error),
        _ => None,
    }
}

fn webhook_error(status: &WebhookStatus) -> Option<&str> {
    match status {
        WebhookStatus::Error { error } => Some(error),
        _ => None,
    }
}

/// Strings, patterns and JSON values always have a JSON text.
fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
