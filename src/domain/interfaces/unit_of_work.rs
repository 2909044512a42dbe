//! The control plane: one command, one transaction.

use async_trait::async_trait;

use crate::domain::{
    entities::{BatchRule, Delivery, Integration, Replay, Webhook},
    events::DomainEvent,
    policies::{EndpointState, RateLimit},
    values::{DeliveryId, IntegrationId, ReplayId, TenantId, Timestamp, WebhookId},
};

use super::{RegistryChange, StoreError, StoredEvent};

/// What makes two commands the same command.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CommandKey {
    /// Whose command.
    pub tenant: TenantId,
    /// `<entity>.<action>`.
    pub action: String,
    /// The idempotency key.
    pub key: String,
}

/// The kept reply of a command.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredReply {
    /// The encryption key that sealed the reply, if one did.
    pub key_id: Option<String>,
    /// The reply and the hash of the command's body, sealed by the caller.
    pub reply: Vec<u8>,
    /// When it was given.
    pub created_at: Timestamp,
}

impl std::fmt::Debug for StoredReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredReply")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Whose.
    pub tenant: TenantId,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// `<entity>.<action>`.
    pub action: String,
    /// About what.
    pub entity_id: String,
    /// The command.
    pub command_id: String,
    /// Carried from the command.
    pub correlation_id: String,
}

/// Something that hangs on an integration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its id.
    pub id: WebhookId,
    /// Its name.
    pub name: String,
}

/// Whether an insert found its name free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Inserted {
    /// It is in.
    Yes,
    /// Another one has the name.
    NameTaken,
}

/// Begins units of work.
#[async_trait]
pub trait UnitOfWorkFactory: Send + Sync {
    /// Begins a transaction; dropping it without a commit rolls it back.
    async fn begin(&self) -> Result<Box<dyn UnitOfWork>, StoreError>;
}

/// One transaction of the control plane. Reads of single rows lock them until the end.
#[async_trait]
pub trait UnitOfWork: Send {
    /// The reply that this command was given before, if any; a second unit of work with the same key
    /// waits here until the first has ended.
    async fn reply(&mut self, key: &CommandKey) -> Result<Option<StoredReply>, StoreError>;
    /// Keeps the reply.
    async fn keep_reply(&mut self, key: &CommandKey, reply: &StoredReply)
    -> Result<(), StoreError>;

    /// Reads and locks an integration.
    async fn integration(
        &mut self,
        tenant: &TenantId,
        id: IntegrationId,
    ) -> Result<Option<Integration>, StoreError>;
    /// Inserts an integration.
    async fn insert_integration(&mut self, new: &Integration) -> Result<Inserted, StoreError>;
    /// Writes a changed integration; the stored version must be one less, else
    /// [`StoreError::Conflict`].
    async fn update_integration(&mut self, changed: &Integration) -> Result<Inserted, StoreError>;
    /// Deletes an integration; its webhooks must be gone.
    async fn delete_integration(&mut self, id: IntegrationId) -> Result<(), StoreError>;
    /// The webhooks of an integration, locked, at most `limit`, by id.
    async fn webhooks_of(
        &mut self,
        id: IntegrationId,
        limit: u32,
    ) -> Result<Vec<Child>, StoreError>;

    /// Reads and locks a webhook.
    async fn webhook(
        &mut self,
        tenant: &TenantId,
        id: WebhookId,
    ) -> Result<Option<Webhook>, StoreError>;
    /// Inserts a webhook with its secrets.
    async fn insert_webhook(&mut self, new: &Webhook) -> Result<Inserted, StoreError>;
    /// Writes a changed webhook with its secrets; as [`Self::update_integration`].
    async fn update_webhook(&mut self, changed: &Webhook) -> Result<Inserted, StoreError>;
    /// Deletes a webhook with its secrets. Its pending deliveries are never claimed after that; a
    /// thousand of them are cancelled at once, and however many are left by the claims that follow. Of
    /// the deliveries that block its lanes, a thousand do so no more; the others are still
    /// [blockers](super::DeliveryStore::blockers).
    async fn delete_webhook(&mut self, id: WebhookId, now: Timestamp) -> Result<(), StoreError>;
    /// Deletes all webhooks of an integration, as [`Self::delete_webhook`] does one; the thousand
    /// deliveries that are cancelled at once are those of all of them. Answers the webhooks as they were,
    /// by id.
    async fn delete_webhooks_of(
        &mut self,
        id: IntegrationId,
        now: Timestamp,
    ) -> Result<Vec<Webhook>, StoreError>;

