//! Reads for users. Filters that are off are NULL; they fall away when the statement is planned, which
//! happens each time with the values at hand.

use async_trait::async_trait;

use crate::domain::{
    entities::{Delivery, Integration, Webhook},
    interfaces::{
        DeliveryFilter, EntityFilter, Page, PageRequest, Queries, StoreError, StoreStats,
    },
    policies::EndpointState,
    values::{IntegrationId, TenantId, Timestamp, WebhookId},
};

use super::{
    PostgresStore, endpoints,
    error::{during, failed},
    rows::{
        DeliveryRow, IntegrationRow, WebhookRow, all, delivery_columns, select_integrations,
        select_webhooks,
    },
    text::clean_opt,
};

/// The longest-due of those that go out alone, together, and in order: of each webhook the first one, in the
/// indexes on what waits, and of lanes the fronts of the first thousand.
const STATS: &str = "
WITH RECURSIVE alone AS (
     (SELECT d.webhook_id, d.due_at FROM deliveries d
      WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched
      ORDER BY d.webhook_id, d.due_at LIMIT 1)
     UNION ALL
     SELECT n.webhook_id, n.due_at FROM alone l CROSS JOIN LATERAL (
         SELECT d.webhook_id, d.due_at FROM deliveries d
         WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched
             AND d.webhook_id > l.webhook_id
         ORDER BY d.webhook_id, d.due_at LIMIT 1) n
 ), to_batch AS (
     (SELECT d.webhook_id, d.due_at FROM deliveries d
      WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
      ORDER BY d.webhook_id, d.due_at LIMIT 1)
     UNION ALL
     SELECT n.webhook_id, n.due_at FROM to_batch l CROSS JOIN LATERAL (
         SELECT d.webhook_id, d.due_at FROM deliveries d
         WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL AND d.webhook_id > l.webhook_id
         ORDER BY d.webhook_id, d.due_at LIMIT 1) n
 ), batches AS (
     (SELECT d.webhook_id, d.due_at FROM deliveries d
      WHERE d.status = 'pending' AND d.batch_id IS NOT NULL
      ORDER BY d.webhook_id, d.due_at LIMIT 1)
     UNION ALL
     SELECT n.webhook_id, n.due_at FROM batches l CROSS JOIN LATERAL (
         SELECT d.webhook_id, d.due_at FROM deliveries d
         WHERE d.status = 'pending' AND d.batch_id IS NOT NULL AND d.webhook_id > l.webhook_id
         ORDER BY d.webhook_id, d.due_at LIMIT 1) n
 ), fronts AS (
     (SELECT d.webhook_id, d.lane_key, d.status, d.due_at FROM deliveries d
      WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
      ORDER BY d.webhook_id, d.lane_key, d.lane_turn LIMIT 1)
     UNION ALL
     SELECT n.* FROM fronts f CROSS JOIN LATERAL (
         SELECT d.webhook_id, d.lane_key, d.status, d.due_at FROM deliveries d
         WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
             AND (d.webhook_id, d.lane_key) > (f.webhook_id, f.lane_key)
         ORDER BY d.webhook_id, d.lane_key, d.lane_turn LIMIT 1) n
 ), waiting AS (
     SELECT * FROM alone UNION ALL SELECT * FROM to_batch UNION ALL SELECT * FROM batches
     UNION ALL
     SELECT f.webhook_id, f.due_at FROM (SELECT * FROM fronts LIMIT 1000) f
     WHERE f.status = 'pending'
 )
 SELECT p.parked, (
         SELECT min(l.due_at) FROM waiting l WHERE l.due_at <= $1 AND (
             SELECT w.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
             FROM webhooks w JOIN integrations i ON i.id = w.integration_id
             WHERE w.id = l.webhook_id) AND NOT EXISTS (
             SELECT FROM endpoint_states s
             WHERE s.webhook_id = l.webhook_id AND s.open_until IS NOT NULL)
     ), o.waiting,
     (SELECT created_at FROM outbox WHERE published_at IS NULL AND NOT is_response
      ORDER BY position LIMIT 1), r.waiting,
     (SELECT created_at FROM outbox WHERE published_at IS NULL AND is_response
      ORDER BY position LIMIT 1)
 FROM (
     SELECT count(*) AS parked
     FROM (
         (SELECT 1 FROM deliveries
          WHERE status = 'pending' AND lane_key IS NULL AND NOT batched LIMIT 1000000)
         UNION ALL
         (SELECT 1 FROM deliveries
          WHERE status = 'pending' AND lane_key IS NOT NULL LIMIT 1000000)
         UNION ALL
         (SELECT 1 FROM deliveries
          WHERE status = 'pending' AND batched AND batch_id IS NULL LIMIT 1000000)
         UNION ALL
         (SELECT 1 FROM deliveries
          WHERE status = 'pending' AND batch_id IS NOT NULL LIMIT 1000000)
         LIMIT 1000000) d
 ) p, (
     SELECT count(*) AS waiting
     FROM (SELECT 1 FROM outbox WHERE published_at IS NULL AND NOT is_response LIMIT 1000000) o
 ) o, (
     SELECT count(*) AS waiting
     FROM (SELECT 1 FROM outbox WHERE published_at IS NULL AND is_response LIMIT 1000000) r
 ) r";

