//! Integrations within a unit of work.

use serde_json::{Map, Value};
use sqlx::{Connection as _, Postgres, Transaction, postgres::PgConnection};

use crate::domain::{
    entities::{Integration, IntegrationStatus},
    interfaces::{Inserted, StoreError},
    values::{IntegrationId, TenantId},
};

use super::{
    super::{
        error::{during, failed},
        rows::{IntegrationRow, select_integrations},
        text::{clean, clean_opt},
    },
    settle,
};

const NAME: &str = "integrations_name_key";

pub(super) async fn lock(
    connection: &mut PgConnection,
    tenant: &TenantId,
    id: IntegrationId,
) -> Result<Option<Integration>, StoreError> {
    let row: Option<IntegrationRow> = sqlx::query_as(select_integrations!(
        "WHERE i.id = $1 AND i.tenant = $2 FOR UPDATE"
    ))
    .bind(id.0)
    .bind(tenant.as_str())
    .fetch_optional(connection)
    .await
    .map_err(during("lock an integration"))?;
    row.map(Integration::try_from).transpose()
}

pub(super) async fn insert(
    connection: &mut PgConnection,
    new: &Integration,
) -> Result<Inserted, StoreError> {
    const OPERATION: &str = "insert an integration";
    let sealed = new.config.sealed.as_ref();
    let done = sqlx::query(
        "INSERT INTO integrations (id, tenant, name, description, tags, type, status, error,
             config, credentials, credentials_key_id, version, created_at, updated_at, created_by,
             updated_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
         ON CONFLICT (tenant, name) DO NOTHING",
    )
    .bind(new.id.0)
    .bind(new.meta.tenant.as_str())
    .bind(clean(&new.meta.name))
    .bind(clean_opt(new.meta.description.as_ref()))
    .bind(tags(&new.meta.tags))
    .bind(new.kind.as_str())
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
    .execute(connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(if done.rows_affected() == 0 {
        Inserted::NameTaken
    } else {
        Inserted::Yes
    })
}

pub(super) async fn update(
    tx: &mut Transaction<'static, Postgres>,
    changed: &Integration,
) -> Result<Inserted, StoreError> {
    const OPERATION: &str = "update an integration";
    let sealed = changed.config.sealed.as_ref();
    let mut savepoint = tx.begin().await.map_err(during(OPERATION))?;
    let result = sqlx::query(
        "UPDATE integrations
         SET name = $3, description = $4, tags = $5, type = $6, status = $7, error = $8,
             config = $9, credentials = $10, credentials_key_id = $11, version = $2,
             updated_at = $12, updated_by = $13
         WHERE id = $1 AND version = $2 - 1",
    )
    .bind(changed.id.0)
    .bind(changed.meta.version)
    .bind(clean(&changed.meta.name))
    .bind(clean_opt(changed.meta.description.as_ref()))
    .bind(tags(&changed.meta.tags))
    .bind(changed.kind.as_str())
    .bind(changed.status.as_str())
    .bind(error(&changed.status).map(clean))
    .bind(config(&changed.config.shown, OPERATION)?)
    .bind(sealed.map(|s| s.bytes.as_slice()))
    .bind(sealed.map(|s| s.key_id.as_str()))
    .bind(changed.meta.updated_at)
    .bind(clean(&changed.meta.updated_by))
    .execute(&mut *savepoint)
    .await;
    settle(savepoint, result, NAME, OPERATION).await
}

pub(super) async fn delete(
    connection: &mut PgConnection,
    id: IntegrationId,
) -> Result<(), StoreError> {
    let done = sqlx::query("DELETE FROM integrations WHERE id = $1")
        .bind(id.0)
        .execute(connection)
        .await
        .map_err(during("delete an integration"))?;
    match done.rows_affected() {
        0 => Err(StoreError::Conflict),
        _ => Ok(()),
    }
}

fn error(status: &IntegrationStatus) -> Option<&str> {
    match status {
        IntegrationStatus::Error { error } => Some(error),
        _ => None,
    }
}

pub(super) fn tags(tags: &[String]) -> Vec<std::borrow::Cow<'_, str>> {
    tags.iter().map(|tag| clean(tag)).collect()
}

/// The text that is stored; an escaped NUL in it is no trouble.
pub(super) fn config(
    shown: &Map<String, Value>,
    operation: &'static str,
) -> Result<String, StoreError> {
    serde_json::to_string(shown).map_err(|error| failed(operation, error))
}
