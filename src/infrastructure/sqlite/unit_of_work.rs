//! The control plane: a unit of work is the turn to write.

use std::sync::LazyLock;

use async_trait::async_trait;
use sqlx::{Sqlite, SqliteConnection, Transaction};

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
    SqliteStore, batch::ManyRows, batches, blockers, endpoints, entities, error::failed, outbox,
    rate_limits, record, registry, replays, rows,
};

#[async_trait]
impl UnitOfWorkFactory for SqliteStore {
    async fn begin(&self) -> Result<Box<dyn UnitOfWork>, StoreError> {
        Ok(Box::new(Unit(self.write("begin a unit of work").await?)))
    }
}

/// Dropping the transaction rolls it back: before the connection's next statement, whoever sends it.
struct Unit(Transaction<'static, Sqlite>);

#[async_trait]
impl UnitOfWork for Unit {
    async fn reply(&mut self, key: &CommandKey) -> Result<Option<StoredReply>, StoreError> {
        reply(&mut self.0, key).await
    }

    async fn keep_reply(
        &mut self,
        key: &CommandKey,
        reply: &StoredReply,
    ) -> Result<(), StoreError> {
        keep_reply(&mut self.0, key, reply).await
    }

    async fn integration(
        &mut self,
        tenant: &TenantId,
        id: IntegrationId,
    ) -> Result<Option<Integration>, StoreError> {
        entities::integration(&mut self.0, tenant, id).await
    }

    async fn insert_integration(&mut self, new: &Integration) -> Result<Inserted, StoreError> {
        entities::insert_integration(&mut self.0, new).await
    }

    async fn update_integration(&mut self, changed: &Integration) -> Result<Inserted, StoreError> {
        entities::update_integration(&mut self.0, changed).await
    }

    async fn delete_integration(&mut self, id: IntegrationId) -> Result<(), StoreError> {
        entities::delete_integration(&mut self.0, id).await
    }

    async fn webhooks_of(
        &mut self,
        id: IntegrationId,
        limit: u32,
    ) -> Result<Vec<Child>, StoreError> {
        entities::webhooks_of(&mut self.0, id, limit).await
    }

    async fn webhook(
        &mut self,
        tenant: &TenantId,
        id: WebhookId,
    ) -> Result<Option<Webhook>, StoreError> {
        entities::webhook(&mut self.0, tenant, id).await
    }

    async fn insert_webhook(&mut self, new: &Webhook) -> Result<Inserted, StoreError> {
        entities::insert_webhook(&mut self.0, new).await
    }

    async fn update_webhook(&mut self, changed: &Webhook) -> Result<Inserted, StoreError> {
        entities::update_webhook(&mut self.0, changed).await
    }

    async fn delete_webhook(&mut self, id: WebhookId, now: Timestamp) -> Result<(), StoreError> {
        entities::delete_webhook(&mut self.0, id, now).await
    }

    async fn delete_webhooks_of(
        &mut self,
        id: IntegrationId,
        now: Timestamp,
    ) -> Result<Vec<Webhook>, StoreError> {
        entities::delete_webhooks_of(&mut self.0, id, now).await
    }

    async fn unblock_lanes(&mut self, id: WebhookId, limit: u32) -> Result<u64, StoreError> {
        blockers::unblock(&mut self.0, &[id], limit).await
    }

    async fn put_batch_rule(
        &mut self,
        webhook: WebhookId,
        rule: Option<&BatchRule>,
    ) -> Result<(), StoreError> {
        batches::put_rule(&mut self.0, webhook, rule).await
    }

    async fn endpoint_state(&mut self, webhook: WebhookId) -> Result<EndpointState, StoreError> {
        endpoints::state(&mut self.0, webhook).await
    }

    async fn put_endpoint_state(
        &mut self,
        webhook: WebhookId,
        state: &EndpointState,
    ) -> Result<(), StoreError> {
        endpoints::put(&mut self.0, webhook, state).await
    }

    async fn put_rate_limit(
        &mut self,
        webhook: WebhookId,
        rule: Option<RateLimit>,
    ) -> Result<(), StoreError> {
        rate_limits::put(&mut self.0, webhook, rule).await
    }

    async fn delivery(
        &mut self,
        tenant: &TenantId,
        id: DeliveryId,
    ) -> Result<Option<(Delivery, bool)>, StoreError> {
        delivery(&mut self.0, tenant, id).await
    }

    async fn insert_delivery(
        &mut self,
        new: &Delivery,
        event: &StoredEvent,
    ) -> Result<(), StoreError> {
        record::insert_waiting(&mut self.0, new, event).await
    }

    async fn update_delivery(&mut self, changed: &Delivery) -> Result<(), StoreError> {
        update_delivery(&mut self.0, changed).await
    }

    async fn running_replays(&mut self, tenant: &TenantId) -> Result<i64, StoreError> {
        replays::running(&mut self.0, tenant).await
    }

    async fn insert_replay(&mut self, new: &Replay) -> Result<bool, StoreError> {
        replays::insert(&mut self.0, new).await
    }

    async fn replay(
        &mut self,
        tenant: &TenantId,
        webhook: WebhookId,
        id: ReplayId,
    ) -> Result<Option<Replay>, StoreError> {
        replays::one(&mut self.0, tenant, webhook, id).await
    }

    async fn update_replay(&mut self, changed: &Replay) -> Result<(), StoreError> {
        replays::update(&mut self.0, changed).await
    }

    async fn add_events(&mut self, events: &[DomainEvent]) -> Result<(), StoreError> {
        let events: Vec<&DomainEvent> = events.iter().collect();
        outbox::add_events(&mut self.0, &events).await
    }

    async fn add_audit(&mut self, rows: &[AuditRow]) -> Result<(), StoreError> {
        add_audit(&mut self.0, rows).await
    }

    async fn registry_changed(&mut self, changes: &[RegistryChange]) -> Result<(), StoreError> {
        registry::changed(&mut self.0, changes).await
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.0
            .commit()
            .await
            .map_err(failed("commit a unit of work"))
    }
}

async fn reply(
    connection: &mut SqliteConnection,
    key: &CommandKey,
) -> Result<Option<StoredReply>, StoreError> {
    let row = sqlx::query(
        "SELECT key AS id, key_id, reply, created_at FROM idempotency
        WHERE tenant = ?1 AND action = ?2 AND key = ?3",
    )
    .bind(key.tenant.as_str())
    .bind(&key.action)
    .bind(&key.key)
    .fetch_optional(connection)
    .await
    .map_err(failed("read the reply of a command"))?;
    let reply = row.map(|row| {
        let cells = rows::Cells::new(&row, "idempotency");
        Ok(StoredReply {
            key_id: cells.get("key_id")?,
            reply: cells.get("reply")?,
            created_at: cells.time("created_at")?,
        })
    });
    reply.transpose()
}

/// An older one gives way: whoever asked for it found it outdated.
async fn keep_reply(
    connection: &mut SqliteConnection,
    key: &CommandKey,
    reply: &StoredReply,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO idempotency (tenant, action, key, key_id, reply, created_at)
        VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (tenant, action, key) DO UPDATE SET
            key_id = excluded.key_id, reply = excluded.reply,
            created_at = excluded.created_at",
    )
    .bind(key.tenant.as_str())
    .bind(&key.action)
    .bind(&key.key)
    .bind(&reply.key_id)
    .bind(reply.reply.as_slice())
    .bind(reply.created_at.timestamp_millis())
    .execute(connection)
    .await
    .map_err(failed("keep the reply of a command"))?;
    Ok(())
}

