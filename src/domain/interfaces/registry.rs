//! The webhooks as the data plane sees them, and how its copy stays exact.

use async_trait::async_trait;

use crate::domain::{
    entities::Webhook,
    values::{EventPattern, IntegrationId, TenantId, WebhookId},
};

use super::StoreError;

/// A webhook, and whether its integration runs.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistryWebhook {
    /// The webhook, with its sealed secrets.
    pub webhook: Webhook,
    /// Whether the integration is `pending` or `active`.
    pub integration_runs: bool,
}

/// A webhook that receives events and whose row this program does not understand, perhaps because a newer
/// one wrote it: what of it is needed so that nothing meant for it is lost meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableWebhook {
    /// Its id.
    pub id: WebhookId,
    /// The integration that it belongs to, which runs.
    pub integration_id: IntegrationId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it receives; `None` when this is what cannot be read.
    pub events: Option<Vec<EventPattern>>,
    /// What is wrong: table, column and id, never the content.
    pub problem: String,
}

/// What a unit of work changed that matching must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegistryChange {
    /// This webhook was made, changed or deleted.
    Webhook(WebhookId),
    /// This integration changed: all its webhooks are to be read again.
    Integration(IntegrationId),
}

/// All changes between two states of the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistryDelta {
    /// The state that it leads to.
    pub version: i64,
    /// Whether `changed` and `unreadable` are every webhook there is, so that all others are gone.
    pub full: bool,
    /// Webhooks as they are now.
    pub changed: Vec<RegistryWebhook>,
    /// Webhooks that are there and cannot be read.
    pub unreadable: Vec<UnreadableWebhook>,
    /// Webhooks that are gone, or receive nothing and cannot be read.
    pub removed: Vec<WebhookId>,
}

/// Reads the registry.
#[async_trait]
pub trait RegistryReader: Send + Sync {
    /// The change counter: it has grown, once a command that changed a webhook or an integration is
    /// answered. One tiny read; asked before every batch.
    async fn registry_version(&self) -> Result<i64, StoreError>;

    /// All changes after `since`, read in one snapshot; `since` = 0 reads every webhook (`full`).
    /// A change log that has been pruned beyond `since` is answered as for 0. A webhook that this program
    /// does not understand is among the `unreadable`, so that it stops no other. One whose tenant is no
    /// tenant is logged and among the `removed`: no event can be meant for it.
    async fn registry_delta(&self, since: i64) -> Result<RegistryDelta, StoreError>;
}
