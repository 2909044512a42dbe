//! Exhausted deliveries that hold up those behind them in their lanes. An index of their own finds them,
//! so that looking for them passes by nothing that waits.

use sqlx::postgres::{PgBindIterExt as _, PgConnection};
use uuid::Uuid;

use crate::domain::{
    interfaces::{Blocker, StoreError},
    values::WebhookId,
};

use super::{error::during, pool::Pool};

/// Implements [`crate::domain::interfaces::DeliveryStore::blockers`].
pub(super) async fn blockers(
    pool: &Pool,
    after: Option<WebhookId>,
    limit: u32,
) -> Result<Vec<Blocker>, StoreError> {
    let rows: Vec<(Uuid, Option<String>)> = sqlx::query_as(
        "WITH RECURSIVE hops AS (
             (SELECT webhook_id FROM deliveries
              WHERE lane_blocks AND ($1::uuid IS NULL OR webhook_id > $1)
              ORDER BY webhook_id LIMIT 1)
             UNION ALL
             SELECT n.* FROM hops h CROSS JOIN LATERAL (
                 SELECT d.webhook_id FROM deliveries d
                 WHERE d.lane_blocks AND d.webhook_id > h.webhook_id
                 ORDER BY d.webhook_id LIMIT 1) n
         ), piece AS (SELECT webhook_id FROM hops LIMIT $2)
         SELECT p.webhook_id, w.tenant FROM piece p LEFT JOIN webhooks w ON w.id = p.webhook_id
         ORDER BY p.webhook_id",
    )
    .bind(after.map(|id| id.0))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
    .map_err(during("look for blocked lanes"))?;
    let blockers = rows.into_iter().map(|(webhook, tenant)| Blocker {
        webhook: WebhookId(webhook),
        tenant,
    });
    Ok(blockers.collect())
}

/// Lets lanes of these webhooks go on, at most `limit`, and answers how many. Locked in the order in
/// which batches of outcomes lock theirs.
pub(super) async fn unblock(
    connection: &mut PgConnection,
    webhooks: &[WebhookId],
    limit: i64,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "WITH blocking AS MATERIALIZED (
             SELECT id FROM deliveries WHERE lane_blocks AND id = ANY (ARRAY (
                 SELECT id FROM deliveries
                 WHERE webhook_id = ANY ($1::uuid[]) AND lane_blocks LIMIT $2))
             ORDER BY id FOR UPDATE
         )
         UPDATE deliveries d SET lane_blocks = false FROM blocking b WHERE d.id = b.id",
    )
    .bind(webhooks.iter().map(|id| id.0).bind_iter())
    .bind(limit)
    .execute(connection)
    .await
    .map_err(during("let lanes go on"))?;
    Ok(done.rows_affected())
}
