//! Reads for users. Lists go by (`created_at`, `id`), newest first.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::domain::{
    entities::{Delivery, Integration, Webhook},
    interfaces::{
        DeliveryFilter, EntityFilter, Page, PageRequest, Queries, StoreError, StoreStats,
    },
    policies::EndpointState,
    values::{IntegrationId, TenantId, Timestamp, WebhookId},
};

use super::{
    SqliteStore, endpoints,
    entities::{self, select_integrations, select_webhooks},
    error::{failed, store_error},
    rows,
};

/// The longest-due of those that go out alone, together, and in order: of each webhook the first one, in the
/// indexes on what waits, and of lanes the fronts of the first thousand.
pub(super) const STATS: &str = "
WITH RECURSIVE alone (webhook_id) AS (
    SELECT min(webhook_id) FROM deliveries d WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched
    UNION ALL
    SELECT (SELECT min(d.webhook_id) FROM deliveries d
        WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id > w.webhook_id)
    FROM alone w WHERE w.webhook_id IS NOT NULL
), to_batch (webhook_id) AS (
    SELECT min(webhook_id) FROM deliveries d WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL
    UNION ALL
    SELECT (SELECT min(d.webhook_id) FROM deliveries d
        WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL AND d.webhook_id > w.webhook_id)
    FROM to_batch w WHERE w.webhook_id IS NOT NULL
), batches (webhook_id) AS (
    SELECT min(webhook_id) FROM deliveries d WHERE d.status = 'pending' AND d.batch_id IS NOT NULL
    UNION ALL
    SELECT (SELECT min(d.webhook_id) FROM deliveries d
        WHERE d.status = 'pending' AND d.batch_id IS NOT NULL AND d.webhook_id > w.webhook_id)
    FROM batches w WHERE w.webhook_id IS NOT NULL
), fronts (seq) AS (
    SELECT (SELECT g.seq FROM deliveries g
        WHERE g.lane_key IS NOT NULL AND (g.status = 'pending' OR g.lane_blocks)
        ORDER BY g.webhook_id, g.lane_key, g.lane_turn LIMIT 1)
    UNION ALL
    SELECT (SELECT d.seq FROM deliveries d
        WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
            AND (d.webhook_id, d.lane_key) > (c.webhook_id, c.lane_key)
        ORDER BY d.webhook_id, d.lane_key, d.lane_turn LIMIT 1)
    FROM fronts l CROSS JOIN deliveries c ON c.seq = l.seq
    LIMIT 1000
), waiting (webhook_id, due_at) AS (
    SELECT w.webhook_id, (SELECT min(d.due_at) FROM deliveries d
        WHERE d.status = 'pending' AND d.lane_key IS NULL AND NOT d.batched AND d.webhook_id = w.webhook_id)
    FROM alone w
    UNION ALL
    SELECT w.webhook_id, (SELECT min(d.due_at) FROM deliveries d
        WHERE d.status = 'pending' AND d.batched AND d.batch_id IS NULL AND d.webhook_id = w.webhook_id)
    FROM to_batch w
    UNION ALL
    SELECT w.webhook_id, (SELECT min(d.due_at) FROM deliveries d
        WHERE d.status = 'pending' AND d.batch_id IS NOT NULL AND d.webhook_id = w.webhook_id)
    FROM batches w
    UNION ALL
    SELECT c.webhook_id, c.due_at FROM fronts l CROSS JOIN deliveries c ON c.seq = l.seq
    WHERE c.status = 'pending'
), oldest (due_at) AS (
    SELECT w.due_at
    FROM waiting w
    CROSS JOIN webhooks e ON e.id = w.webhook_id
    CROSS JOIN integrations i ON i.id = e.integration_id
    WHERE e.status IN ('pending', 'active') AND i.status IN ('pending', 'active')
        AND NOT EXISTS (SELECT 1 FROM endpoint_states s
            WHERE s.webhook_id = e.id AND s.open_until IS NOT NULL)
)
SELECT 0 AS id,
    (SELECT count(*) FROM (
        SELECT 1 FROM deliveries WHERE status = 'pending' AND lane_key IS NULL AND NOT batched
        UNION ALL
        SELECT 1 FROM deliveries WHERE status = 'pending' AND lane_key IS NOT NULL
        UNION ALL
        SELECT 1 FROM deliveries
        WHERE status = 'pending' AND batched AND batch_id IS NULL
        UNION ALL
        SELECT 1 FROM deliveries WHERE status = 'pending' AND batch_id IS NOT NULL
        LIMIT 1000000)) AS parked,
    (SELECT min(due_at) FROM oldest WHERE due_at <= ?1) AS oldest_due,
    (SELECT count(*) FROM (SELECT 1 FROM outbox
        WHERE published_at IS NULL AND is_response = 0 LIMIT 1000000)) AS outbox,
    (SELECT created_at FROM outbox WHERE published_at IS NULL AND is_response = 0
        ORDER BY seq LIMIT 1) AS oldest_outbox,
    (SELECT count(*) FROM (SELECT 1 FROM outbox
        WHERE published_at IS NULL AND is_response = 1 LIMIT 1000000)) AS responses,
    (SELECT created_at FROM outbox WHERE published_at IS NULL AND is_response = 1
        ORDER BY seq LIMIT 1) AS oldest_response";

