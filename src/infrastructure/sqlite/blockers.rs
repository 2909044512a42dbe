//! Exhausted deliveries that hold up those behind them in their lanes. An index of their own finds them,
//! so that looking for them passes by nothing that waits.

use sqlx::SqliteConnection;
use uuid::Uuid;

use crate::domain::{
    interfaces::{Blocker, StoreError},
    values::WebhookId,
};

use super::{SqliteStore, batch::hex_array, error::failed};

/// Implements [`crate::domain::interfaces::DeliveryStore::blockers`].
pub(super) async fn blockers(
    store: &SqliteStore,
    after: Option<WebhookId>,
    limit: u32,
) -> Result<Vec<Blocker>, StoreError> {
    const LOOK: &str = "look for blocked lanes";
    let mut connection = store.read(LOOK).await?;
    let rows: Vec<(Uuid, Option<String>)> = sqlx::query_as(
        "WITH RECURSIVE hops (webhook_id) AS (
            SELECT min(webhook_id) FROM deliveries WHERE lane_blocks AND webhook_id > ?1
            UNION ALL
            SELECT (SELECT min(d.webhook_id) FROM deliveries d
                WHERE d.lane_blocks AND d.webhook_id > h.webhook_id)
            FROM hops h WHERE h.webhook_id IS NOT NULL
            LIMIT ?2
        )
        SELECT h.webhook_id, w.tenant FROM hops h LEFT JOIN webhooks w ON w.id = h.webhook_id
        WHERE h.webhook_id IS NOT NULL
        ORDER BY h.webhook_id",
    )
    // No id is shorter.
    .bind(after.map_or_else(Vec::new, |id| id.0.as_bytes().to_vec()))
    .bind(limit)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed(LOOK))?;
    let blockers = rows.into_iter().map(|(webhook, tenant)| Blocker {
        webhook: WebhookId(webhook),
        tenant,
    });
    Ok(blockers.collect())
}

/// Lets lanes of these webhooks go on, at most `limit`, and answers how many.
pub(super) async fn unblock(
    connection: &mut SqliteConnection,
    webhooks: &[WebhookId],
    limit: u32,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "UPDATE deliveries SET lane_blocks = 0
        WHERE seq IN (SELECT d.seq FROM json_each(?1) w
            CROSS JOIN deliveries d ON d.webhook_id = unhex(w.value)
            WHERE d.lane_blocks LIMIT ?2)",
    )
    .bind(hex_array(webhooks.iter().map(|id| id.0)))
    .bind(limit)
    .execute(connection)
    .await
    .map_err(failed("let lanes go on"))?;
    Ok(done.rows_affected())
}
