//! The data plane: deliveries, their attempts, and who works on them.

use std::{collections::HashSet, sync::LazyLock};

use async_trait::async_trait;
use sqlx::SqliteConnection;
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
    SqliteStore,
    batch::{ManyRows, hex_array},
    batches, blockers, claim, endpoints,
    error::failed,
    lanes, rate_limits, record, rows, turns,
};

#[async_trait]
impl DeliveryStore for SqliteStore {
    async fn recorded(
        &self,
        ids: &[DeliveryId],
    ) -> Result<Vec<(Delivery, Option<Attempt>)>, StoreError> {
        const READ: &str = "read recorded deliveries";
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.read(READ).await?;
        let rows = sqlx::query(
            "SELECT d.* FROM deliveries d
            WHERE d.id IN (SELECT unhex(value) FROM json_each(?1))",
        )
        .bind(hex_array(ids.iter().map(|id| id.0)))
        .fetch_all(&mut *connection)
        .await
        .map_err(failed(READ))?;
        let mut recorded = Vec::with_capacity(rows.len());
        for row in &rows {
            match rows::delivery(row).and_then(|one| Ok((one, rows::first_attempt(row)?))) {
                Ok(row) => recorded.push(row),
                Err(error) => {
                    tracing::error!(%error, "a recorded delivery cannot be read and is made again");
                }
            }
        }
        Ok(recorded)
    }

    async fn record(&self, batch: &RecordBatch) -> Result<HashSet<DeliveryId>, StoreError> {
        record::record(self, batch).await
    }

    async fn claim_due(&self, request: &ClaimRequest) -> Result<Claimed, StoreError> {
        claim::claim_due(self, request).await
    }

    async fn claim_lanes(&self, claim: &LaneClaim) -> Result<ClaimedLanes, StoreError> {
        lanes::claim_lanes(self, claim).await
    }

    async fn claim_batches(&self, claim: &BatchClaim) -> Result<ClaimedBatches, StoreError> {
        batches::claim_batches(self, claim).await
    }

    async fn take_probes(
        &self,
        webhooks: &[WebhookId],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<WebhookId>, StoreError> {
        endpoints::take_probes(self, webhooks, now, until).await
    }

    async fn give_probes_back(&self, rights: &[(WebhookId, Timestamp)]) -> Result<(), StoreError> {
        endpoints::give_probes_back(self, rights).await
    }

    async fn renew(
        &self,
        leases: &[Lease],
        lease_until: Timestamp,
    ) -> Result<Vec<Lease>, StoreError> {
        const RENEWED: &str = "renew leases";
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let mut transaction = self.write(RENEWED).await?;
        let held = on_leases(&mut transaction, RENEWED, &RENEW, leases, lease_until).await?;
        transaction.commit().await.map_err(failed(RENEWED))?;
        Ok(held.into_iter().map(|(lease, _)| lease).collect())
    }

    async fn release(
        &self,
        leases: &[Lease],
        next_attempt_at: Timestamp,
    ) -> Result<(), StoreError> {
        put_back(self, leases, next_attempt_at, Tokens::Unused).await
    }

    async fn abandon(
        &self,
        leases: &[Lease],
        next_attempt_at: Timestamp,
    ) -> Result<(), StoreError> {
        put_back(self, leases, next_attempt_at, Tokens::Used).await
    }

    async fn blockers(
        &self,
        after: Option<WebhookId>,
        limit: u32,
    ) -> Result<Vec<Blocker>, StoreError> {
        blockers::blockers(self, after, limit).await
    }

    async fn highest_turns(&self, limit: u32) -> Result<Vec<(DeliveryId, i64)>, StoreError> {
        turns::highest(self, limit).await
    }

    async fn put_ahead(&self, ids: &[DeliveryId]) -> Result<u64, StoreError> {
        turns::put_ahead(self, ids).await
    }

    async fn prune_deliveries(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        prune(self, before.timestamp_millis(), limit).await
    }

    async fn delivery(
        &self,
        tenant: &TenantId,
        id: DeliveryId,
    ) -> Result<Option<(Delivery, Vec<Attempt>)>, StoreError> {
        const READ: &str = "read a delivery";
        let mut snapshot = self.readers.begin().await.map_err(failed(READ))?;
        let row = sqlx::query("SELECT * FROM deliveries WHERE id = ?1 AND tenant = ?2")
            .bind(id.0)
            .bind(tenant.as_str())
            .fetch_optional(&mut *snapshot)
            .await
            .map_err(failed(READ))?;
        let Some(row) = row else {
            return Ok(None);
        };
        let later = sqlx::query(
            "SELECT d.id, a.* FROM deliveries d JOIN attempts a ON a.delivery = d.seq
            WHERE d.id = ?1 ORDER BY a.number",
        )
        .bind(id.0)
        .fetch_all(&mut *snapshot)
        .await
        .map_err(failed(READ))?;
        let first = rows::first_attempt(&row)?.map(Ok);
        let attempts = first.into_iter().chain(later.iter().map(rows::attempt));
        Ok(Some((
            rows::delivery(&row)?,
            attempts.collect::<Result<_, _>>()?,
        )))
    }
}

// ---- Leases -------------------------------------------------------------------------------

static RENEW: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        64,
        "WITH v (id, epoch, until) AS (VALUES",
        3,
        ")
        UPDATE deliveries SET due_at = max(next_attempt_at, v.until) FROM v
        WHERE deliveries.id = v.id AND deliveries.lease_epoch = v.epoch
            AND deliveries.status = 'pending'
        RETURNING id, lease_epoch, webhook_id, coalesce(batch_id, id)",
    )
});

