//! Webhooks with their signing secrets.

use uuid::Uuid;

use crate::domain::{
    entities::{SigningSecret, Webhook, WebhookStatus},
    interfaces::{StoreError, UnreadableWebhook},
    values::{EventPattern, IntegrationId, SealedSecrets, TenantId, Timestamp, WebhookId},
};

use super::{
    RowRef,
    entity::{ConfigRow, MetaRow, status},
};

/// `SELECT … FROM webhooks w` with the secrets of each, newest first, further columns, and the rest of
/// the statement.
macro_rules! select_webhooks {
    ($further:literal, $rest:literal) => {
        concat!(
            "SELECT w.id, w.integration_id, w.tenant, w.name, w.description, w.tags, w.version,
                 w.created_at, w.updated_at, w.created_by, w.updated_by, w.events, w.status, w.error,
                 w.config, w.credentials, w.credentials_key_id,
                 COALESCE(secrets.sealed, '{}') AS secrets_sealed,
                 COALESCE(secrets.key_ids, '{}') AS secrets_key_ids,
                 COALESCE(secrets.created_at, '{}') AS secrets_created_at,
                 COALESCE(secrets.expires_at, '{}') AS secrets_expires_at ",
            $further,
            " FROM webhooks w
             LEFT JOIN LATERAL (
                 SELECT array_agg(s.sealed) AS sealed, array_agg(s.key_id) AS key_ids,
                     array_agg(s.created_at) AS created_at, array_agg(s.expires_at) AS expires_at
                 FROM (SELECT * FROM signing_secrets WHERE webhook_id = w.id ORDER BY position) s
             ) secrets ON true ",
            $rest
        )
    };
}
pub(in super::super) use select_webhooks;

#[derive(Clone, sqlx::FromRow)]
pub(in super::super) struct WebhookRow {
    pub(super) id: Uuid,
    pub(super) integration_id: Uuid,
    #[sqlx(flatten)]
    pub(super) meta: MetaRow,
    pub(super) events: Vec<String>,
    pub(super) status: String,
    pub(super) error: Option<String>,
    #[sqlx(flatten)]
    pub(super) config: ConfigRow,
    pub(super) secrets_sealed: Vec<Vec<u8>>,
    pub(super) secrets_key_ids: Vec<String>,
    pub(super) secrets_created_at: Vec<Timestamp>,
    pub(super) secrets_expires_at: Vec<Option<Timestamp>>,
}

impl WebhookRow {
    pub(in super::super) fn id(&self) -> Uuid {
        self.id
    }

    /// What of it is needed when the rest cannot be read; `None` when it receives nothing.
    pub(in super::super) fn needed(&self) -> Option<UnreadableWebhook> {
        if self.status == WebhookStatus::Inactive.as_str() {
            return None;
        }
        let events = self.events.iter().map(|text| EventPattern::try_new(text));
        let events: Option<Vec<_>> = events.collect::<Result<_, _>>().ok();
        Some(UnreadableWebhook {
            id: WebhookId(self.id),
            integration_id: IntegrationId(self.integration_id),
            tenant: TenantId::try_new(&self.meta.tenant).ok()?,
            events: events.filter(|events| !events.is_empty()),
            problem: String::new(),
        })
    }
}

impl TryFrom<WebhookRow> for Webhook {
    type Error = StoreError;

    fn try_from(row: WebhookRow) -> Result<Self, StoreError> {
        let this = RowRef {
            table: "webhooks",
            id: row.id,
        };
        if row.events.is_empty() {
            return Err(this.broken("events", "it is empty"));
        }
        let events = row.events.iter().map(|text| EventPattern::try_new(text));
        let secrets = row
            .secrets_sealed
            .into_iter()
            .zip(row.secrets_key_ids)
            .zip(row.secrets_created_at)
            .zip(row.secrets_expires_at)
            .map(
                |(((bytes, key_id), created_at), expires_at)| SigningSecret {
                    sealed: SealedSecrets { key_id, bytes },
                    created_at,
                    expires_at,
                },
            );
        Ok(Self {
            id: WebhookId(row.id),
            integration_id: IntegrationId(row.integration_id),
            meta: row.meta.read(this)?,
            events: events
                .collect::<Result<_, _>>()
                .map_err(|error| this.broken("events", error.to_string()))?,
            status: status(&row.status, row.error, this, webhook_status)?,
            config: row.config.read(this)?,
            secrets: secrets.collect(),
        })
    }
}

fn webhook_status(name: &str, error: String) -> Option<WebhookStatus> {
    Some(match name {
        "pending" => WebhookStatus::Pending,
        "active" => WebhookStatus::Active,
        "inactive" => WebhookStatus::Inactive,
        "error" => WebhookStatus::Error { error },
        _ => return None,
    })
}
