//! The control plane: one command, one transaction.

mod commands;
mod deliveries;
mod integrations;
mod webhooks;

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Postgres, Transaction};

use crate::domain::{
    entities::{BatchRule, Delivery, Integration, Replay, Webhook},
    events::DomainEvent,
    interfaces::{
        AuditRow, Child, CommandKey, Inserted, RegistryChange, StoreError, StoredEvent,
        StoredReply, UnitOfWork, UnitOfWorkFactory,
    },
    policies::{EndpointState, RateLimit},
    values::{DeliveryId, IntegrationId, ReplayId, TenantId, Timestamp, WebhookId},
};

use super::{
    PostgresStore, batches, blockers, endpoints,
    error::{during, violates},
    outbox,
    pool::bounded,
    rate_limits, registry, replays,
};

/// A transaction; dropped, it is rolled back.
struct Work {
    tx: Transaction<'static, Postgres>,
    call_timeout: Duration,
}

#[async_trait]
impl UnitOfWorkFactory for PostgresStore {
    async fn begin(&self) -> Result<Box<dyn UnitOfWork>, StoreError> {
        Ok(Box::new(Work {
            tx: self.pool.begin("begin a unit of work").await?,
            call_timeout: self.pool.call_timeout(),
        }))
    }
}

#[async_trait]
impl UnitOfWork for Work {
    async fn reply(&mut self, key: &CommandKey) -> Result<Option<StoredReply>, StoreError> {
        command(self.call_timeout, commands::reply(&mut self.tx, key)).await
    }

    async fn keep_reply(
        &mut self,
        key: &CommandKey,
        reply: &StoredReply,
    ) -> Result<(), StoreError> {
        command(
            self.call_timeout,
            commands::keep_reply(&mut self.tx, key, reply),
        )
        .await
    }

    async fn integration(
        &mut self,
        tenant: &TenantId,
        id: IntegrationId,
    ) -> Result<Option<Integration>, StoreError> {
        command(
            self.call_timeout,
            integrations::lock(&mut self.tx, tenant, id),
        )
        .await
    }

    async fn insert_integration(&mut self, new: &Integration) -> Result<Inserted, StoreError> {
        command(self.call_timeout, integrations::insert(&mut self.tx, new)).await
    }

    async fn update_integration(&mut self, changed: &Integration) -> Result<Inserted, StoreError> {
        command(
            self.call_timeout,
            integrations::update(&mut self.tx, changed),
        )
        .await
    }

    async fn delete_integration(&mut self, id: IntegrationId) -> Result<(), StoreError> {
        command(self.call_timeout, integrations::delete(&mut self.tx, id)).await
    }

    async fn webhooks_of(
        &mut self,
        id: IntegrationId,
        limit: u32,
    ) -> Result<Vec<Child>, StoreError> {
        command(
            self.call_timeout,
            webhooks::lock_children(&mut self.tx, id, limit),
        )
        .await
    }

    async fn webhook(
        &mut self,
        tenant: &TenantId,
        id: WebhookId,
    ) -> Result<Option<Webhook>, StoreError> {
        command(self.call_timeout, webhooks::lock(&mut self.tx, tenant, id)).await
    }

    async fn insert_webhook(&mut self, new: &Webhook) -> Result<Inserted, StoreError> {
        command(self.call_timeout, webhooks::insert(&mut self.tx, new)).await
    }

    async fn update_webhook(&mut self, changed: &Webhook) -> Result<Inserted, StoreError> {
        command(self.call_timeout, webhooks::update(&mut self.tx, changed)).await
    }

    async fn delete_webhook(&mut self, id: WebhookId, now: Timestamp) -> Result<(), StoreError> {
        let delete = async {
            webhooks::delete(&mut self.tx, id).await?;
            deliveries::cancel_or_note(&mut self.tx, &[id], now).await
        };
        command(self.call_timeout, delete).await
    }

    async fn delete_webhooks_of(
        &mut self,
        id: IntegrationId,
        now: Timestamp,
    ) -> Result<Vec<Webhook>, StoreError> {
        let delete = async {
            let gone = webhooks::delete_all_of(&mut self.tx, id).await?;
            let ids: Vec<WebhookId> = gone.iter().map(|webhook| webhook.id).collect();
            deliveries::cancel_or_note(&mut self.tx, &ids, now).await?;
            Ok(gone)
        };
        command(self.call_timeout, delete).await
    }

