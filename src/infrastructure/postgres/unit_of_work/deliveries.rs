//! Deliveries within a unit of work.

use sqlx::postgres::{PgBindIterExt as _, PgConnection};

use crate::domain::{
    entities::Delivery,
    interfaces::{StoreError, StoredEvent},
    values::{DeliveryId, TenantId, Timestamp, WebhookId},
};

use super::super::{
    blockers,
    error::{during, failed},
    record::insert_one,
    rows::{DeliveryRow, delivery_columns},
    text::clean_opt,
};

#[derive(sqlx::FromRow)]
struct LockedRow {
    #[sqlx(flatten)]
    delivery: DeliveryRow,
    has_event: bool,
}

pub(super) async fn lock(
    connection: &mut PgConnection,
    tenant: &TenantId,
    id: DeliveryId,
) -> Result<Option<(Delivery, bool)>, StoreError> {
    let row: Option<LockedRow> = sqlx::query_as(concat!(
        "SELECT ",
        delivery_columns!(),
        ", d.event_raw IS NOT NULL AND d.event_meta IS NOT NULL AS has_event
         FROM deliveries d WHERE d.id = $1 AND d.tenant = $2 FOR UPDATE"
    ))
    .bind(id.0)
    .bind(tenant.as_str())
    .fetch_optional(connection)
    .await
    .map_err(during("lock a delivery"))?;
    row.map(|row| Ok((Delivery::try_from(row.delivery)?, row.has_event)))
        .transpose()
}

pub(super) async fn insert(
    connection: &mut PgConnection,
    new: &Delivery,
    event: &StoredEvent,
) -> Result<(), StoreError> {
    if insert_one(connection, new, event).await? {
        Ok(())
    } else {
        Err(failed("insert a delivery", "its id is taken"))
    }
}

pub(super) async fn update(
    connection: &mut PgConnection,
    changed: &Delivery,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE deliveries
         SET status = $2, attempt_count = $3, event_version = $4, budget_base = $5,
             next_attempt_at = $6, due_at = $6, error = $7, completed_at = $8,
             lease_epoch = lease_epoch + 1, lane_blocks = $9, batch_id = $10,
             batched = $11
         WHERE id = $1",
    )
    .bind(changed.id.0)
    .bind(changed.status.as_str())
    .bind(changed.attempt_count)
    .bind(changed.event_version)
    .bind(changed.budget_base)
    .bind(changed.next_attempt_at)
    .bind(clean_opt(changed.error.as_ref()))
    .bind(changed.completed_at)
    .bind(changed.blocks())
    .bind(changed.batch.id().map(|id| id.0))
    .bind(changed.batch.is_shared())
    .execute(connection)
    .await
    .map_err(during("update a delivery"))?;
    match done.rows_affected() {
        0 => Err(StoreError::Conflict),
        _ => Ok(()),
    }
}

/// Deliveries that are cancelled together with their webhooks; the claims do it with what is left.
const CANCELLED_AT_ONCE: i64 = 1_000;

/// Cancels what still waits for webhooks that are deleted, or leaves notes of what is left of it; the
/// leases end. Nothing stops the claims from finding it: a front that blocks would.
pub(super) async fn cancel_or_note(
    connection: &mut PgConnection,
    webhooks: &[WebhookId],
    now: Timestamp,
) -> Result<(), StoreError> {
    const OPERATION: &str = "cancel the deliveries of a webhook";
    blockers::unblock(connection, webhooks, CANCELLED_AT_ONCE).await?;
    // Locked in the order in which batches of outcomes lock theirs.
    let cancelled = sqlx::query(
        "WITH pending AS MATERIALIZED (
             SELECT id FROM deliveries WHERE id = ANY (ARRAY (
                 (SELECT id FROM deliveries WHERE webhook_id = ANY ($1::uuid[])
                      AND status = 'pending' AND lane_key IS NULL AND NOT batched LIMIT $3)
                 UNION ALL
                 (SELECT id FROM deliveries WHERE webhook_id = ANY ($1::uuid[])
                      AND status = 'pending' AND lane_key IS NOT NULL LIMIT $3)
                 UNION ALL
                 (SELECT id FROM deliveries WHERE webhook_id = ANY ($1::uuid[])
                      AND status = 'pending' AND batched AND batch_id IS NULL LIMIT $3)
                 UNION ALL
                 (SELECT id FROM deliveries WHERE webhook_id = ANY ($1::uuid[])
                      AND status = 'pending' AND batch_id IS NOT NULL LIMIT $3)))
                 AND status = 'pending'
             ORDER BY id FOR UPDATE
         )
         UPDATE deliveries d
         SET status = 'cancelled', completed_at = $2, next_attempt_at = NULL, due_at = NULL,
             lease_epoch = d.lease_epoch + 1, event_meta = NULL, event_raw = NULL
         FROM pending p WHERE d.id = p.id",
    )
    .bind(webhooks.iter().map(|id| id.0).bind_iter())
    .bind(now)
    .bind(CANCELLED_AT_ONCE)
    .execute(&mut *connection)
    .await
    .map_err(during(OPERATION))?;
    if cancelled.rows_affected() < CANCELLED_AT_ONCE.unsigned_abs() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO deleted_webhooks (id)
         SELECT w.id FROM UNNEST($1::uuid[]) AS w (id)
         WHERE EXISTS (
             SELECT FROM deliveries d WHERE d.webhook_id = w.id AND d.status = 'pending')",
    )
    .bind(webhooks.iter().map(|id| id.0).bind_iter())
    .execute(connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(())
}
