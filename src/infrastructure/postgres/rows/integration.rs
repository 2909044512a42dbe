//! Integrations.

use uuid::Uuid;

use crate::domain::{
    entities::{Integration, IntegrationStatus, IntegrationType},
    interfaces::StoreError,
    values::IntegrationId,
};

use super::{
    RowRef,
    entity::{ConfigRow, MetaRow, status},
};

/// `SELECT … FROM integrations i` and the rest of the statement.
macro_rules! select_integrations {
    ($rest:literal) => {
        concat!(
            "SELECT i.id, i.tenant, i.name, i.description, i.tags, i.version, i.created_at,
                 i.updated_at, i.created_by, i.updated_by, i.type, i.status, i.error, i.config,
                 i.credentials, i.credentials_key_id
             FROM integrations i ",
            $rest
        )
    };
}
pub(in super::super) use select_integrations;

#[derive(Clone, sqlx::FromRow)]
pub(in super::super) struct IntegrationRow {
    pub(super) id: Uuid,
    #[sqlx(flatten)]
    pub(super) meta: MetaRow,
    #[sqlx(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) error: Option<String>,
    #[sqlx(flatten)]
    pub(super) config: ConfigRow,
}

impl TryFrom<IntegrationRow> for Integration {
    type Error = StoreError;

    fn try_from(row: IntegrationRow) -> Result<Self, StoreError> {
        let this = RowRef {
            table: "integrations",
            id: row.id,
        };
        Ok(Self {
            id: IntegrationId(row.id),
            meta: row.meta.read(this)?,
            kind: IntegrationType::parse(&row.kind)
                .ok_or_else(|| this.broken("type", "unknown type"))?,
            status: status(&row.status, row.error, this, integration_status)?,
            config: row.config.read(this)?,
        })
    }
}

fn integration_status(name: &str, error: String) -> Option<IntegrationStatus> {
    Some(match name {
        "pending" => IntegrationStatus::Pending,
        "active" => IntegrationStatus::Active,
        "inactive" => IntegrationStatus::Inactive,
        "error" => IntegrationStatus::Error { error },
        _ => return None,
    })
}