static RELEASE: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        64,
        "WITH v (id, epoch, at) AS (VALUES",
        3,
        ")
        UPDATE deliveries SET next_attempt_at = v.at, due_at = v.at, lease_epoch = lease_epoch + 1
        FROM v
        WHERE deliveries.id = v.id AND deliveries.lease_epoch = v.epoch
            AND deliveries.status = 'pending'
        RETURNING id, lease_epoch, webhook_id, coalesce(batch_id, id)",
    )
});

/// What became of the tokens of rate limits that were taken with leases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tokens {
    Unused,
    Used,
}

async fn put_back(
    store: &SqliteStore,
    leases: &[Lease],
    at: Timestamp,
    tokens: Tokens,
) -> Result<(), StoreError> {
    const RELEASED: &str = "release leases";
    if leases.is_empty() {
        return Ok(());
    }
    let mut transaction = store.write(RELEASED).await?;
    let held = on_leases(&mut transaction, RELEASED, &RELEASE, leases, at).await?;
    if tokens == Tokens::Unused {
        // A batch has taken one token.
        let requests: HashSet<Request> = held.into_iter().map(|(_, request)| request).collect();
        let webhooks: Vec<Uuid> = requests.into_iter().map(|(webhook, _)| webhook).collect();
        rate_limits::give_back(&mut transaction, &webhooks).await?;
    }
    transaction.commit().await.map_err(failed(RELEASED))
}

/// A request that a lease was taken for: its webhook, and the delivery or its batch.
type Request = (Uuid, Uuid);

/// Answers the leases that were held, as they are now, each with the request that it was taken for.
async fn on_leases(
    connection: &mut SqliteConnection,
    operation: &'static str,
    statement: &ManyRows,
    leases: &[Lease],
    time: Timestamp,
) -> Result<Vec<(Lease, Request)>, StoreError> {
    let mut held = Vec::with_capacity(leases.len());
    for (sql, piece) in statement.pieces(leases) {
        let mut query = sqlx::query_as(sql);
        for lease in piece {
            query = query
                .bind(lease.delivery_id.0)
                .bind(lease.epoch)
                .bind(time.timestamp_millis());
        }
        let rows: Vec<(Uuid, i64, Uuid, Uuid)> = query
            .fetch_all(&mut *connection)
            .await
            .map_err(failed(operation))?;
        held.extend(rows.into_iter().map(|(id, epoch, webhook, request)| {
            let delivery_id = DeliveryId(id);
            (Lease { delivery_id, epoch }, (webhook, request))
        }));
    }
    Ok(held)
}

// ---- Pruning ------------------------------------------------------------------------------

/// By the index on the time, each tenant's oldest, since nothing ends before it began.
pub(super) const PRUNABLE: &str = "
WITH RECURSIVE tenants (tenant) AS (
    SELECT min(tenant) FROM deliveries
    UNION ALL
    SELECT (SELECT min(d.tenant) FROM deliveries d WHERE d.tenant > t.tenant)
    FROM tenants t WHERE t.tenant IS NOT NULL
)
SELECT d.seq FROM tenants t CROSS JOIN deliveries d INDEXED BY deliveries_by_time
ON d.tenant = t.tenant AND d.created_at < ?1
WHERE d.status <> 'pending' AND d.completed_at < ?1 AND NOT d.lane_blocks
LIMIT ?2";

/// Looks first, and then takes the turn to write only for what was found. Attempts and events go with
/// their delivery.
async fn prune(store: &SqliteStore, before: i64, limit: u32) -> Result<u64, StoreError> {
    const PRUNE: &str = "prune deliveries";
    let mut connection = store.read(PRUNE).await?;
    let found: Vec<i64> = sqlx::query_scalar(PRUNABLE)
        .bind(before)
        .bind(limit)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed(PRUNE))?;
    drop(connection);
    if found.is_empty() {
        return Ok(0);
    }
    let query = sqlx::query(
        "DELETE FROM deliveries WHERE seq IN (SELECT value FROM json_each(?1))
            AND status <> 'pending' AND completed_at < ?2 AND NOT lane_blocks",
    )
    .bind(sqlx::types::Json(found))
    .bind(before);
    store.execute(PRUNE, query).await
}
