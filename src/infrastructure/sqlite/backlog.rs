//! What still waits for a webhook that is deleted, and is to be cancelled.
//!
//! It may be a million deliveries, which would hold the only writer for long. So a deletion cancels a
//! batch and leaves a note of the rest; each claim cancels another one until nothing is left.

use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use crate::domain::{
    interfaces::StoreError,
    values::{Timestamp, WebhookId},
};

use super::{SqliteStore, batch::hex_array, blockers, error::failed};

const CANCEL: &str = "cancel the deliveries of a deleted webhook";
/// Deliveries that one transaction cancels at most.
const BATCH: usize = 1_000;
/// Lanes that it lets go on at most.
const UNBLOCKED_AT_ONCE: u32 = 1_000;

/// In the transaction that deletes the webhooks.
pub(super) async fn cancel_or_note(
    connection: &mut SqliteConnection,
    webhooks: &[WebhookId],
    now: Timestamp,
) -> Result<(), StoreError> {
    blockers::unblock(connection, webhooks, UNBLOCKED_AT_ONCE).await?;
    // The rest is found as a blocker of a webhook that is gone.
    let ids = hex_array(webhooks.iter().map(|id| id.0));
    if cancel(connection, &ids, now.timestamp_millis()).await? == BATCH {
        sqlx::query(
            "INSERT INTO deleted_webhooks (id, deleted_at)
            SELECT unhex(w.value), ?2 FROM json_each(?1) w
            WHERE EXISTS (SELECT 1 FROM deliveries d
                WHERE d.status = 'pending' AND d.webhook_id = unhex(w.value))",
        )
        .bind(&ids)
        .bind(now.timestamp_millis())
        .execute(connection)
        .await
        .map_err(failed(CANCEL))?;
    }
    Ok(())
}

/// Cancels a batch, if there is anything to cancel.
pub(super) async fn work_off(store: &SqliteStore) -> Result<(), StoreError> {
    let mut reader = store.read(CANCEL).await?;
    let noted = sqlx::query("SELECT id, deleted_at FROM deleted_webhooks LIMIT 1")
        .fetch_optional(&mut *reader)
        .await
        .map_err(failed(CANCEL))?;
    drop(reader);
    let Some(noted) = noted else {
        return Ok(());
    };
    let id: Uuid = noted.try_get("id").map_err(failed(CANCEL))?;
    let deleted_at: i64 = noted.try_get("deleted_at").map_err(failed(CANCEL))?;
    let mut transaction = store.write(CANCEL).await?;
    let ids = hex_array(std::iter::once(id));
    if cancel(&mut transaction, &ids, deleted_at).await? < BATCH {
        sqlx::query("DELETE FROM deleted_webhooks WHERE id = ?1")
            .bind(id)
            .execute(&mut *transaction)
            .await
            .map_err(failed(CANCEL))?;
    }
    transaction.commit().await.map_err(failed(CANCEL))
}

/// `webhooks` is a JSON array of their ids in hex. Answers how many it cancelled; their leases end.
async fn cancel(
    connection: &mut SqliteConnection,
    webhooks: &str,
    deleted_at: i64,
) -> Result<usize, StoreError> {
    let cancelled: Vec<i64> = sqlx::query_scalar(
        "UPDATE deliveries SET status = 'cancelled', next_attempt_at = NULL, due_at = NULL,
            completed_at = max(created_at, ?2), lease_epoch = lease_epoch + 1
        WHERE seq IN (SELECT seq FROM (
                SELECT d.seq FROM json_each(?1) w
                CROSS JOIN deliveries d ON d.webhook_id = unhex(w.value)
                WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched
                UNION ALL
                SELECT d.seq FROM json_each(?1) w
                CROSS JOIN deliveries d ON d.webhook_id = unhex(w.value)
                WHERE d.status = 'pending' AND d.lane_key IS NOT NULL
                UNION ALL
                SELECT d.seq FROM json_each(?1) w
                CROSS JOIN deliveries d ON d.webhook_id = unhex(w.value)
                WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
                UNION ALL
                SELECT d.seq FROM json_each(?1) w
                CROSS JOIN deliveries d ON d.webhook_id = unhex(w.value)
                WHERE d.status = 'pending' AND d.batch_id IS NOT NULL)
            LIMIT ?3)
        RETURNING seq",
    )
    .bind(webhooks)
    .bind(deleted_at)
    .bind(i64::try_from(BATCH).unwrap_or(i64::MAX))
    .fetch_all(&mut *connection)
    .await
    .map_err(failed(CANCEL))?;
    sqlx::query("DELETE FROM delivery_events WHERE delivery IN (SELECT value FROM json_each(?1))")
        .bind(sqlx::types::Json(&cancelled))
        .execute(connection)
        .await
        .map_err(failed(CANCEL))?;
    Ok(cancelled.len())
}