#[async_trait]
impl Queries for PostgresStore {
    async fn get_integration(
        &self,
        tenant: &TenantId,
        id: IntegrationId,
    ) -> Result<Option<Integration>, StoreError> {
        let row: Option<IntegrationRow> =
            sqlx::query_as(select_integrations!("WHERE i.id = $1 AND i.tenant = $2"))
                .bind(id.0)
                .bind(tenant.as_str())
                .fetch_optional(&self.pool)
                .await
                .map_err(during("read an integration"))?;
        row.map(Integration::try_from).transpose()
    }

    async fn list_integrations(
        &self,
        tenant: &TenantId,
        filter: &EntityFilter,
        page: &PageRequest,
    ) -> Result<Page<Integration>, StoreError> {
        let (after_time, after_id) = page.after.unzip();
        let rows: Vec<IntegrationRow> = sqlx::query_as(select_integrations!(
            "WHERE i.tenant = $1
                 AND ($2::text IS NULL OR i.type = $2)
                 AND ($3::text IS NULL OR i.status = $3)
                 AND ($4::text IS NULL OR i.name = $4)
                 AND ($5::text IS NULL OR $5 = ANY(i.tags))
                 AND ($6::timestamptz IS NULL OR i.created_at >= $6)
                 AND ($7::timestamptz IS NULL OR i.created_at < $7)
                 AND ($8::timestamptz IS NULL OR (i.created_at, i.id) < ($8, $9::uuid))
             ORDER BY i.created_at DESC, i.id DESC LIMIT $10"
        ))
        .bind(tenant.as_str())
        .bind(clean_opt(filter.kind.as_ref()))
        .bind(clean_opt(filter.status.as_ref()))
        .bind(clean_opt(filter.name.as_ref()))
        .bind(clean_opt(filter.tag.as_ref()))
        .bind(filter.since)
        .bind(filter.until)
        .bind(after_time)
        .bind(after_id)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(&self.pool)
        .await
        .map_err(during("list integrations"))?;
        part(rows, page)
    }

    async fn get_webhook(
        &self,
        tenant: &TenantId,
        id: WebhookId,
    ) -> Result<Option<Webhook>, StoreError> {
        let row: Option<WebhookRow> =
            sqlx::query_as(select_webhooks!("", "WHERE w.id = $1 AND w.tenant = $2"))
                .bind(id.0)
                .bind(tenant.as_str())
                .fetch_optional(&self.pool)
                .await
                .map_err(during("read a webhook"))?;
        row.map(Webhook::try_from).transpose()
    }

    async fn list_webhooks(
        &self,
        tenant: &TenantId,
        filter: &EntityFilter,
        page: &PageRequest,
    ) -> Result<Page<Webhook>, StoreError> {
        let (after_time, after_id) = page.after.unzip();
        let rows: Vec<WebhookRow> = sqlx::query_as(select_webhooks!(
            "",
            "WHERE w.tenant = $1
                 AND ($2::uuid IS NULL OR w.integration_id = $2)
                 AND ($3::text IS NULL OR w.status = $3)
                 AND ($4::text IS NULL OR w.name = $4)
                 AND ($5::text IS NULL OR $5 = ANY(w.tags))
                 AND ($6::timestamptz IS NULL OR w.created_at >= $6)
                 AND ($7::timestamptz IS NULL OR w.created_at < $7)
                 AND ($8::timestamptz IS NULL OR (w.created_at, w.id) < ($8, $9::uuid))
             ORDER BY w.created_at DESC, w.id DESC LIMIT $10"
        ))
        .bind(tenant.as_str())
        .bind(filter.integration_id.map(|id| id.0))
        .bind(clean_opt(filter.status.as_ref()))
        .bind(clean_opt(filter.name.as_ref()))
        .bind(clean_opt(filter.tag.as_ref()))
        .bind(filter.since)
        .bind(filter.until)
        .bind(after_time)
        .bind(after_id)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(&self.pool)
        .await
        .map_err(during("list webhooks"))?;
        part(rows, page)
    }

    async fn list_deliveries(
        &self,
        tenant: &TenantId,
        filter: &DeliveryFilter,
        page: &PageRequest,
    ) -> Result<Page<Delivery>, StoreError> {
        let (after_time, after_id) = page.after.unzip();
        let sql = match (&filter.event_id, &filter.status) {
            (Some(_), _) => OF_EVENT,
            (None, Some(_)) => OF_STATUS,
            (None, None) => DELIVERIES,
        };
        let rows: Vec<DeliveryRow> = sqlx::query_as(sql)
            .bind(tenant.as_str())
            .bind(clean_opt(filter.status.as_ref()))
            .bind(filter.webhook_id.map(|id| id.0))
            .bind(clean_opt(filter.event_id.as_ref()))
            .bind(clean_opt(filter.event_type.as_ref()))
            .bind(filter.since)
            .bind(filter.until)
            .bind(after_time)
            .bind(after_id)
            .bind(i64::from(page.limit) + 1)
            .fetch_all(&self.pool)
            .await
            .map_err(during("list deliveries"))?;
        part(rows, page)
    }