#[async_trait]
impl Queries for SqliteStore {
    async fn get_integration(
        &self,
        tenant: &TenantId,
        id: IntegrationId,
    ) -> Result<Option<Integration>, StoreError> {
        let mut connection = self.read("read an integration").await?;
        entities::integration(&mut connection, tenant, id).await
    }

    async fn list_integrations(
        &self,
        tenant: &TenantId,
        filter: &EntityFilter,
        page: &PageRequest,
    ) -> Result<Page<Integration>, StoreError> {
        const LIST: &str = "list integrations";
        let mut connection = self.read(LIST).await?;
        let bounds = Bounds::new(filter.since, filter.until, page);
        let rows = sqlx::query(select_integrations!(
            "WHERE e.tenant = ?1 AND e.created_at >= ?2 AND (e.created_at, e.id) < (?3, ?4)
                AND (?5 IS NULL OR e.status = ?5) AND (?6 IS NULL OR e.name = ?6)
                AND (?7 IS NULL OR EXISTS (SELECT 1 FROM json_each(e.tags) WHERE value = ?7))
                AND (?8 IS NULL OR e.type = ?8) AND (?9 IS NULL OR e.id = ?9)
            ORDER BY e.created_at DESC, e.id DESC LIMIT ?10"
        ))
        .bind(tenant.as_str())
        .bind(bounds.since)
        .bind(bounds.before)
        .bind(bounds.before_id)
        .bind(&filter.status)
        .bind(&filter.name)
        .bind(&filter.tag)
        .bind(&filter.kind)
        .bind(filter.integration_id.map(|id| id.0))
        .bind(bounds.rows)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed(LIST))?;
        to_page(&rows, page, rows::integration)
    }

    async fn get_webhook(
        &self,
        tenant: &TenantId,
        id: WebhookId,
    ) -> Result<Option<Webhook>, StoreError> {
        let mut connection = self.read("read a webhook").await?;
        entities::webhook(&mut connection, tenant, id).await
    }

    async fn list_webhooks(
        &self,
        tenant: &TenantId,
        filter: &EntityFilter,
        page: &PageRequest,
    ) -> Result<Page<Webhook>, StoreError> {
        const LIST: &str = "list webhooks";
        let mut connection = self.read(LIST).await?;
        let bounds = Bounds::new(filter.since, filter.until, page);
        let rows = sqlx::query(select_webhooks!(
            "FROM webhooks e
            WHERE e.tenant = ?1 AND e.created_at >= ?2 AND (e.created_at, e.id) < (?3, ?4)
                AND (?5 IS NULL OR e.status = ?5) AND (?6 IS NULL OR e.name = ?6)
                AND (?7 IS NULL OR EXISTS (SELECT 1 FROM json_each(e.tags) WHERE value = ?7))
                AND (?8 IS NULL OR e.integration_id = ?8)
                AND (?9 IS NULL OR EXISTS (SELECT 1 FROM integrations i
                    WHERE i.id = e.integration_id AND i.type = ?9))
            ORDER BY e.created_at DESC, e.id DESC LIMIT ?10"
        ))
        .bind(tenant.as_str())
        .bind(bounds.since)
        .bind(bounds.before)
        .bind(bounds.before_id)
        .bind(&filter.status)
        .bind(&filter.name)
        .bind(&filter.tag)
        .bind(filter.integration_id.map(|id| id.0))
        .bind(&filter.kind)
        .bind(bounds.rows)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed(LIST))?;
        to_page(&rows, page, rows::webhook)
    }

    async fn list_deliveries(
        &self,
        tenant: &TenantId,
        filter: &DeliveryFilter,
        page: &PageRequest,
    ) -> Result<Page<Delivery>, StoreError> {
        const LIST: &str = "list deliveries";
        let mut connection = self.read(LIST).await?;
        let bounds = Bounds::new(filter.since, filter.until, page);
        let undelivered = filter.status.as_deref().is_some_and(|s| s != "delivered");
        let sql = if undelivered { UNDELIVERED } else { DELIVERIES };
        let rows = sqlx::query(sql)
            .bind(tenant.as_str())
            .bind(bounds.since)
            .bind(bounds.before)
            .bind(bounds.before_id)
            .bind(&filter.status)
            .bind(filter.webhook_id.map(|id| id.0))
            .bind(&filter.event_id)
            .bind(&filter.event_type)
            .bind(bounds.rows)
            .fetch_all(&mut *connection)
            .await
            .map_err(failed(LIST))?;
        to_page(&rows, page, rows::delivery)
    }

    async fn lane_front(
        &self,
        webhook: WebhookId,
        key: &str,
    ) -> Result<Option<Delivery>, StoreError> {
        const READ: &str = "read the front of a lane";
        let mut connection = self.read(READ).await?;
        let row = sqlx::query(
            "SELECT d.* FROM deliveries d
            WHERE d.lane_key IS NOT NULL AND (d.status = 'pending' OR d.lane_blocks)
                AND d.webhook_id = ?1 AND d.lane_key = ?2
            ORDER BY d.lane_turn LIMIT 1",
        )
        .bind(webhook.0)
        .bind(key)
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed(READ))?;
        row.map(|row| rows::delivery(&row)).transpose()
    }

    async fn endpoint_states(
        &self,
        limit: u32,
    ) -> Result<Vec<(WebhookId, EndpointState)>, StoreError> {
        endpoints::states(self, limit).await
    }

    async fn endpoint_states_of(
        &self,
        webhooks: &[WebhookId],
    ) -> Result<Vec<(WebhookId, EndpointState)>, StoreError> {
        endpoints::states_of(self, webhooks).await
    }

    async fn stats(&self, now: Timestamp) -> Result<StoreStats, StoreError> {
        const READ: &str = "read its figures";
        let mut connection = self.read(READ).await?;
        let row = sqlx::query(STATS)
            .bind(now.timestamp_millis())
            .fetch_one(&mut *connection)
            .await
            .map_err(failed(READ))?;
        let cells = rows::Cells::new(&row, "deliveries");
        Ok(StoreStats {
            parked: cells.get("parked")?,
            oldest_due: cells.optional_time("oldest_due")?,
            outbox: cells.get("outbox")?,
            oldest_outbox: cells.optional_time("oldest_outbox")?,
            responses: cells.get("responses")?,
            oldest_response: cells.optional_time("oldest_response")?,
        })
    }

    async fn key_ids(&self) -> Result<Vec<String>, StoreError> {
        const READ: &str = "read the ids of its encryption keys";
        let mut connection = self.read(READ).await?;
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
        .fetch_all(&mut *connection)
        .await
        .map_err(failed(READ))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        if self.migrations_current().await? {
            return Ok(());
        }
        let problem = "its schema is not that of this program: run `integration-worker migrate`";
        Err(store_error("check its schema", true, problem.into()))
    }

    async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }
}

