//! The store of deliveries: what is recorded, given back and pruned.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::{
    Connection as _,
    postgres::{PgBindIterExt as _, PgConnection},
};
use uuid::Uuid;

use crate::domain::{
    entities::{Attempt, Delivery},
    interfaces::{
        BatchClaim, Blocker, ClaimRequest, Claimed, ClaimedBatches, ClaimedLanes, DeliveryStore,
        LaneClaim, Lease, RecordBatch, StoreError,
    },
    values::{DeliveryId, TenantId, Timestamp, WebhookId},
};

use super::{
    PostgresStore, batches, blockers, claim, endpoints,
    error::during,
    lanes,
    pool::Pool,
    rate_limits, record,
    rows::{AttemptRow, DeliveryRow, FirstAttemptRow, all, delivery_columns},
    turns,
};

/// A delivery with the attempt that stands in its row.
#[derive(sqlx::FromRow)]
struct RecordedRow {
    #[sqlx(flatten)]
    delivery: DeliveryRow,
    #[sqlx(flatten)]
    first: FirstAttemptRow,
}

impl TryFrom<RecordedRow> for (Delivery, Option<Attempt>) {
    type Error = StoreError;

    fn try_from(row: RecordedRow) -> Result<Self, StoreError> {
        let delivery = Delivery::try_from(row.delivery)?;
        let attempt = row.first.read(delivery.id)?;
        Ok((delivery, attempt))
    }
}

macro_rules! select_recorded {
    ($rest:literal) => {
        concat!(
            "SELECT ",
            delivery_columns!(),
            ", d.first_started_at, d.first_duration_ms, d.first_status_code, d.first_error,
               d.first_response
             FROM deliveries d ",
            $rest
        )
    };
}

#[async_trait]
impl DeliveryStore for PostgresStore {
    async fn recorded(
        &self,
        ids: &[DeliveryId],
    ) -> Result<Vec<(Delivery, Option<Attempt>)>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<RecordedRow> =
            sqlx::query_as(select_recorded!("WHERE d.id = ANY($1::uuid[])"))
                .bind(ids.iter().map(|id| id.0).bind_iter())
                .fetch_all(&self.pool)
                .await
                .map_err(during("look recorded deliveries up"))?;
        let mut recorded = Vec::with_capacity(rows.len());
        for row in rows {
            match row.try_into() {
                Ok(row) => recorded.push(row),
                Err(error) => {
                    let error: StoreError = error;
                    tracing::error!(%error, "a recorded delivery cannot be read and is made again");
                }
            }
        }
        Ok(recorded)
    }

    async fn record(&self, batch: &RecordBatch) -> Result<HashSet<DeliveryId>, StoreError> {
        record::record(&self.pool, batch).await
    }

    async fn claim_due(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        claim::claim_due(&self.pool, &self.claimed_up_to, request).await
    }

    async fn claim_lanes(&self, claim: &LaneClaim) -> Result<ClaimedLanes, StoreError> {
        lanes::claim_lanes(&self.pool, &self.last_lane, claim).await
    }

    async fn claim_batches(&self, claim: &BatchClaim) -> Result<ClaimedBatches, StoreError> {
        batches::claim_batches(&self.pool, &self.last_batch, claim).await
    }

    async fn take_probes(
        &self,
        webhooks: &[WebhookId],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<WebhookId>, StoreError> {
        endpoints::take_probes(&self.pool, webhooks, now, until).await
    }

    async fn give_probes_back(&self, rights: &[(WebhookId, Timestamp)]) -> Result<(), StoreError> {
        endpoints::give_probes_back(&self.pool, rights).await
    }

    async fn renew(
        &self,
        leases: &[Lease],
        lease_until: Timestamp,
    ) -> Result<Vec<Lease>, StoreError> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let held: Vec<(Uuid, i64)> = sqlx::query_as(
            "WITH locked AS MATERIALIZED (
                 SELECT l.id FROM deliveries l WHERE l.id = ANY($1::uuid[])
                 ORDER BY l.id FOR UPDATE
             )
             UPDATE deliveries d SET due_at = GREATEST(d.next_attempt_at, $3)
             FROM UNNEST($1::uuid[], $2::bigint[]) AS l (id, epoch)
             WHERE (SELECT count(*) FROM locked) > 0
                 AND d.id = l.id AND d.lease_epoch = l.epoch AND d.status = 'pending'
             RETURNING d.id, d.lease_epoch",
        )
        .bind(leases.iter().map(|lease| lease.delivery_id.0).bind_iter())
        .bind(leases.iter().map(|lease| lease.epoch).bind_iter())
        .bind(lease_until)
        .fetch_all(&self.pool)
        .await
        .map_err(during("prolong leases"))?;
        let held = held.into_iter().map(|(id, epoch)| Lease {
            delivery_id: DeliveryId(id),
            epoch,
        });
        Ok(held.collect())
    }

    async fn release(
        &self,
        leases: &[Lease],
        next_attempt_at: Timestamp,
    ) -> Result<(), StoreError> {
        let limited = put_back(&self.pool, leases, next_attempt_at).await?;
        // By itself: whoever deletes a webhook locks first this row and then deliveries.
        rate_limits::give_back(&self.pool, &limited).await
    }

    async fn abandon(
        &self,
        leases: &[Lease],
        next_attempt_at: Timestamp,
    ) -> Result<(), StoreError> {
        put_back(&self.pool, leases, next_attempt_at)
            .await
            .map(drop)
    }

    async fn blockers(
        &self,
        after: Option<WebhookId>,
        limit: u32,
    ) -> Result<Vec<Blocker>, StoreError> {
        blockers::blockers(&self.pool, after, limit).await
    }

    async fn highest_turns(&self, limit: u32) -> Result<Vec<(DeliveryId, i64)>, StoreError> {
        turns::highest(&self.pool, limit).await
    }

    async fn put_ahead(&self, ids: &[DeliveryId]) -> Result<u64, StoreError> {
        turns::put_ahead(&self.pool, ids).await
    }

    async fn prune_deliveries(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        // From the oldest of each tenant: what ended before, began before.
        let done = sqlx::query(
            "WITH RECURSIVE tenants AS (
                 (SELECT tenant FROM deliveries WHERE status <> 'pending' ORDER BY tenant LIMIT 1)
                 UNION ALL
                 SELECT (SELECT d.tenant FROM deliveries d
                         WHERE d.status <> 'pending' AND d.tenant > t.tenant
                         ORDER BY d.tenant LIMIT 1)
                 FROM tenants t WHERE t.tenant IS NOT NULL
             ), old AS MATERIALIZED (
                 SELECT o.id
                 FROM tenants t
                 CROSS JOIN LATERAL (
                     SELECT d.id FROM deliveries d
                     WHERE d.tenant = t.tenant AND d.created_at < $1 AND d.completed_at < $1
                         AND d.status <> 'pending' AND NOT d.lane_blocks
                     ORDER BY d.created_at LIMIT $2
                     FOR UPDATE SKIP LOCKED
                 ) o
                 LIMIT $2
             ), attempts_gone AS (
                 DELETE FROM attempts a USING old WHERE a.delivery_id = old.id
             )
             DELETE FROM deliveries d USING old WHERE d.id = old.id",
        )
        .bind(before)
        .bind(i64::from(limit))
        .execute(&self.pool)
        .await
        .map_err(during("prune deliveries"))?;
        Ok(done.rows_affected())
    }

    async fn delivery(
        &self,
        tenant: &TenantId,
        id: DeliveryId,
    ) -> Result<Option<(Delivery, Vec<Attempt>)>, StoreError> {
        const OPERATION: &str = "read a delivery";
        let read = self.pool.bounded(OPERATION, async {
            let mut connection = self.pool.lend(OPERATION).await?;
            let read = read(&mut connection, tenant, id).await;
            let read = read.map_err(during(OPERATION))?;
            connection.give_back();
            Ok(read)
        });
        let Some((row, later)) = read.await? else {
            return Ok(None);
        };
        let (delivery, first): (Delivery, Option<Attempt>) = row.try_into()?;
        let mut attempts: Vec<Attempt> = first.into_iter().collect();
        attempts.extend(all::<_, Attempt>(later)?);
        Ok(Some((delivery, attempts)))
    }
}

