//! The columns that integrations and webhooks share.

use serde_json::{Map, Value};

use crate::domain::{
    entities::EntityMeta,
    interfaces::StoreError,
    values::{SealedSecrets, SecretConfig, TenantId, Timestamp},
};

use super::RowRef;

#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct MetaRow {
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) version: i64,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) created_by: String,
    pub(super) updated_by: String,
}

impl MetaRow {
    pub(super) fn read(self, row: RowRef) -> Result<EntityMeta, StoreError> {
        Ok(EntityMeta {
            tenant: tenant(&self.tenant, row)?,
            name: self.name,
            description: self.description,
            tags: self.tags,
            version: self.version,
            created_at: self.created_at,
            updated_at: self.updated_at,
            created_by: self.created_by,
            updated_by: self.updated_by,
        })
    }
}

#[derive(Clone, sqlx::FromRow)]
pub(super) struct ConfigRow {
    pub(super) config: String,
    pub(super) credentials: Option<Vec<u8>>,
    pub(super) credentials_key_id: Option<String>,
}

impl ConfigRow {
    pub(super) fn read(self, row: RowRef) -> Result<SecretConfig, StoreError> {
        // The parser's own words would quote the content.
        let shown: Map<String, Value> = serde_json::from_str(&self.config)
            .map_err(|_| row.broken("config", "it is no JSON object"))?;
        let sealed = match (self.credentials, self.credentials_key_id) {
            (Some(bytes), Some(key_id)) => Some(SealedSecrets { key_id, bytes }),
            (None, None) => None,
            _ => {
                return Err(row.broken(
                    "credentials_key_id",
                    "it is there exactly if the credentials are",
                ));
            }
        };
        Ok(SecretConfig { shown, sealed })
    }
}

pub(super) fn tenant(text: &str, row: RowRef) -> Result<TenantId, StoreError> {
    TenantId::try_new(text).map_err(|error| row.broken("tenant", error.to_string()))
}

/// The status and its error, as `status` makes them out of the two columns.
pub(super) fn status<T>(
    name: &str,
    error: Option<String>,
    row: RowRef,
    status: impl FnOnce(&str, String) -> Option<T>,
) -> Result<T, StoreError> {
    if name == "error" && error.is_none() {
        return Err(row.broken("error", "it is missing beside the status \"error\""));
    }
    status(name, error.unwrap_or_default()).ok_or_else(|| row.broken("status", "unknown status"))
}