macro_rules! select_deliveries {
    ($status:literal) => {
        concat!(
            "SELECT e.* FROM deliveries e
            WHERE ",
            $status,
            " AND e.tenant = ?1 AND e.created_at >= ?2 AND (e.created_at, e.id) < (?3, ?4)
                AND (?6 IS NULL OR e.webhook_id = ?6) AND (?7 IS NULL OR e.event_id = ?7)
                AND (?8 IS NULL OR e.event_type = ?8)
            ORDER BY e.created_at DESC, e.id DESC LIMIT ?9"
        )
    };
}

const DELIVERIES: &str = select_deliveries!("(?5 IS NULL OR e.status = ?5)");
/// By the index on the few that were not delivered.
const UNDELIVERED: &str = select_deliveries!("e.status = ?5 AND e.status <> 'delivered'");

/// What a list is limited by: `since` ≤ created, and (created, id) < (`before`, `before_id`).
pub(super) struct Bounds {
    since: i64,
    pub(super) before: i64,
    pub(super) before_id: Vec<u8>,
    pub(super) rows: i64,
}

impl Bounds {
    pub(super) fn new(
        since: Option<Timestamp>,
        until: Option<Timestamp>,
        page: &PageRequest,
    ) -> Self {
        // No id is less than the empty one.
        let until = until.map_or(i64::MAX, |until| until.timestamp_millis());
        let end = (until, Vec::new());
        let after = page.after.map(|(created, id): (Timestamp, Uuid)| {
            (created.timestamp_millis(), id.as_bytes().to_vec())
        });
        let (before, before_id) = after.map_or(end.clone(), |after| after.min(end));
        Self {
            since: since.map_or(i64::MIN, |since| since.timestamp_millis()),
            before,
            before_id,
            // One more than asked for tells whether there are more.
            rows: i64::from(page.limit) + 1,
        }
    }
}

pub(super) fn to_page<T>(
    rows: &[SqliteRow],
    page: &PageRequest,
    read: impl Fn(&SqliteRow) -> Result<T, StoreError>,
) -> Result<Page<T>, StoreError> {
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let items = rows
        .iter()
        .take(limit)
        .map(read)
        .collect::<Result<_, _>>()?;
    Ok(Page {
        items,
        more: rows.len() > limit,
    })
}