    async fn unblock_lanes(&mut self, id: WebhookId, limit: u32) -> Result<u64, StoreError> {
        command(
            self.call_timeout,
            blockers::unblock(&mut self.tx, &[id], i64::from(limit)),
        )
        .await
    }

    async fn put_batch_rule(
        &mut self,
        webhook: WebhookId,
        rule: Option<&BatchRule>,
    ) -> Result<(), StoreError> {
        command(
            self.call_timeout,
            batches::put_rule(&mut self.tx, webhook, rule),
        )
        .await
    }

    async fn endpoint_state(&mut self, webhook: WebhookId) -> Result<EndpointState, StoreError> {
        command(self.call_timeout, endpoints::state(&mut self.tx, webhook)).await
    }

    async fn put_endpoint_state(
        &mut self,
        webhook: WebhookId,
        state: &EndpointState,
    ) -> Result<(), StoreError> {
        command(
            self.call_timeout,
            endpoints::put(&mut self.tx, webhook, state),
        )
        .await
    }

    async fn put_rate_limit(
        &mut self,
        webhook: WebhookId,
        rule: Option<RateLimit>,
    ) -> Result<(), StoreError> {
        command(
            self.call_timeout,
            rate_limits::put(&mut self.tx, webhook, rule),
        )
        .await
    }

    async fn delivery(
        &mut self,
        tenant: &TenantId,
        id: DeliveryId,
    ) -> Result<Option<(Delivery, bool)>, StoreError> {
        command(
            self.call_timeout,
            deliveries::lock(&mut self.tx, tenant, id),
        )
        .await
    }

    async fn insert_delivery(
        &mut self,
        new: &Delivery,
        event: &StoredEvent,
    ) -> Result<(), StoreError> {
        command(
            self.call_timeout,
            deliveries::insert(&mut self.tx, new, event),
        )
        .await
    }

    async fn update_delivery(&mut self, changed: &Delivery) -> Result<(), StoreError> {
        command(self.call_timeout, deliveries::update(&mut self.tx, changed)).await
    }

    async fn running_replays(&mut self, tenant: &TenantId) -> Result<i64, StoreError> {
        command(self.call_timeout, replays::running(&mut self.tx, tenant)).await
    }

    async fn insert_replay(&mut self, new: &Replay) -> Result<bool, StoreError> {
        command(self.call_timeout, replays::insert(&mut self.tx, new)).await
    }

    async fn replay(
        &mut self,
        tenant: &TenantId,
        webhook: WebhookId,
        id: ReplayId,
    ) -> Result<Option<Replay>, StoreError> {
        let locked = replays::locked(&mut self.tx, tenant, webhook, id);
        command(self.call_timeout, locked).await
    }

    async fn update_replay(&mut self, changed: &Replay) -> Result<(), StoreError> {
        command(self.call_timeout, replays::update(&mut self.tx, changed)).await
    }

    async fn add_events(&mut self, events: &[DomainEvent]) -> Result<(), StoreError> {
        command(
            self.call_timeout,
            outbox::insert(&mut self.tx, &events.iter().collect::<Vec<_>>()),
        )
        .await
    }

    async fn add_audit(&mut self, rows: &[AuditRow]) -> Result<(), StoreError> {
        command(self.call_timeout, commands::add_audit(&mut self.tx, rows)).await
    }

    async fn registry_changed(&mut self, changes: &[RegistryChange]) -> Result<(), StoreError> {
        command(self.call_timeout, registry::changed(&mut self.tx, changes)).await
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let Self { tx, call_timeout } = *self;
        let commit = async { tx.commit().await.map_err(during("commit")) };
        bounded(call_timeout, "commit", commit).await
    }
}

/// One step of a unit of work.
async fn command<T>(
    limit: Duration,
    step: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    bounded(limit, "work on a command", step).await
}

/// What an update, made within a savepoint, came to: a name that is taken does not spoil the rest of
/// the transaction.
async fn settle(
    savepoint: Transaction<'_, Postgres>,
    result: Result<sqlx::postgres::PgQueryResult, sqlx::Error>,
    name_constraint: &str,
    operation: &'static str,
) -> Result<Inserted, StoreError> {
    match result {
        Ok(done) if done.rows_affected() == 0 => Err(StoreError::Conflict),
        Ok(_) => {
            savepoint.commit().await.map_err(during(operation))?;
            Ok(Inserted::Yes)
        }
        Err(error) if violates(&error, name_constraint) => {
            savepoint.rollback().await.map_err(during(operation))?;
            Ok(Inserted::NameTaken)
        }
        Err(error) => Err(during(operation)(error)),
    }
}
