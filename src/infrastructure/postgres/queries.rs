//! Reads for users. Filters that are off are NULL; they fall away when the statement is planned, which
//! happens each time with the values at hand.

use async_trait::async_trait;

use crate::domain::{
    entities::{Delivery, Integration, Webhook},
    interfaces::{
        DeliveryFilter, EntityFilter, Page, PageRequest, Queries, StoreError, StoreStats,
    },
    values::{IntegrationId, TenantId, Timestamp, WebhookId},
};

use super::{
    PostgresStore,
    error::{during, failed},
    rows::{
        DeliveryRow, IntegrationRow, WebhookRow, all, delivery_columns, select_integrations,
        select_webhooks,
    },
    text::clean_opt,
};

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
        let rows: Vec<DeliveryRow> = sqlx::query_as(concat!(
            "SELECT ",
            delivery_columns!(),
            " FROM deliveries d
             WHERE d.tenant = $1
                 AND ($2::text IS NULL OR d.status = $2)
                 AND ($3::uuid IS NULL OR d.webhook_id = $3)
                 AND ($4::text IS NULL OR d.event_id = $4)
                 AND ($5::text IS NULL OR d.event_type = $5)
                 AND ($6::timestamptz IS NULL OR d.created_at >= $6)
                 AND ($7::timestamptz IS NULL OR d.created_at < $7)
                 AND ($8::timestamptz IS NULL OR (d.created_at, d.id) < ($8, $9::uuid))
             ORDER BY d.created_at DESC, d.id DESC LIMIT $10"
        ))
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

    async fn stats(&self, now: Timestamp) -> Result<StoreStats, StoreError> {
        let (parked, oldest_due, outbox, oldest_outbox) = sqlx::query_as(
            "SELECT p.parked, p.oldest_due, o.waiting,
                 (SELECT created_at FROM outbox WHERE published_at IS NULL
                  ORDER BY position LIMIT 1)
             FROM (
                 SELECT count(*) AS parked, min(due_at) FILTER (WHERE due_at <= $1) AS oldest_due
                 FROM (SELECT due_at FROM deliveries WHERE status = 'pending' LIMIT 1000000) d
             ) p, (
                 SELECT count(*) AS waiting
                 FROM (SELECT 1 FROM outbox WHERE published_at IS NULL LIMIT 1000000) o
             ) o",
        )
        .bind(now)
        .fetch_one(&self.pool)
        .await
        .map_err(during("count what waits"))?;
        Ok(StoreStats {
            parked,
            oldest_due,
            outbox,
            oldest_outbox,
        })
    }

    async fn key_ids(&self) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT credentials_key_id FROM integrations WHERE credentials_key_id IS NOT NULL
             UNION
             SELECT credentials_key_id FROM webhooks WHERE credentials_key_id IS NOT NULL
             UNION
             SELECT key_id FROM signing_secrets
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
}

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