async fn delivery(
    connection: &mut SqliteConnection,
    tenant: &TenantId,
    id: DeliveryId,
) -> Result<Option<(Delivery, bool)>, StoreError> {
    let row = sqlx::query(
        "SELECT d.*, EXISTS (SELECT 1 FROM delivery_events WHERE delivery = d.seq) AS has_event
        FROM deliveries d WHERE d.id = ?1 AND d.tenant = ?2",
    )
    .bind(id.0)
    .bind(tenant.as_str())
    .fetch_optional(connection)
    .await
    .map_err(failed("read a delivery"))?;
    let found = row.map(|row| {
        let has_event = rows::Cells::new(&row, "deliveries").get("has_event")?;
        Ok((rows::delivery(&row)?, has_event))
    });
    found.transpose()
}

async fn update_delivery(
    connection: &mut SqliteConnection,
    changed: &Delivery,
) -> Result<(), StoreError> {
    const UPDATE: &str = "update a delivery";
    let done = sqlx::query(
        "UPDATE deliveries SET status = ?2, attempt_count = ?3, event_version = ?4,
            budget_base = ?5, next_attempt_at = ?6, due_at = ?6, error = ?7, completed_at = ?8,
            lease_epoch = lease_epoch + 1, lane_blocks = ?9, batch_id = ?10,
            batched = ?11
        WHERE id = ?1",
    )
    .bind(changed.id.0)
    .bind(changed.status.as_str())
    .bind(changed.attempt_count)
    .bind(changed.event_version)
    .bind(changed.budget_base)
    .bind(changed.next_attempt_at.map(|at| at.timestamp_millis()))
    .bind(&changed.error)
    .bind(changed.completed_at.map(|at| at.timestamp_millis()))
    .bind(changed.blocks())
    .bind(changed.batch.id().map(|id| id.0))
    .bind(changed.batch.is_shared())
    .execute(connection)
    .await
    .map_err(failed(UPDATE))?;
    if done.rows_affected() == 0 {
        return Err(StoreError::Conflict);
    }
    Ok(())
}

static INSERT_AUDIT: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        32,
        "INSERT INTO audit (tenant, at, actor, action, entity_id, command_id, correlation_id) VALUES",
        7,
        "",
    )
});

async fn add_audit(connection: &mut SqliteConnection, rows: &[AuditRow]) -> Result<(), StoreError> {
    for (sql, piece) in INSERT_AUDIT.pieces(rows) {
        let mut query = sqlx::query(sql);
        for row in piece {
            query = query
                .bind(row.tenant.as_str())
                .bind(row.at.timestamp_millis())
                .bind(&row.actor)
                .bind(&row.action)
                .bind(&row.entity_id)
                .bind(&row.command_id)
                .bind(&row.correlation_id);
        }
        let done = query.execute(&mut *connection).await;
        done.map_err(failed("write the audit log"))?;
    }
    Ok(())
}