/// Gives leases back that are held; answers the webhooks with a rate limit among them, each with how many
/// requests there were: a batch has taken one token.
async fn put_back(
    pool: &Pool,
    leases: &[Lease],
    next_attempt_at: Timestamp,
) -> Result<Vec<(Uuid, i64)>, StoreError> {
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as(
        "WITH locked AS MATERIALIZED (
                 SELECT l.id FROM deliveries l WHERE l.id = ANY($1::uuid[])
                 ORDER BY l.id FOR UPDATE
             ), released AS (
                 UPDATE deliveries d
                 SET next_attempt_at = $3, due_at = $3, lease_epoch = d.lease_epoch + 1
                 FROM UNNEST($1::uuid[], $2::bigint[]) AS l (id, epoch)
                 WHERE (SELECT count(*) FROM locked) > 0
                     AND d.id = l.id AND d.lease_epoch = l.epoch AND d.status = 'pending'
                 RETURNING d.webhook_id, COALESCE(d.batch_id, d.id) AS request
             )
             SELECT r.webhook_id, count(DISTINCT r.request) FROM released r
             WHERE EXISTS (SELECT FROM rate_limits x WHERE x.webhook_id = r.webhook_id)
             GROUP BY r.webhook_id",
    )
    .bind(leases.iter().map(|lease| lease.delivery_id.0).bind_iter())
    .bind(leases.iter().map(|lease| lease.epoch).bind_iter())
    .bind(next_attempt_at)
    .fetch_all(pool)
    .await
    .map_err(during("give deliveries back"))
}

async fn read(
    connection: &mut PgConnection,
    tenant: &TenantId,
    id: DeliveryId,
) -> Result<Option<(RecordedRow, Vec<AttemptRow>)>, sqlx::Error> {
    // One snapshot, so that the attempts are those that the delivery counts.
    let mut tx = connection
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let row: Option<RecordedRow> =
        sqlx::query_as(select_recorded!("WHERE d.id = $1 AND d.tenant = $2"))
            .bind(id.0)
            .bind(tenant.as_str())
            .fetch_optional(&mut *tx)
            .await?;
    let later: Vec<AttemptRow> = sqlx::query_as(
        "SELECT a.delivery_id, a.number, a.started_at, a.duration_ms, a.status_code, a.error,
             a.response
         FROM deliveries d JOIN attempts a ON a.delivery_id = d.id
         WHERE d.id = $1 AND d.tenant = $2 ORDER BY a.number",
    )
    .bind(id.0)
    .bind(tenant.as_str())
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(row.map(|row| (row, later)))
}
