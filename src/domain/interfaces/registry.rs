//! The webhooks as the data plane sees them, and how its copy stays exact.

use async_trait::async_trait;

use crate::domain::{
    entities::Webhook,
    values::{IntegrationId, WebhookId},
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
    /// Whether `changed` is every webhook there is, so that all others are gone.
    pub full: bool,
    /// Webhooks as they are now.
    pub changed: Vec<RegistryWebhook>,
    /// Webhooks that are gone.
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
    /// does not understand is logged and among the `removed`, so that it stops no other: until it is
    /// mended it gets nothing.
    async fn registry_delta(&self, since: i64) -> Result<RegistryDelta, StoreError>;
}