    /// Lets the lanes of a webhook go on that an exhausted delivery blocks, at most `limit` of them, and
    /// answers how many. The webhook may be gone.
    async fn unblock_lanes(&mut self, id: WebhookId, limit: u32) -> Result<u64, StoreError>;

    /// Keeps how many events of an existing webhook go out in one request, for those who claim them; `None`
    /// where each has its own.
    async fn put_batch_rule(
        &mut self,
        webhook: WebhookId,
        rule: Option<&BatchRule>,
    ) -> Result<(), StoreError>;

    /// How the endpoint of a webhook is; lock the webhook first, that is what serialises the workers.
    async fn endpoint_state(&mut self, webhook: WebhookId) -> Result<EndpointState, StoreError>;
    /// Keeps how the endpoint of an existing webhook is. The right to a probe stays with whoever has it
    /// while the breaker is open until the same time, and ends otherwise.
    async fn put_endpoint_state(
        &mut self,
        webhook: WebhookId,
        state: &EndpointState,
    ) -> Result<(), StoreError>;

    /// Keeps the rate limit of an existing webhook, or that it has none. A new one has all its tokens; one
    /// in place of another takes its tokens over, as far as it has room for them.
    async fn put_rate_limit(
        &mut self,
        webhook: WebhookId,
        rule: Option<RateLimit>,
    ) -> Result<(), StoreError>;

    /// Reads and locks a delivery, and says whether its event is still kept.
    async fn delivery(
        &mut self,
        tenant: &TenantId,
        id: DeliveryId,
    ) -> Result<Option<(Delivery, bool)>, StoreError>;
    /// Inserts a delivery that waits.
    async fn insert_delivery(
        &mut self,
        new: &Delivery,
        event: &StoredEvent,
    ) -> Result<(), StoreError>;
    /// Writes a changed delivery and ends its lease: a worker that holds it can record nothing more.
    /// Its event stays, so that a cancelled delivery can be retried.
    async fn update_delivery(&mut self, changed: &Delivery) -> Result<(), StoreError>;

    /// How many replays of a tenant run; others that ask in the same tenant wait for the end of this
    /// unit of work.
    async fn running_replays(&mut self, tenant: &TenantId) -> Result<i64, StoreError>;
    /// Inserts a replay; `false` when one of the same webhook runs.
    async fn insert_replay(&mut self, new: &Replay) -> Result<bool, StoreError>;
    /// Reads and locks a replay of a webhook.
    async fn replay(
        &mut self,
        tenant: &TenantId,
        webhook: WebhookId,
        id: ReplayId,
    ) -> Result<Option<Replay>, StoreError>;
    /// Writes a changed replay and ends its lease: a worker that holds it can record nothing more.
    async fn update_replay(&mut self, changed: &Replay) -> Result<(), StoreError>;

    /// Adds events to the outbox; one whose id is there already is left alone.
    async fn add_events(&mut self, events: &[DomainEvent]) -> Result<(), StoreError>;
    /// Adds lines to the audit log.
    async fn add_audit(&mut self, rows: &[AuditRow]) -> Result<(), StoreError>;
    /// Tells the data plane of all workers what changed; call it last, it is a lock that all share.
    async fn registry_changed(&mut self, changes: &[RegistryChange]) -> Result<(), StoreError>;

    /// Commits.
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;
}