    async fn lane_front(
        &self,
        webhook: WebhookId,
        key: &str,
    ) -> Result<Option<Delivery>, StoreError> {
        let row: Option<DeliveryRow> = sqlx::query_as(concat!(
            "SELECT ",
            delivery_columns!(),
            " FROM deliveries d
             WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                 AND d.webhook_id = $1 AND d.lane_key = $2
             ORDER BY d.lane_turn LIMIT 1"
        ))
        .bind(webhook.0)
        .bind(key)
        .fetch_optional(&self.pool)
        .await
        .map_err(during("read the front of a lane"))?;
        row.map(Delivery::try_from).transpose()
    }

    async fn endpoint_states(
        &self,
        limit: u32,
    ) -> Result<Vec<(WebhookId, EndpointState)>, StoreError> {
        endpoints::states(&self.pool, limit).await
    }

    async fn endpoint_states_of(
        &self,
        webhooks: &[WebhookId],
    ) -> Result<Vec<(WebhookId, EndpointState)>, StoreError> {
        endpoints::states_of(&self.pool, webhooks).await
    }

    async fn stats(&self, now: Timestamp) -> Result<StoreStats, StoreError> {
        let (parked, oldest_due, outbox, oldest_outbox, responses, oldest_response) =
            sqlx::query_as(STATS)
                .bind(now)
                .fetch_one(&self.pool)
                .await
                .map_err(during("count what waits"))?;
        Ok(StoreStats {
            parked,
            oldest_due,
            outbox,
            oldest_outbox,
            responses,
            oldest_response,
        })
    }

    async fn key_ids(&self) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT credentials_key_id FROM integrations WHERE credentials_key_id IS NOT NULL
             UNION
             SELECT credentials_key_id FROM webhooks WHERE credentials_key_id IS NOT NULL
             UNION
             SELECT key_id FROM signing_secrets
             UNION
             SELECT DISTINCT key_id FROM idempotency WHERE key_id IS NOT NULL
             ORDER BY 1",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(during("read which encryption keys are in use"))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        if self.migrations_current().await? {
            Ok(())
        } else {
            Err(failed(
                "serve this program",
                "its migrations are not those of this program: run `integration-worker migrate`",
            ))
        }
    }

    async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        sqlx::query_scalar("SELECT clock_timestamp()")
            .fetch_one(&self.pool)
            .await
            .map(Some)
            .map_err(during("read the database's clock"))
    }
}

macro_rules! select_deliveries {
    ($from:literal, $condition:literal) => {
        concat!(
            "SELECT ",
            delivery_columns!(),
            " FROM ",
            $from,
            " WHERE d.tenant = $1
                 AND ($2::text IS NULL OR d.status = $2)
                 AND ($3::uuid IS NULL OR d.webhook_id = $3)
                 AND ($4::text IS NULL OR d.event_id = $4)
                 AND ($5::text IS NULL OR d.event_type = $5)
                 AND ($6::timestamptz IS NULL OR d.created_at >= $6)
                 AND ($7::timestamptz IS NULL OR d.created_at < $7)
                 AND ($8::timestamptz IS NULL OR (d.created_at, d.id) < ($8, $9::uuid))
                 AND ",
            $condition,
            " ORDER BY d.created_at DESC, d.id DESC LIMIT $10"
        )
    };
}

/// What is done and what waits, each from its own index.
const DELIVERIES: &str = concat!(
    "SELECT * FROM ((",
    select_deliveries!("deliveries d", "d.status <> 'pending'"),
    ") UNION ALL (",
    select_deliveries!("deliveries d", "d.status = 'pending'"),
    ")) d ORDER BY created_at DESC, id DESC LIMIT $10"
);

const OF_STATUS: &str = select_deliveries!("deliveries d", "true");

/// The deliveries of an event are few. Without statistics, the planner would not believe it.
const OF_EVENT: &str = concat!(
    "WITH of_event AS MATERIALIZED (SELECT d.* FROM deliveries d WHERE d.event_id = $4) ",
    select_deliveries!("of_event d", "true")
);

/// One row more than the page has was asked for.
fn part<R, T>(mut rows: Vec<R>, page: &PageRequest) -> Result<Page<T>, StoreError>
where
    T: TryFrom<R, Error = StoreError>,
{
    let more = rows.len() > page.limit as usize;
    rows.truncate(page.limit as usize);
    Ok(Page {
        items: all(rows)?,
        more,
    })
}
